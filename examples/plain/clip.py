"""CLIP on one page: two encoders learn which image and which caption of a batch belong together.

    python examples/plain/clip.py pairs.tar --steps 20

`pairs.tar` is a WebDataset: the files `000.jpg` and `000.txt` are one pair; `--kept` leaves the pairs that metaclip.py
keeps. The model is saved in open_clip's layout: `open_clip.create_model("local-dir:clip")` loads it.

The stage `clip.train` of vfm computes the same, in several processes and resumable: tests/test_plain.py runs both
on one tar and compares the losses of all steps and the weights.

Paper: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision (arXiv:2103.00020).
"""

import argparse
import hashlib
import io
import itertools
import json
import math
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
SMALL = {  # a vision and a text transformer as in section 2.4, but of a size for a laptop
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 4, "head_width": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
Pair = tuple[bytes, str]  # an encoded image and its caption

# The loss


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Compute CLIP's symmetric loss: each image must find its caption in the batch, and each caption its image.

    Args:
        image: features I of unit length, (n, D).
        text: features T of unit length, (n, D).
        scale: inverse temperature s.
    """
    logits_per_image = scale * image @ text.T  # figure 3: the cosines of all n x n pairs, times exp(t)
    logits_per_text = scale * text @ image.T
    labels = torch.arange(len(image), device=image.device)  # figure 3: the n right pairs are on the diagonal
    loss_of_images = F.cross_entropy(logits_per_image, labels)
    loss_of_texts = F.cross_entropy(logits_per_text, labels)
    return (loss_of_images + loss_of_texts) / 2


# The loop


def build_model(config: dict, seed: int = 0) -> open_clip.CLIP:
    """Return a CLIP model with random weights and a temperature of 0.07 (section 2.5)."""
    torch.manual_seed(seed)
    return open_clip.CLIP(**config)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return the parameters with and without weight decay: gains and biases have none (section 2.5)."""
    exempt = model.no_weight_decay()  # open_clip: positions and the class token
    exempt |= {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    decayed = [parameter for name, parameter in model.named_parameters() if name not in exempt]
    others = [parameter for name, parameter in model.named_parameters() if name in exempt]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the rate of a step, from 0: a linear warm-up (table 18), then half a cosine (section 2.5)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(
    model: open_clip.CLIP,
    pairs: list[Pair],
    *,
    steps: int,
    batch_size: int = 128,
    lr: float = 5e-4,
    warmup: int = 0,
    weight_decay: float = 0.2,  # table 18, as the betas and eps
    seed: int = 0,
) -> Iterator[float]:
    """Train a model in place, and yield the loss of each step."""
    size, tokenize = model.visual.image_size[0], open_clip.SimpleTokenizer(context_length=model.context_length)
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay), betas=(0.9, 0.98), eps=1e-6, fused=True)
    order = sample_order(len(pairs), seed)
    model.train()
    for step in range(steps):
        samples = list(itertools.islice(order, batch_size))
        images = torch.stack([load_image(pairs[n][0], size, sample_seed(seed, step, n)) for n in samples])
        tokens = tokenize([pairs[n][1] for n in samples])
        # Figure 3: the encoders, a linear projection of each to the joint space, features of unit length, and exp(t).
        image, text, scale = model(normalized(images.to(DEVICE)), tokens.to(DEVICE))
        loss = contrastive_loss(image, text, scale)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, warmup, lr)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # section 2.5: the scale is at most 100
        yield loss.item()


# The data


def read_pairs(path: Path) -> dict[str, Pair]:
    """Read the pairs of a WebDataset tar, by the name that the files of a pair share."""
    images, captions = {}, {}
    with tarfile.open(path) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            name, _, extension = member.name.rpartition(".")
            if extension == "txt":
                captions[name] = tar.extractfile(member).read().decode().strip()
            elif extension in ("jpg", "jpeg", "png", "webp"):
                images[name] = tar.extractfile(member).read()
    return {name: (image, captions[name]) for name, image in images.items() if name in captions}


def sample_order(num_samples: int, seed: int) -> Iterator[int]:
    """Yield sample numbers without end: each epoch has every sample once, in another order."""
    for epoch in itertools.count():  # 1: vfm shuffles large datasets in windows, and this is the first
        yield from np.random.default_rng((seed, epoch, 1)).permutation(num_samples).tolist()


def sample_seed(seed: int, step: int, sample: int) -> int:
    """Return the seed of one use of a sample, so that its crop does not depend on the process that reads it."""
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
    """Decode an image and crop it at random, uint8 (3, size, size)."""
    image, rng = Image.open(io.BytesIO(data)).convert("RGB"), np.random.default_rng(seed)
    # Section 2.3: a random square crop is the only augmentation; that it keeps 90 % is open_clip's choice.
    image = random_crop(image, (0.9, 1.0), rng).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def normalized(images: Tensor) -> Tensor:
    """Scale uint8 images (B, 3, S, S) to zero mean and unit variance."""
    mean, std = torch.tensor((MEAN, STD), device=images.device).view(2, 3, 1, 1)
    return (images.float() / 255 - mean) / std


# The command


def main() -> None:
    """Train a model on a tar of pairs, and save it in open_clip's layout."""
    parser = argparse.ArgumentParser(description="Train CLIP.")
    parser.add_argument("pairs", type=Path, help="WebDataset tar: 000.jpg and 000.txt are a pair")
    parser.add_argument("--kept", type=Path, help="use only the pairs in this output of metaclip.py")
    parser.add_argument("--model", help="a model of open_clip's own, such as ViT-B-32; default: a small one")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128, help="32,768 in the paper")
    parser.add_argument("--out", type=Path, default=Path("clip"), help="folder of the model")
    args = parser.parse_args()
    pairs, config = read_pairs(args.pairs), open_clip.get_model_config(args.model) if args.model else SMALL
    if args.kept:
        kept = {line.partition("\t")[0] for line in args.kept.read_text().splitlines()}
        pairs = {name: pair for name, pair in pairs.items() if name in kept}
    if not pairs:
        parser.error(f"{args.pairs}: expected images with captions, such as 000.jpg and 000.txt, got none")
    model = build_model(config).to(DEVICE)
    settings = {"steps": args.steps, "batch_size": args.batch_size, "warmup": args.steps // 10}
    for step, loss in enumerate(train(model, list(pairs.values()), **settings), start=1):
        print(f"step {step} of {args.steps}: loss {loss:.4f}, at chance {math.log(args.batch_size):.4f}")
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (args.out / "open_clip_config.json").write_text(json.dumps(record, indent=2))
    save_file(model.state_dict(), args.out / "open_clip_model.safetensors")


if __name__ == "__main__":
    main()
