"""The example of the README runs and says what it should."""

import re
from pathlib import Path

import pytest


def test_python_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(code, {})
    kept, expected = map(float, re.findall(r"[\d.]+", capsys.readouterr().out))
    assert abs(kept - expected) < 25
    assert 0 < kept < 200
