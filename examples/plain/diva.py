"""DIVA on one page: a CLIP model's vision tower learns what helps a frozen diffusion model to denoise the image.

    python examples/plain/diva.py images.tar --clip local-dir:clip --generator stable-diffusion-2-1-base --steps 20

`images.tar` is any tar of images, without captions; the CLIP model is one of open_clip's own, here the one that clip.py
saved; the generator is Stable Diffusion 1 or 2, a folder as diffusers saves it or a name on the hub. The output is the
state dict of the CLIP model with the new vision tower.

The stage `diva.tune` of vfm with `preset: diva-paper` computes the same, in several processes and resumable:
tests/test_plain.py runs both on one tar and compares the losses of all steps and the weights.

Papers: Wang et al. 2024, Diffusion Feedback Helps CLIP See Better (arXiv:2407.20171); for the loss Ho et al. 2020, DDPM
(arXiv:2006.11239).
"""

import argparse
import hashlib
import io
import itertools
import math
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN, device=DEVICE).view(3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD, device=DEVICE).view(3, 1, 1)
PROMPT = "a photo of a ."  # what the released code makes of the paper's empty text
NOISE, PATCHES = 0x6E6F6973, 0x70617463  # separate these draws of a sample from its crop

# The condition


def visual_tokens(visual: nn.Module, pixels: Tensor, draws: Tensor, num_patches: int) -> Tensor:
    """Return the class token and random patch tokens in CLIP's joint space, (B, 1 + num_patches, D).

    Section 3, visual dense recap: the class token alone says too little, and all patches make the task too easy. With
    76 patches there is a token for each of the 77 text states. (The released code draws with replacement, so that fewer
    patches are distinct.) The patches are those with the largest of the random numbers `draws`, (B, N).
    """
    whole, patches = visual(pixels)  # (B, D), (B, N, width)
    patches = patches @ visual.proj  # (B, N, D)
    chosen = draws.topk(num_patches, dim=1).indices.sort(dim=1).values[..., None]
    return torch.cat([whole[:, None], patches.gather(1, chosen.expand(-1, -1, patches.shape[-1]))], dim=1)


def condition(tokens: Tensor, adapter: nn.Linear, states: Tensor) -> Tensor:
    """Return the context for the UNet's cross-attention: image tokens through one linear layer, plus text states.

    Each token is added to its text state, or to their mean if there are not as many. (So does the released code, where
    the paper concatenates; it leaves tokens at CLIP's small scale, and here their root mean square is 1.)
    """
    tokens = F.normalize(tokens, dim=-1) * math.sqrt(tokens.shape[-1])
    return adapter(tokens) + (states if states.shape[1] == tokens.shape[1] else states.mean(dim=1, keepdim=True))


# The frozen diffusion model and its loss


@dataclass
class Generator:
    """A latent diffusion model, which takes no gradient itself."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: DDPMScheduler
    states: Tensor  # text states of the prompt, (1, L, W)


def denoising_loss(generator: Generator, images: Tensor, context: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Compute the error of the predicted noise, a mean over the images and T random times of each.

    Shapes: images (B, 3, S, S) in uint8, context (B, K, W), noise (B, T, C, h, h), times (B, T) from 0, clean, to 1.
    Gradients pass through the UNet to the context. (The released code weighs the T times by its accumulation of
    gradients, and shows the VAE images of less contrast; here all weigh the same, and black is -1 and white is 1.)
    """
    unet, vae, scheduler = generator.unet, generator.vae, generator.scheduler
    with torch.no_grad():  # the mean, not a sample, of the VAE's posterior
        latents = vae.encode(images.float() / 127.5 - 1).latent_dist.mean * vae.config.scaling_factor
    num_times, noise = times.shape[1], noise.flatten(0, 1)
    latents, context = (x.repeat_interleave(num_times, dim=0) for x in (latents, context))  # (B T, ...)
    t = (times.flatten() * scheduler.config.num_train_timesteps).long()
    noisy = scheduler.add_noise(latents, noise, t)  # DDPM, equation 4
    is_v = scheduler.config.prediction_type == "v_prediction"  # Stable Diffusion 2 at 768 pixels
    target = scheduler.get_velocity(latents, noise, t) if is_v else noise
    predicted = unet(noisy, t, encoder_hidden_states=context).sample
    error = (predicted - target).square().flatten(1).mean(dim=1)  # DDPM, equation 14
    return error.view(-1, num_times).mean(dim=1).mean()


