"""The page of tables, or a page that states that nothing was measured."""

from __future__ import annotations

from pathlib import Path

from problems import OURS
from records import Row, Step

NOT_MEASURED = """# Kernels on a GPU

**Not measured.** No speed of a kernel is known, because no GPU has been available so far.

    python packages/kernels/benchmarks/run.py

checks every implementation against float64, times the ops, the backends of attention and whole training steps, and
writes its tables here. The tests check what is known without a GPU: numbers in Triton's interpreter, and registers,
spills, shared memory and instructions of the code that Triton compiles for sm_80, sm_89, sm_90, sm_100 and sm_120.

It measures:

"""


def write_not_measured(path: Path, measured: list[str]) -> None:
    """Write the page without results, with the list of what it would measure."""
    path.write_text(NOT_MEASURED + "".join(f"- {line}\n" for line in measured))


def write(path: Path, about: dict[str, str], rows: list[Row], steps: list[Step]) -> None:
    """Write the page of all results."""
    lines = ["# Kernels on a GPU", "", *(f"- {name}: {value}" for name, value in about.items()), ""]
    lines += [
        "Milliseconds are medians, of replayed CUDA graphs where a call can be captured (`way` in `kernels.csv`)."
        " Host ms is what a call costs the host."
        " Roofline is the least time, by this card's copy and matrix product, over the median."
    ]
    for op in dict.fromkeys(row.op for row in rows):
        lines += ["", f"## {op}", "", *_table([row for row in rows if row.op == op])]
    lines += ["", "## Training steps", "", *(_steps(steps) if steps else ["None was run."])]
    path.write_text("\n".join(lines) + "\n")


def _table(rows: list[Row]) -> list[str]:
    head = [
        "shape",
        "direction",
        "implementation",
        "ms",
        "host ms",
        "roofline",
        "MiB",
        "against best other",
        "error",
        "kernels",
    ]
    cells = []
    for row in rows:
        where = [row.shape, row.direction, row.implementation]
        if row.milliseconds is not None:
            host = "" if row.host_milliseconds is None else f"{row.host_milliseconds:.3f}"
            numbers = [f"{row.milliseconds:.3f}", host, f"{row.roofline_percent:.0f} %", f"{row.peak_mib:.0f}"]
            cells.append([*where, *numbers, _against(row, rows), _short(row.relative_error), row.note])
        elif row.direction:
            cells.append([*where, "", "", "", "", "", _short(row.relative_error), row.note])
    refused: dict[str, list[str]] = {}
    for row in rows:
        if not row.direction:
            refused.setdefault(f"{row.implementation} cannot run: {row.note}", []).append(row.shape)
    reasons = [f"- {reason} ({', '.join(shapes)})" for reason, shapes in refused.items()]
    return [*_markdown(head, cells), *([""] if reasons else []), *reasons]


def _against(row: Row, rows: list[Row]) -> str:
    """Return how many times faster our op is than the best of the others."""
    same = [other for other in rows if (other.shape, other.direction) == (row.shape, row.direction)]
    others = [each.milliseconds for each in same if each.milliseconds is not None and each.implementation not in OURS]
    if row.implementation not in OURS or row.milliseconds is None or not others:
        return ""
    return f"{min(others) / row.milliseconds:.2f}x"


def _steps(steps: list[Step]) -> list[str]:
    cells = []
    for step in steps:
        library = next((s.milliseconds for s in steps if (s.model, s.way) == (step.model, "library")), None)
        if step.milliseconds is None:
            cells.append([step.model, step.way, "", "", "", step.note])
            continue
        ratio = f"{library / step.milliseconds:.2f}x" if library else ""
        numbers = [f"{step.milliseconds:.1f}", f"{step.peak_mib:.0f}", ratio]
        cells.append([step.model, step.way, *numbers, step.note])
    return _markdown(["model", "way", "ms", "MiB", "against library", "what was replaced"], cells)


def _markdown(head: list[str], cells: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *cells]
    return ["| " + " | ".join(cell.replace("|", "/")[:160] for cell in line) + " |" for line in lines]


def _short(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"
