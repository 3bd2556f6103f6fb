"""Imported diffusion models: diffusers must load our copy with the same output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vfm.artifacts import Artifact, GeneratorCheckpoint
from vfm.config import UserError
from vfm.models import import_generator
from vfm.stage import Context
from vfm.stages.models import ImportGenerator

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
    scheduler.write_text(json.dumps({"prediction_type": "sample"}))
    assert "'sample'" in error_line()
    scheduler.unlink()
    assert "scheduler_config.json: missing" in error_line()
    (source / "unet" / "config.json").unlink()
    assert "not in diffusers' layout" in error_line()


def test_missing_folder_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; write a model of the hub as hf-hub:"):
        import_generator(str(tmp_path / "nowhere"), tmp_path / "out")
