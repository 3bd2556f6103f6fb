"""Every loss has the whole batch's gradient in micro-batches, in chunks, in two and in four processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_world import (
    EVA,
    LOSSES,
    Random,
    assert_twins,
    gradients,
    in_processes,
    noisy,
    plan,
    tiny_task,
    tiny_teacher,
    train,
)

NOISY = noisy(EVA)  # patch dropout and drop path
SIZES = [(2, None), (None, None), (2, 5)]  # (micro_batch_size, chunk_size)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("micro_batch_size", "chunk_size"), [(5, None), (5, 4), (12, 4)])
def test_micro_batches_and_chunks_have_the_gradient_of_one_graph_over_all(
    tmp_path: Path, loss: str, micro_batch_size: int, chunk_size: int | None
) -> None:
    task = tiny_task(NOISY, loss, chunk_size=chunk_size)
    train(tmp_path, plan(micro_batch_size=micro_batch_size), task)
    assert_twins(gradients(task), NOISY, micro_batch_size, loss=loss)


@pytest.fixture(scope="module", params=[2, 4])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Compute the gradients of all losses in several processes; return their number and the folder."""
    world_size, root = request.param, tmp_path_factory.mktemp("made")
    jobs = [
        {"config": NOISY, "loss": loss, "folder": f"{loss}-{size}-{chunk}"}
        | {"micro_batch_size": size, "chunk_size": chunk}
        for loss in LOSSES
        for size, chunk in SIZES
    ]
    in_processes(world_size, root, jobs)
    return world_size, root


@pytest.mark.parametrize(("micro_batch_size", "chunk_size"), SIZES)
@pytest.mark.parametrize("loss", LOSSES)
def test_processes_have_the_gradient_of_one_graph_over_all(
    made: tuple[int, Path], loss: str, micro_batch_size: int | None, chunk_size: int | None
) -> None:
    world_size, root = made
    ours = load_file(root / f"{loss}-{micro_batch_size}-{chunk_size}" / "gradients.safetensors")
    share = 12 // world_size
    assert_twins(ours, NOISY, micro_batch_size or share, world_size=world_size, loss=loss)


def test_a_teacher_is_unchanged_and_in_no_checkpoint(tmp_path: Path) -> None:
    task = tiny_task(EVA, "distillation")
    assert task.teacher
    assert len(task.state_dict()) == len(tiny_task(EVA).state_dict())
    train(tmp_path, plan(steps=2, micro_batch_size=4), task)
    before = tiny_teacher(EVA).module.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in task.teacher.module.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in task.teacher.module.parameters())


def test_distillation_from_the_student_itself_adds_no_gradient() -> None:
    """Check that the cross-entropy with one's own distribution has no gradient."""
    task, alone = tiny_task(EVA, "distillation"), tiny_task(EVA)
    task.teacher = alone.model
    inputs = Random(EVA, 12).batch(0).inputs
    for each in (task, alone):
        each.eval()
        each(inputs)[0].backward()
    assert_twins(gradients(task), EVA, 12, plain=gradients(alone))
