"""Do everything that the first hour on a GPU is for: `python packages/kernels/benchmarks/gpu_first.py`.

The parts run in order, the most valuable first, each as a command of at most `LIMIT` seconds that writes its results
when it has them. It works from a checkout with torch alone. A part that needs a package that is not there says so, and
the rest runs. A repeated command goes on: parts that ended well are left out, and a part that was stopped measures what
has no row yet. `--minutes` ends before the time that a machine is lent for. Results are written to `$OUT` if it is
set. `--dry-run` runs everything on a CPU at meaningless sizes, to test this script.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).parent
SOURCES = HERE.parent / "src"
TESTS = HERE.parent / "tests/gpu"
LIMIT = 480  # seconds
RESERVE = 30  # seconds before the limit, in which a part ends by itself after the row that it measures
UNFINISHED = 75  # exit code of a part that goes on in the next call
TAIL = 2000  # characters of a part's output that are kept
OPERATIONS = (
    "rotate", "swiglu_subln", "add_layer_norm", "masked_cosine_loss", "info_nce", "info_nce_all_pairs",
    "siglip_loss", "mask_tokens",
    "gather_tokens", "scatter_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        name: for `--only`, `--from` and the record.
        command: script or module with its arguments.
        dry: arguments that a dry run adds.
        interpreted: whether a dry run interprets the kernels.
        writes: whether it takes the folder of results by `--out`.
        resumes: whether it takes `--seconds` and goes on where it stopped.
        needs: packages other than torch and triton.
    """

    name: str
    command: tuple[str, ...]
    dry: tuple[str, ...] = ()
    interpreted: bool = False
    writes: bool = True
    resumes: bool = False
    needs: tuple[str, ...] = ()

    def words(self, out: Path, dry: bool, seconds: float) -> list[str]:
        """Return the command line of a part that has so many seconds."""
        return [
            sys.executable,
            *self.command,
            *(self.dry if dry else ()),
            *(("--out", str(out)) if self.writes else ()),
            *(("--seconds", f"{max(1, seconds - RESERVE):.0f}") if self.resumes else ()),
        ]

    def missing(self, dry: bool) -> list[str]:
        """Return the packages that it needs and that are not installed."""
        needs = [*self.needs, *(["numpy"] if dry and self.interpreted else [])]  # the interpreter needs NumPy
        return [name for name in needs if importlib.util.find_spec(name) is None]


def _measured(name: str, *arguments: str, needs: tuple[str, ...] = ()) -> Part:
    dry = ("--tiny", "--repeats", "2")
    return Part(name, (str(HERE / "run.py"), *arguments), dry, resumes=True, needs=needs)


def _tested(name: str, chosen: str, dry: str) -> Part:
    # The repository's own conftest needs hypothesis, which a machine with torch alone lacks, and these tests do not.
    command = ("-m", "pytest", "-q", f"--confcutdir={TESTS.parent}", str(TESTS), "-p", "no:cacheprovider", "-k", chosen)
    return Part(name, command, ("-k", dry), interpreted=True, writes=False, needs=("pytest",))


# `run.py` compares every implementation with float64 before it is timed, so the tests can come late.
PARTS = (
    Part("versions", ("-m", "vfm_kernels", "explain", "--shape", "8,257,16,64", "--dtype", "bf16"), writes=False),
    _measured("attention", "--only", "attention"),
    _measured("operations", "--only", *OPERATIONS),
    _measured("padding", "--only", "matmul"),
    _measured("steps-eva-02", "--steps", "EVA02-L", needs=("timm",)),
    _measured("steps-clip", "--steps", "CLIP-L/14", needs=("open_clip",)),
    _measured("steps-eva-g", "--steps", "EVA-g", needs=("timm",)),
    Part("table", (str(HERE / "fill_table.py"),), ("--help",), writes=False, resumes=True),
    _tested("tests-operations", "not attention", dry="swiglu and repeats"),
    _tested("tests-attention", "attention", dry="attention_short and repeats"),
    Part("training", (str(HERE / "same_training.py"),), ("--tiny",), needs=("timm", "open_clip")),
    Part("tuning", (str(HERE / "tune.py"),), ("--dry-run",), interpreted=True, resumes=True),
)


