"""Space in which a generator denoises: pixels, or the latents of a VAE."""

# B batch, C channels, h side of the denoised sample, S side of the image

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from torch import Tensor, nn

from vfm.plugin import UserError, store_files

PIXELS_FILE = Path("pixels", "config.json")
VAE, MOVQ = "vae", "movq"  # the second one is Kandinsky's name
VAES: dict[str, Any] = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny, VQModel)}


class Space(nn.Module):
    """Map from images to the samples that are denoised, and its inverse.

    Attributes:
        name: Name for messages.
        channels: Number C of channels.
        downscale: Ratio S / h.
        has_posterior: Whether an image has a distribution of samples, from which noise can draw.
    """

    has_posterior: bool = False
    name: str
    channels: int
    downscale: int

    @abstractmethod
    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map uint8 (B, 3, S, S) to float32 samples (B, C, h, h).

        Args:
            images: Images.
            noise: unit-normal noise, (B, C, h, h), that draws from the posterior. None takes its mean.
        """

    @abstractmethod
    def decode(self, samples: Tensor) -> Tensor:
        """Map samples to uint8 images."""

    @abstractmethod
    def set_data_rms(self, rms: float) -> None:
        """Set the scale, before training, by the root mean square of the data in [-1, 1]."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write the files that `load_space` reads."""


