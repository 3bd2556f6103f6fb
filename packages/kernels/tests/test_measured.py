"""`auto` takes a kernel of ours only where the table says that it won; the table is written from results."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from vfm_kernels.dispatch import dispatch, measured
from vfm_kernels.dispatch.choosing import Measurement, Size
from vfm_kernels.dispatch.measured import gains, is_measured_faster
from vfm_kernels.multihead import libraries
from vfm_kernels.multihead.backends import first_choice
from vfm_kernels.multihead.problem import Problem

HOPPER = Problem((256, 257, 16, 64), torch.bfloat16, "cuda", (9, 0), (), 257, card="NVIDIA H100")
CUDA = torch.device("cuda")


@pytest.fixture
def table(monkeypatch):
    """Return a function that puts rows in the table, beside a machine with torch's own attention only."""
    monkeypatch.setattr(libraries, "import_reasons", lambda module: (f"{module} is not installed",))
    monkeypatch.setattr(libraries, "cudnn_version", lambda: 91501)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")

    def put(*rows: Measurement) -> None:
        monkeypatch.setattr(measured, "measurements", lambda: rows)
        monkeypatch.setattr(dispatch, "measurements", lambda: rows)

    put()
    return put


def measurement(op: str, width: int, length: int, **times: float) -> Measurement:
    spread = {name: [time] * 3 for name, time in times.items()}
    rows = 4096 if length else 65536
    return Measurement(op, "forward", rows, length, width, "bfloat16", "NVIDIA H100", measured.versions(), spread)


def attention_row(**times: float) -> Measurement:
    return measurement("attention", 64, 257, **times)


def test_every_checked_in_row_names_its_card_and_has_times():
    """Rows come from a GPU. As long as none has been measured, the table is empty and `auto` takes no kernel."""
    for row in measured.measurements():
        assert row.card
        assert row.versions
        assert all(low <= median <= high for median, low, high in row.times.values())


def test_without_a_measurement_auto_takes_sdpa(table):
    assert first_choice(HOPPER, "auto") == "sdpa_cudnn"
    assert first_choice(HOPPER, "triton") == "triton_short"
    assert first_choice(dataclasses.replace(HOPPER, varlen=True), "auto") == "sdpa_efficient"


def test_a_measurement_holds_for_its_card_versions_and_direction(table):
    row = attention_row(triton_short=1.0, sdpa_cudnn=1.5)
    table(row)
    assert first_choice(HOPPER, "auto") == "triton_short"
    for changes in ({"card": "NVIDIA A100"}, {"backward": True}, {"causal": True}, {"dtype": torch.float16}):
        assert first_choice(dataclasses.replace(HOPPER, **changes), "auto").startswith("sdpa"), changes
    table(dataclasses.replace(row, versions="torch 2.9.0, triton 3.5.0"))
    assert first_choice(HOPPER, "auto") == "sdpa_cudnn"


def test_a_measured_library_is_taken_before_the_estimated_order(table):
    table(attention_row(triton_short=1.0, sdpa_flash=0.9, sdpa_cudnn=1.0))
    assert first_choice(HOPPER, "auto") == "sdpa_flash"
    table(attention_row(triton_short=1.0, fa3=0.9))  # measured, but not installed here
    assert first_choice(HOPPER, "auto") == "sdpa_cudnn"


def test_other_ops_need_a_row_of_their_width_against_eager_or_compiled_torch(table):
    table(measurement("swiglu_subln", 2730, 0, **{"ours": 1.0, "torch": 3.0, "torch.compile": 0.9}))

    def faster(op: str, width: int, compiled: bool = False, rows: int = 65536) -> bool:
        return is_measured_faster(CUDA, Size(op, rows, 0, width, "bfloat16", compiled=compiled))

    assert faster("swiglu_subln", 2048 + 1)
    assert not faster("swiglu_subln", 2730, compiled=True)
    assert not faster("swiglu_subln", 2048)
    assert not faster("swiglu_subln", 2730, rows=64)
    assert not faster("add_layer_norm", 2730)
    assert gains("swiglu_subln", CUDA, 2730) == [2.0]
    assert gains("swiglu_subln", CUDA, 2048) == []


@pytest.fixture
def filler(monkeypatch):
    """Return the script's module and `Row`, which are in no package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    for name in ("fill_table", "records", "timing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("fill_table")
    for name in ("fill_table", "records", "timing"):
        sys.modules.pop(name, None)


ABOUT = {"card": "NVIDIA H100, sm_90, 80 GiB", "installed": "torch 2.10.0, triton 3.6.0", "versions": ""}


def results(filler, op: str, size: list, directions=("forward", "backward"), **times: float) -> list:
    about = {"low": 0.5, "high": 9.0, "size": json.dumps(size)}
    return [
        filler.Row(op, str(size), direction, name, 1e-3, time, **about)
        for name, time in times.items()
        for direction in directions
    ]


def test_the_table_is_written_from_results_and_keeps_other_cards(filler, tmp_path, monkeypatch, capsys):
    short, crops = [4096, 257, 64, "bfloat16", []], [1024, 257, 64, "bfloat16", ["varlen"]]
    table = filler.Table(tmp_path / "kernels.csv", filler.Row)
    for row in [
        *results(filler, "attention", short, triton_short=1.0, sdpa_cudnn=1.5),
        *results(filler, "attention", crops, directions=["forward"], triton_stream=3.0, sdpa_efficient=2.0),
        *results(filler, "swiglu_subln", [65792, 0, 2752, "bfloat16", []], torch=3.0),  # ours failed
    ]:
        table.append(row)
    (tmp_path / "about.json").write_text(json.dumps(ABOUT))
    other = dataclasses.asdict(dataclasses.replace(attention_row(fa3=1.0), card="NVIDIA A100"))
    stale = other | {"card": "NVIDIA H100", "versions": ABOUT["installed"]}
    (tmp_path / "measured.json").write_text(json.dumps([other, stale]))
    arguments = ["fill_table.py", "--results", str(tmp_path), "--table", str(tmp_path / "measured.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        filler.main()
    assert ended.value.code == 0
    assert "3 rows of NVIDIA H100 with torch 2.10.0, triton 3.6.0" in capsys.readouterr().out
    first, *written = json.loads((tmp_path / "measured.json").read_text())
    assert first == other
    assert [(row["op"], row["direction"], row["rows"], row["kind"]) for row in written] == [
        ("attention", "forward", 4096, []),
        ("attention", "backward", 4096, []),
        ("attention", "forward", 1024, ["varlen"]),
    ]
    assert written[0]["times"] == {"triton_short": [1.0, 0.5, 9.0], "sdpa_cudnn": [1.5, 0.5, 9.0]}
    assert [Measurement(**row).card for row in written] == ["NVIDIA H100"] * 3


def test_results_of_a_cpu_fill_no_table(filler):
    rows = results(filler, "swiglu_subln", [8, 0, 16, "bfloat16", []], ours=1.0, torch=3.0)
    assert filler.measurements(rows, {"card": "a CPU", "installed": ""}) == []


def test_other_versions_are_measured_into_another_folder(filler, monkeypatch):
    monkeypatch.setenv("OUT", "out")
    assert str(filler.folder_of("NVIDIA H100 80GB", "torch 2.10.0+cu128, triton 3.6.0")) == (
        "out/nvidia-h100-80gb-torch-2.10.0-cu128-triton-3.6.0"
    )
