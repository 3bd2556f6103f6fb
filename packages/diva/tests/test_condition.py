"""What of an image is told: counts, order and seeds of patches, pooling in two dimensions, adapters and prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.embeddings import get_timestep_embedding

from diva_families import CONTEXT, FAMILIES, WIDTH, add_text_encoder, family_clip, family_generator
from diva_toy import batch_of
from vfm.artifacts import Pool
from vfm.config import UserError
from vfm.data.loader import TrainingData
from vfm.data.source import open_dataset
from vfm.data.transforms import ImageTransform
from vfm.models.clip import ClipModel, load_clip
from vfm.models.image_tokens import image_tokens
from vfm_diva.adapter import LinearAdapter, MlpAdapter
from vfm_diva.condition import Cls, Embedding, Patches, PooledPatches, Seen, pool_squares
from vfm_diva.conditioner import class_vector
from vfm_diva.networks import Wants
from vfm_diva.prompt import combined, encode_prompt
from vfm_diva.samples import MakeNoisy, MakeViews
from vfm_diva.told import Told
from vfm_diva.tune_samples import MakeDrawn


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    return load_clip(family_clip(request.param, tmp_path_factory.mktemp("clip")))


def pixels(model: ClipModel, count: int = 2) -> torch.Tensor:
    side = model.preprocess.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("condition", [Embedding(), Cls(), Patches(), PooledPatches()], ids=lambda part: part.type)
def test_the_embedding_is_the_models_own_and_the_width_is_known_beforehand(condition: Any, model: ClipModel) -> None:
    seen = condition.see(model.module.visual, pixels(model))
    torch.testing.assert_close(seen.embeds, model.module.encode_image(pixels(model)), atol=1e-5, rtol=1e-4)
    assert seen.tokens.shape[2] == condition.width(model)


def test_siglips_patches_are_not_projected_and_stand_beside_its_pooled_feature(tmp_path: Path) -> None:
    model = load_clip(family_clip("siglip", tmp_path))
    image = image_tokens(model, pixels(model))
    trunk = model.module.visual.trunk
    torch.testing.assert_close(image.patches, trunk.forward_features(pixels(model)))
    torch.testing.assert_close(image.whole, trunk.forward_head(trunk.forward_features(pixels(model)), pre_logits=True))


@pytest.mark.parametrize("share", [0.0, 0.297, 0.5, 1.0])
def test_a_share_of_the_patches_is_told_none_twice_and_in_order(share: float, model: ClipModel) -> None:
    every = Patches().see(model.module.visual, pixels(model)).tokens
    count = every.shape[1] - 1
    draws = torch.rand(2, count, generator=torch.Generator().manual_seed(3))
    told = Patches(share=share).see(model.module.visual, pixels(model), draws).tokens
    assert told.shape[1] == 1 + round(share * count)
    assert torch.equal(told[:, 0], every[:, 0])
    for row in range(2):
        places = [(every[row] == token).all(dim=1).nonzero().item() for token in told[row]]
        assert places == sorted(set(places))
    other = Patches(share=share).see(model.module.visual, pixels(model), 1 - draws).tokens
    assert torch.equal(told, other) == (share in (0, 1))


def test_patches_are_drawn_from_the_samples_own_seed(pool: Pool, tmp_path: Path) -> None:
    model = load_clip(family_clip("openai", tmp_path))
    make = MakeDrawn(MakeViews(MakeNoisy(ImageTransform(8, "crop"), (3, 8, 8)), model.preprocess), 40)
    data = TrainingData(open_dataset(pool), make, seed=3, global_batch_size=16)
    (whole,) = next(data.steps(1, 2))
    parts = [batch["patch_draws"] for batch in next(data.steps(1, 2, micro_batch_size=4))]
    assert torch.equal(torch.cat(parts), whole["patch_draws"])
    assert len(set(whole["patch_draws"].flatten().tolist())) == 16 * 40
    (later,) = next(data.steps(2, 3))
    assert not torch.equal(later["patch_draws"], whole["patch_draws"])
    assert (whole["patch_draws"].min() >= 0) & (whole["patch_draws"].max() < 1)
    assert torch.equal(batch_of(pool, make.views)["noise"], batch_of(pool, make)["noise"])


def test_pooling_keeps_rows_and_loses_no_patch() -> None:
    rows = torch.arange(5.0).repeat_interleave(4).view(1, 20, 1)  # 5 rows of 4
    assert pool_squares(rows, (5, 4), 2).flatten().tolist() == [0.5, 0.5, 2.5, 2.5, 4.0, 4.0]
    columns = torch.arange(4.0).repeat(5).view(1, 20, 1)
    assert pool_squares(columns, (5, 4), 2).flatten().tolist() == [0.5, 2.5] * 3


@pytest.mark.parametrize("kind", [LinearAdapter, MlpAdapter])
def test_an_adapter_makes_what_the_generator_wants_and_takes_its_weights_from_the_seed(kind: Any) -> None:
    seen = Seen(torch.randn(2, 12), torch.randn(2, 3, 16))
    wants = Wants(channels=4, multiple=1, context_width=24, pooled_width=10)
    nets = [kind().build(wants, width=16, embed_dim=12, seed=seed) for seed in (0, 0, 1)]
    told = [net(seen) for net in nets]
    assert (told[0].tokens.shape, told[0].pooled.shape) == ((2, 3, 24), (2, 10))
    assert torch.equal(told[0].tokens, told[1].tokens)
    assert not torch.equal(told[0].tokens, told[2].tokens)
    assert kind().build(Wants(4, 1, 24), width=16, embed_dim=12, seed=0)(seen).pooled is None


def alike(told: Told, expected: Told) -> None:
    torch.testing.assert_close((told.tokens, told.pooled), (expected.tokens, expected.pooled))


def test_tokens_and_text_states_come_together_in_three_ways() -> None:
    image, states = torch.randn(2, 3, 4), torch.randn(1, 3, 4)
    longer, pooled, vector = torch.randn(1, 7, 4), torch.randn(2, 5), torch.randn(1, 5)
    told, prompt = Told(image, pooled), Told(states, vector)
    assert combined(told, None, "add") is told
    replaced = combined(told, prompt, "replace")
    assert torch.equal(replaced.tokens, image)
    assert replaced.pooled is pooled
    added = combined(told, prompt, "add")
    alike(added, Told(image + states, pooled + vector))
    torch.testing.assert_close(combined(told, Told(longer), "add").tokens, image + longer.mean(dim=1, keepdim=True))
    joined = combined(told, prompt, "concatenate")
    alike(joined, Told(torch.cat([states.expand(2, 3, 4), image], dim=1), vector.expand(2, 5)))
    no_tokens = combined(Told(image[:, :0], pooled), Told(states), "replace")  # un-CLIP
    alike(no_tokens, Told(states.expand(2, 3, 4), pooled))


def test_the_class_vector_is_stable_unclips_without_noise() -> None:
    embeds = 3 * torch.randn(4, WIDTH)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    level = torch.zeros(4, dtype=torch.long)
    noised = scheduler.add_noise(embeds, torch.zeros_like(embeds), level)
    code = get_timestep_embedding(level, WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(class_vector(embeds), torch.cat([noised, code], dim=1), rtol=1e-3, atol=1e-3)


def test_the_prompts_states_are_its_text_encoders(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = family_generator("sd", tmp_path).path
    with pytest.raises(UserError, match=r"no model_index.json here, so it cannot encode the prompt"):
        encode_prompt(folder, "a photo of a .")
    add_text_encoder(folder, "StableDiffusionPipeline")
    index = folder / "model_index.json"
    whole = index.read_text()
    index.write_text(json.dumps(json.loads(whole) | {"text_encoder_3": [None, None]}))
    with pytest.raises(
        UserError, match=r"model_index.json has no text_encoder_3, so the prompt's text states would lack"
    ):
        encode_prompt(folder, "a photo of a .")
    index.write_text(whole)
    told = encode_prompt(folder, "a photo of a .")
    assert (told.tokens.shape, told.pooled) == ((1, 12, CONTEXT), None)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer(
        "a photo of a .", padding="max_length", max_length=12, truncation=True, return_tensors="pt"
    ).input_ids
    encoder = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
    with torch.no_grad():
        torch.testing.assert_close(told.tokens, encoder(ids).last_hidden_state)
    assert not torch.equal(told.tokens, encode_prompt(folder, "").tokens)


def test_un_clips_prompt_is_read_without_its_image_encoder(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = family_generator("unclip", tmp_path).path
    add_text_encoder(folder, "StableUnCLIPImg2ImgPipeline")
    told = encode_prompt(folder, "")
    assert (told.tokens.shape, told.pooled) == ((1, 12, CONTEXT), None)


def test_sdxls_prompt_has_two_encoders_states_and_a_vector(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = family_generator("sdxl", tmp_path).path
    add_text_encoder(folder, "StableDiffusionXLPipeline", second=True)
    told = encode_prompt(folder, "a photo of a .")
    assert told.tokens.shape == (1, 12, CONTEXT)
    assert told.pooled is not None
    assert told.pooled.shape == (1, 20)
