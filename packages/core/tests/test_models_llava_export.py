"""A tuned vision tower in a LLaVA checkpoint: transformers computes its features, and everything else is unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_world import run_here
from vfm.base import UserError
from vfm.interfaces import Preflight
from vfm.models import ClipModel, build_clip, load_clip, save_clip
from vfm.models.stages import Export

transformers = pytest.importorskip("transformers")

CLIP = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
VISION = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 8, "projection_dim": 24}
FOR_LLAVA = "the folder of a LLaVA checkpoint, for format llava only"
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def make_base(folder: Path, layer: int = -2, **vision: Any) -> Path:
    """Save a tiny LLaVA with random weights, in shards."""
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**{**VISION, **vision}),
        text_config=transformers.LlamaConfig(**text, vocab_size=60, max_position_embeddings=64),
        image_token_index=59,
        image_seq_length=16,
        vision_feature_layer=layer,
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder, max_shard_size="40KB")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build_clip(CLIP, seed=1), tmp_path_factory.mktemp("tuned"))


def save(model: ClipModel, folder: Path) -> Path:
    model.module.eval()
    return save_clip(model, folder).path


def export(model: Path, base: Path, out: Path, code: int = 0) -> str:
    result = run_here("export", model, "--format", "llava", "--base", base, "--out", out)
    assert result.code == code, result.err
    return result.out if code == 0 else result.err


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def test_transformers_reads_the_tuned_tower_and_all_else_is_unchanged(tuned: Path, base: Path, tmp_path: Path) -> None:
    output = export(tuned, base, tmp_path / "out")
    assert "train LLaVA again" in output
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    model = load_clip(tuned)
    with torch.no_grad():
        read = theirs.model.vision_tower(PIXELS, output_hidden_states=True)
        whole = model.module.visual.ln_post(
            model.module.visual.forward_intermediates(
                PIXELS, indices=[2], output_fmt="NLC", intermediates_only=True, output_extra_tokens=True
            )["image_intermediates_prefix"][0][:, 0]
        )
    torch.testing.assert_close(read.pooler_output, whole, atol=1e-5, rtol=1e-4)
    before, after = tensors_of(base), tensors_of(tmp_path / "out")
    rest = {key for key in before if "vision_tower" not in key}
    assert rest == {key for key in after if "vision_tower" not in key}
    assert all(torch.equal(before[key], after[key]) for key in rest)
    assert all(key.startswith("vision_tower.vision_model.") for key in after.keys() - rest)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == after.keys()
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()


@pytest.mark.parametrize("prefix", ["vision_tower.", "vision_tower.vision_model."])
def test_both_releases_names_are_read(prefix: str, tuned: Path, base: Path, tmp_path: Path) -> None:
    old = tmp_path / "base"
    old.mkdir()
    (old / "config.json").write_bytes((base / "config.json").read_bytes())
    tensors = {
        f"{prefix}{key.removeprefix('vision_tower.').removeprefix('vision_model.')}"
        if "vision_tower" in key
        else key: value
        for key, value in tensors_of(base).items()
    }
    half = {key: value.half() for key, value in tensors.items()}
    save_file({**half, f"{prefix}embeddings.position_ids": torch.arange(17)}, old / "model.safetensors")
    export(tuned, old, tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    kernel = after["vision_tower.vision_model.embeddings.patch_embedding.weight"]
    assert kernel.dtype == torch.float16
    assert torch.equal(kernel, load_clip(tuned).module.visual.conv1.weight.half())


def test_a_change_that_llava_does_not_read_is_reported(base: Path, tmp_path: Path) -> None:
    model = build_clip(CLIP, seed=1)
    first = export(save(model, tmp_path / "first"), base, tmp_path / "with_first")
    assert "nothing that LLaVA reads differs" not in first
    with torch.no_grad():
        for part in (model.module.visual.transformer.resblocks[-1], model.module.visual.ln_post):
            for parameter in part.parameters():
                parameter.add_(1.0)
    again = export(save(model, tmp_path / "second"), tmp_path / "with_first", tmp_path / "with_second")
    assert "nothing that LLaVA reads differs: vision_feature_layer -2 is the output of block 2 of 3" in again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, "has num_hidden_layers 2, this model 3"),
        ({"hidden_act": "gelu"}, "has hidden_act gelu, this model quick_gelu"),
        ({"image_size": 48}, "has image_size 48, this model 32"),
    ],
)
def test_another_tower_is_one_line(changes: dict[str, Any], message: str, tuned: Path, tmp_path: Path) -> None:
    line = export(tuned, make_base(tmp_path / "base", **changes), tmp_path / "out", code=2)
    assert message in line
    assert line.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_what_is_no_llava_of_transformers_is_one_line(tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava_llama", "mm_vision_tower": "x"}')
    assert "export with --format hf and set mm_vision_tower" in export(tuned, tmp_path, tmp_path / "out", code=2)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert "expected a model of type llava or llava_next, got 'clip'" in export(tuned, tmp_path, tmp_path / "o", code=2)


def test_a_base_is_given_for_llava_and_for_nothing_else(tuned: Path, base: Path, tmp_path: Path) -> None:
    result = run_here("export", tuned, "--format", "llava", "--out", tmp_path / "out")
    line = "format llava: base is required, the folder of the LLaVA checkpoint whose tower is replaced"
    assert result.errors == [f"error: {line}"]
    with pytest.raises(UserError, match=f"^{line}$"):
        Export(name="put", model="tuned", format="llava").preflight(Preflight({}, {}))
    result = run_here("export", tuned, "--format", "hf", "--base", base, "--out", tmp_path / "out")
    assert result.errors == [f"error: format hf: base is {FOR_LLAVA}; got {base}"]


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"a": "model-00009-of-00009.safetensors"}, r"/model-00009-of-00009\.safetensors: no such file, though "),
        ({"a": "../model.safetensors"}, r"index\.json: expected names of files in its folder, got \.\./model"),
        ([], r"index\.json: not readable as an index of weights"),
        ({"a": 3}, r"index\.json: not readable as an index of weights"),
    ],
)
def test_an_index_that_names_no_file_of_the_folder_is_one_line(
    weight_map: Any, reason: str, tuned: Path, base: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(base, tmp_path / "base")
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    export(tuned, broken, tmp_path / "out", code=2)
    known = Preflight({}, {"tuned": tuned})
    with pytest.raises(UserError, match=reason) as caught:
        Export(name="put", model="tuned", format="llava", base=str(broken)).preflight(known)
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_or_one_without_a_tensor_of_its_tower_is_one_line(tuned: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    key = "encoder.layers.1.mlp.fc1.weight"
    (file,) = (each for each in base.glob("*.safetensors") if any(name.endswith(key) for name in load_file(each)))
    whole = load_file(file)
    save_file({name: value for name, value in whole.items() if not name.endswith(key)}, file, {"format": "pt"})
    line = export(tuned, base, tmp_path / "out", code=2)
    assert f"{base}: its vision tower lacks 1 tensors, such as {key}" in line
    file.write_bytes(file.read_bytes()[:100])
    assert f"{file}: damaged; download it again: " in export(tuned, base, tmp_path / "out", code=2)
