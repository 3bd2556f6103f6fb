"""Draw samples of `shapes.pool`, `shapes.classes` and `shapes.choices`, and write them to tars and parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import numpy as np

from vfm.data.choices.choices import Choice, write_choices
from vfm.data.index.index import write_index
from vfm.data.index.source import open_dataset
from vfm.data.indexing.dataset_panels import add_dataset_panels
from vfm.data.samples.shards import Shard
from vfm.data.samples.spec import DatasetSpec
from vfm.data.synthetic.captions import CLASS_TEMPLATES
from vfm.data.synthetic.drawing import draw
from vfm.data.synthetic.pairs import make_pairs
from vfm.data.synthetic.render import RenderedSample, class_names, encode, render_labeled, render_shard, render_values
from vfm.data.synthetic.sampling import class_groups, combination_probabilities
from vfm.data.synthetic.scene import Pattern
from vfm.data.synthetic.stages import ShapeImages, ShapesChoices, ShapesClasses, ShapesPool
from vfm.data.synthetic.world import World
from vfm.data.tar.writer import write_tar
from vfm.interfaces import ChoiceDataset, Context, ImagesPanel, LabeledDataset, LinesPanel, PanelImage, Pool, Series
from vfm.storage.publishing import publish_file


class Rendered(Protocol):
    """A drawn sample, with its key and its files in a tar by extension."""

    @property
    def key(self) -> str:
        """Name of the files."""
        ...

    def members(self) -> dict[str, bytes]:
        """Encode the files, by extension."""
        ...


Render = Callable[[World, int, int, int], Iterator[Rendered]]
"""Yields the samples of a world and a seed, from a first number to before a last number."""
PAIRS_SHOWN = 2  # pairs per pattern in the panel


def make_pool(config: ShapesPool, ctx: Context) -> Pool:
    """Draw the images and write them as WebDataset tars."""
    texts = {language: f"json.{language}" for language in config.world.languages}
    render: Render = render_shard
    if config.images:
        render = partial(render_captions, ctx.load(config.images).path)
    count = write_index(ctx.directory, write_shards(config, ctx, render), DatasetSpec(texts=texts))
    pool = Pool.create(ctx.directory, num_samples=count, languages=list(texts))
    add_dataset_panels(ctx, pool)
    ctx.panel(_tail_panel(config.world, config.num_samples))
    return pool


def render_captions(images: Path, world: World, seed: int, start: int, stop: int) -> Iterator[RenderedSample]:
    """Yield samples of a pool with the images of another pool. The images are not drawn again.

    Args:
        images: Folder of the other pool.
        world: Distribution of the samples.
        seed: Seed of the samples.
        start: Number of the first sample.
        stop: Number after the last sample.

    Raises:
        UserError: See `render_shard`.
    """
    source = open_dataset(Pool.load(images, verify=False))
    first = source[0].key
    offset = start - int(first) if first.isdigit() else 0
    # Keys are read too, so that images of another range are noticed.
    drawn = {}
    for number in range(max(0, offset), min(offset + stop - start, len(source))):
        sample = source[number]
        drawn[sample.key] = sample.image
    yield from render_shard(world, seed, start, stop, drawn=drawn)


def make_classes(config: ShapesClasses, ctx: Context) -> LabeledDataset:
    """Draw the images, cycling through the classes."""
    world = config.world
    render = render_labeled
    names = class_names(world)
    if config.label:
        values = world.colours if config.label == "colour" else world.values(config.label)
        names = list(map(str, values))
        render = partial(render_values, config.label)
    spec = DatasetSpec(label_key="json.label", class_names=names)
    count = write_index(ctx.directory, write_shards(config, ctx, render), spec)
    dataset = LabeledDataset.create(
        ctx.directory,
        num_samples=count,
        class_names=names,
        templates=["{}"] if config.label else list(CLASS_TEMPLATES),
        class_groups=class_groups(world) if world.zipf and not config.label else {},
    )
    add_dataset_panels(ctx, dataset)
    return dataset


def make_choices(config: ShapesChoices, ctx: Context) -> ChoiceDataset:
    """Draw the pairs, pattern by pattern."""
    patterns = config.patterns or config.world.patterns
    choices = _choices(config, patterns)
    return write_choices(ctx.directory, _with_panel(ctx, choices))


def _choices(config: ShapesChoices, patterns: Sequence[Pattern]) -> Iterator[Choice]:
    for pattern in patterns:
        pairs = make_pairs(config.world, config.seed, pattern, config.pairs_per_pattern, config.start)
        for number, pair in enumerate(pairs, start=config.start):
            images = [encode(draw(scene, config.world.image_size)) for scene in pair.scenes]
            yield Choice(f"{pattern}-{number:05d}", pattern, images, list(pair.statements), [0, 1])


def write_shards(config: ShapeImages, ctx: Context, render: Render) -> list[Shard]:
    """Write the tars, in several processes if `runtime.workers` says so.

    The tars are made in the work folder, so that a run after a crash reuses the complete tars.

    Args:
        config: Settings of the stage.
        ctx: Context of the stage.
        render: Yields the samples of a range.
    """
    first = config.start
    total = config.num_samples
    size = config.samples_per_shard
    tasks = []
    for number, start in enumerate(range(first, first + total, size)):
        stop = min(start + size, first + total)
        tasks.append((ctx.work / f"{number:05d}.tar", render, config.world, config.seed, start, stop))
    tars = []
    paths = _map(_make_shard, tasks, config.runtime.num_workers)
    for (*_, start, stop), path in zip(tasks, paths, strict=True):
        tars.append((path, stop - start))
        ctx.progress(stop - first, total, "samples")
    return [Shard.of(path.rename(ctx.directory / path.name), count) for path, count in tars]


def _map(function: Callable[..., Path], tasks: Sequence[tuple[object, ...]], workers: int) -> Iterator[Path]:
    """Yield the function's result for each task in order, computed in this process or in several new processes."""
    if workers < 2:
        for task in tasks:
            yield function(*task)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, *zip(*tasks, strict=True))


