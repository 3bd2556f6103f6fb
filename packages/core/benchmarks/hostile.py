"""Fifty hostile models and files, loaded by vfm and by others: python packages/core/benchmarks/hostile.py

Each library loads every case of its layout as its documentation shows, in a process of its own that starts in the
case's folder. The outcome is read from a file that the case's code leaves: `executed`, `executed after a question`
(transformers asks on the terminal whether to run a model's code; here the answer is yes), `refused` (an error), or
`loaded`. The unchanged folders come first, which all must load. Writes `hostile.json` and `hostile.md` into `results/`.
About three CPU minutes.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
LIBRARIES = ("vfm-core", "open_clip_torch", "timm", "transformers", "diffusers", "torch")


def load_with_open_clip(target: Path) -> None:
    """Load model and tokenizer of a folder."""
    import open_clip

    open_clip.create_model_and_transforms(f"local-dir:{target}")
    open_clip.get_tokenizer(f"local-dir:{target}")(["a dog"])


def load_with_timm(target: Path) -> None:
    """Load the encoder of a folder, or the weights of a file."""
    import timm

    if target.is_dir():
        timm.create_model(f"local-dir:{target}", pretrained=True)
    else:
        timm.models.load_checkpoint(timm.create_model("vit_pico_patch8_32"), str(target))


def load_with_transformers(target: Path) -> None:
    """Load the model and the processor of a folder."""
    import transformers

    transformers.AutoModel.from_pretrained(target)
    transformers.AutoProcessor.from_pretrained(target)


def load_with_diffusers(target: Path) -> None:
    """Load the pipeline of a folder."""
    import diffusers

    diffusers.DiffusionPipeline.from_pretrained(target)


def load_with_torch(target: Path) -> None:
    """Load a file of weights."""
    import torch

    torch.load(target)


PEERS: dict[str, dict[str, Callable[[Path], None]]] = {
    "open_clip": {"open_clip": load_with_open_clip},
    "transformers": {"transformers": load_with_transformers},
    "timm": {"timm": load_with_timm},
    "diffusers": {"diffusers": load_with_diffusers},
    "weights": {"timm": load_with_timm, "torch": load_with_torch},
}


def attempt(load: Callable[[], str | None], folder: Path, answer: str) -> None:
    """Load a case in this process, which ends afterwards, with an exit code: 0 loaded, 2 refused."""
    os.chdir(folder)
    (folder / "answer").write_text(answer)
    sys.stdin = open("answer")  # noqa: SIM115
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        refused = load()
    except BaseException:
        refused = "error"
    os._exit(2 if refused else 0)


def outcome(make: Callable[[Path], Path], load: Callable[[Path], str | None], folder: Path) -> str:
    """Return what became of a case."""
    executed = []
    for number, answer in enumerate(("y\n" * 20, "")):
        case = folder / str(number)
        target = make(case)
        process = multiprocessing.get_context("fork").Process(
            target=attempt, args=(partial(load, target), case, answer)
        )
        process.start()
        process.join()
        executed.append((case / "executed").exists())
        if not any(executed):
            return "refused" if process.exitcode else "loaded"
    return "executed" if all(executed) else "executed after a question"


def measure() -> list[dict[str, str]]:
    """Return a row of each case and library."""
    hostile = importlib.import_module("hostile")
    for name in ("open_clip", "timm", "transformers.models.clip.modeling_clip", "diffusers"):
        importlib.import_module(name)  # before the processes are forked
    rows = []
    with tempfile.TemporaryDirectory() as root:
        hostile.make_layouts(Path(root, "layouts"))
        for number, case in enumerate([*hostile.UNCHANGED, *hostile.CASES], 1 - len(hostile.UNCHANGED)):
            ours = {"vfm": lambda target, case=case: hostile.load_with_vfm(case, target)}
            for library, load in (ours | PEERS.get(case.layout, {})).items():
                folder = Path(root, f"{number}-{library}")
                found = outcome(lambda at, case=case: hostile.make_case(case, Path(root, "layouts"), at), load, folder)
                rows.append(
                    {"kind": case.kind, "layout": case.layout, "case": case.title, "library": library, "outcome": found}
                )
                print(f"{number:2d}  {case.layout:12} {case.title:50} {library:12} {found}", flush=True)
    return rows


def table(rows: list[dict[str, str]]) -> str:
    """Return the outcomes counted by kind and library, and the cases that ran code."""
    outcomes = ("executed", "executed after a question", "refused", "loaded")
    lines = ["| abused | library | cases | " + " | ".join(outcomes) + " |", "|---|---|" + "--:|" * (1 + len(outcomes))]

    def key(row: dict[str, str]) -> tuple[str, bool, str]:
        return row["kind"], row["library"] != "vfm", row["library"]

    for (kind, _, library), group in groupby(sorted(rows, key=key), key):
        found = [row["outcome"] for row in group]
        counts = " | ".join(str(found.count(name)) for name in outcomes)
        lines.append(f"| {kind} | {library} | {len(found)} | {counts} |")
    ran = [row for row in rows if row["outcome"].startswith("executed")]
    lines += ["", "Code that ran:", ""]
    lines += [f"- {row['library']}: {row['case']} ({row['layout']}): {row['outcome']}" for row in ran] or ["- none"]
    return "\n".join(lines)


def main() -> None:
    """Run all cases and write the results."""
    with tempfile.TemporaryDirectory() as home:
        # Hugging Face's libraries read these when they are imported; code of other repositories is not fetched.
        os.environ |= {"HF_HOME": home, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        rows = measure()
    versions = {name: version(name) for name in LIBRARIES}
    record = {"versions": versions, "rows": rows}
    (RESULTS / "hostile.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    page = f"# Hostile models and files\n\n`python packages/core/benchmarks/hostile.py`; {named}.\n\n{table(rows)}\n"
    (RESULTS / "hostile.md").write_text(page, encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
