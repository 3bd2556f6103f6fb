"""The inputs of a step: the image by the model's preprocessing and one of the captions, equal in every process."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from clip_world import EVA, VIT, halves, make_pool, plan
from vfm.data import BadSample, ImageTransform, Sample, SampleDraw, TrainingData, open_dataset
from vfm.models import Preprocess, build_clip
from vfm_clip.data import EvalTransform, MakePair, training_data

TOKENIZER = build_clip(VIT, seed=0).tokenizer


def sample(*captions: str, language: str = "en") -> Sample:
    return Sample("key", "uid", halves("red", "blue"), {language: list(captions)} if captions else {})


def drawn(seed: int) -> SampleDraw:
    return SampleDraw(seed, 0, 0)


def make(transform: object = None, language: str = "en") -> MakePair:
    return MakePair(transform or ImageTransform(16), TOKENIZER, {language: 1.0})  # type: ignore[arg-type]


def test_captions_are_drawn_evenly_and_by_the_seed() -> None:
    made, many = make(), sample("one", "two", "three")
    captions = [made.caption(many, seed) for seed in range(300)]
    assert captions == [made.caption(many, seed) for seed in range(300)]
    assert all(70 < captions.count(caption) < 130 for caption in ("one", "two", "three"))


def test_epochs_draw_other_captions_and_a_second_run_the_same_ones(tmp_path: Path) -> None:
    captions = {f"{top} on blue": {"en": [f"{top} {i}" for i in range(4)]} for top in ("red", "lime", "cyan", "white")}
    pool = make_pool(tmp_path, captions)

    def epochs() -> list[dict[str, tuple[int, ...]]]:
        data = TrainingData(open_dataset(pool), make(), seed=3, global_batch_size=4)
        return [
            {key: tuple(row.tolist()) for key, row in zip(batch.keys, batch.inputs.tokens, strict=True)}
            for (batch,) in data.steps(0, 12)
        ]

    seen = epochs()
    assert seen == epochs()
    for key in seen[0]:
        assert len({epoch[key] for epoch in seen}) == 4


def test_the_draws_of_caption_and_crop_are_independent() -> None:
    transform, many = ImageTransform(16, scale=(0.3, 1.0)), sample("one", "two")
    made = make(transform)
    crops = {made.caption(many, seed): made(many, drawn(seed)).images for seed in range(20)}
    one, two = sample("one"), sample("two")
    for seed in range(20):
        assert torch.equal(made(one, drawn(seed)).images, made(two, drawn(seed)).images)
    assert set(crops) == {"one", "two"}


def test_a_caption_of_another_language_is_missing() -> None:
    for without in (sample(), sample("eins", language="de"), Sample("key", "uid", b"", {"en": []})):
        with pytest.raises(BadSample, match="missing_caption"):
            make()(without, drawn(0))
    assert make(language="de").caption(sample("eins", language="de"), 0) == "eins"


def test_captions_of_two_sources_are_drawn_by_weight_and_a_missing_one_is_replaced_by_the_other() -> None:
    made = MakePair(ImageTransform(16), TOKENIZER, {"alt": 3.0, "synthetic": 1.0})
    both = Sample("key", "uid", b"", {"alt": ["a", "b"], "synthetic": ["c"], "de": ["d"]})
    captions = [made.caption(both, seed) for seed in range(800)]
    counts = {caption: captions.count(caption) for caption in "abcd"}
    assert counts == {
        "a": pytest.approx(300, abs=50), "b": pytest.approx(300, abs=50), "c": pytest.approx(200, abs=45), "d": 0,
    }  # fmt: skip
    assert captions == [made.caption(both, seed) for seed in range(800)]
    lone = Sample("key", "uid", b"", {"synthetic": ["c"]})
    assert {made.caption(lone, seed) for seed in range(20)} == {"c"}
    with pytest.raises(BadSample, match=r"missing_caption"):
        made.caption(sample("one"), 0)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_without_a_crop_images_are_preprocessed_as_in_an_evaluation(mode: str) -> None:
    facts = Preprocess(image_size=16, resize_mode=mode)
    picture = Image.open(io.BytesIO(halves("red", "blue"))).resize((24, 40))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    seen = EvalTransform(facts).read(buffer.getvalue())
    assert np.array_equal(seen.permute(1, 2, 0).numpy(), facts.fit(picture))
    with pytest.raises(BadSample, match="unreadable_image"):
        EvalTransform(facts).read(b"no picture")


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_random_crops_are_resized_with_the_models_interpolation(tmp_path: Path, interpolation: str) -> None:
    clip = build_clip(VIT, seed=0)
    clip.preprocess = clip.preprocess.model_copy(update={"interpolation": interpolation})
    pool = make_pool(tmp_path / "pool")
    stage = plan(augmentation={"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)})
    _, made = training_data(stage, [pool], clip, {"en": 1.0})
    one = open_dataset(pool)[0]
    seen = made(one, drawn(0)).images.permute(1, 2, 0).numpy()
    assert np.array_equal(seen, clip.preprocess.fit(Image.open(io.BytesIO(one.image))))


@pytest.mark.parametrize("pixels", ["exact", "fast", None])
def test_a_batch_has_the_pairs_of_its_samples(pixels: Literal["exact", "fast"] | None) -> None:
    made = make(
        ImageTransform(16, scale=(0.3, 1.0), pixels=pixels) if pixels else EvalTransform(Preprocess(image_size=16))
    )
    samples, draws = [sample(f"one {n}", f"two {n}") for n in range(6)], [drawn(n) for n in range(6)]
    contents = [made.read(each) for each in samples]
    batch = made.join([made.use(content, draw) for content, draw in zip(contents, draws, strict=True)], draws)
    for row, (each, draw) in enumerate(zip(samples, draws, strict=True)):
        alone = made(each, draw)
        assert torch.equal(batch.tokens[row], TOKENIZER([made.caption(each, draw.seed)])[0])
        assert all(torch.equal(getattr(batch, name)[row], getattr(alone, name)) for name in ("images", "tokens", "uid"))
    assert (pixels is None) == all(isinstance(content.image, torch.Tensor) for content in contents)


@pytest.mark.parametrize("config", [VIT, EVA], ids=["vit", "eva"])
def test_make_pair_can_be_pickled_for_workers(config: dict[str, object]) -> None:
    clip = build_clip(config, seed=0)
    made = MakePair(EvalTransform(clip.preprocess), clip.tokenizer, {"en": 1.0})
    first, second = made(sample("one"), drawn(1)), pickle.loads(pickle.dumps(made))(sample("one"), drawn(1))
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.images, second.images)
