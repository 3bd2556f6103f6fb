"""One of two processes that train on half a batch each; the test compares their gradients with the whole batch's.

Usage: python two_ranks.py RANK FOLDER, with the batch in FOLDER/batch.npz; writes FOLDER/rank<RANK>.npz.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from vfm_kernels import gather_with_grad, info_nce, siglip_loss
from vfm_kernels.losses.all_pairs import all_pairs_loss


def losses(images, texts, image_weight, text_weight, log_scale, rank=0, world_size=1):
    """Yield each form of the loss of a two-tower model by name; `world_size` 1 is the whole batch."""
    image, text = F.normalize(images @ image_weight, dim=-1), F.normalize(texts @ text_weight, dim=-1)
    all_image, all_text = gather_with_grad(image), gather_with_grad(text)
    scale, group = log_scale.exp(), dist.group.WORLD if world_size > 1 else None
    local = {"all_image_features": all_image, "all_text_features": all_text, "rank": rank}
    yield "local", info_nce(image, text, scale, **local)
    yield "local_chunked", info_nce(image, text, scale, **local, chunk_size=3)
    yield "group", info_nce(image, text, scale, group=group)
    yield "group_chunked", info_nce(image, text, scale, group=group, chunk_size=3)
    yield "all_pairs", all_pairs_loss(image, text, scale, 3, group)
    yield "global", info_nce(all_image, all_text, scale)
    yield "siglip", siglip_loss(image, text, scale, -5.0, all_text_features=all_text, rank=rank)
    yield "siglip_chunked", siglip_loss(image, text, scale, -5.0, all_text_features=all_text, rank=rank, chunk_size=3)


def gradients(batch: dict[str, np.ndarray], rank: int = 0, world_size: int = 1) -> dict[str, np.ndarray]:
    images, texts = (torch.from_numpy(batch[name]).chunk(world_size)[rank] for name in ("images", "texts"))
    parameters = [
        torch.from_numpy(batch[name]).requires_grad_() for name in ("image_weight", "text_weight", "log_scale")
    ]
    result = {}
    for name, loss in losses(images, texts, *parameters, rank=rank, world_size=world_size):
        grads = torch.autograd.grad(loss, parameters, retain_graph=True)
        for value, label in zip([loss.detach(), *grads], ("loss", "image", "text", "scale"), strict=True):
            averaged = value.clone()
            if world_size > 1:  # as DDP averages gradients
                dist.all_reduce(averaged)
                averaged /= world_size
            result[f"{name}/{label}"] = averaged.numpy()
    return result


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    np.savez(folder / f"rank{rank}.npz", **gradients(dict(np.load(folder / "batch.npz")), rank, 2))
    dist.destroy_process_group()
