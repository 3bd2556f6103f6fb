"""Where a generator denoises: in pixels, or in the latents of a VAE."""

# B batch, C channels, h side of the denoised sample, S side of the picture

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from vfm.config import UserError
from vfm.train import Batch, Frozen

PIXELS_FILE = Path("pixels", "config.json")
VAE = "vae"
VAES: dict[str, Any] = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny)}


class Space(nn.Module):
    """The way from pictures to what is denoised, and back.

    name: for people.
    channels: C.
    downscale: S / h.
    """

    name: str
    channels: int
    downscale: int

    @abstractmethod
    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to float32 samples (B, C, h, h)."""

    @abstractmethod
    def decode(self, samples: Tensor) -> Tensor:
        """The way back, to uint8."""

    @abstractmethod
    def adapt(self, rms: float) -> None:
        """Learns, before training, the root mean square of the data in [-1, 1]."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Writes what `load_space` reads."""


class PixelSpace(Space):
    """Pixels themselves, from [-1, 1] times `scale`.

    The scale is what `scaling_factor` is for a VAE: it brings the data to a spread of about 1, which noise schedules
    are made for. Without it, pictures of a plain ground with little on it drown in noise at nearly every time.
    """

    name, channels, downscale = "pixels", 3, 1

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, pictures: Tensor) -> Tensor:
        """Black is -scale and white scale."""
        return unit_range(pictures) * self.scale

    def decode(self, samples: Tensor) -> Tensor:
        """The way back, to uint8."""
        return to_uint8(samples / self.scale)

    def adapt(self, rms: float) -> None:
        """Sets the scale at which the root mean square is 1."""
        self.scale = 1 / max(rms, 1e-3)

    def save(self, directory: Path) -> None:
        """Writes the scale."""
        file = directory / PIXELS_FILE
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"scaling_factor": self.scale}) + "\n", encoding="utf-8")


class LatentSpace(Space):
    """The latents of diffusers' `AutoencoderKL`, its posterior's mean, or `AutoencoderTiny`, shifted and scaled."""

    name = "the latents of its VAE"

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        config: Any = vae.config
        self.vae: Any = vae.requires_grad_(False).eval()
        self.channels = config.latent_channels
        levels = getattr(config, "encoder_block_out_channels", None) or config.block_out_channels
        self.downscale = 2 ** (len(levels) - 1)
        self.scale = float(config.scaling_factor)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to latents (B, C, S/8, S/8) where the VAE halves three times."""
        said = self.vae.encode(unit_range(pictures))
        mean: Tensor = said.latents if hasattr(said, "latents") else said.latent_dist.mean
        return (mean.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, samples: Tensor) -> Tensor:
        """Latents to uint8 pictures."""
        return to_uint8(self.vae.decode(samples / self.scale + self.shift).sample)

    def adapt(self, rms: float) -> None:
        """Changes nothing: the VAE says its scale itself."""

    def save(self, directory: Path) -> None:
        """Writes the VAE, as diffusers does."""
        self.vae.save_pretrained(directory / VAE)

    def key(self) -> str:
        """What tells its latents from those of another VAE: a hash over its weights, its scale and its shift."""
        digest = hashlib.sha256()
        for name, value in sorted(self.vae.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return json.dumps({"vae": digest.hexdigest()[:16], "scale": self.scale, "shift": self.shift})


def as_latents(space: Space) -> LatentSpace:
    """The space, where it is one of latents.

    Raises:
        UserError: it is one of pixels.
    """
    if not isinstance(space, LatentSpace):
        raise UserError(f"the generator denoises {space.name}: there are no latents to keep")
    return space


def load_space(folder: Path, *, weights: bool = True) -> Space:
    """The space of a generator's folder: that of its VAE, or pixels where it has none.

    Args:
        folder: in diffusers' layout.
        weights: False reads the configuration alone; the VAE lies on the meta device.

    Raises:
        UserError: as `load_latents`.
    """
    if (folder / VAE).is_dir():
        return load_latents(folder, weights=weights)
    file = folder / PIXELS_FILE
    return (
        PixelSpace(json.loads(file.read_text(encoding="utf-8"))["scaling_factor"]) if file.is_file() else PixelSpace()
    )


def load_latents(folder: Path, *, weights: bool = True) -> LatentSpace:
    """The latents of the VAE in a generator's folder.

    Raises:
        UserError: there is no VAE, or one of another kind.
    """
    file = folder / VAE / "config.json"
    if not file.is_file():
        raise UserError(f"{folder / VAE}: no VAE here")
    name = json.loads(file.read_text(encoding="utf-8")).get("_class_name")
    if name not in VAES:
        raise UserError(f"{folder / VAE}: the VAE is of kind {name}; diva takes {', '.join(VAES)}")
    return LatentSpace(load_part(VAES[name], folder / VAE, weights=weights))


def clean(space: Frozen[Space], batch: Batch) -> Tensor:
    """What a batch's pictures are before noise, (B, C, h, h): its kept `latents` where it has them."""
    x0: Tensor = batch["latents"].float() if "latents" in batch else space(batch["pictures"])
    return x0


SCALES = {"Stable Diffusion": 0.18215, "SDXL": 0.13025, "SD3": 1.5305, "Flux": 0.3611}


def check_scale(space: Space, network: Any, folder: Path) -> None:
    """Refuses a pretrained denoiser beside the VAE of another family, whose latents have another spread.

    Nothing else would say so: SD's VAE has the shape of SDXL's. A scale that is nobody's passes: it may be their own.

    Raises:
        UserError: as it says.
    """
    family = {"SD3Transformer2DModel": "SD3", "FluxTransformer2DModel": "Flux"}.get(type(network).__name__)
    if family is None:
        family = "SDXL" if network.config.addition_embed_type == "text_time" else "Stable Diffusion"
    if not isinstance(space, LatentSpace) or space.scale == SCALES[family]:
        return
    if other := [name for name, scale in SCALES.items() if scale == space.scale]:
        raise UserError(
            f"{folder / VAE}: scaling_factor {space.scale} is that of {other[0]}; the denoiser is of {family}'s kind "
            f"({SCALES[family]})"
        )


def load_part(kind: Any, folder: Path, *, weights: bool) -> nn.Module:
    """A model of diffusers from its folder; without weights it lies on the meta device and costs nothing."""
    if weights:
        whole: nn.Module = kind.from_pretrained(folder, low_cpu_mem_usage=False)
        return whole
    with torch.device("meta"):
        shapes: nn.Module = kind.from_config(kind.load_config(folder))
    return shapes


def unit_range(pictures: Tensor) -> Tensor:
    """uint8 as float32 in [-1, 1]: black is -1 and white 1."""
    return pictures.float() / 127.5 - 1


def to_uint8(samples: Tensor) -> Tensor:
    """[-1, 1] as uint8."""
    return ((samples.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
