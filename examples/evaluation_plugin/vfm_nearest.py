"""An evaluation of your own: recall@1 of metric learning, how often the nearest other image has the same class."""

from collections.abc import Mapping
from typing import Any, Literal

from vfm.plugin import (
    ClipCheckpoint,
    Context,
    Evaluated,
    LabeledDataset,
    ModelEvaluation,
    ModelResult,
    Ref,
    Stage,
    VisionCheckpoint,
    hookimpl,
)


class NearestRecall(ModelEvaluation):
    """Measure how often the nearest other image has the same class."""

    kind: Literal["nearest.recall"] = "nearest.recall"
    models: list[Ref[ClipCheckpoint | VisionCheckpoint]] = []
    data: Ref[LabeledDataset]

    def evaluate(self, ctx: Context, encoders: Mapping[str, Any]) -> Evaluated:
        from vfm.eval import data_hash, encode_labeled  # imports torch, which `vfm plan` must not
        from vfm.statistics import Accuracy  # imports torch, which `vfm plan` must not

        data = ctx.load(self.data)
        images = encode_labeled(ctx, encoders, data, self.reading)
        results = {}
        for name, features in images.features.items():  # unit vectors, (N, D)
            cosines = (features @ features.T).fill_diagonal_(-2)  # an image is not its own neighbour
            nearest = images.labels[cosines.argmax(dim=1)]
            score = Accuracy("recall@1", nearest == images.labels, chance=1 / len(data.class_names))
            table = {"key": images.keys, "label": images.labels, "nearest": nearest}
            results[name] = ModelResult([score], {"images": table})
        return Evaluated(data_hash(data, images.digests), results)


@hookimpl
def vfm_stages() -> list[type[Stage]]:
    return [NearestRecall]
