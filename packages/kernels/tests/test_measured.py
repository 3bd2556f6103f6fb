"""`auto` takes a kernel of ours only where a row of the table says that it won; the table is written from results."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from vfm_kernels.dispatch import measured
from vfm_kernels.dispatch.measured import Measurement, is_measured_faster
from vfm_kernels.multihead import libraries
from vfm_kernels.multihead.backends import first_choice
from vfm_kernels.multihead.problem import Problem

HOPPER = Problem((8, 257, 16, 64), torch.bfloat16, "cuda", (9, 0), (), 257)
ABOUT = {"card": "NVIDIA H100, sm_90, 80 GiB", "versions": "torch 2.10"}


@pytest.fixture
def table(monkeypatch):
    """Return a function that puts rows in the table, beside a machine with torch's own attention only."""
    monkeypatch.setattr(libraries, "import_reasons", lambda module: (f"{module} is not installed",))
    monkeypatch.setattr(libraries, "cudnn_version", lambda: 91501)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def put(*rows: Measurement) -> None:
        monkeypatch.setattr(measured, "measurements", lambda: rows)

    put()
    return put


def attention_row(fastest: str, **changes) -> Measurement:
    row = Measurement("attention", "sm_90", 64, fastest, fastest, 1.2, "H100", "torch 2.10", num_tokens=257)
    return dataclasses.replace(row, **changes)


def test_every_checked_in_row_names_its_card_and_a_known_backend():
    """Rows come from a GPU; as long as none has been measured, the table is empty and `auto` takes no kernel."""
    for row in measured.measurements():
        assert row.card
        assert row.versions
        assert row.ratio > 0


def test_without_a_measurement_auto_takes_sdpa(table):
    assert first_choice(HOPPER, "auto") == "sdpa_cudnn"
    assert first_choice(HOPPER, "triton") == "triton_short"
    assert first_choice(dataclasses.replace(HOPPER, varlen=True), "auto") == "sdpa_efficient"


def test_a_measurement_holds_for_its_architecture_width_kind_and_number_of_tiles(table):
    table(attention_row("triton_short"))
    assert first_choice(HOPPER, "auto") == "triton_short"
    assert first_choice(dataclasses.replace(HOPPER, shape=(8, 272, 16, 64), longest=272), "auto") == "triton_short"
    for changes in (
        {"shape": (8, 256, 16, 64), "longest": 256},
        {"shape": (8, 257, 16, 72)},
        {"capability": (8, 0)},
        {"causal": True},
        {"rope": True},
    ):
        assert first_choice(dataclasses.replace(HOPPER, **changes), "auto").startswith("sdpa"), changes


def test_a_measured_library_is_taken_before_the_estimated_order(table):
    table(attention_row("sdpa_flash"))
    assert first_choice(HOPPER, "auto") == "sdpa_flash"
    table(attention_row("fa3"))  # measured, but not installed here
    assert first_choice(HOPPER, "auto") == "sdpa_cudnn"


def test_other_ops_need_a_row_of_their_width_against_eager_or_compiled_torch(table):
    table(Measurement("swiglu_subln", "sm_90", 2730, "ours", "torch.compile", 1.4, "H100", "torch 2.10"))
    cuda = torch.device("cuda")
    assert is_measured_faster("swiglu_subln", cuda, 2048 + 1, compiled=False)
    assert not is_measured_faster("swiglu_subln", cuda, 2730, compiled=True)
    assert not is_measured_faster("swiglu_subln", cuda, 2048, compiled=False)
    assert not is_measured_faster("add_layer_norm", cuda, 2730, compiled=False)


@pytest.fixture
def filler(monkeypatch):
    """Return the script's module and `Row`, which are in no package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    for name in ("fill_table", "records", "timing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("fill_table")
    for name in ("fill_table", "records", "timing"):
        sys.modules.pop(name, None)


def test_the_table_is_written_from_results(filler, tmp_path, monkeypatch):
    def rows(op: str, shape: str, **times: float) -> list:
        return [
            filler.Row(op, shape, direction, name, 1e-3, time)
            for name, time in times.items()
            for direction in ("forward", "backward")
        ]

    compiled = {"torch.compile": 0.9}
    results = [
        *rows("attention", "(256,257,16,64)", triton_short=1.0, sdpa_cudnn=1.5, sdpa_flash=1.2),
        *rows("attention", "(256,257,16,64) rope", triton_short=1.0, sdpa_cudnn=1.02),
        *rows("attention", "(512,77,12,64) causal", triton_stream=1.0, fa3=2.0),
        *rows("attention", "(1,35456,16,64) crops", triton_stream=3.0, sdpa_efficient=2.0),
        *rows("swiglu_subln", "(65792,2730 in 2752)", ours=1.0, torch=3.0, **compiled),
        *rows("add_layer_norm", "(256,257,1024) bfloat16 stream", ours=0.5, torch=3.0, **compiled),
        *rows("gather_tokens", "(256,64 of 256,1024)", ours=1.0, torch=3.0),
        *rows("info_nce", "(32768,1024)", ours=1.0, torch=3.0),
        filler.Row("siglip_loss", "(32768,1024)", "forward", "ours", 1e-3, 1.0),  # its backward failed
    ]
    table = filler.Table(tmp_path / "kernels.csv", filler.Row)
    table.drop("")
    for row in results:
        table.append(row)
    (tmp_path / "about.json").write_text(json.dumps(ABOUT))
    other = dataclasses.asdict(attention_row("sdpa_cudnn", architecture="sm_80"))
    stale = dataclasses.asdict(attention_row("fa3"))
    (tmp_path / "measured.json").write_text(json.dumps([other, stale]))
    monkeypatch.setattr(
        sys, "argv", ["fill_table.py", "--results", str(tmp_path), "--table", f"{tmp_path}/measured.json"]
    )
    filler.main()
    written = [Measurement(**row) for row in json.loads((tmp_path / "measured.json").read_text())]
    assert written[0] == attention_row("sdpa_cudnn", architecture="sm_80")
    found = {(row.op, row.width, row.num_tokens, row.rope, row.causal, row.varlen): row for row in written[1:]}
    fastest = {key: (row.fastest, row.fastest_compiled) for key, row in found.items()}
    assert fastest == {
        ("attention", 64, 257, False, False, False): ("triton_short", "triton_short"),
        ("attention", 64, 257, True, False, False): ("sdpa_cudnn", "sdpa_cudnn"),  # within the margin
        ("attention", 64, 77, False, True, False): ("triton_stream", "triton_stream"),
        ("attention", 64, 257, False, False, True): ("sdpa_efficient", "sdpa_efficient"),
        ("swiglu_subln", 2730, 0, False, False, False): ("ours", "torch.compile"),
        ("add_layer_norm", 1024, 0, False, False, False): ("ours", "ours"),
        ("gather_tokens", 1024, 0, False, False, False): ("ours", "ours"),
        ("info_nce", 32768, 0, False, False, False): ("ours", "ours"),
    }
    assert found["attention", 64, 257, False, False, False].ratio == 1.2


def test_results_of_a_cpu_fill_no_table(filler):
    row = filler.Row("swiglu_subln", "(8,16 in 32)", "forward", "ours", 1e-3, 1.0)
    assert filler.measurements([row], {"card": "a CPU", "versions": ""}) == []
