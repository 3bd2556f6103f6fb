"""Print the tables of `dense_claim_controls` over its seeds, with the tests that the recipe fixed before they ran.

uv run vfm run dense_claim_controls
uv run --dev python packages/eva/benchmarks/dense_claim.py store/runs/dense_claim_controls
"""

from __future__ import annotations

import sys
from pathlib import Path

from mask_claim import interval
from mask_scores import Floats, read_scores

from vfm.statistics import holm, paired_t, t_interval

FROZEN = {name: ("frozen/dense_miou", name) for name in ("eva", "eva_of_pool", "untrained", "teacher")}
TUNED = {"eva": "tuned_eva", "eva_of_pool": "tuned_of_pool", "untrained": "tuned_untrained"}
WAYS = {"frozen": FROZEN, "tuned": {name: ("tuned_miou/miou", model) for name, model in TUNED.items()}}
DIFFERENCES = [("eva", "eva_of_pool"), ("eva", "untrained"), ("eva_of_pool", "untrained")]


def decide(scenes: Floats, pool: Floats, untrained: Floats) -> str:
    """Decide whether most of the gain over random weights is from the target scenes, by the rule in the recipe."""
    if t_interval(scenes - untrained)[0] <= 0:
        return "no gain to divide"
    margin = (scenes - untrained).mean() / 2
    low, high = t_interval(scenes - pool)
    if low > margin:
        return "most of the gain is from the scenes"
    if high < margin:
        return "the scenes are not most of the gain"
    return "open"


def main(run: Path) -> None:
    """Print the scores, the decision of each end point, and all differences with p-values by Holm."""
    values = read_scores([run], stages=["frozen", "tuned_miou"])
    rows = []
    for way, keys in WAYS.items():
        scores = {name: values[key] for name, key in keys.items()}
        print(f"| {way} | mean IoU, % |\n|---|---|")
        for name, by_seed in scores.items():
            print(f"| `{name}` | {interval(by_seed)}: {', '.join(f'{value:.1f}' for value in by_seed)} |")
        margin = (scores["eva"] - scores["untrained"]).mean() / 2
        decision = decide(scores["eva"], scores["eva_of_pool"], scores["untrained"])
        print(f"\n{way}: margin {margin:.2f}, {decision}\n")
        for first, second in DIFFERENCES:
            rows.append((f"{way}, `{first}` - `{second}`", scores[first], scores[second]))
    p_values = [paired_t(second, first)[1] for _, first, second in rows]
    print("| difference | points | standard deviation | p | p by Holm |\n|---|---|--:|--:|--:|")
    for (name, first, second), p, corrected in zip(rows, p_values, holm(p_values), strict=True):
        difference = first - second
        cells = [name, interval(difference, signed=True), f"{difference.std(ddof=1):.2f}", f"{p:.2g}"]
        print(f"| {' | '.join(cells)} | {corrected:.2g} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
