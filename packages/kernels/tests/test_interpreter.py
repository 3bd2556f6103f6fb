"""The tests of `interpreter/` in a process of their own: Triton decides at its import whether it interprets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = {file.stem.removeprefix("test_interpreted_"): file for file in (HERE / "interpreter").glob("test_inter*.py")}
QUICK = ["add_layer_norm", "pair_rows"]


@pytest.mark.parametrize("names", [QUICK, pytest.param(sorted({*FILES} - {*QUICK}), marks=pytest.mark.slow)], ids=len)
def test_kernels_agree_with_their_plain_forms_in_the_interpreter(
    request: pytest.FixtureRequest, names: list[str]
) -> None:
    run(request, *(str(FILES[name]) for name in names))


@pytest.mark.slow
def test_the_tests_for_a_gpu_run_in_the_interpreter(request: pytest.FixtureRequest) -> None:
    """Three ops stand for all, so that a mistake in those tests does not cost time on a GPU."""
    run(request, str(HERE / "gpu"), "-k", "add_layer_norm or gather_tokens or info_nce")


def run(request: pytest.FixtureRequest, *arguments: str) -> None:
    """Run pytest with interpreted kernels."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *arguments, "-p", "no:cacheprovider", "--durations=5"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=request.config.rootpath)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    print(done.stdout[-3000:])
