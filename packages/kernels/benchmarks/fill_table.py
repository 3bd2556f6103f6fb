"""Write the table from which `auto` chooses kernels: `python packages/kernels/benchmarks/fill_table.py`.

It reads `kernels.csv` and `about.json` of a measured folder, and replaces the rows of that card's architecture in
`tuning/measured.json`. Forward and backward count together. A kernel of ours must be faster than the best other by
`MARGIN`; a row also records where it is not.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "src"))

from records import Row, Table  # noqa: E402

from vfm_kernels.dispatch.measured import OURS, Measurement  # noqa: E402

TABLE = HERE.parent / "src/vfm_kernels/tuning/measured.json"
MARGIN = 1.03  # of noise: two runs on one idle card must not choose differently


def main() -> None:
    """Parse the command line and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder with kernels.csv and about.json")
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    about = json.loads((options.results / "about.json").read_text())
    new = measurements(Table(options.results / "kernels.csv", Row).rows, about)
    if not new:
        parser.error(f"{options.results}: expected rows measured on a GPU, found none")
    old = [row for row in json.loads(options.table.read_text()) if row["architecture"] != new[0].architecture]
    options.table.write_text(json.dumps([*old, *map(asdict, new)], indent=1) + "\n")
    print(
        f"{len(new)} rows of {new[0].architecture}; ours are the fastest in {sum(row.fastest in OURS for row in new)}"
    )


def measurements(rows: list[Row], about: dict[str, str]) -> list[Measurement]:
    """Return one measurement for each op and shape whose implementations have both directions."""
    architecture = re.search(r"sm_\d+", about["card"])
    if architecture is None:
        return []
    found = []
    for op, shape in dict.fromkeys((row.op, row.shape) for row in rows):
        both = _both_directions([row for row in rows if (row.op, row.shape) == (op, shape)])
        ours = {name: time for name, time in both.items() if name in OURS}
        others = {name: time for name, time in both.items() if name not in OURS}
        if not ours or not others:
            continue
        plain = {name: time for name, time in others.items() if name != "torch.compile"}
        ratio = min(plain.values()) / min(ours.values())
        card, versions = about["card"].partition(",")[0], about["versions"]
        names = (_fastest(ours, plain), _fastest(ours, others))
        found.append(Measurement(op, architecture[0], *_size(op, shape, names, round(ratio, 3), card, versions)))
    return found


def _size(op: str, shape: str, names: tuple[str, str], ratio: float, card: str, versions: str) -> tuple:
    numbers = [int(number) for number in re.findall(r"\d+", shape.partition(")")[0].partition(" of ")[0])]
    if op == "attention":
        words = shape.partition(")")[2].split()
        kind = ("causal" in words, "crops" in words, "rope" in words)
        # With crops the row is one long sequence, whose longest part is an image of 257 tokens.
        num_tokens = 257 if "crops" in words else numbers[1]
        return (numbers[3], *names, ratio, card, versions, num_tokens, *kind)
    if op in ("info_nce", "siglip_loss"):
        width = numbers[0]  # of a row of logits: the batch
    elif op == "swiglu_subln":
        width = numbers[1]  # the norm's, not the buffer's
    else:
        width = int(re.findall(r"\d+", shape.partition(")")[0])[-1])
    return (width, *names, ratio, card, versions)


def _fastest(ours: dict[str, float], others: dict[str, float]) -> str:
    best, other = min(ours, key=ours.__getitem__), min(others, key=others.__getitem__)
    return best if ours[best] * MARGIN <= others[other] else other


def _both_directions(rows: list[Row]) -> dict[str, float]:
    times: dict[str, list[float]] = {}
    for row in rows:
        if row.direction and row.milliseconds is not None:
            times.setdefault(row.implementation, []).append(row.milliseconds)
    return {name: sum(each) for name, each in times.items() if len(each) == 2}


if __name__ == "__main__":
    main()
