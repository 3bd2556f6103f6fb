"""Mistakes are reported before any training, each in one line that says what would work."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from clip_world import COLOURS, EVA, VIT, halves, make_pool
from vfm.base import error_lines
from vfm.cli import app
from vfm.data import DatasetSpec, Shard, write_index, write_tar
from vfm.data.pairs.stages import Pairs
from vfm.models import build_clip, build_vision, save_clip, save_vision
from vfm.models.stages import ImportClip, ImportVision
from vfm.plugin import (
    Context,
    Pool,
    Preflight,
    Stage,
    UserError,
    VisionCheckpoint,
    VisionPretraining,
)
from vfm_clip import ClipTrain
from vfm_clip.preflight import models_with_tower


class Pretrain(VisionPretraining):
    """A pre-training of another package."""

    kind: Literal["toy.pretrain"] = "toy.pretrain"
    name: str = "eva"
    steps: int | None = 1
    data: str = "pool"  # type: ignore[assignment]
    model: str | dict[str, Any] = "eva02_nano_patch4_32"
    image_size: int | None = None

    def run(self, ctx: Context) -> VisionCheckpoint:
        raise AssertionError("a preflight runs nothing")


def stage(**changes: Any) -> ClipTrain:
    return ClipTrain(**{"name": "clip", "data": "pool", "steps": 1, "global_batch_size": 8, **changes})


def check(clip: ClipTrain, *stages: Stage, **artifacts: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip.preflight(Preflight({each.name: each for each in stages}, artifacts))


def misfit(clip: ClipTrain, *stages: Stage, **artifacts: Path) -> str:
    with pytest.raises(UserError) as caught:
        check(clip, *stages, **artifacts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_encoder_that_is_not_trained_yet_is_refused_and_a_model_that_fits_is_named() -> None:
    line = misfit(stage(model="ViT-Nano-4-32", init_vision="eva"), Pretrain())
    assert line == (
        "model ViT-Nano-4-32 cannot use init_vision 'eva' (eva02_nano_patch4_32) as its vision tower; "
        "use model EVA02-Nano-4-32"
    )


@pytest.mark.parametrize(
    ("model", "encoder", "says"),
    [
        ("EVA02-Pico-8-32", "eva02_nano_patch8_64", "use model EVA02-Nano-8-64"),
        ("EVA02-Nano-4-32", {"architecture": "eva02_nano_patch4_32", "depth": 6}, "the encoder has blocks.4."),
        ("EVA02-Nano-4-32", "vit_nano_patch4_32", "its vision tower does not; do depth and block type agree?"),
        (VIT, "eva02_pico_patch8_32", "use model EVA02-Pico-8-32"),
        (EVA, {"architecture": "eva02_pico_patch8_32", "num_heads": 8}, "was trained with num_heads 8, the tower"),
        ("EVA02-B-16", "eva02_base_patch14_xl", None),
    ],
)
def test_other_misfits_name_a_model_that_fits_or_the_reason(model: Any, encoder: Any, says: str | None) -> None:
    if says is None:  # a mistyped encoder is reported by its own stage
        check(stage(model=model, init_vision="eva"), Pretrain(model=encoder))
    else:
        assert says in misfit(stage(model=model, init_vision="eva"), Pretrain(model=encoder))


@pytest.mark.parametrize(
    ("model", "encoder", "size"),
    [
        ("EVA02-Nano-4-32", "eva02_nano_patch4_32", None),
        ("EVA02-Nano-8-32", "eva02_nano_patch8_64", None),  # positions are resampled
        ("EVA02-Nano-8-64", "eva02_nano_patch8_64", 48),
        ("EVA02-Mini-16-128", "eva02_mini_patch14_112", None),  # the paper's 14 to 16, with new norms
        ("EVA02-L-14", "eva02_large_patch14_224", None),
        ("EVA02-E-14", "eva_giant_patch14_224", "misfit"),
    ],
)
def test_models_of_any_size_are_checked_without_their_memory(model: str, encoder: str, size: Any) -> None:
    pretrain = Pretrain(model=encoder, image_size=size if isinstance(size, int) else None)
    clip = stage(model=model, init_vision="eva")
    if size == "misfit":
        assert "EVA01-g-14" in misfit(clip, pretrain)
    else:
        check(clip, pretrain)


def test_an_encoder_on_disk_is_checked_by_its_weights(tmp_path: Path) -> None:
    save_vision(build_vision("eva02_pico_patch8_32", num_classes=3, seed=0), tmp_path)
    check(stage(model=EVA, init_vision="eva"), Pretrain(), eva=tmp_path)
    line = misfit(stage(model="EVA02-Nano-8-32", init_vision="eva"), eva=tmp_path)
    assert line.endswith("(eva02_pico_patch8_32) as its vision tower; use model EVA02-Pico-8-32")


def test_an_encoder_of_otherwise_normalised_images_needs_a_word(tmp_path: Path) -> None:
    vision = build_vision("eva02_pico_patch8_32", num_classes=0, seed=0)
    vision.pretrained_cfg = {**vision.pretrained_cfg, "mean": (0.5, 0.5, 0.5)}  # type: ignore[assignment]
    save_vision(vision, tmp_path)
    line = misfit(stage(model=EVA, init_vision="eva"), eva=tmp_path)
    assert "images of mean 0.5, 0.5, 0.5, the model has 0.481, 0.458, 0.408" in line
    assert line.endswith("set vision: {normalization: encoder} to take the encoder's")
    check(stage(model=EVA, init_vision="eva", vision={"normalization": "encoder"}), eva=tmp_path)


def test_an_imported_encoder_is_checked_by_its_name_and_a_folder_only_when_it_is_loaded() -> None:
    clip = stage(model="ViT-Nano-4-32", init_vision="beit")
    imported = ImportVision(kind="models.vision", name="beit", source="eva02_base_patch14_224.mim_in22k")
    assert "ViT-Nano-4-32 cannot use init_vision 'beit'" in misfit(clip, imported)
    check(clip, imported.model_copy(update={"source": "local-dir:encoders/mine"}))
    check(clip, imported.model_copy(update={"source": "hf-hub:someone/something"}))


def test_a_start_from_a_checkpoint_is_checked_against_its_own_tower(tmp_path: Path) -> None:
    start = build_clip(VIT, seed=0)
    start.name = "mine"
    save_clip(start, tmp_path)
    check(stage(init="start"), start=tmp_path)
    line = misfit(stage(init="start", init_vision="eva"), Pretrain(), start=tmp_path)
    assert line.startswith("model mine cannot use init_vision 'eva'")
    check(stage(init="start", init_vision="eva"), Pretrain())  # a model that does not exist yet cannot be checked


def test_models_are_found_by_their_vision_tower() -> None:
    assert models_with_tower("eva02_nano_patch4_32") == ["EVA02-Nano-4-32"]
    assert models_with_tower("timm/eva02_base_patch16_clip_224.merged2b") == ["EVA02-B-16"]
    assert models_with_tower("eva02_nano_patch5_35") == []


def test_a_batch_larger_than_the_data_and_a_missing_language_are_refused(tmp_path: Path) -> None:
    make_pool(tmp_path)
    assert "global_batch_size must be at most 56, the pairs of 'pool'; got 57" in misfit(
        stage(global_batch_size=57), pool=tmp_path
    )
    assert misfit(stage(language="fr"), pool=tmp_path) == "pool has no captions in 'fr'; known: en"
    check(stage(), pool=tmp_path)


def test_useless_data_are_refused(tmp_path: Path) -> None:
    """Check equal captions, no captions, and captions without images."""
    alike = {f"{top} on blue": {"en": ["a picture "], "de": [f"{top} auf blau"]} for top in COLOURS if top != "blue"}
    make_pool(tmp_path / "alike", alike)
    line = misfit(stage(global_batch_size=4), pool=tmp_path / "alike")
    assert line == "all 7 captions of 'pool' are 'a picture': expected captions that differ"
    check(stage(global_batch_size=4, language="de"), pool=tmp_path / "alike")
    check(stage(global_batch_size=4, language={"en": 1, "de": 1}), pool=tmp_path / "alike")
    silent = make_pool(tmp_path / "silent", {key: {"en": [], "de": texts["de"]} for key, texts in alike.items()})
    line = misfit(stage(global_batch_size=4, language="en"), pool=silent.path)
    assert line == "'pool' has no caption in 'en'"
    none = Pool.create(tmp_path / "silent", num_samples=7, languages=[])
    assert "'pool' has no captions; set `texts` of data.pairs" in misfit(stage(global_batch_size=4), pool=none.path)


def test_captions_are_read_from_the_first_shard_to_the_last(tmp_path: Path) -> None:
    """Check that sorted data, whose captions are equal in many shards but not in all, are accepted."""
    for name, last in (("sorted", "a cat"), ("alike", "a dog")):
        shards = []
        (tmp_path / name).mkdir()
        for number in range(12):
            caption = last if number == 11 else "a dog"
            members = {"png": halves("red", "blue"), "txt": caption.encode()}
            path = tmp_path / name / f"{number:02}.tar"
            shards.append(Shard.of(path, write_tar(path, [(f"{number}-{i}", members) for i in range(2)])))
        num_samples = write_index(tmp_path / name, shards, DatasetSpec(texts={"en": "txt"}))
        Pool.create(tmp_path / name, num_samples=num_samples, languages=["en"])
    check(stage(), pool=tmp_path / "sorted")
    line = misfit(stage(), pool=tmp_path / "alike")
    assert line == ("all 16 captions of 'pool' in 8 of 12 shards are 'a dog': expected captions that differ")


def test_captions_without_images_are_refused_before_and_after_their_stage_runs(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("caption\n" + "".join(f"text {i}\n" for i in range(20)))
    pairs = Pairs(name="pool", path=str(tmp_path / "texts.csv"), images=False)
    assert misfit(stage(), pairs) == "'pool' will have captions but no images to train on"
    (tmp_path / "pool").mkdir()
    pairs.run(Context("pool", tmp_path / "pool", tmp_path / "work", {}))
    line = "'pool' has captions but no images to train on"
    assert misfit(stage(), pool=tmp_path / "pool") == line
    assert misfit(stage(data=[{"data": "good"}, {"data": "pool"}]), pool=tmp_path / "pool") == line


def test_a_mixture_is_checked_part_by_part(tmp_path: Path) -> None:
    make_pool(tmp_path / "a")
    make_pool(tmp_path / "b", {f"{top} on black": {"de": [top]} for top in COLOURS if top != "black"})
    both = stage(data=[{"data": "a", "weight": 3}, {"data": "b"}], global_batch_size=60)
    folders = {name: tmp_path / name for name in "ab"}
    assert misfit(both, **folders) == "b has no captions in 'en'; known: de"  # the first one's language is the default
    check(both, b=tmp_path / "b")  # which is not known yet
    assert misfit(both.model_copy(update={"language": "en"}), **folders) == "b has no captions in 'en'; known: de"
    check(both.model_copy(update={"language": {"en": 1, "de": 1}}), **folders)
    many = both.model_copy(update={"language": {"en": 1, "de": 1}, "global_batch_size": 64})
    assert misfit(many, **folders) == "global_batch_size must be at most 63, the pairs of 'a', 'b'; got 64"
    check(many, a=tmp_path / "a")  # the other's size is not known yet
    line = misfit(both.model_copy(update={"language": {"fr": 1, "cs": 1}}), **folders)
    assert line == "a has no captions in any of 'fr', 'cs'; known: en"
    with pytest.raises(ValidationError, match="data: 'a' is listed twice; use its weight"):
        stage(data=[{"data": "a"}, {"data": "a"}])
    with pytest.raises(ValidationError) as caught:
        stage(data=[{"data": "a", "weight": 0}])
    with pytest.raises(ValidationError, match="finite"):
        stage(data=[{"data": "a", "weight": float("inf")}])
    lines = [(("data", 0, "weight"), "must be greater than 0, got 0")]
    assert error_lines(caught.value, ClipTrain) == lines  # no line of the union's other branch


def test_a_tokenizer_of_another_model_and_a_context_longer_than_the_models_are_refused() -> None:
    small = {**VIT, "text_cfg": {**VIT["text_cfg"], "vocab_size": 1000}}
    line = misfit(stage(model=small))
    assert line.startswith(
        "custom: the tokenizer returns token 49407, the text tower has 1000 embeddings: the tokenizer is another"
    )
    long = {**VIT, "text_cfg": {**VIT["text_cfg"], "tokenizer_kwargs": {"context_length": 16}}}
    assert "the tokenizer returns 16 tokens per text, the text tower has 8 positions" in misfit(stage(model=long))


def test_a_teacher_with_other_inputs_is_refused(tmp_path: Path) -> None:
    loss = {"type": "distillation", "teacher": "teacher"}
    save_clip(build_clip(VIT, seed=0), tmp_path / "alike")
    check(stage(model=VIT, loss=loss), teacher=tmp_path / "alike")
    line = misfit(stage(model=EVA, loss=loss), teacher=tmp_path / "alike")
    assert line == "custom cannot teach custom: its image size is 16, the student's is 32"
    save_clip(build_clip({**VIT, "text_cfg": {**VIT["text_cfg"], "context_length": 12}}), tmp_path / "long")
    assert "its context length is 12, the student's is 8" in misfit(
        stage(model=VIT, loss=loss), teacher=tmp_path / "long"
    )


def test_models_to_be_downloaded_are_checked_by_their_names() -> None:
    """Check that their mistakes are reported before the download."""
    start = ImportClip(name="start", source="ViT-B-32", pretrained="openai")
    check(stage(init="start"), start)
    assert "drop_path is for timm's encoders" in misfit(stage(init="start", vision={"drop_path": 0.1}), start)
    line = misfit(stage(init="start", vision={"trained": {"type": "last_blocks", "blocks": 20}}), start)
    assert line == "trained.blocks: expected 0 to 12, the blocks of CLIP; got 20"
    assert "image_size 230 is not a multiple" in misfit(stage(init="start", image_size=230), start)
    assert "start cannot use init_vision 'eva'" in misfit(stage(init="start", init_vision="eva"), Pretrain(), start)
    loss = {"type": "distillation", "teacher": "start"}
    line = misfit(stage(model="ViT-Pico-8-32", loss=loss), start)
    assert line == "start cannot teach ViT-Pico-8-32: its image size is 224, the student's is 32"
    second = stage(name="second", init="start", image_size=256)
    third = stage(name="third", init="second", loss={**loss, "teacher": "start"})
    assert "its image size is 224, the student's is 256" in misfit(third, start, second)


def test_unknown_names_and_models_with_more_than_two_towers_are_refused() -> None:
    assert "did you mean 'ViT-Nano-4-32'" in misfit(stage(model="ViT-Nano-4-23"))
    assert "coca_ViT-B-32 also writes captions" in misfit(stage(model="coca_ViT-B-32"))
    assert "not a multiple of its patch size" in misfit(stage(image_size=33))


COOLED = """\
stages:
  - {kind: shapes.pool, name: pool, num_samples: 16}
  - {kind: clip.train, name: clip, data: pool, steps: 4, global_batch_size: 8, checkpoint: {keep_every: 2}}
  - {kind: clip.train, name: cooled, data: pool, steps: 6, global_batch_size: 8, continue_from: {training: clip}}
