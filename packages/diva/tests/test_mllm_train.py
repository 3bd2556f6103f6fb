"""`mllm.train` and `eval.mllm`: what is trained, the order of the data, resuming, controls, and a model that learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

import diva_toy
import mllm_toy
from vfm.data import Question, Questions, write_questions
from vfm.models import build_clip, load_clip, save_clip
from vfm.models.interchange.descriptions import describe_weights
from vfm.plugin import AllWeights, ClipCheckpoint, Context, Preflight, QuestionDataset, UserError

pytest.importorskip("transformers")

from vfm_diva.mllm.batches import QuestionBatches
from vfm_diva.mllm.model import Mllm, Reading, build_mllm, load_mllm
from vfm_diva.mllm.stages import SmallLlama
from vfm_diva.mllm.task import MllmTask
from vfm_diva.mllm.train import build


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> QuestionDataset:
    return mllm_toy.make_questions(tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> QuestionDataset:
    return mllm_toy.make_questions(tmp_path_factory.mktemp("held_out"), split="test")


def built(
    clip: ClipCheckpoint, asked: QuestionDataset, seed: int = 0, layers: int = 1, width: int = 32
) -> tuple[Mllm, QuestionBatches]:
    texts = {text for item in Questions(asked).items for text in (item.text, *item.options)}
    llama = SmallLlama(layers=layers, width=width, heads=2)
    model = build_mllm(load_clip(clip), llama, sorted(texts), Reading(prompt=mllm_toy.PROMPT), seed)
    return model, QuestionBatches(Questions(asked), model.encoder, model.preprocess, seed, 12)


@pytest.mark.slow
def test_a_model_learns_colours_and_without_images_it_gets_no_pair_right(
    tmp_path: Path, clip: ClipCheckpoint, asked: QuestionDataset, held_out: QuestionDataset
) -> None:
    trained = mllm_toy.train(tmp_path / "trained", clip, asked, steps=120, global_batch_size=24)
    start = mllm_toy.train(tmp_path / "start", clip, asked, steps=1, lr=0.0)
    models = {"start": start, "trained": trained}
    report = mllm_toy.evaluate(tmp_path / "seen", held_out, models)
    before, after = (mllm_toy.values(report, name) for name in models)
    assert after["pair_accuracy"] > 0.9
    assert before["pair_accuracy"] < 0.5
    (pairs, *_) = [one for one in report.comparisons if one.metric == "pair_accuracy"]
    assert pairs.model == "trained"
    assert pairs.p_value < 0.01
    blind = mllm_toy.values(mllm_toy.evaluate(tmp_path / "blind", held_out, models, blind=True), "trained")
    assert blind["pair_accuracy"] == 0
    assert blind["accuracy"] == 0.5
    table = pq.read_table(report.path / "predictions/questions.parquet").to_pylist()
    assert len(table) == 2 * len(Questions(held_out))
    best = [row for row in table if row["model"] == "trained" and row["correct"]]
    assert all(row["predicted"] == row["answer"] for row in best)


def test_only_what_is_named_changes(tmp_path: Path, clip: ClipCheckpoint, asked: QuestionDataset) -> None:
    start, _ = built(clip, asked, layers=2)
    two_blocks = {**mllm_toy.LLAMA, "layers": 2}
    aligned = mllm_toy.train(
        tmp_path / "aligned", clip, asked, trained={"type": "frozen"}, layer=-2, language_model=two_blocks
    )
    first = load_mllm(aligned)
    config = mllm_toy.train_config(init="first")
    second = load_mllm(diva_toy.run(config, tmp_path / "second", first=aligned, asked=asked))

    def changed(before: Mllm, after: Mllm) -> set[str]:
        old, new = before.llava.state_dict(), after.llava.state_dict()
        parts = {name: name.removeprefix("model.").split(".")[0] for name in old}
        return {parts[name] for name in old if not torch.equal(old[name], new[name])}

    for trained in ({"type": "last_blocks", "blocks": 1}, {"type": "lora", "rank": 2}):
        if trained["type"] == "lora":
            pytest.importorskip("peft")
        config = mllm_toy.train_config(init="first", trained=trained)
        part = load_mllm(diva_toy.run(config, tmp_path / str(trained["type"]), first=aligned, asked=asked))
        names = {name for name, old in first.llava.state_dict().items() if not old.equal(part.llava.state_dict()[name])}
        language = {name.removeprefix("model.language_model.") for name in names if "language_model" in name}
        assert {name.split(".")[1] for name in language if name.startswith("layers.")} == (
            {"1"} if trained["type"] == "last_blocks" else {"0", "1"}
        )
        assert not any(name.startswith("embed_tokens") for name in language)
    assert changed(start, first) == {"multi_modal_projector"}
    assert changed(first, second) == {"multi_modal_projector", "language_model", "lm_head"}
    assert second.facts.model_dump() == first.facts.model_dump()


def test_micro_batches_have_the_gradient_of_the_large_batch(clip: ClipCheckpoint, asked: QuestionDataset) -> None:
    # Answers have other lengths in each part, so that a mean of means would be wrong.
    model, data = built(clip, asked)
    uneven = [Question(f"q{n}", n, "red ?", ["red", "red or blue ?"], n % 5 == 0, pair=-1) for n in range(12)]
    data.questions.items[:12] = uneven
    task = MllmTask(model, AllWeights())
    places = list(range(12))

    def gradient(parts: list[list[int]]) -> Any:
        task.zero_grad()
        batches = [data.batch(part) for part in parts]
        task.accumulate(diva_toy.call(task), batches, lambda loss: loss.backward(), lambda index: None)
        return model.projector.linear_1.weight.grad.clone()

    whole = gradient([places])
    torch.testing.assert_close(gradient([places[:5], places[5:10], places[10:]]), whole)


def test_data_order_depends_on_the_seed_and_not_on_the_tower(
    tmp_path: Path, clip: ClipCheckpoint, asked: QuestionDataset
) -> None:
    other = diva_toy.make_clip(tmp_path, seed=5)

    def keys(checkpoint: ClipCheckpoint, seed: int, start: int = 0) -> list[list[str]]:
        _, data = built(checkpoint, asked, seed)
        steps = data.steps(start, 6, rank=0, world_size=1, micro_batch_size=12)
        return [batch.keys for step in steps for batch in step]

    assert keys(clip, 0) == keys(other, 0)
    assert keys(clip, 0) != keys(clip, 1)
    assert keys(clip, 0, start=4) == keys(clip, 0)[4:]
    epoch = [key for step in keys(clip, 0)[:4] for key in step]
    assert len(set(epoch)) == 48  # 48 questions, each once
    _, data = built(clip, asked)
    halves = [list(data.steps(0, 1, rank=rank, world_size=2, micro_batch_size=4)) for rank in (0, 1)]
    assert [key for half in halves for step in half for batch in step for key in batch.keys] == keys(clip, 0)[0]


def test_a_training_resumes_bit_for_bit(
    tmp_path: Path, clip: ClipCheckpoint, asked: QuestionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mllm_toy.train(tmp_path / "whole", clip, asked, checkpoint={"every_steps": 2})
    batch, count = QuestionBatches.batch, iter(range(99))

    def dies(self: QuestionBatches, places: Any) -> Any:
        if next(count) == 3:
            raise KeyboardInterrupt
        return batch(self, places)

    with monkeypatch.context() as patch:
        patch.setattr(QuestionBatches, "batch", dies)
        with pytest.raises(KeyboardInterrupt):
            mllm_toy.train(tmp_path / "cut", clip, asked, checkpoint={"every_steps": 2})
    resumed = mllm_toy.train(tmp_path / "cut", clip, asked, checkpoint={"every_steps": 2})
    one, other = (load_mllm(made).llava.state_dict() for made in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_training_evaluates_on_its_way(
    tmp_path: Path, clip: ClipCheckpoint, asked: QuestionDataset, held_out: QuestionDataset
) -> None:
    config = mllm_toy.train_config(evaluation={"tasks": []})
    task = mllm_toy.EvalMllm(name="mllm", data="held_out")
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"tasks": [task]})})
    made = diva_toy.run(config, tmp_path, clip=clip, asked=asked, held_out=held_out)
    assert "val/pair_accuracy" in (made.path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("options", [["yes", "no"], ["No", "Yes"]])
def test_yes_or_no_questions_have_f1(
    tmp_path: Path, clip: ClipCheckpoint, asked: QuestionDataset, options: list[str]
) -> None:
    source = Questions(asked)
    items = [Question(f"q{n}", n // 2, "red ?", options, n % 2) for n in range(24)]
    yes_no = write_questions(tmp_path / "yes_no", [source.image(n) for n in range(12)], items)
    model = mllm_toy.train(tmp_path / "model", clip, yes_no, steps=1)
    report = mllm_toy.evaluate(tmp_path / "report", yes_no, {"model": model})
    found = mllm_toy.values(report, "model")
    assert set(found) == {"accuracy", "precision", "recall", "f1", "yes_share"}
    assert found["accuracy"] == 0.5  # the same question twice about each image, with either answer
    table = pq.read_table(report.path / "predictions/questions.parquet").to_pylist()
    said = [row["predicted"].lower() == "yes" for row in table]
    assert found["yes_share"] == sum(said) / len(said)
    assert (
        found["recall"] == sum(yes for row, yes in zip(table, said, strict=True) if row["answer"].lower() == "yes") / 12
    )


def test_preflight_refuses_towers_that_transformers_has_no_layout_for(tmp_path: Path, clip: ClipCheckpoint) -> None:
    vision = {"image_size": 32, "timm_model_name": "vit_pico_patch8_32"}
    timm = save_clip(build_clip({**diva_toy.CLIP, "vision_cfg": vision, "custom_text": True}, seed=0), tmp_path)
    config = mllm_toy.train_config()
    config.preflight(Preflight({}, {"clip": clip.path}))
    with pytest.raises(UserError, match="its vision tower is not open_clip's ViT"):
        config.preflight(Preflight({}, {"clip": timm.path}))


def test_what_does_not_fit_is_one_line(tmp_path: Path, clip: ClipCheckpoint, asked: QuestionDataset) -> None:
    with pytest.raises(ValidationError, match="exactly one of vision and init"):
        mllm_toy.train_config(init="first", vision="clip")
    with pytest.raises(ValidationError, match="layer: set by the model of init"):
        mllm_toy.train_config(init="first", layer=-1)
    with pytest.raises(ValidationError, match="one <image> and one"):
        mllm_toy.train_config(prompt="{question}")
    alone = write_questions(tmp_path / "alone", [b"x"], [Question("q", 0, "", ["a red circle"], 0)])
    model = mllm_toy.train(tmp_path / "model", clip, asked, steps=1)
    with pytest.raises(UserError, match="cannot be used"):
        mllm_toy.evaluate(tmp_path / "report", alone, {"model": model})
    image = Questions(asked).image(0)
    alone = write_questions(tmp_path / "again", [image], [Question("q", 0, "", ["a red circle"], 0)])
    with pytest.raises(UserError, match="q has one option"):
        mllm_toy.evaluate(tmp_path / "report2", alone, {"model": model})


def test_an_evaluation_with_an_image_of_each_pair_that_cannot_be_read_is_one_line(
    clip: ClipCheckpoint, tmp_path: Path
) -> None:
    asked = mllm_toy.make_questions(tmp_path / "asked", pairs=2)
    damaged = {item.pair: item.image for item in Questions(asked).items}.values()  # one of each pair
    path = asked.path / "images.arrow"
    images = pa.ipc.open_file(pa.OSFile(str(path))).read_all()
    rows = [b"damaged" if number in damaged else one for number, one in enumerate(images["image"].to_pylist())]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, images.schema) as writer:
        writer.write_table(pa.table([rows], schema=images.schema))
    model = mllm_toy.train(tmp_path / "model", clip, mllm_toy.make_questions(tmp_path / "other", pairs=2), steps=1)
    with pytest.raises(UserError, match="asked: no question is left"):
        mllm_toy.evaluate(tmp_path / "report", asked, {"model": model}, max_bad_fraction=0.5)


def llava_file(model: Mllm, file: Path) -> str:
    """Write a model's projector as LLaVA's pre-training does."""
    names = {"linear_1": "0", "linear_2": "2"}
    state = model.projector.state_dict()
    tensors = {f"model.mm_projector.{names[key.split('.')[0]]}.{key.split('.')[1]}": state[key] for key in state}
    torch.save(tensors, file)
    return str(file)


def test_a_training_starts_from_the_projector_of_llava(
    tmp_path: Path, clip: ClipCheckpoint, asked: QuestionDataset
) -> None:
    other, _ = built(clip, asked, seed=7)
    file = llava_file(other, tmp_path / "mm_projector.bin")
    config = mllm_toy.train_config(projector=file)
    assert list(config.sources()) == [file]
    context = Context("mllm", tmp_path, tmp_path, {"clip": clip.path, "asked": asked.path})
    model = build(config, context, Questions(asked))
    ours, theirs = model.projector.state_dict(), other.projector.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    start, _ = built(clip, asked)
    assert not torch.equal(start.projector.linear_1.weight, model.projector.linear_1.weight)
    description = describe_weights(file)
    assert not description.problems
    assert f"a start: projector: {file} in mllm.train" in description.facts


def test_a_projector_of_other_widths_or_files_is_refused(
    tmp_path: Path, clip: ClipCheckpoint, asked: QuestionDataset
) -> None:
    other, _ = built(clip, asked, width=64)
    file = llava_file(other, tmp_path / "mm_projector.bin")
    context = Context("mllm", tmp_path, tmp_path, {"clip": clip.path, "asked": asked.path})
    with pytest.raises(UserError, match=r"linear_1.weight: expected \(32, .*got \(64, "):
        build(mllm_toy.train_config(projector=file), context, Questions(asked))
    torch.save({"model.mm_projector.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(UserError, match="expected the two layers of mm_projector"):
        mllm_toy.train_config(projector=file).preflight(Preflight({}, {}))
