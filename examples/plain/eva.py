"""EVA on one page: a vision transformer sees an image with masked patches and predicts a CLIP model's features there.

    python examples/plain/eva.py images.tar --teacher local-dir:clip --steps 20

`images.tar` is any tar of images, and the teacher one of open_clip's own CLIP models, here the one that clip.py saved.

The stage `eva.pretrain` of vfm computes the same, in several processes and resumable: tests/test_plain.py runs both
on one tar and compares the masks, the losses of all steps and the weights.

Papers: Fang et al. 2022, EVA (arXiv:2211.07636); 2023, EVA-02 (arXiv:2303.11331); for the masks Bao et al. 2021, BEiT
(arXiv:2106.08254).
"""

import argparse
import hashlib
import io
import itertools
import math
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN, device=DEVICE).view(3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD, device=DEVICE).view(3, 1, 1)
MASKED, BLOCK = 105 / 256, 16 / 256  # EVA masks at most 105 of 16 x 16 patches, in blocks of at least 16
WORD = 2**64 - 1  # the largest number of 64 bits

# The masks


def block_mask(seed: int, rows: int, columns: int) -> np.ndarray:
    """Draw the patches that the student does not see, (rows, columns) booleans: blocks until enough are masked.

    BEiT's algorithm 1. If ten blocks in a row do not fit, the mask ends with fewer patches than `MASKED` says.
    """
    num_masked, min_block = round(MASKED * rows * columns), max(1, round(BLOCK * rows * columns))
    mask, random, failures = np.zeros((rows, columns), dtype=bool), uniforms(seed), 0
    while failures < 10 and (missing := num_masked - mask.sum()):
        u_area, u_aspect, u_top, u_left, _ = itertools.islice(random, 5)  # the fifth is for another kind of mask
        area = min_block + (missing - min_block) * u_area  # uniform between 16 and the missing patches
        aspect = np.exp(math.log(1 / 0.3) * (2 * u_aspect - 1))  # log-uniform between 0.3 and 1 / 0.3
        height, width = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        top, left = int(u_top * (rows - height + 1)), int(u_left * (columns - width + 1))
        block = mask[top : top + height, left : left + width]
        fits = height < rows and width < columns and 0 < (~block).sum() <= missing
        if fits:
            block[:] = True
        failures = 0 if fits else failures + 1
    return mask


def uniforms(seed: int) -> Iterator[float]:
    """Yield random numbers in [0, 1) (Steele et al. 2014, Fast Splittable Pseudorandom Number Generators)."""

    def mixed(state: int) -> int:
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & WORD
        return state ^ (state >> 31)

    state = mixed(seed)
    while True:
        state = (state + 0x9E3779B97F4A7C15) & WORD
        yield (mixed(state) >> 11) * 2.0**-53


# The prediction, the target and the loss


class MaskedStudent(nn.Module):
    """A timm vision transformer that predicts the teacher's features, of `width` channels, of masked patches."""

    def __init__(self, student: nn.Module, width: int, seed: int = 0) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(student.num_features))
        self.student = student
        self.head = nn.Linear(student.num_features, width)
        generator = torch.Generator().manual_seed(seed + 1)  # not `seed`, from which the student was drawn
        nn.init.trunc_normal_(self.mask_token, std=0.02, generator=generator)
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, pixels: Tensor, mask: Tensor) -> Tensor:
        """Return the predictions, (M, width), of the M patches that are masked in pixels (B, 3, S, S), mask (B, N)."""

        def hide(module: nn.Module, inputs: tuple, patches: Tensor) -> Tensor:
            return torch.where(mask[..., None], self.mask_token, patches)  # before positions are added

        hook = self.student.patch_embed.register_forward_hook(hide)
        tokens = self.student.forward_features(pixels)  # masked patches go through all blocks too
        hook.remove()
        tokens = self.student.fc_norm(tokens[:, self.student.num_prefix_tokens :])  # the class token is not taught
        return self.head(tokens[mask])


@torch.no_grad()
def teacher_features(teacher: nn.Module, pixels: Tensor) -> Tensor:
    """Return CLIP's features of all patches, (B, N, width): the last layer's, normed and projected as a class token."""
    _, patches = teacher(pixels)  # open_clip, with `output_tokens`: after the final norm
    return patches @ teacher.proj