"""


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["cooled.continue_from.step=3"], "cooled: continue_from: clip keeps no checkpoint of step 3"),
        (["cooled.continue_from.training=pool"], "cooled: continue_from: expected a clip.train, got pool, a shapes.po"),
        (
            ["cooled.skip_steps=[2,5]"],
            "cooled: skip_steps: expected steps after 4, from which cooled continues, got [2]",
        ),
        (["cooled.skip_steps=[7]"], "cooled: skip_steps: expected some of the steps 1 to 6, got [7]"),
        (["runtime.processes=3"], "clip: global_batch_size: expected a multiple of runtime.processes, 3, got 8"),
    ],
)
def test_a_plan_shows_what_cannot_be_trained(
    settings: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(COOLED)
    assert CliRunner().invoke(app, ["plan", "r.yaml"]).exit_code == 0
    done = CliRunner().invoke(app, ["plan", "r.yaml", *(word for each in settings for word in ("--set", each))])
    assert done.exit_code == 2
    assert line in done.stderr


def test_a_plan_of_a_training_that_continues_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(COOLED)
    plan = "sys.argv = ['vfm', 'plan', 'r.yaml']; vfm.cli.main()"
    program = f"import sys, vfm.cli\ntry: {plan}\nfinally: print('with torch:', 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith("with torch: False\n"), done.stderr
