"""Imported diffusion models: diffusers must load our copy with the same output."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from vfm.base import UserError
from vfm.interfaces import Artifact, Context, GeneratorCheckpoint, Preflight
from vfm.models import import_generator
from vfm.models.clip import model_sources
from vfm.models.generator import generator_parts
from vfm.models.stages import ImportGenerator

diffusers = pytest.importorskip("diffusers")


def generator(folder: Path, prediction: str = "v_prediction", width: int = 24) -> Path:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=width,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    unet.save_pretrained(folder / "unet")
    diffusers.DDPMScheduler(prediction_type=prediction).save_pretrained(folder / "scheduler")
    return folder


@pytest.mark.parametrize(("theirs", "ours"), [("v_prediction", "v"), ("epsilon", "epsilon")])
def test_diffusers_loads_the_copy_with_equal_output(theirs: str, ours: str, tmp_path: Path) -> None:
    source = generator(tmp_path / "source", theirs)
    (source / "unet" / "old.bin").write_bytes(b"pickle")
    stage = ImportGenerator(kind="models.generator", name="prior", source=str(source))
    assert list(stage.sources()) == [str(source)]
    artifact = Artifact.load(stage.run(Context("prior", tmp_path / "out", tmp_path / "work", {})).path)
    assert isinstance(artifact, GeneratorCheckpoint)
    assert (artifact.sample_size, artifact.condition_width, artifact.prediction) == (8, 24, ours)
    assert not (artifact.path / "unet" / "old.bin").exists()
    first, second = (diffusers.UNet2DConditionModel.from_pretrained(f / "unet").eval() for f in (source, artifact.path))
    noisy, condition = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 24)
    with torch.no_grad():
        assert torch.equal(first(noisy, 5, condition).sample, second(noisy, 5, condition).sample)


def test_flow_model_is_recognised_by_its_scheduler(tmp_path: Path) -> None:
    source = generator(tmp_path / "source")
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(source / "scheduler")
    assert import_generator(f"local-dir:{source}", tmp_path / "out").prediction == "flow"


def test_a_size_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    source = generator(tmp_path / "source")
    file = source / "unet/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sample_size": [8, 8]}))
    with pytest.raises(UserError, match=r"unet/config\.json: not readable as the configuration of a denoiser"):
        import_generator(f"local-dir:{source}", tmp_path / "out")


def test_wrong_weights_pickles_and_missing_parts_are_one_line_errors(tmp_path: Path) -> None:
    source = generator(tmp_path / "source")
    weights = source / "unet" / "diffusion_pytorch_model.safetensors"

    def error_line() -> str:
        with pytest.raises(UserError) as caught:
            import_generator(str(source), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    tensors = load_file(weights)
    save_file({key: value for key, value in tensors.items() if key != "conv_out.bias"}, weights)
    assert "1 keys differ, first conv_out.bias: expected [4], got no such key" in error_line()
    weights.write_bytes(b"noise")
    assert "not readable as safetensors" in error_line()
    weights.rename(weights.with_suffix(".bin"))
    assert "pickled weights are not read" in error_line()
    scheduler = source / "scheduler" / "scheduler_config.json"
    config = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps({**config, "prediction_type": "sample"}))
    assert "scheduler_config.json: prediction_type: expected one of epsilon, " in (line := error_line())
    assert line.endswith("got 'sample'")
    # Playground-2.5's: its noise does not follow from betas, and diffusers' DDIM would take default ones in silence.
    scheduler.write_text(json.dumps({"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_max": 80.0}))
    assert "scheduler_config.json: _class_name: expected one of DDIMScheduler, " in (line := error_line())
    assert line.endswith("got EDMDPMSolverMultistepScheduler")
    scheduler.write_text(json.dumps({key: value for key, value in config.items() if key != "beta_end"}))
    assert "scheduler_config.json: expected beta_start, beta_end, beta_schedule, got no beta_end" in error_line()
    scheduler.unlink()
    assert "scheduler_config.json: missing" in error_line()
    (source / "unet" / "config.json").unlink()
    assert "not in diffusers' layout" in error_line()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cross_attention_dim", None, "expected a denoiser with cross-attention, got none of caption_channels, "),
        ("_class_name", "load_image", "diffusers has no ModelMixin 'load_image'"),
    ],
)
def test_a_wrong_value_of_a_part_is_named_with_its_file(tmp_path: Path, key: str, value: object, message: str) -> None:
    file = generator(tmp_path / "source") / "unet/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(UserError, match=f"^{re.escape(f'{file}: {message}')}"):
        import_generator(str(tmp_path / "source"), tmp_path / "out")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weights = generator(tmp_path / "source") / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"][0] = float("inf")
    save_file(tensors, weights)
    with pytest.raises(UserError, match=r"_model.safetensors: expected finite weights, got .* in conv_out\.bias$"):
        import_generator(str(tmp_path / "source"), tmp_path / "out")


def test_missing_folder_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; write a model of the hub as hf-hub:"):
        import_generator(str(tmp_path / "nowhere"), tmp_path / "out")


def pipeline(folder: Path) -> Path:
    """Write a tiny text-to-image model with all its parts, and files that nobody needs, as repositories have them."""
    transformers = pytest.importorskip("transformers")
    source = generator(folder)
    diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(source / "vae")
    config = transformers.CLIPTextConfig(
        vocab_size=8, hidden_size=24, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.CLIPTextModel(config).save_pretrained(source / "text_encoder")
    (source / "tokenizer").mkdir()
    words = ("a", "a</w>", "<|startoftext|>", "<|endoftext|>")
    (source / "tokenizer/vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (source / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    index = {name: ["diffusers", value] for name, value in parts.items()}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    (source / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **index}))
    return source


def rejected(source: Path, target: Path) -> str:
    with pytest.raises(UserError) as caught:
        import_generator(str(source), target)
    assert not target.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_the_files_that_are_needed_are_copied(tmp_path: Path) -> None:
    source = pipeline(tmp_path / "source")
    for name in ("v2-1_512-ema-pruned.safetensors", "v2-1_512-ema-pruned.ckpt", "README.md"):
        (source / name).write_bytes(b"another copy of everything")
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        for suffix in ("fp16.safetensors", "non_ema.safetensors", "bin"):
            (source / part / f"{stem}.{suffix}").write_bytes(b"a variant")
    (source / "safety_checker").mkdir()
    (source / "safety_checker" / "model.safetensors").write_bytes(b"unused")
    artifact = import_generator(str(source), tmp_path / "out")
    copied = {file.relative_to(artifact.path).as_posix() for file in artifact.path.rglob("*") if file.is_file()}
    assert {name for name in copied if name.endswith((".safetensors", ".ckpt", ".bin", ".md"))} == {
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }  # fmt: skip
    assert {"model_index.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "vae/config.json"} <= copied


@pytest.mark.parametrize(
    ("part", "stem"),
    [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")],
)
def test_the_weights_of_every_part_are_checked(part: str, stem: str, tmp_path: Path) -> None:
    source = pipeline(tmp_path / "source")
    file = source / part / f"{stem}.safetensors"
    tensors = load_file(file)
    save_file(dict(list(tensors.items())[1:]), file)
    assert f"{part}: its weights do not fit its configuration: 1 keys differ" in rejected(source, tmp_path / "out")
    save_file(tensors, file)
    file.rename(file.with_name(f"{stem}.fp16.safetensors"))
    assert f"{part}: fp16 variant only ({stem}.fp16.safetensors)" in rejected(source, tmp_path / "out")
    file.with_name(f"{stem}.fp16.safetensors").rename(file.with_suffix(".bin"))
    assert f"{part}: no safetensors; pickled weights are not read" in rejected(source, tmp_path / "out")
    shutil.rmtree(source / part)
    assert rejected(source, tmp_path / "out")


def test_a_missing_tokenizer_is_one_line(tmp_path: Path) -> None:
    source = pipeline(tmp_path / "source")
    (source / "tokenizer" / "merges.txt").unlink()
    assert "tokenizer: no tokenizer found: expected tokenizer.json" in rejected(source, tmp_path / "out")
    shutil.rmtree(source / "tokenizer")
    assert "tokenizer: no tokenizer found: expected tokenizer.json" in rejected(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", "{}", "'added_tokens' is missing"),
        ("tokenizer.json", "{", "Expecting property name"),
        ("vocab.json", "[]", "Bad vocabulary json file"),
        ("merges.txt", "{}", "Merges text file invalid at line 1"),
    ],
)
def test_a_damaged_tokenizer_is_one_line(name: str, content: str, reason: str, tmp_path: Path) -> None:
    source = pipeline(tmp_path / "source")
    (source / "tokenizer" / name).write_text(content)
    line = rejected(source, tmp_path / "out")
    assert line.startswith(f"{source}/tokenizer: not readable as a tokenizer: ")
    assert reason in line


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_missing_is_known_before_anything_runs(part: str, tmp_path: Path) -> None:
    source = pipeline(tmp_path / "source")
    stage = ImportGenerator(name="sd", source=str(source))
    stage.preflight(Preflight({}, {}))
    shutil.rmtree(source / part)
    with pytest.raises(UserError, match=rf"^{source}.*(missing|not in diffusers' layout|no tokenizer found)"):
        stage.preflight(Preflight({}, {}))
    ImportGenerator(name="sd", source="hf-hub:org/model").preflight(Preflight({}, {}))
    with pytest.raises(UserError, match="nowhere: no such folder; write a model of the hub as hf-hub:"):
        ImportGenerator(name="sd", source="nowhere").preflight(Preflight({}, {}))


def test_older_names_of_a_vaes_attention_and_of_a_text_encoder_are_accepted(tmp_path: Path) -> None:
    source = pipeline(tmp_path / "source")
    file = source / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    assert any(".proj_attn." in key for key in tensors)
    save_file(tensors, file)
    file = source / "text_encoder" / "model.safetensors"
    texts = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(file).items()}
    save_file({**texts, "text_model.embeddings.position_ids": torch.arange(77)[None]}, file)
    assert import_generator(str(source), tmp_path / "out").condition_width == 24


def test_a_model_of_the_hub_is_pinned_and_only_needed_files_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, calls = pipeline(tmp_path / "source"), []

    def download(repo: str, **options: Any) -> str:
        calls.append((repo, options))
        return str(source)

    monkeypatch.setattr(model_sources, "snapshot_download", download)
    import_generator("hf-hub:org/model@0123abc", tmp_path / "out")
    ((repo, options),) = calls
    assert (repo, options["revision"]) == ("org/model", "0123abc")
    names = [
        "unet/diffusion_pytorch_model.safetensors",
        "v2-1.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert (
        list(
            filter_repo_objects(
                names, allow_patterns=options["allow_patterns"], ignore_patterns=options["ignore_patterns"]
            )
        )
        == names[:1]
    )
    (source / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    listed = ["vae/diffusion_pytorch_model.fp16.safetensors"]
    monkeypatch.setattr(generator_parts, "list_repo_files", lambda repo, revision: listed)
    with pytest.raises(UserError, match="vae: fp16 variant only"):
        import_generator("hf-hub:org/model", tmp_path / "other")
