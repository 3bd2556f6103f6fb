"""What is measured of a training: operations, a trace of some steps, and what took the memory when none is left."""

from __future__ import annotations

import gzip
import json
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from train_toy import Plan, Regression, Samples, plan, train
from vfm.base import UserError
from vfm.interfaces import Context, TrainingRuntime
from vfm.train.cost.live_bytes import LiveBytes
from vfm.train.cost.peaks import peak_tflops
from vfm.train.cost.throughput import Throughput
from vfm.train.loop import profiling
from vfm.train.loop.memory import remedy
from vfm.train.parallel.dist import DistributedWorld

CPU = torch.device("cpu")


def test_operations_of_a_step_are_those_of_its_matrix_products(tmp_path):
    counted = Throughput(CPU, TrainingRuntime(), half=False)
    task = Regression()
    for _ in range(2):  # counted once
        with counted.counting():
            task(Samples().batch(0, range(8)).inputs)[0].backward()
    forward = 2 * 8 * (4 * 16 + 16 * 1)
    assert counted.flops == 2 * forward + 2 * 8 * 16  # weights' gradients; the first layer's inputs need none
    assert counted.reached(10, 2.0) == {"train/tflops": round(counted.flops * 5 / 1e12, 4)}
    _, _, events = train(tmp_path, plan())
    assert all("train/tflops" in event.data["values"] for event in events if event.type == "metrics")


@pytest.mark.parametrize("selective", [False, True])
def test_what_checkpointing_computes_again_is_not_an_operation_of_the_model(selective: bool) -> None:
    plain, counted = (Throughput(CPU, TrainingRuntime(), half=False) for _ in range(2))
    layers = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    x = torch.ones(5, 8, requires_grad=True)
    with plain.counting():
        layers(x).sum().backward()
    contexts = {"context_fn": partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])}
    with counted.counting():
        checkpoint(layers, x, use_reentrant=False, **(contexts if selective else {})).sum().backward()
    assert plain.repeated == 0
    assert counted.flops - counted.repeated == plain.flops
    assert counted.repeated == (0 if selective else 2 * 5 * 8 * 32)  # the last product is not needed again


def test_attention_on_a_cpu_counts_and_its_backward_pass_computes_the_weights_again():
    counted, bytes_too = Throughput(CPU, TrainingRuntime(), half=False), LiveBytes()
    query, key, value = (torch.ones(2, 3, 8, 16, requires_grad=True) for _ in range(3))
    with counted.counting(), bytes_too:
        F.scaled_dot_product_attention(query, key, value).sum().backward()
    products = 2 * (2 * 3) * 8 * 8 * 16  # operations of one matrix product
    assert counted.flops == bytes_too.flops == (2 + 5) * products


def test_peaks_are_those_of_the_data_sheets():
    assert peak_tflops("NVIDIA H100 80GB HBM3", half=True) == 989.0
    assert peak_tflops("NVIDIA H100 PCIe", half=True) == 756.0
    assert peak_tflops("NVIDIA A100-SXM4-80GB", half=False) == 156.0
    assert peak_tflops("NVIDIA L40S", half=True) == 362.0
    assert peak_tflops("Some other device", half=True) is None


def test_counting_and_profiling_change_no_bit_and_the_trace_has_the_steps(tmp_path, monkeypatch):
    watched, *_ = train(tmp_path / "watched", plan(runtime={"device": "cpu", "profile": [3, 4]}), task=Regression(0.2))
    monkeypatch.setattr(Throughput, "counting", lambda self: nullcontext())
    plain, *_ = train(tmp_path / "plain", plan(), task=Regression(0.2))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name])
    (file,) = (tmp_path / "watched" / "part" / "profile").iterdir()
    assert file.name == "steps-3-4.json.gz"
    names = [event.get("name") for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]]
    assert names.count("aten::mse_loss") == 2
    for phase in ("read", "forward", "backward", "optimizer"):
        assert names.count(f"vfm: {phase}") == 2