def masked_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Compute the negative cosine between predictions and targets, (M, width), a mean over the masked patches."""
    return -F.cosine_similarity(prediction.float(), target.float(), dim=-1).mean()


# The loop


def build_student(architecture: str = "eva02_tiny_patch14_224", seed: int = 0, **arguments: object) -> nn.Module:
    """Return a timm vision transformer with random weights."""
    torch.manual_seed(seed)
    return timm.create_model(architecture, num_classes=0, global_pool="avg", **arguments)


def parameter_groups(model: MaskedStudent, weight_decay: float) -> list[dict]:
    """Return the parameters with and without weight decay: vectors, positions and the class token have none."""
    exempt = {f"student.{name}" for name in model.student.no_weight_decay()}
    exempt |= {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    decayed = [parameter for name, parameter in model.named_parameters() if name not in exempt]
    others = [parameter for name, parameter in model.named_parameters() if name in exempt]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate(step: int, steps: int, warmup: int, peak: float, low: float = 1e-5) -> float:
    """Return the rate of a step, from 0: a linear warm-up, then half a cosine down to `low`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(
    student: nn.Module,
    teacher: nn.Module,
    images: list[bytes],
    *,
    steps: int,
    batch_size: int = 128,
    lr: float = 1.5e-3,  # EVA-02 B and L; also the lowest rate, betas, eps, decay and clipping are EVA's
    warmup: int = 0,
    seed: int = 0,
) -> Iterator[float]:
    """Train a student in place by the vision tower of a CLIP model, and yield the loss of each step."""
    teacher.requires_grad_(False).eval().output_tokens = True
    model = MaskedStudent(student, teacher.proj.shape[1], seed).to(DEVICE)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), betas=(0.9, 0.98), eps=1e-6, fused=True)
    size, grid = teacher.image_size[0], student.patch_embed.grid_size
    order = sample_order(len(images), seed)
    for step in range(steps):
        draws = [(n, sample_seed(seed, step, n)) for n in itertools.islice(order, batch_size)]
        batch = torch.stack([load_image(images[n], size, own) for n, own in draws])
        mask = torch.from_numpy(np.stack([block_mask(own, *grid).ravel() for _, own in draws])).to(DEVICE)
        pixels = (batch.to(DEVICE).float() / 255 - MEAN) / STD  # student and teacher see the same
        loss = masked_loss(model(pixels, mask), teacher_features(teacher, pixels)[mask])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_norm=3.0)
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
    """Return the seed of one use of a sample, so that crop and mask do not depend on the process that reads it."""
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


def load_image(data: bytes, size: int, seed: int) -> Tensor:
    """Decode an image, crop and flip it at random, uint8 (3, size, size); EVA has no other augmentation."""
    image, rng = Image.open(io.BytesIO(data)).convert("RGB"), np.random.default_rng(seed)
    image = random_crop(image, (0.2, 1.0), rng).resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# The command


def main() -> None:
    """Train a student, with patches of the teacher's size, on a tar of images."""
    parser = argparse.ArgumentParser(description="Pre-train a vision transformer by masked feature modelling.")
    parser.add_argument("images", type=Path, help="tar of images; captions are ignored")
    parser.add_argument("--teacher", required=True, help="local-dir:FOLDER, or a name of open_clip")
    parser.add_argument("--tag", help="the teacher's weights: EVA has ViT-L-14 with the tag openai")
    parser.add_argument("--student", default="eva02_tiny_patch14_224", help="timm name")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128, help="4,096 in the paper")
    parser.add_argument("--out", type=Path, default=Path("eva.safetensors"))
    args = parser.parse_args()
    images = read_images(args.images)
    if not images:
        parser.error(f"{args.images}: expected images, got none")
    teacher = open_clip.create_model(args.teacher, args.tag, device=DEVICE).visual
    student = build_student(args.student, img_size=teacher.image_size[0], patch_size=teacher.patch_size[0])
    losses = train(student, teacher, images, steps=args.steps, batch_size=args.batch_size, warmup=args.steps // 10)
    for step, loss in enumerate(losses, start=1):
        print(f"step {step} of {args.steps}: loss {loss:.4f}, -1 is perfect")
    save_file(student.state_dict(), args.out)


if __name__ == "__main__":
    main()
