"""The stage `curation.filter`: texts and images of a pool through filters, each with a reason for what it drops."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import ClassVar, Literal

from pydantic import Field

from vfm.artifacts import CuratedSubset, LinkTable, Pool
from vfm.config import UserError
from vfm.stage import Context, Preflight, Ref, Stage
from vfm_curation.filters import AnyFilter


class FilterPool(Stage):
    """Keeps the texts of a pool that pass every filter; of what falls, the first filter that it failed is told."""

    kind: Literal["curation.filter"] = "curation.filter"
    pool: Ref[Pool | CuratedSubset] = Field(description="whose texts and images are judged")
    filters: list[AnyFilter] = Field(
        min_length=1, max_length=200, description="applied in this order, each to what the ones before it let pass"
    )

    version: ClassVar[int] = 2

    def sources(self) -> Iterable[str]:
        """Heads of linear scores."""
        return [file for one in self.filters for file in one.files]

    def preflight(self, ctx: Preflight) -> None:
        """Languages are there, heads fit their models, bounds can be reached; a line for each mistake."""
        only_texts = self._only_texts(ctx)
        lines = []
        for number, one in enumerate(self.filters):
            complaints = list(one.complaints(ctx, self.pool))
            if one.package and not find_spec(one.package[0]):
                complaints.append(f"needs {one.package[0]}: pip install 'vfm-curation[{one.package[1]}]'")
            if one.sees_images and only_texts:
                complaints.append(f"looks at images, and '{self.pool}' has texts alone")
            lines += [f"filters[{number}] {one.type}: {line}" for line in complaints]
        if lines:
            raise UserError("\n".join(lines))

    def _only_texts(self, ctx: Preflight) -> bool:
        """Whether nobody has the images of the pool, as far as that is known."""
        from vfm.data import open_dataset

        if pool := ctx.artifact(self.pool):
            return not open_dataset(pool).index.spec.images
        stage = ctx.stage(self.pool)
        return stage is not None and (issubclass(stage.makes, LinkTable) or getattr(stage, "images", True) is False)

    def run(self, ctx: Context) -> CuratedSubset:
        """Writes `subset.parquet`, what passes, and `verdicts.parquet`, every text with its reason."""
        from vfm.data import open_dataset
        from vfm_curation.filters.report import panels, write_outcome
        from vfm_curation.filters.sieve import Sieve

        dataset = ctx.load(self.pool)
        seeing = [one.reason for one in self.filters if one.sees_images]
        if seeing and not open_dataset(dataset).index.spec.images:
            raise UserError(f"{self.name}: {', '.join(seeing)}: looks at images, and '{self.pool}' has texts alone")
        sieve = Sieve(ctx, self.pool, self.filters, self.runtime)
        sieve.run()
        outcome = write_outcome(sieve, ctx.directory)
        if not outcome.num_texts:
            reasons = ", ".join(f"{count} {reason}" for reason, count in outcome.fallen.most_common())
            raise UserError(f"{self.name}: no text of '{self.pool}' passes all filters: {reasons or 'it has no texts'}")
        for panel in panels(sieve, outcome):
            ctx.panel(panel)
        values = {"curation/kept_texts": outcome.num_texts, "curation/kept_samples": outcome.num_samples}
        ctx.emit("metrics", step=1, samples=outcome.num_samples, values=values)
        pool = dataset if isinstance(dataset, Pool) else Pool.load(dataset.linked(dataset.pool))
        return CuratedSubset.create(
            ctx.directory,
            texts=dataset.texts if isinstance(dataset, CuratedSubset) else "every",
            num_samples=outcome.num_samples,
            languages=[language for language in dataset.languages if language in outcome.languages],
            pool=pool.reference(ctx.directory),
        )
