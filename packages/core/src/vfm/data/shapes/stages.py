"""The stages of the made world: `shapes.pool`, `shapes.classes`, `shapes.choices`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import ChoiceDataset, LabeledDataset, Pool
from vfm.data.shapes.scene import Pattern
from vfm.data.shapes.world import World
from vfm.data.spec import DatasetSpec
from vfm.stage import Context, Seed, Stage

if TYPE_CHECKING:
    from vfm.data.choices import Choice
    from vfm.data.shapes.render import MadeSample
    from vfm.panels import LinesPanel

Render = Callable[[World, int, int, int], "Iterator[MadeSample]"]
PAIRS_SHOWN = 2  # of each pattern


class MadeImages(Stage):
    """What makes pictures: a world, a seed, and tars inside the artifact's folder."""

    world: World = Field(World(), description="what its pictures and captions are like")
    num_samples: int = Field(20_000, ge=1, description="pictures to make")
    samples_per_shard: int = Field(1000, ge=1, description="samples in a tar; no sample depends on it")
    seed: Seed = Field(0, description="with the number of a sample it draws the sample")

    def write_shards(self, ctx: Context, render: Render, spec: DatasetSpec) -> int:
        """Writes the tars and their index, with `runtime.workers` processes where there are several.

        The tars are made in the work folder, so that after a crash those that are whole need not be made again.

        Returns:
            The number of samples.
        """
        from vfm.data.index import Shard, write_index

        bounds = _cut(self.num_samples, self.samples_per_shard)
        tasks = [
            (ctx.work / f"{number:05d}.tar", render, self.world, self.seed, *bound)
            for number, bound in enumerate(bounds)
        ]
        made = []
        for (start, stop), path in zip(bounds, _map(_make_shard, tasks, self.runtime.workers), strict=True):
            made.append((path, stop - start))
            ctx.progress(stop, self.num_samples, "samples")
        shards = [Shard.of(path.rename(ctx.directory / path.name), count) for path, count in made]
        return write_index(ctx.directory, shards, spec)


class ShapesPool(MadeImages):
    """Pictures of shapes with web-like captions: a long tail, attributes told now and then, noise, other languages."""

    kind: Literal["shapes.pool"] = "shapes.pool"

    def run(self, ctx: Context) -> Pool:
        """Draws the pictures and writes them as WebDataset tars."""
        from vfm.data.report import leave_panels
        from vfm.data.shapes.render import render_shard

        texts = {language: f"json.{language}" for language in self.world.languages}
        count = self.write_shards(ctx, render_shard, DatasetSpec(texts=texts))
        pool = Pool.create(ctx.directory, num_samples=count, languages=list(texts))
        leave_panels(ctx, pool)
        ctx.panel(_tail_panel(self.world, self.num_samples))
        return pool


class ShapesClasses(MadeImages):
    """A labelled set: every shape in every colour, equally often, with class names and prompts.

    Or, to probe what features say of one attribute, the values of that attribute, equally often.
    """

    kind: Literal["shapes.classes"] = "shapes.classes"
    version: ClassVar[int] = 2
    num_samples: int = Field(2400, ge=1, description="pictures to make")
    label: Pattern | None = Field(
        None, description="the classes are the values of this attribute, or the colours; default: shapes in colours"
    )

    @model_validator(mode="after")
    def _possible(self) -> ShapesClasses:
        if self.label:
            check_patterns(self.world, [self.label])
        return self

    def run(self, ctx: Context) -> LabeledDataset:
        """Draws the pictures, class by class in turn."""
        from functools import partial

        from vfm.data.report import leave_panels
        from vfm.data.shapes.captions import CLASS_TEMPLATES
        from vfm.data.shapes.render import class_names, render_labeled, render_values
        from vfm.data.shapes.sampling import class_groups

        render: Render = render_labeled
        names = class_names(self.world)
        if self.label:
            values = self.world.colours if self.label == "colour" else self.world.values(self.label)
            names, render = [str(value) for value in values], partial(render_values, self.label)
        spec = DatasetSpec(label_key="json.label", class_names=names)
        count = self.write_shards(ctx, render, spec)
        dataset = LabeledDataset.create(
            ctx.directory,
            num_samples=count,
            class_names=names,
            templates=["{}"] if self.label else list(CLASS_TEMPLATES),
            class_groups=class_groups(self.world) if self.world.zipf and not self.label else {},
        )
        leave_panels(ctx, dataset)
        return dataset


