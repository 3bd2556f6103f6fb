"""Diffusion models from outside: what diffusers wrote is what diffusers reads of our copy."""

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
def test_the_copy_is_read_by_diffusers_with_equal_output(theirs: str, ours: str, tmp_path: Path) -> None:
    source = generator(tmp_path / "source", theirs)
    (source / "unet" / "old.bin").write_bytes(b"pickle")
    stage = ImportGenerator(kind="models.generator", name="prior", source=str(source))
    assert list(stage.sources()) == [str(source)]
    made = Artifact.load(stage.run(Context("prior", tmp_path / "out", tmp_path / "work", {})).path)
    assert isinstance(made, GeneratorCheckpoint)
    assert (made.sample_size, made.condition_width, made.prediction) == (8, 24, ours)
    assert not (made.path / "unet" / "old.bin").exists()
    first, second = (diffusers.UNet2DConditionModel.from_pretrained(f / "unet").eval() for f in (source, made.path))
    noisy, condition = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 24)
    with torch.no_grad():
        assert torch.equal(first(noisy, 5, condition).sample, second(noisy, 5, condition).sample)


def test_a_flow_model_is_told_by_its_scheduler(tmp_path: Path) -> None:
    source = generator(tmp_path / "source")
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(source / "scheduler")
    assert import_generator(f"local-dir:{source}", tmp_path / "out").prediction == "flow"


def test_weights_that_do_not_fit_pickles_and_missing_parts_are_one_line(tmp_path: Path) -> None:
    source = generator(tmp_path / "source")
    weights = source / "unet" / "diffusion_pytorch_model.safetensors"

    def refusal() -> str:
        with pytest.raises(UserError) as caught:
            import_generator(str(source), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    tensors = load_file(weights)
    save_file({key: value for key, value in tensors.items() if key != "conv_out.bias"}, weights)
    assert "1 differ, the first is conv_out.bias (missing, wanted [4])" in refusal()
    weights.write_bytes(b"noise")
    assert "not readable as safetensors" in refusal()
    weights.rename(weights.with_suffix(".bin"))
    assert "pickled weights are not read" in refusal()
    scheduler = source / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({"prediction_type": "sample"}))
    assert "'sample'" in refusal()
    scheduler.unlink()
    assert "scheduler_config.json: missing" in refusal()
    (source / "unet" / "config.json").unlink()
    assert "not in diffusers' layout" in refusal()


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; a model of the hub is named hf-hub:"):
        import_generator(str(tmp_path / "nowhere"), tmp_path / "out")