# The loop


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the rate of a step, from 0: a linear warm-up, then half a cosine."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(
    visual: nn.Module,
    generator: Generator,
    images: list[bytes],
    *,
    steps: int,
    batch_size: int = 640,  # this and what follows as in the released code
    num_patches: int = 76,
    num_times: int = 2,
    lr: float = 1e-4,
    warmup: int = 23,
    seed: int = 0,
) -> Iterator[float]:
    """Train a vision tower in place, with a new adapter, and yield the loss of each step."""
    visual.eval().output_tokens = True  # without dropout; open_clip returns the patch tokens, too
    torch.manual_seed(seed)
    adapter = nn.Linear(visual.proj.shape[1], generator.unet.config.cross_attention_dim).to(DEVICE)
    trained = [*visual.parameters(), *adapter.parameters()]
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9, fused=True)
    side, num_all = generator.unet.config.sample_size, math.prod(visual.grid_size)
    shape = (num_times, generator.vae.config.latent_channels, side, side)
    sizes = visual.image_size[0], side * 2 ** (len(generator.vae.config.block_out_channels) - 1)
    order = sample_order(len(images), seed)
    for step in range(steps):
        batch = []
        for n in itertools.islice(order, batch_size):
            own = sample_seed(seed, step, n)
            random = torch.Generator().manual_seed(own ^ NOISE)
            noise, times = torch.randn(shape, generator=random), torch.rand(num_times, generator=random)
            draws = torch.rand(num_all, generator=random.manual_seed(own ^ PATCHES))
            batch.append((*load_image(images[n], own, *sizes), noise, times, draws))
        small, large, noise, times, draws = (torch.stack(each).to(DEVICE) for each in zip(*batch, strict=True))
        tokens = visual_tokens(visual, (small.float() / 255 - MEAN) / STD, draws, num_patches)
        loss = denoising_loss(generator, large, condition(tokens, adapter, generator.states), noise, times)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, max_norm=1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, warmup, lr)
        optimizer.step()
        yield loss.item()


# The data


def read_images(path: Path) -> list[bytes]:
    """Read the encoded images of a tar."""
    with tarfile.open(path) as tar:
        images = (member for member in tar if member.name.endswith((".jpg", ".jpeg", ".png", ".webp")))
        return [tar.extractfile(member).read() for member in images]


def sample_order(num_samples: int, seed: int) -> Iterator[int]:
    """Yield sample numbers without end: each epoch has every sample once, in another order."""
    for epoch in itertools.count():  # 1: vfm shuffles large datasets in windows, and this is the first
        yield from np.random.default_rng((seed, epoch, 1)).permutation(num_samples).tolist()


def sample_seed(seed: int, step: int, sample: int) -> int:
    """Return the seed of one use of a sample, so that its draws do not depend on the process that reads it."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, step, sample), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def random_crop(image: Image.Image, scale: tuple[float, float], rng: np.random.Generator) -> Image.Image:
    """Cut out a random share of the image's area with a random aspect ratio, as `RandomResizedCrop` does."""
    (width, height), narrow, wide = image.size, 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(narrow), math.log(wide)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            break
    else:  # none fits: the largest box in the centre
        aspect = min(max(width / height, narrow), wide)
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h))


def load_image(data: bytes, seed: int, *sizes: int) -> list[Tensor]:
    """Decode an image and crop it at random, uint8 (3, size, size) in each size: CLIP and the VAE see the same."""
    image = random_crop(Image.open(io.BytesIO(data)).convert("RGB"), (0.9, 1.0), np.random.default_rng(seed))
    resized = (np.array(image.resize((size, size), Image.Resampling.BICUBIC)) for size in sizes)
    return [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in resized]


@torch.no_grad()
def load_generator(name: str) -> Generator:
    """Load Stable Diffusion; its text encoder is needed once, since the prompt is constant."""
    tokenizer = CLIPTokenizer.from_pretrained(name, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(name, subfolder="text_encoder").eval()
    unet = UNet2DConditionModel.from_pretrained(name, subfolder="unet").requires_grad_(False).eval().to(DEVICE)
    vae = AutoencoderKL.from_pretrained(name, subfolder="vae").requires_grad_(False).eval().to(DEVICE)
    tokens = tokenizer(PROMPT, padding="max_length", truncation=True, return_tensors="pt").input_ids
    states = encoder(tokens).last_hidden_state.to(DEVICE)
    return Generator(unet, vae, DDPMScheduler.from_pretrained(name, subfolder="scheduler"), states)


# The command


def main() -> None:
    """Tune a CLIP model on a tar of images."""
    parser = argparse.ArgumentParser(description="Tune CLIP's vision tower by diffusion feedback.")
    parser.add_argument("images", type=Path, help="tar of images; captions are ignored")
    parser.add_argument("--clip", required=True, help="local-dir:FOLDER, or a name of open_clip")
    parser.add_argument("--tag", help="the weights, such as openai for ViT-L-14")
    parser.add_argument("--generator", required=True, help="folder of Stable Diffusion, or its name on the hub")
    parser.add_argument("--patches", type=int, default=76)
    parser.add_argument("--steps", type=int, default=4600)
    parser.add_argument("--batch-size", type=int, default=640)
    parser.add_argument("--out", type=Path, default=Path("diva.safetensors"))
    args = parser.parse_args()
    images = read_images(args.images)
    if not images:
        parser.error(f"{args.images}: expected images, got none")
    clip = open_clip.create_model(args.clip, args.tag, device=DEVICE)
    settings = {"steps": args.steps, "batch_size": args.batch_size, "num_patches": args.patches}
    for step, loss in enumerate(train(clip.visual, load_generator(args.generator), images, **settings), start=1):
        print(f"step {step} of {args.steps}: loss {loss:.4f}")
    save_file(clip.state_dict(), args.out)


if __name__ == "__main__":
    main()
