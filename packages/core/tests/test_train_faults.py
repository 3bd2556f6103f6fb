"""What stops a training, its error message and the files it leaves; and the events that listeners receive."""

from __future__ import annotations

import json

import pytest
import torch

from train_toy import Regression, Samples, plan, train
from vfm.interfaces import load_panels
from vfm.plugin import Context, Runtime, UserError
from vfm.train.loop.guard import REMEMBERED, FiniteGuard, SkippedSamples
from vfm.train.parallel.dist import DistributedWorld, resolve_device


def test_nan_stops_before_the_step_and_names_the_samples(tmp_path):
    task = Regression()
    with pytest.raises(UserError) as raised:
        train(tmp_path / "nan", plan(micro_batch_size=2), task=task, data=Samples(nan=(7, 5)))
    message = str(raised.value)
    assert message.startswith("toy: the loss is not finite at step 8;")
    assert message.endswith("samples: step7-sample4, step7-sample5")
    good, *_ = train(tmp_path / "good", plan(schedule="constant", steps=7))
    seven = Regression()
    with pytest.raises(UserError):
        train(tmp_path / "seven", plan(schedule="constant"), task=seven, data=Samples(nan=(7, 5)))
    assert all(torch.equal(a, b) for a, b in zip(seven.parameters(), good.parameters(), strict=True))


def test_nan_keeps_the_last_checkpoint_and_stops_the_next_run_at_the_same_step(tmp_path):
    settings = plan(checkpoint={"every_steps": 3})
    messages = []
    for _ in range(2):
        with pytest.raises(UserError) as raised:
            train(tmp_path, settings, data=Samples(nan=(7, 5)))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert sorted(path.name for path in (tmp_path / "work").glob("step-*")) == ["step-00000003", "step-00000006"]


def test_gradient_that_is_not_finite_stops_the_training(tmp_path):
    class Steep(Regression):
        def forward(self, inputs):
            loss, metrics = super().forward(inputs)
            return loss + torch.sqrt(self.net[0].bias.sum() * 0.0), metrics  # value 0, gradient infinite times 0

    with pytest.raises(UserError, match="the gradient is not finite at step 1"):
        train(tmp_path, plan(), task=Steep())


def test_many_samples_are_listed_in_a_file(tmp_path):
    with pytest.raises(UserError, match="and 8 more, listed in"):
        train(tmp_path, plan(global_batch_size=16), data=Samples(16, nan=(0, 3)))
    record = json.loads((tmp_path / "work" / "not-finite-00000001.json").read_text())
    assert record["step"] == 1
    assert len(record["keys"]) == 16


def test_no_step_is_taken_after_a_nan_until_the_host_reads_the_flag(tmp_path):
    """On a GPU the host reads the flag every `log_every` steps; until then it must stay set and name the first step."""
    ctx = Context("toy", tmp_path, tmp_path, {})
    guard = FiniteGuard(ctx, DistributedWorld(torch.device("cpu")))
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([param], lr=0.1, fused=True)
    weights = []
    for step in range(5):
        loss = torch.tensor(float("nan") if step == 2 else 1.0)
        param.grad = torch.full((3,), float(loss))
        optimizer.grad_scale = None
        optimizer.found_inf = guard.check(step, [loss], [([f"key{step}"], loss)])
        optimizer.step()
        weights.append(param.detach().clone())
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    assert torch.equal(weights[1], weights[4])
    with pytest.raises(UserError, match=r"not finite at step 3; .*samples: key2$"):
        guard.read()


def test_bad_samples_are_counted_by_reason_and_reported(tmp_path):
    bad = {0: [("truncated", "a.tar:3")], 6: [("truncated", "b.tar:9"), ("too large", "b.tar:11")]}
    _, ctx, events = train(tmp_path, plan(max_bad_fraction=0.1), data=Samples(bad=bad))
    assert dict(ctx.bad) == {"truncated": 2, "too large": 1}
    reported = [event.data for event in events if event.type == "bad_sample"]
    assert reported[0] == {"reason": "truncated", "where": "a.tar:3"}


def test_bad_sample_is_reported_once_but_each_read_counts_towards_the_tolerated_fraction(tmp_path):
    bad = {step: [("truncated", "a.tar:3")] for step in range(0, 12, 2)}
    _, ctx, events = train(tmp_path / "reported", plan(max_bad_fraction=0.1), data=Samples(bad=bad))
    assert dict(ctx.bad) == {"truncated": 1}
    assert [event.data["where"] for event in events if event.type == "bad_sample"] == ["a.tar:3"]
    with pytest.raises(UserError, match=r"6 of 102 reads failed, of 1 samples: truncated \(1\)"):
        train(tmp_path / "stopped", plan(max_bad_fraction=0.05), data=Samples(bad=bad))


def test_too_many_bad_samples_stop_the_training_with_one_line(tmp_path):
    bad = {step: [("truncated", f"shard.tar:{step}.{i}") for i in range(6)] for step in range(12)}
    with pytest.raises(UserError) as raised:
        train(tmp_path, plan(), data=Samples(bad=bad))
    assert str(raised.value) == (
        "toy: 24 of 56 reads failed, of 24 samples: truncated (24); more than loading.max_bad_fraction: 0.05;"
        " the last is shard.tar:3.5 (truncated)"
    )