def _make_shard(path: Path, render: Render, world: World, seed: int, start: int, stop: int) -> Path:
    """Write a tar unless it exists, and return its path. It is renamed into place, so an existing tar is complete."""
    if not path.exists():
        part = path.with_suffix(".part")
        write_tar(part, ((sample.key, sample.members()) for sample in render(world, seed, start, stop)))
        publish_file(part, path)
    return path


def _tail_panel(world: World, num_samples: int) -> LinesPanel:
    chances = np.sort(combination_probabilities(len(world.combinations), world.zipf))[::-1]
    rank = list(map(float, range(1, len(chances) + 1)))
    expected = (num_samples * chances).tolist()
    return LinesPanel(
        title="Head and tail of the synthetic world",
        note=f"Expected images of each colour and shape among {num_samples}, most common first.",
        order=35,
        series=[Series(name="expected images", x=rank, y=expected)],
        x_label="rank of colour and shape",
        y_label="images",
        x_log=True,
        y_log=True,
    )


def _with_panel(ctx: Context, choices: Iterable[Choice]) -> Iterator[Choice]:
    """Yield the items unchanged, then add a panel with the first pairs of each pattern."""
    images: list[PanelImage] = []
    shown: dict[str, int] = {}
    folder = ctx.directory / "panels"
    folder.mkdir(parents=True, exist_ok=True)
    for choice in choices:
        yield choice
        shown[choice.pattern] = shown.get(choice.pattern, 0) + 1
        if shown[choice.pattern] > PAIRS_SHOWN:
            continue
        for number, (image, statement) in enumerate(zip(choice.images, choice.statements, strict=True)):
            file = f"panels/{choice.key}-{number}.jpg"
            (ctx.directory / file).write_bytes(image)
            images.append(PanelImage(file=file, caption=statement))
    ctx.panel(ImagesPanel(title="Pairs", note="Two images with one difference.", order=30, pictures=images))