def test_nsight_records_from_the_first_step_to_the_last_even_if_that_fails(tmp_path, monkeypatch):
    """The calls that would drive Nsight on a GPU, in their order."""
    calls = []

    class Ranges:
        def __enter__(self):
            calls.append("ranges")

        def __exit__(self, *error):
            calls.append("no ranges")

    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: calls.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: calls.append("stop"))
    monkeypatch.setattr(profiling, "emit_nvtx", Ranges)
    runtime = TrainingRuntime(profile=(3, 4), profiler="nsys")
    ctx = Context("toy", tmp_path, tmp_path, {})
    profiler = profiling.StepProfiler(runtime, ctx, DistributedWorld(torch.device("cuda")), 0)
    for step in range(1, 7):
        profiler.before(step)
        calls.append(step)
        profiler.after(step)
    assert calls == [1, 2, "start", "ranges", 3, 4, "no ranges", "stop", 5, 6]
    profiler.before(3)
    profiler.close()
    profiler.close()
    assert calls[10:] == ["start", "ranges", "no ranges", "stop"]
    with pytest.raises(UserError, match=r"toy: runtime\.profiler: nsys needs a CUDA device, got cpu"):
        train(tmp_path, plan(runtime={"device": "cpu", "profile": [3, 4], "profiler": "nsys"}))


def test_waits_are_reported_in_the_passes_only(monkeypatch):
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with profiling.waits_reported("error", torch.device("cuda")):
        assert modes == ["default", "error"]
    assert modes == ["default", "error", "default"]
    for mode, device in ((None, "cuda"), ("warn", "cpu")):
        with profiling.waits_reported(mode, torch.device(device)):
            assert len(modes) == 3


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"compile_mode": "max-autotune"}, "compile_mode: max-autotune needs compile: blocks or whole"),
        ({"profiler": "nsys"}, "profiler: nsys needs profile, the first and last step to record"),
    ],
)
def test_settings_that_need_another_one_say_so(runtime, message):
    with pytest.raises(ValidationError, match=message):
        TrainingRuntime(**runtime)


def test_profiled_steps_that_are_not_taken_are_a_line(tmp_path):
    with pytest.raises(ValidationError, match=r"runtime.profile: expected two of the steps 1 to 12, got \[11, 13\]"):
        plan(runtime={"device": "cpu", "profile": [11, 13]})
    settings = plan(runtime={"device": "cpu", "profile": [4, 5]}, checkpoint={"every_steps": 2})
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings, data=Samples(stop=4))
    _, _, events = train(tmp_path, settings)
    (line,) = [event.data["message"] for event in events if event.type == "warning"]
    assert line == "runtime.profile: steps 4 to 5 have no trace: this run starts after step 4"


class Shardable(Plan):
    can_shard = True


class Exhausted(Regression):
    """Runs out of memory in its fourth step."""

    def before_step(self, step: int) -> None:
        if step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_after_no_memory_is_left_a_line_says_what_took_it_and_what_frees_how_much(tmp_path):
    with pytest.raises(UserError) as caught:
        train(tmp_path, plan(ema_decay=0.9, checkpoint={"every_steps": 2}), task=Exhausted())
    message = str(caught.value)
    assert message.startswith(
        "toy: out of memory on cpu at step 4, in GiB: weights 0.00, gradients 0.00, optimizer 0.00,"
    )
    assert "--set toy.micro_batch_size=4 frees about " in message
    facts = json.loads((tmp_path / "work" / "out-of-memory-0.json").read_text())
    assert facts["step"] == 4
    params = sum(param.numel() for param in Regression().parameters())
    assert facts["gib"]["weights"] * 2**30 == pytest.approx(4 * params)
    assert facts["gib"]["averages"] * 2**30 == pytest.approx(4 * params)
    assert facts["gib"]["optimizer"] * 2**30 == pytest.approx(8 * params, rel=0.1)  # two moments, and counts of steps
    resumed, *_ = train(tmp_path, plan(ema_decay=0.9, micro_batch_size=4))  # goes on from step 2
    whole, *_ = train(tmp_path / "whole", plan(ema_decay=0.9))
    for a, b in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_remedies_are_ordered_by_what_they_free():
    parts = {"weights": 4.0, "gradients": 4.0, "optimizer": 8.0, "averages": 0.0, "activations": 6.0}
    settings = plan(micro_batch_size=8)
    line = remedy(settings, parts, 8, 1)
    assert line.startswith(
        "--set toy.micro_batch_size=4 frees about 3.00 GiB, --set toy.grad_checkpointing=true frees most"
    )
    sharded = remedy(Shardable(**settings.model_dump()), parts, 8, 4)
    assert sharded.startswith("--set toy.runtime.parallel=fsdp frees about 12.00 GiB, --set toy.micro_batch_size=4")
    one = remedy(plan(micro_batch_size=1, grad_checkpointing=True), parts, 1, 1)
    assert one.startswith("a model or an image size that is smaller is needed")
