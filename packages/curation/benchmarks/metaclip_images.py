"""Print the tables of `metaclip_images` over its seeds, with the tests that the recipe fixed before they ran.

    uv run --dev python packages/curation/benchmarks/metaclip_images.py STORE/runs TRAIN.parquet VAL.parquet DATA

STORE has a run of the recipe for each seed. TRAIN, VAL and DATA are the arguments of `tiny_imagenet.py`. If a fifth
argument names an image, accuracy is drawn there against t.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from vfm.statistics import holm, paired_t, t_interval

Floats = npt.NDArray[np.float64]
Scores = dict[tuple[str, str], Floats]  # (model, classes) -> zero-shot accuracy in percent of each seed

POOLS = {
    "clean": [100, "tail", 1000],
    "small": ["tail", 1000, 10_000],
    "large": ["tail", 1000, 10_000],
}  # t, from low to high
CLASSES = ["all", "head", "middle", "tail"]


def arms(pool: str) -> list[str]:
    """List the sets of a pool by which models are trained."""
    return [f"{pool}_{arm}" for arm in ("random", *POOLS[pool], "matched")]


def file_numbers(paths: list[str]) -> npt.NDArray[np.int64]:
    """Read the row of an image in Tiny ImageNet from each path, such as `train/00012.jpg`."""
    return np.array([int(Path(path).stem) for path in paths])


def class_ranks(seed: str, train: Path, data: Path) -> npt.NDArray[np.int64]:
    """Count the pairs of each class in the large pool and rank the classes from frequent to rare."""
    labels = pq.read_table(train, columns=["label"])["label"].to_numpy()
    pool = pq.read_table(data / f"large-{seed}.parquet", columns=["path"])["path"]
    counts = np.bincount(labels[file_numbers(pool.to_pylist())], minlength=labels.max() + 1)
    return np.argsort(np.argsort(-counts, kind="stable"))


def captions_of_kept(artifacts: Path, pool: str, subset: str) -> tuple[list[str], list[str]]:
    """Read all captions of a pool, and those that a set keeps."""
    everything: list[str] = []
    kept: list[str] = []
    files = sorted((artifacts / pool).glob("images-*.parquet"))
    for images, rows in zip(files, sorted((artifacts / subset / "subset").glob("*.parquet")), strict=True):
        captions = pq.read_table(images, columns=["texts.en"])["texts.en"].combine_chunks().flatten()
        chosen = pq.read_table(rows, columns=["row", "kept"])
        everything += captions.to_pylist()
        kept += captions.take(chosen.filter(chosen["kept"])["row"]).to_pylist()
    return everything, kept


def print_sets(folders: dict[str, Path]) -> None:
    """Print the size of each set and its share of captions of other images, over the seeds."""
    print("| set | pairs | captions of other images, % |\n|---|--:|--:|")
    for pool in POOLS:
        for subset in arms(pool):
            sizes, shares = [], []
            for seed, artifacts in folders.items():
                own_captions = set(captions_of_kept(artifacts, "clean", f"clean_matched@{seed}")[0])
                _, kept = captions_of_kept(artifacts, pool, f"{subset}@{seed}")
                sizes.append(len(kept))
                shares.append(sum(caption not in own_captions for caption in kept) / len(kept))
            print(f"| `{subset}` | {np.mean(sizes):,.0f} | {100 * np.mean(shares):.0f} |")


def find_runs(runs: Path) -> dict[str, Path]:
    """Find the artifacts of each seed's run, by seed."""
    folders: dict[str, Path] = {}
    for folder in runs.glob("metaclip_images@*/artifacts/zero_shot@*"):
        if folder.is_dir():  # the link of an evaluation that has not run points nowhere
            folders[folder.name.partition("@")[2]] = folder.parent
    return dict(sorted(folders.items()))


def read_scores(folders: dict[str, Path], train: Path, val: Path, data: Path) -> Scores:
    """Read the accuracy of each model and seed on all classes, and on those of each third of the frequencies."""
    val_labels = pq.read_table(val, columns=["label"])["label"].to_numpy()
    values: dict[tuple[str, str], list[float]] = {}
    for seed, artifacts in folders.items():
        predictions = pq.read_table(artifacts / f"zero_shot@{seed}" / "predictions" / "images.parquet")
        correct = predictions["label"].to_numpy() == predictions["predicted"].to_numpy()
        ranks = class_ranks(seed, train, data)[val_labels[file_numbers(predictions["key"].to_pylist())]]
        groups = {"all": ranks < 100, "head": ranks < 33, "middle": (ranks >= 33) & (ranks < 67), "tail": ranks >= 67}
        models = np.array(predictions["model"].to_pylist())
        for model in np.unique(models):
            name = model.partition("@")[0].removeprefix("on_")
            for group, chosen in groups.items():
                accuracy = 100 * correct[(models == model) & chosen].mean()
                values.setdefault((name, group), []).append(float(accuracy))
    return {key: np.array(column) for key, column in values.items()}


def interval(values: Floats) -> str:
    """Format a mean with its 95 % t-interval."""
    low, high = t_interval(values)
    return f"{values.mean():.1f} ({low:.1f} to {high:.1f})"


def print_tables(scores: Scores) -> None:
    """Print the accuracy of each model and the three end points."""
    print("| trained on | " + " | ".join(CLASSES) + " |\n|---|---|---|---|---|")
    for pool in POOLS:
        for model in arms(pool):
            print(f"| `{model}` | " + " | ".join(interval(scores[model, group]) for group in CLASSES) + " |")
    tests = {}
    for pool in POOLS:
        tests[pool] = paired_t(scores[f"{pool}_random", "all"], scores[f"{pool}_tail", "all"])
    p_values = holm([p for _, p in tests.values()])
    print("\n| pool | balanced minus random, points | p by Holm | each seed |\n|---|---|--:|---|")
    for (pool, ((low, high), _)), p in zip(tests.items(), p_values, strict=True):
        gaps = scores[f"{pool}_tail", "all"] - scores[f"{pool}_random", "all"]
        each = ", ".join(f"{value:+.1f}" for value in gaps)
        print(f"| `{pool}` | {gaps.mean():+.1f} ({low:.1f} to {high:.1f}) | {p:.2g} | {each} |")


def draw(file: Path, scores: Scores) -> None:
    """Draw the accuracy of each pool's sets against t, a line for each seed and one for their mean."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, pool in zip(figure.subplots(1, 3, sharey=True), POOLS, strict=True):
        names = ["6 % tail" if t == "tail" else f"t = {t:,}" for t in POOLS[pool]]
        random, *balanced = (scores[name, "all"] for name in arms(pool))
        lines = np.array(balanced)
        axes.plot([*names, "all matched"], lines, color="tab:blue", alpha=0.3, linewidth=1)
        axes.plot([*names, "all matched"], lines.mean(1), color="tab:blue", marker="o")
        axes.axhline(random.mean(), color="grey", linestyle="--", label="random, as many as 6 % tail")
        axes.set(title=pool, ylim=(0, None))
        axes.tick_params("x", rotation=30)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.supylabel("zero-shot accuracy (%)")
    figure.savefig(file, dpi=120)


def main(runs: Path, train: Path, val: Path, data: Path, *image: Path) -> None:
    """Print the tables, and draw the image if it is named."""
    folders = find_runs(runs)
    scores = read_scores(folders, train, val, data)
    print_tables(scores)
    print_sets(folders)
    for file in image:
        draw(file, scores)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