def main() -> None:
    """Parse the command line and run the parts."""
    started, names = time.monotonic(), [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, help="folder of the results; default: $OUT or results/, in a dry run a new one"
    )
    parser.add_argument("--dry-run", action="store_true", help="meaningless sizes on a CPU, to test this script")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"of {', '.join(names)}")
    parser.add_argument("--from", dest="first", choices=names, metavar="PART", help="this part and those after it")
    parser.add_argument("--minutes", type=float, help="stop after so long; the same command goes on")
    options = parser.parse_args()
    if missing := missing_requirements(options.dry_run):
        parser.error(f"missing: {'; '.join(missing)}")
    out = options.out or default_folder(options.dry_run)
    out.mkdir(parents=True, exist_ok=True)
    record = out / "gpu_first.json"
    done = json.loads(record.read_text()) if record.exists() else {}
    chosen = options.only or names[names.index(options.first) if options.first else 0 :]
    for part in (part for part in PARTS if part.name in chosen):
        if not options.only and done.get(part.name, {}).get("ended") == "well":
            continue
        left = LIMIT if options.minutes is None else min(LIMIT, options.minutes * 60 - (time.monotonic() - started))
        if options.minutes is not None and left <= RESERVE:
            print(f"{part.name}: not begun, the time is up; the same command goes on", flush=True)
            break
        print(f"{part.name} ...", flush=True)
        done[part.name] = run(part, out, options.dry_run, left)
        new = record.with_suffix(".new")
        new.write_text(json.dumps(done, indent=2) + "\n")
        new.replace(record)
        print(f"{part.name}: {done[part.name]['ended']} after {done[part.name]['seconds']} s", flush=True)
    ended = {name: done[name]["ended"] if name in done else "not begun" for name in chosen}
    if failed := [name for name, how in ended.items() if how != "well" and not how.startswith("left out")]:
        sys.exit(f"{len(failed)} of {len(chosen)} parts have not ended well: {', '.join(failed)}; see {record}")


def default_folder(dry: bool) -> Path:
    """Return the folder of results: `$OUT` if it is set, so that a borrowed machine gives them back."""
    if "OUT" in os.environ:
        return Path(os.environ["OUT"])
    return Path(tempfile.mkdtemp(prefix="gpu-first-")) if dry else HERE / "results"


def missing_requirements(dry: bool) -> list[str]:
    """Return what is missing before anything is run."""
    missing = [] if importlib.util.find_spec("triton") else ["the package triton"]
    if dry:
        return missing
    if not torch.cuda.is_available():
        return [*missing, "a CUDA device (torch finds none)"]
    if (capability := torch.cuda.get_device_capability()) < (8, 0):
        missing.append(f"a card from Ampere on: expected compute capability 8.0 or above, got {capability}")
    return missing


def run(part: Part, out: Path, dry: bool, limit: float = LIMIT) -> dict[str, str | float]:
    """Run one part and return how it ended."""
    words, started = part.words(out, dry, limit), time.monotonic()
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if dry and part.interpreted else {})
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
    endings = {0: "well", UNFINISHED: "unfinished; the same command goes on"}
    if missing := part.missing(dry):
        ended, output = f"left out: {', '.join(missing)} not installed", ""
    else:
        try:
            done = subprocess.run(
                words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit, env=environment
            )
            ended, output = endings.get(done.returncode, f"exit code {done.returncode}"), done.stdout
        except subprocess.TimeoutExpired as late:
            ended, output = f"stopped after {limit:.0f} s", (late.stdout or b"").decode(errors="replace")
    seconds = round(time.monotonic() - started, 1)
    return {
        "command": " ".join(part.words(Path("OUT"), dry, limit)[1:]),
        "ended": ended,
        "seconds": seconds,
        "tail": output[-TAIL:],
    }


if __name__ == "__main__":
    main()
