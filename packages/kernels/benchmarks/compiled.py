"""Table of what Triton compiles for GPUs that need not be here: `python packages/kernels/benchmarks/compiled.py`.

Registers of a thread, bytes spilled, and KiB of shared memory of the attention kernels with the checked-in settings, by
architecture. The same compilations are the tests in `tests/test_aot.py`; they take minutes, and seconds when repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

AOT = Path(__file__).parent.parent / "tests/aot"
ARCHITECTURES = ("80", "89", "90", "100", "120")


def main() -> None:
    """Parse the command line, compile what has no record, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "records", type=Path, nargs="*", help="lines that tests/aot/worker.py printed; default: compile"
    )
    options = parser.parse_args()
    lines = [line for path in options.records for line in path.read_text().splitlines()]
    if not lines:
        command = [sys.executable, str(AOT / "worker.py"), str(AOT / "cases_attention.py"), *ARCHITECTURES]
        lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    print("\n".join(table(map(json.loads, lines))))


def table(launches: Iterable[dict]) -> list[str]:
    """Return a row for each case and kernel of attention, and a column for each architecture."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for facts in launches:
        kernel = facts["kernel"].removeprefix("attention_").removesuffix("_kernel")
        if kernel in ("short", "stream", "backward"):
            numbers = f"{facts['registers']} / {facts['spills']} / {facts['shared_bytes'] / 1024:.0f}"
            rows.setdefault((kernel, facts["case"]), {})[facts["architecture"]] = numbers
    names = [f"sm_{number}" for number in ARCHITECTURES]
    cells = [[case, *(row.get(name, "") for name in names)] for (_, case), row in rows.items()]
    head = [["kernel, case and width of a head", *names], ["---", *["--:"] * len(names)]]
    return [f"| {' | '.join(line)} |" for line in head + cells]


if __name__ == "__main__":
    main()
