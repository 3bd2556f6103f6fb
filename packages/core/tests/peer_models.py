"""Files of weights as the trainers of timm, torchvision, open_clip, transformers and Lightning leave them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.utils import CheckpointSaver
from torch import nn

from eval_world import TINY_CLIP
from peer_files import Writer
from vfm.models import build_clip, save_clip
from vfm.models.interchange.hugging_face import save_hugging_face

CLIP = "ViT-Pico-8-32"


def timm_checkpoints(folder: Path) -> Path:
    """Write checkpoint-0.pth.tar and model_best.pth.tar by timm's own CheckpointSaver."""
    model = timm.create_model("resnet10t", num_classes=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    arguments = Namespace(model="resnet10t", lr=0.1, num_classes=4)
    saver = CheckpointSaver(model, optimizer, arguments, checkpoint_dir=str(folder), recovery_dir=str(folder))
    saver.save_checkpoint(0, metric=0.5)
    return folder


def state_dict(folder: Path, name: str, *, prefix: str = "", classes: int = 4) -> Path:
    """Write a state dict alone, as a script's `torch.save` does."""
    tensors = timm.create_model(name, num_classes=classes).state_dict()
    file = folder / "weights.pth"
    torch.save({prefix + key: value for key, value in tensors.items()}, file)
    return file


def lightning(folder: Path) -> Path:
    """Write a checkpoint in Lightning's layout: the module is the attribute `model` of the trained class."""
    tensors = timm.create_model("resnet18", num_classes=4).state_dict()
    record = {"epoch": 3, "global_step": 9, "state_dict": {f"model.{key}": value for key, value in tensors.items()}}
    torch.save(record, folder / "last.ckpt")
    return folder / "last.ckpt"


def timm_safetensors(folder: Path) -> Path:
    """Write the weights of an encoder as safetensors, without its name."""
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def timm_folder(folder: Path) -> Path:
    """Write a folder for the hub by timm's own function."""
    save_for_hf(timm.create_model("resnet10t", num_classes=4), folder / "hub", model_config={})
    return folder / "hub"


def open_clip_epoch(folder: Path) -> Path:
    """Write epoch_1.pt as open_clip's trainer does under DistributedDataParallel."""
    model = build_clip(CLIP, seed=0).module
    tensors = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": tensors, "optimizer": {}}, folder / "epoch_1.pt")
    return folder / "epoch_1.pt"


def open_clip_folder(folder: Path) -> Path:
    """Write open_clip_config.json and its weights by open_clip's layout."""
    save_clip(build_clip(CLIP, seed=0), folder / "hub")
    for extra in (folder / "hub").iterdir():
        if extra.name in ("artifact.json", "manifest.json"):
            extra.unlink()
    return folder / "hub"


def clip_folder(folder: Path) -> Path:
    """Write the folder of transformers' CLIPModel and its tokenizer."""
    config = {**TINY_CLIP, "text_cfg": {**TINY_CLIP["text_cfg"], "context_length": 16}}
    save_hugging_face(build_clip(config, seed=0), folder / "clip")
    return folder / "clip"


def vit_folder(folder: Path, kind: str) -> Path:
    """Write the folder of an encoder by transformers: ViT, DINOv2, or CLIP's vision tower alone."""
    import transformers

    shape = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 768}
    shape |= {"image_size": 224, "patch_size": 16}
    config = getattr(transformers, f"{kind}Config")(**shape)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder / "encoder")
    return folder / "encoder"


def whole_module(folder: Path) -> Path:
    """Write a module as it is, which is code and not weights."""
    torch.save(nn.Linear(2, 2), folder / "model.pt")
    return folder / "model.pt"


MODELS: dict[str, Writer] = {
    "timm: checkpoint-0.pth.tar": lambda folder: timm_checkpoints(folder) / "checkpoint-0.pth.tar",
    "timm: model_best.pth.tar": lambda folder: timm_checkpoints(folder) / "model_best.pth.tar",
    "timm: save_for_hf": timm_folder,
    "timm: safetensors": timm_safetensors,
    "torch: state dict, DistributedDataParallel": lambda folder: state_dict(folder, "resnet18", prefix="module."),
    "torch: state dict": lambda folder: state_dict(folder, "convnext_atto"),
    "Lightning: last.ckpt": lightning,
    "open_clip: epoch_1.pt": open_clip_epoch,
    "open_clip: folder for the hub": open_clip_folder,
    "transformers: CLIPModel": clip_folder,
    "transformers: ViTModel": lambda folder: vit_folder(folder, "ViT"),
    "transformers: Dinov2Model": lambda folder: vit_folder(folder, "Dinov2"),
}
