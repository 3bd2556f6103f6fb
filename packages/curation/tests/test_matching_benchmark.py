"""The benchmark of matching runs, and fails if methods disagree."""

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "matching.py"
WORDS = ["dog", "red car", "lighthouse", "snow", "boat", "tree", "old man", "street", "okapi", "cloud"]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    pytest.importorskip("ahocorasick")
    sys.path.insert(0, str(FILE.parent))  # as for a script, for what the benchmarks share
    spec = importlib.util.spec_from_file_location("matching_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    for kind in ("noun", "verb", "adj", "adv"):
        lines = [f"{i:08d} 03 n 01 {word.replace(' ', '_')} 0 000 | a gloss" for i, word in enumerate(WORDS * 3)]
        made = [f"{i:08d} 03 n 01 made{kind}{i} 0 000 | a gloss" for i in range(200)]
        (tmp_path / f"data.{kind}").write_text("\n".join(["  1 a licence", *lines, *made]) + "\n", encoding="utf-8")
    captions = [f"here\ta photo of the {WORDS[i % 10]}, {WORDS[i % 7]} {i % 50}!" for i in range(400)]
    (tmp_path / "captions.tsv.gz").write_bytes(gzip.compress("\n".join(captions).encode()))
    return [
        "--quick",
        "--captions",
        str(tmp_path / "captions.tsv.gz"),
        "--wordnet",
        str(tmp_path),
        "--out",
        str(tmp_path),
    ]


def test_quick_benchmark_compares_all_methods(benchmark: ModuleType, arguments: list[str], tmp_path: Path) -> None:
    benchmark.main(arguments)
    record = json.loads((tmp_path / "matching.json").read_text(encoding="utf-8"))
    assert record["captions"] == 400
    densities = [row["matches_a_text"] for row in record["results"].values()]
    assert densities == sorted(densities)
    for row in record["results"].values():
        assert row["entries"] == 2000
        assert all(min(row[f"{method}_texts_per_second"]) > 0 for method in ("table", "pyahocorasick", "loop"))
    assert (tmp_path / "matching.md").read_text(encoding="utf-8").count("\n| WordNet") == 3


def test_a_disagreement_is_an_error(benchmark: ModuleType) -> None:
    with pytest.raises(AssertionError, match=r"dictionary: text 1 has \[2\], not \[2, 3\]"):
        benchmark.agree("dictionary", [[1], [2]], iter([{1}, {2, 3}]))
