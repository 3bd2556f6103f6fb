"""The updates of `clip.train`: which weights of the towers are trained, their own or low-rank changes of them."""

from __future__ import annotations

from collections.abc import Callable, Collection

from vfm.models import ClipModel, LowRank, vision_tower
from vfm_clip.stages import Lora, Tower, WholeTowers
from vfm_clip.towers import lock_towers, text_blocks

LOCKED = Tower(lock=True)


def _nothing() -> None:
    return


def train_towers(
    config: WholeTowers, clip: ClipModel, *, vision: Tower, text: Tower, new: Collection[str] = (), seed: int = 0
) -> Callable[[], None]:
    """Prepare to train the weights of both towers, but for the locks on them; arguments as of `lock_towers`."""
    lock_towers(clip, vision=vision, text=text, new=new)
    return _nothing


def train_low_rank(
    config: Lora, clip: ClipModel, *, vision: Tower, text: Tower, new: Collection[str] = (), seed: int = 0
) -> Callable[[], None]:
    """Add low-rank changes to the towers that are not locked; return what merges them.

    Args:
        config: rank and size of the changes.
        clip: changed in place. Its temperature and bias are trained as before.
        vision: the vision tower's lock, as in `lock_towers`.
        text: the text tower's.
        new: names of weights with random values, which are trained themselves.
        seed: of the initial changes.

    Raises:
        UserError: peft is not installed, or the vision tower is not a transformer.
    """
    lock_towers(clip, vision=vision if vision.lock else LOCKED, text=text if text.lock else LOCKED, new=new)
    own = [weight for weight in clip.module.parameters() if weight.requires_grad]
    blocks = [] if vision.lock else [*vision_tower(clip).blocks]
    blocks += [] if text.lock else text_blocks(clip)
    changes = LowRank(clip.module, blocks, rank=config.rank, alpha=config.alpha, seed=seed)
    for weight in own:  # peft trains its changes only
        weight.requires_grad_()
    return changes.merge