def test_one_early_bad_sample_does_not_stop_the_training_but_the_final_fraction_counts(tmp_path):
    train(tmp_path / "few", plan(log_every=1), data=Samples(bad={0: [("truncated", "a.tar:0")]}))
    every_step = {step: [("truncated", f"a.tar:{step}")] for step in range(12)}
    with pytest.raises(UserError, match="12 of 108 reads failed, of 12 samples"):
        train(tmp_path / "many", plan(steps=12, log_every=12), data=Samples(bad=every_step))


def test_data_that_ends_early_is_an_error(tmp_path):
    class Short(Samples):
        def steps(self, start_step, num_steps, **rest):
            return super().steps(start_step, 3, **rest)

    with pytest.raises(UserError, match="the data ends after step 3 of 12"):
        train(tmp_path, plan(), data=Short())


def test_data_is_closed_after_success_and_after_failure(tmp_path):
    good, broken = Samples(), Samples(nan=(3, 0))
    train(tmp_path / "good", plan(), data=good)
    with pytest.raises(UserError):
        train(tmp_path / "broken", plan(), data=broken)
    assert good.closed
    assert broken.closed


def test_listeners_receive_metrics_and_progress_every_log_every_steps(tmp_path):
    task, _, events = train(tmp_path, plan(steps=10))
    metrics = [event.data for event in events if event.type == "metrics"]
    assert [data["step"] for data in metrics] == [4, 8, 10]
    assert [data["samples"] for data in metrics] == [32, 64, 80]
    assert {"train/loss", "train/guess", "train/lr", "train/grad_norm"} <= set(metrics[0]["values"])
    assert {"train/samples_per_second", "train/data_wait_pct", "sys/mem_gib"} <= set(metrics[0]["values"])
    progress = [event.data for event in events if event.type == "progress"]
    assert (progress[-1]["done"], progress[-1]["total"], progress[-1]["unit"]) == (10, 10, "steps")
    assert set(progress[-1]["shown"]) == {"loss", "lr", "samples_per_second"}
    assert task.clamped == 10


def test_logged_loss_is_the_mean_since_the_last_line(tmp_path):
    def losses(log_every):
        train(tmp_path / str(log_every), plan(log_every=log_every))
        lines = (tmp_path / str(log_every) / "part" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["train/loss"] for line in lines]

    single, fours = losses(1), losses(4)
    assert fours == pytest.approx([sum(single[i : i + 4]) / 4 for i in (0, 4, 8)])


def test_metric_lines_hold_no_times_and_panels_show_the_curves(tmp_path):
    train(tmp_path, plan())
    line = json.loads((tmp_path / "part" / "metrics.jsonl").read_text().splitlines()[0])
    values = ("loss", "guess", "power", "grad_norm", "lr")
    assert set(line) == {"step", "samples", "split", *(f"train/{name}" for name in values)}
    panels = load_panels(tmp_path / "part")
    assert [panel.title for panel in panels] == ["Training loss", "Gradient norm", "Learning rate", "Guess", "Power"]
    assert panels[0].series[0].x == [4, 8, 12]


def test_a_metric_that_a_task_no_longer_gives_is_none_in_the_log(tmp_path):
    class Partial(Regression):
        def forward(self, inputs):
            loss, metrics = super().forward(inputs)
            return loss, metrics if self.clamped < 2 else {}

    train(tmp_path, plan(), task=Partial())
    lines = [json.loads(line) for line in (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/guess"] is None for line in lines] == [False, True, True]
    assert None not in [line["train/loss"] for line in lines]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_missing_device_is_refused():
    with pytest.raises(UserError, match=r"runtime\.device: no CUDA device"):
        resolve_device(Runtime(device="cuda"))
    assert resolve_device(Runtime()) == torch.device("cpu")


def test_algorithms_are_deterministic_only_during_the_training(tmp_path):
    recorded = []

    class Recording(Regression):
        def after_step(self):
            recorded.append(torch.are_deterministic_algorithms_enabled())

    train(tmp_path, plan(steps=1), task=Recording())
    assert recorded == [True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_training_reduces_the_loss(tmp_path):
    train(tmp_path, plan(steps=300, log_every=100))
    lines = (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["train/loss"] < 0.02 < json.loads(lines[0])["train/loss"]


def test_memory_of_bad_samples_is_bounded_and_their_counts_go_on(tmp_path):
    def skipped(ctx: Context) -> SkippedSamples:
        return SkippedSamples(ctx, plan(max_bad_fraction=1.0), DistributedWorld(torch.device("cpu")))

    contexts = [Context("toy", tmp_path, tmp_path, {}) for _ in range(2)]
    first, second = map(skipped, contexts)
    first.pending = [("truncated", f"shard.tar:{number}") for number in range(REMEMBERED + 5)]
    first.report(1, 8)
    second.restore(json.loads(json.dumps(first.state())))
    second.pending = [("truncated", "shard.tar:0"), ("truncated", f"shard.tar:{REMEMBERED}")]
    second.report(2, 16)
    assert len(second.state()["samples"]) == REMEMBERED
    assert contexts[0].bad == {"truncated": REMEMBERED + 5}
    assert contexts[1].bad == {"truncated": REMEMBERED + 6}  # a sample that is not remembered counts at each read


def test_checkpoint_of_an_older_version_counts_the_samples_that_it_lists(tmp_path):
    ctx = Context("toy", tmp_path, tmp_path, {})
    skipped = SkippedSamples(ctx, plan(), DistributedWorld(torch.device("cpu")))
    skipped.restore({"reads": 3, "samples": [["truncated", "a"], ["truncated", "b"]]})
    assert ctx.bad == skipped.state()["counts"] == {"truncated": 2}