class PixelSpace(Space):
    """Space of generators without a VAE: pixels in [-1, 1] times `scale`.

    The scale corresponds to a VAE's `scaling_factor`. It brings the data to a root mean square of about 1, as noise
    schedules assume. Without it, images of a plain ground with small objects drown in noise at nearly every time.
    """

    name = "pixels"
    channels = 3
    downscale = 1

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map black to -scale and white to scale."""
        return unit_range(images) * self.scale

    def decode(self, samples: Tensor) -> Tensor:
        """Map samples to uint8 images."""
        return to_uint8(samples / self.scale)

    def set_data_rms(self, rms: float) -> None:
        """Set the scale at which the root mean square is 1."""
        # A noise schedule is made for data of unit size. The bound keeps black images from an infinite scale.
        self.scale = 1 / max(rms, 1e-3)

    def save(self, directory: Path) -> None:
        """Write the scale."""
        file = directory / PIXELS_FILE
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"scaling_factor": self.scale}) + "\n", encoding="utf-8")


class LatentSpace(Space):
    """The latents of diffusers' `AutoencoderKL`, `AutoencoderTiny` or `VQModel`, shifted and scaled.

    A `VQModel`'s latents are not scaled, and are not quantized to its codes, as in Kandinsky's pipelines.
    """

    name = "the latents of its VAE"

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        config: Any = vae.config
        self.vae: Any = vae.requires_grad_(False).eval()
        self.channels = config.latent_channels
        self.has_posterior = isinstance(vae, AutoencoderKL)
        levels = getattr(config, "encoder_block_out_channels", None) or config.block_out_channels
        self.downscale = 2 ** (len(levels) - 1)
        self.is_quantized = isinstance(vae, VQModel)
        self.scale = 1.0 if self.is_quantized else float(config.scaling_factor)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map uint8 (B, 3, S, S) to latents, (B, C, S/8, S/8) if the VAE halves three times."""
        encoded = self.vae.encode(unit_range(images))
        latents: Tensor = encoded.latent_dist.mean if self.has_posterior else encoded.latents
        if noise is not None:
            # Noise from outside, since diffusers would draw it from a generator that is not bound to the sample.
            latents = latents + encoded.latent_dist.std * noise
        return (latents.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, samples: Tensor) -> Tensor:
        """Map latents to uint8 images."""
        more = {"force_not_quantize": True} if self.is_quantized else {}
        return to_uint8(self.vae.decode(samples / self.scale + self.shift, **more).sample)

    def set_data_rms(self, rms: float) -> None:
        """Change nothing: the VAE's configuration has its scale."""

    def save(self, directory: Path) -> None:
        """Write the VAE in diffusers' layout."""
        self.vae.save_pretrained(directory / (MOVQ if self.is_quantized else VAE))

    def fingerprint(self) -> str:
        """Hash the VAE's weights, scale and shift. Equal hashes mean equal latents."""
        digest = hashlib.sha256()
        # Names, shapes and types are hashed too: equal bytes may be another tensor.
        for name, value in sorted(self.vae.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return json.dumps({"vae": digest.hexdigest()[:16], "scale": self.scale, "shift": self.shift})


def require_latents(space: Space) -> LatentSpace:
    """Check that a space is of latents, and return it.

    Raises:
        UserError: If the space is of pixels.
    """
    if not isinstance(space, LatentSpace):
        raise UserError(f"expected a generator with a VAE, got one that denoises {space.name}")
    return space


def check_sampling(space: Space) -> None:
    """Check that latents of a space can be sampled.

    Raises:
        UserError: If it has no posterior.
    """
    if not space.has_posterior:
        kind = type(space.vae).__name__ if isinstance(space, LatentSpace) else space.name
        raise UserError(f"sample_latents needs a generator with an AutoencoderKL, got {kind}: set it to false")


def load_space(folder: Path, *, weights: bool = True) -> Space:
    """Load the space in which a generator works.

    Args:
        folder: Folder in diffusers' layout.
        weights: False reads only the configuration, and the VAE is on the meta device.

    Returns:
        The latents of the generator's VAE, or pixels if it has none.

    Raises:
        UserError: If the VAE cannot be used, as for `load_latent_space`.
    """
    if (folder / VAE).is_dir() or (folder / MOVQ).is_dir():
        return load_latent_space(folder, weights=weights)
    file = folder / PIXELS_FILE
    if not file.is_file():
        return PixelSpace()
    return PixelSpace(store_files.read_record(file, "scaling_factor")["scaling_factor"])


def load_latent_space(folder: Path, *, weights: bool = True) -> LatentSpace:
    """Load the latent space of the VAE in a generator's folder.

    Raises:
        UserError: If there is no VAE, its class is unknown, or its configuration has statistics of the latents.
    """
    part = folder / (MOVQ if (folder / MOVQ).is_dir() else VAE)
    file = part / "config.json"
    if not file.is_file():
        raise UserError(f"{part}: no VAE found")
    record = store_files.read_record(file)
    name = record.get("_class_name")
    if name not in VAES:
        raise UserError(f"{file}: expected a VAE of class {', '.join(VAES)}; got {name}")
    for key in ("latents_mean", "latents_std"):
        if record.get(key) is not None:
            raise UserError(
                f"{file}: expected latents that are shifted and scaled by shift_factor and scaling_factor, got"
                f" {key}, which is not supported"
            )
    return LatentSpace(load_model(VAES[name], part, weights=weights))


SCALES = {"Stable Diffusion": 0.18215, "SDXL": 0.13025, "SD3": 1.5305, "Flux": 0.3611}
FAMILIES = {  # of the VAEs of other networks than UNets
    "SD3Transformer2DModel": ("SD3",),
    "FluxTransformer2DModel": ("Flux",),
    "PixArtTransformer2DModel": ("Stable Diffusion", "SDXL"),  # alpha and Sigma
    "DiTTransformer2DModel": ("Stable Diffusion",),
}


def check_scale(space: Space, network: Any, folder: Path) -> None:
    """Check that a pretrained denoiser is not combined with the VAE of another family.

    Nothing else would reveal it: SD's VAE has the shape of SDXL's, but its latents have another spread. The latents of
    an `AutoencoderTiny` are scaled already, and a `VQModel`'s are not scaled.

    Args:
        space: Space of the VAE.
        network: The denoiser.
        folder: Folder of the generator, for messages.

    Raises:
        UserError: If the scale belongs to another family, or to none.
    """
    if not isinstance(space, LatentSpace) or not isinstance(space.vae, AutoencoderKL):
        return
    families = FAMILIES.get(type(network).__name__)
    if families is None:
        if network.config.addition_embed_type == "text_time":
            families = ("SDXL",)
        else:
            families = ("Stable Diffusion",)
    # By the scale, which each family has chosen for its own VAE. Names in the files are not reliable.
    family = next((name for name, scale in SCALES.items() if scale == space.scale), "no known family")
    if family in families:
        return
    expected = " or ".join(f"{SCALES[name]} of {name}" for name in families)
    raise UserError(
        f"{folder / VAE / 'config.json'}: expected scaling_factor {expected}, like the denoiser; got "
        f"{space.scale}, that of {family}"
    )


def load_model(kind: Any, folder: Path, *, weights: bool) -> nn.Module:
    """Load a diffusers model from its folder.

    Args:
        kind: Class of the model.
        folder: Folder with its configuration and weights.
        weights: False gives a model on the meta device that costs no memory.

    Raises:
        UserError: If its configuration is that of another class.
    """
    try:
        if weights:
            whole: nn.Module = kind.from_pretrained(folder, low_cpu_mem_usage=False)
            return whole
        with torch.device("meta"):
            shapes: nn.Module = kind.from_config(kind.load_config(folder))
    except (TypeError, AttributeError) as error:  # from a missing setting
        wrong = f"expected the configuration of {kind.__name__}, got another one ({error})"
        raise UserError(f"{folder / 'config.json'}: {wrong}") from None
    return shapes


def unit_range(images: Tensor) -> Tensor:
    """Convert uint8 to float32 from -1 (black) to 1 (white)."""
    return images.float() / 127.5 - 1


def to_uint8(samples: Tensor) -> Tensor:
    """Convert [-1, 1] to uint8."""
    return ((samples.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