class ShapesChoices(Stage):
    """Pairs as in MMVP: two pictures that differ in one attribute, and one statement for each."""

    kind: Literal["shapes.choices"] = "shapes.choices"
    world: World = Field(World(), description="what its pictures and captions are like")
    patterns: tuple[Pattern, ...] | None = Field(
        None,
        min_length=1,
        description="what a pair may differ in; default: all that the world can show",
    )
    pairs_per_pattern: int = Field(100, ge=1, description="pairs that differ in it")
    seed: Seed = Field(0, description="with the number of a sample it draws the sample")

    @model_validator(mode="after")
    def _possible(self) -> ShapesChoices:
        check_patterns(self.world, self.patterns or ())
        if not self.world.patterns:
            raise ValueError("nothing varies in this world: no attribute, and one colour alone")
        return self

    def run(self, ctx: Context) -> ChoiceDataset:
        """Draws the pairs, pattern by pattern."""
        from vfm.data.choices import write_choices

        patterns = self.patterns or self.world.patterns
        return write_choices(ctx.directory, _with_panel(ctx, self._choices(patterns)))

    def _choices(self, patterns: tuple[Pattern, ...]) -> Iterator[Choice]:
        from vfm.data.choices import Choice
        from vfm.data.shapes.drawing import draw
        from vfm.data.shapes.pairs import make_pairs
        from vfm.data.shapes.render import encode

        for pattern in patterns:
            for number, pair in enumerate(make_pairs(self.world, self.seed, pattern, self.pairs_per_pattern)):
                images = [encode(draw(scene, self.world.image_size)) for scene in pair.scenes]
                yield Choice(f"{pattern}-{number:05d}", pattern, images, list(pair.statements), [0, 1])


def check_patterns(world: World, patterns: Iterable[Pattern]) -> None:
    """Refuses what does not vary in a world.

    Raises:
        ValueError: the first such pattern.
    """
    for pattern in patterns:
        if pattern not in world.patterns:
            raise ValueError(
                f"the world cannot show pairs that differ in {pattern}; it can in {', '.join(world.patterns)}"
            )


def _cut(num_samples: int, size: int) -> list[tuple[int, int]]:
    """The first sample of each shard and the one after its last."""
    return [(start, min(start + size, num_samples)) for start in range(0, num_samples, size)]


def _map(function: Callable[..., Path], tasks: Sequence[tuple[object, ...]], workers: int) -> Iterator[Path]:
    """The function of each task in order, in this process or in several new ones."""
    if workers < 2:
        yield from (function(*task) for task in tasks)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, *zip(*tasks, strict=True))


def _make_shard(path: Path, render: Render, world: World, seed: int, start: int, stop: int) -> Path:
    """Writes a tar where there is none yet, and returns its path; it appears by a rename, whole or not at all."""
    from vfm.data.tar_write import write_tar

    if not path.exists():
        part = path.with_suffix(".part")
        write_tar(part, ((sample.key, sample.members()) for sample in render(world, seed, start, stop)))
        part.rename(path)
    return path


def _tail_panel(world: World, num_samples: int) -> LinesPanel:
    from vfm.data.shapes.sampling import combination_probabilities
    from vfm.panels import LinesPanel, Series

    chances = sorted(combination_probabilities(len(world.combinations), world.zipf).tolist(), reverse=True)
    rank = [float(number) for number in range(1, len(chances) + 1)]
    return LinesPanel(
        title="Head and tail of the made world",
        note=f"Pictures expected of each colour and shape among {num_samples}, the commonest first.",
        order=35,
        series=[Series(name="expected pictures", x=rank, y=[num_samples * chance for chance in chances])],
        x_label="rank of colour and shape",
        y_label="pictures",
        x_log=True,
        y_log=True,
    )


def _with_panel(ctx: Context, choices: Iterable[Choice]) -> Iterator[Choice]:
    """The items as they are; the first of each pattern are also left as a panel."""
    from vfm.panels import ImagesPanel, Picture

    pictures: list[Picture] = []
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
            pictures.append(Picture(file=file, caption=statement))
    ctx.panel(ImagesPanel(title="Pairs", note="Two pictures, one difference.", order=30, pictures=pictures))


STAGES: list[type[Stage]] = [ShapesPool, ShapesClasses, ShapesChoices]
