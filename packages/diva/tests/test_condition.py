"""Conditions: counts, order and seeds of patches, pooling in two dimensions, adapters and prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.embeddings import get_timestep_embedding

from diva_families import CONTEXT, FAMILIES, WIDTH, add_text_encoder, family_clip, family_generator
from diva_toy import batch_of, make_image_inputs
from vfm.data import TrainingData, open_dataset
from vfm.models import ClipModel, image_tokens, import_generator, load_clip
from vfm.plugin import Pool, UserError
from vfm_diva import (
    Cls,
    Embedding,
    LinearAdapter,
    MlpAdapter,
    Patches,
    PooledPatches,
    RasterPooled,
)
from vfm_diva.generator.conditioning import Conditioning, combine_with_prompt
from vfm_diva.generator.inputs import MakeTuneInputs
from vfm_diva.generator.networks import NetworkInputs
from vfm_diva.tune.condition import ImageFeatures, pool_squares
from vfm_diva.tune.conditioner import class_vector
from vfm_diva.tune.prompt import encode_prompt


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    return load_clip(family_clip(request.param, tmp_path_factory.mktemp("clip")))


def pixels(model: ClipModel, count: int = 2) -> torch.Tensor:
    side = model.preprocess.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("condition", [Embedding(), Cls(), Patches(), PooledPatches()], ids=lambda part: part.type)
def test_features_have_the_models_embedding_and_the_declared_width(condition: Any, model: ClipModel) -> None:
    built = condition.build(model)
    features = built(model.module.visual, pixels(model))
    torch.testing.assert_close(features.embeds, model.module.encode_image(pixels(model)), atol=1e-5, rtol=1e-4)
    assert features.tokens.shape[2] == built.width


def test_siglips_patches_are_not_projected_and_its_pooled_feature_is_the_image_token(tmp_path: Path) -> None:
    model = load_clip(family_clip("siglip", tmp_path))
    image = image_tokens(model, pixels(model))
    trunk = model.module.visual.trunk
    torch.testing.assert_close(image.patches, trunk.forward_features(pixels(model)))
    torch.testing.assert_close(image.whole, trunk.forward_head(trunk.forward_features(pixels(model)), pre_logits=True))


@pytest.mark.parametrize("share", [0.0, 0.297, 0.5, 1.0])
def test_a_share_of_the_patches_is_chosen_without_repetition_and_in_order(share: float, model: ClipModel) -> None:
    every = Patches().build(model)(model.module.visual, pixels(model)).tokens
    count = every.shape[1] - 1
    draws = torch.rand(2, count, generator=torch.Generator().manual_seed(3))
    condition = Patches(share=share).build(model)
    chosen = condition(model.module.visual, pixels(model), draws).tokens
    assert chosen.shape[1] == 1 + round(share * count)
    assert torch.equal(chosen[:, 0], every[:, 0])
    for row in range(2):
        places = [(every[row] == token).all(dim=1).nonzero().item() for token in chosen[row]]
        assert places == sorted(set(places))
    other = condition(model.module.visual, pixels(model), 1 - draws).tokens
    assert torch.equal(chosen, other) == (share in (0, 1))


def test_patches_can_be_drawn_as_in_the_papers_code(model: ClipModel) -> None:
    every = Patches().build(model)(model.module.visual, pixels(model)).tokens
    number = every.shape[1] - 1
    config = Patches(count=3 * number, replacement=True, in_order=False, draw_per_time=True)
    condition = config.build(model)
    assert (condition.num_draws, condition.draws_per_time) == (3 * number, True)
    draws = torch.rand(2, 2 * condition.num_draws, generator=torch.Generator().manual_seed(3))
    features = condition(model.module.visual, pixels(model), draws)
    assert features.tokens.shape[:2] == (4, 1 + 3 * number)  # two images, two times each
    assert len(features.embeds) == 2
    for row in range(4):
        places = (draws[row // 2].view(2, -1)[row % 2] * number).long() + 1
        assert torch.equal(features.tokens[row], every[row // 2][[0, *places.tolist()]])
    conditioning = Conditioning(torch.arange(4.0)[:, None, None])
    assert conditioning.mismatched(2).tokens.flatten().tolist() == [2, 3, 0, 1]


def test_the_class_token_can_be_projected(model: ClipModel) -> None:
    condition = Cls(projected=True).build(model)
    features = condition(model.module.visual, pixels(model))
    assert torch.equal(features.tokens[:, 0], features.embeds)
    assert condition.width == features.embeds.shape[1]


def test_raster_windows_wrap_around_rows_and_leave_out_the_last_patches(model: ClipModel) -> None:
    every = Patches().build(model)(model.module.visual, pixels(model)).tokens
    tokens = RasterPooled(window=3).build(model)(model.module.visual, pixels(model)).tokens
    assert tokens.shape[1] == 1 + (every.shape[1] - 1) // 3
    torch.testing.assert_close(tokens[:, 1], every[:, 1:4].mean(dim=1))


def test_an_adapter_can_take_unscaled_tokens() -> None:
    inputs, tokens = NetworkInputs(4, 1, 24), torch.randn(2, 3, 8)
    scaled, plain = (
        LinearAdapter(unit_scale=unit).build(inputs, width=8, embed_dim=8, seed=0) for unit in (True, False)
    )
    for factor in (1, 5):
        features = ImageFeatures(tokens[:, 0], factor * tokens)
        torch.testing.assert_close(plain(features).tokens, plain.tokens(factor * tokens))
        torch.testing.assert_close(scaled(features).tokens, scaled(ImageFeatures(tokens[:, 0], tokens)).tokens)


def test_patches_are_drawn_from_the_samples_own_seed(pool: Pool, tmp_path: Path) -> None:
    model = load_clip(family_clip("openai", tmp_path))
    make = MakeTuneInputs(make_image_inputs(model), 40)
    data = TrainingData(open_dataset(pool), make, seed=3, global_batch_size=16)
    (whole,) = next(data.steps(1, 2))
    parts = [batch.inputs.patch_draws for batch in next(data.steps(1, 2, micro_batch_size=4))]
    assert torch.equal(torch.cat(parts), whole.inputs.patch_draws)
    assert len(set(whole.inputs.patch_draws.flatten().tolist())) == 16 * 40
    (later,) = next(data.steps(2, 3))
    assert not torch.equal(later.inputs.patch_draws, whole.inputs.patch_draws)
    assert (whole.inputs.patch_draws.min() >= 0) & (whole.inputs.patch_draws.max() < 1)
    assert torch.equal(batch_of(pool, make.images).inputs.noise, batch_of(pool, make).inputs.noise)


def test_pooling_keeps_rows_and_omits_no_patch() -> None:
    rows = torch.arange(5.0).repeat_interleave(4).view(1, 20, 1)  # 5 rows of 4
    assert pool_squares(rows, (5, 4), 2).flatten().tolist() == [0.5, 0.5, 2.5, 2.5, 4.0, 4.0]
    columns = torch.arange(4.0).repeat(5).view(1, 20, 1)
    assert pool_squares(columns, (5, 4), 2).flatten().tolist() == [0.5, 2.5] * 3


@pytest.mark.parametrize("kind", [LinearAdapter, MlpAdapter])
def test_an_adapter_has_the_networks_input_widths_and_draws_its_weights_from_the_seed(kind: Any) -> None:
    features = ImageFeatures(torch.randn(2, 12), torch.randn(2, 3, 16))
    inputs = NetworkInputs(channels=4, multiple=1, context_width=24, pooled_width=10)
    nets = [kind().build(inputs, width=16, embed_dim=12, seed=seed) for seed in (0, 0, 1)]
    made = [net(features) for net in nets]
    assert (made[0].tokens.shape, made[0].pooled.shape) == ((2, 3, 24), (2, 10))
    assert torch.equal(made[0].tokens, made[1].tokens)
    assert not torch.equal(made[0].tokens, made[2].tokens)
    assert kind().build(NetworkInputs(4, 1, 24), width=16, embed_dim=12, seed=0)(features).pooled is None


def assert_close(made: Conditioning, expected: Conditioning) -> None:
    torch.testing.assert_close((made.tokens, made.pooled), (expected.tokens, expected.pooled))


def test_tokens_and_text_states_are_combined_in_three_ways() -> None:
    image, states = torch.randn(2, 3, 4), torch.randn(1, 3, 4)
    longer, pooled, vector = torch.randn(1, 7, 4), torch.randn(2, 5), torch.randn(1, 5)
    conditioning, prompt = Conditioning(image, pooled), Conditioning(states, vector)
    assert combine_with_prompt(conditioning, None, "add") is conditioning
    replaced = combine_with_prompt(conditioning, prompt, "replace")
    assert torch.equal(replaced.tokens, image)
    assert replaced.pooled is pooled
    added = combine_with_prompt(conditioning, prompt, "add")
    assert_close(added, Conditioning(image + states, pooled + vector))
    added = combine_with_prompt(conditioning, Conditioning(longer), "add")
    torch.testing.assert_close(added.tokens, image + longer.mean(dim=1, keepdim=True))
    joined = combine_with_prompt(conditioning, prompt, "concatenate")
    assert_close(joined, Conditioning(torch.cat([states.expand(2, 3, 4), image], dim=1), vector.expand(2, 5)))
    spread = combine_with_prompt(Conditioning(image[:, :1], pooled), Conditioning(longer, vector), "broadcast")
    assert_close(spread, Conditioning(torch.stack([longer[0] + token for token in image[:, 0]]), pooled + vector))
    no_tokens = combine_with_prompt(Conditioning(image[:, :0], pooled), Conditioning(states), "replace")  # un-CLIP
    assert_close(no_tokens, Conditioning(states.expand(2, 3, 4), pooled))


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
    with pytest.raises(UserError, match=r"no model_index.json found, so the prompt cannot be encoded"):
        encode_prompt(folder, "a photo of a .")
    add_text_encoder(folder, "StableDiffusionPipeline")
    index = folder / "model_index.json"
    whole = index.read_text()
    index.write_text(json.dumps(json.loads(whole) | {"text_encoder_2": [None, None]}))
    with pytest.raises(
        UserError, match=r"model_index.json has no text_encoder_2, so the prompt's text states would lack"
    ):
        encode_prompt(folder, "a photo of a .")
    index.write_text(whole)
    conditioning = encode_prompt(folder, "a photo of a .")
    assert (conditioning.tokens.shape, conditioning.pooled) == ((1, 12, CONTEXT), None)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer(
        "a photo of a .", padding="max_length", max_length=12, truncation=True, return_tensors="pt"
    ).input_ids
    encoder = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder")
    with torch.no_grad():
        torch.testing.assert_close(conditioning.tokens, encoder(ids).last_hidden_state)
    assert not torch.equal(conditioning.tokens, encode_prompt(folder, "").tokens)


def test_a_missing_tokenizer_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    generator = family_generator("sd", tmp_path)
    add_text_encoder(generator.path, "StableDiffusionPipeline")
    shutil.rmtree(generator.path / "tokenizer")
    with pytest.raises(UserError, match="no tokenizer found, so the prompt cannot be encoded") as caught:
        encode_prompt(generator.path, "a photo of a .")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{}", "{"])
def test_a_damaged_tokenizer_is_one_line_that_does_not_ask_to_install(content: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = family_generator("sd", tmp_path).path
    add_text_encoder(folder, "StableDiffusionPipeline")
    (folder / "tokenizer/tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="not readable as a text encoder") as caught:
        encode_prompt(folder, "a photo of a .")
    assert "\n" not in str(caught.value)
    assert "install" not in str(caught.value)


def test_un_clips_prompt_is_read_without_its_image_encoder(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = family_generator("unclip", tmp_path).path
    add_text_encoder(folder, "StableUnCLIPImg2ImgPipeline")
    conditioning = encode_prompt(folder, "")
    assert (conditioning.tokens.shape, conditioning.pooled) == ((1, 12, CONTEXT), None)


def test_sdxls_prompt_has_two_encoders_states_and_a_vector(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = family_generator("sdxl", tmp_path).path
    add_text_encoder(folder, "StableDiffusionXLPipeline", second=True)
    conditioning = encode_prompt(folder, "a photo of a .")
    assert conditioning.tokens.shape == (1, 12, CONTEXT)
    assert conditioning.pooled is not None
    assert conditioning.pooled.shape == (1, 20)


@pytest.mark.parametrize("is_named", [False, True])
def test_sd3_without_t5_has_zeros_in_its_place_as_in_diffusers(is_named: bool, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = family_generator("sd3", tmp_path).path
    add_text_encoder(folder, "StableDiffusion3Pipeline", second=True)
    index = folder / "model_index.json"
    parts = {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    if is_named:  # by the index, but not downloaded
        parts = {
            "text_encoder_3": ["transformers", "T5EncoderModel"],
            "tokenizer_3": ["transformers", "T5TokenizerFast"],
        }
    index.write_text(json.dumps(json.loads(index.read_text()) | parts))
    folder = import_generator(str(folder), tmp_path / "imported").path
    conditioning = encode_prompt(folder, "a photo of a .")
    of_clip, of_t5 = conditioning.tokens[:, :12], conditioning.tokens[:, 12:]
    assert of_clip.any()
    assert of_t5.shape[1] > 0
    assert not of_t5.any()
    assert conditioning.pooled is not None
