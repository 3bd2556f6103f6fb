"""Do everything that the first 45 minutes on a GPU are for: `python packages/kernels/benchmarks/gpu_first.py`.

The parts run in order, each as a command of at most `LIMIT` seconds that writes its results when it has them. A part
that fails does not stop the others; `gpu_first.json` in the folder of results records how each ended. `--only PART` and
`--from PART` repeat some. `--dry-run` runs all of them on a CPU at meaningless sizes, to test this script.
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
TESTS = HERE.parent / "tests/gpu"
LIMIT = 540  # seconds
TAIL = 2000  # characters of a part's output that are kept
NEEDED = ("triton", "numpy", "pytest", "timm", "open_clip")
OPERATIONS = (
    "rotate", "swiglu_subln", "add_layer_norm", "mask_tokens", "gather_tokens", "scatter_tokens", "masked_cosine_loss",
    "info_nce", "siglip_loss",
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
    """

    name: str
    command: tuple[str, ...]
    dry: tuple[str, ...] = ()
    interpreted: bool = False
    writes: bool = True

    def words(self, out: Path, dry: bool) -> list[str]:
        """Return the command line."""
        return [
            sys.executable,
            *self.command,
            *(self.dry if dry else ()),
            *(("--out", str(out)) if self.writes else ()),
        ]


def _measured(name: str, *arguments: str) -> Part:
    return Part(name, (str(HERE / "run.py"), *arguments), ("--tiny", "--repeats", "2"))


def _tested(name: str, chosen: str, dry: str) -> Part:
    command = ("-m", "pytest", "-q", str(TESTS), "-p", "no:cacheprovider", "-k", chosen)
    return Part(name, command, ("-k", dry), interpreted=True, writes=False)


PARTS = (
    Part("versions", ("-m", "vfm_kernels", "explain", "--shape", "8,257,16,64", "--dtype", "bf16"), writes=False),
    _tested("tests-attention", "attention", dry="attention_short and repeats"),
    _tested("tests-operations", "not attention", dry="swiglu and repeats"),
    _measured("padding", "--only", "matmul"),
    _measured("attention", "--only", "attention"),
    Part("tuning", (str(HERE / "tune.py"),), ("--dry-run",), interpreted=True),
    _measured("operations", "--only", *OPERATIONS),
    _measured("steps-eva-g", "--steps", "EVA-g"),
    _measured("steps-eva-02", "--steps", "EVA02-L"),
    _measured("steps-clip", "--steps", "CLIP-L/14"),
    Part("training", (str(HERE / "same_training.py"),), ("--tiny",)),
)


def main() -> None:
    """Parse the command line and run the parts."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, help="folder of the results; default: results/, in a dry run a new temporary one"
    )
    parser.add_argument("--dry-run", action="store_true", help="meaningless sizes on a CPU, to test this script")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"of {', '.join(names)}")
    parser.add_argument("--from", dest="first", choices=names, metavar="PART", help="this part and those after it")
    options = parser.parse_args()
    if missing := missing_requirements(options.dry_run):
        parser.error(f"missing: {'; '.join(missing)}")
    if not options.out:
        options.out = Path(tempfile.mkdtemp(prefix="gpu-first-")) if options.dry_run else HERE / "results"
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "gpu_first.json"
    done = json.loads(record.read_text()) if record.exists() else {}
    chosen = options.only or names[names.index(options.first) if options.first else 0 :]
    for part in (part for part in PARTS if part.name in chosen):
        print(f"{part.name} ...", flush=True)
        done[part.name] = run(part, options.out, options.dry_run)
        record.write_text(json.dumps(done, indent=2) + "\n")
        print(f"{part.name}: {done[part.name]['ended']} after {done[part.name]['seconds']} s", flush=True)
    if failed := [name for name in chosen if done[name]["ended"] != "well"]:
        sys.exit(f"{len(failed)} of {len(chosen)} parts failed: {', '.join(failed)}; see {record}")


def missing_requirements(dry: bool) -> list[str]:
    """Return what is missing before anything is run."""
    missing = [f"the package {name}" for name in NEEDED if importlib.util.find_spec(name) is None]
    if dry:
        return missing
    if not torch.cuda.is_available():
        return [*missing, "a CUDA device (torch finds none)"]
    if (capability := torch.cuda.get_device_capability()) < (8, 0):
        missing.append(f"a card from Ampere on: expected compute capability 8.0 or above, got {capability}")
    return missing


def run(part: Part, out: Path, dry: bool) -> dict[str, str | float]:
    """Run one part and return how it ended."""
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if dry and part.interpreted else {})
    words, started = part.words(out, dry), time.monotonic()
    try:
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT, env=environment
        )
        ended, output = ("well" if done.returncode == 0 else f"exit code {done.returncode}"), done.stdout
    except subprocess.TimeoutExpired as late:
        ended, output = f"stopped after {LIMIT} s", (late.stdout or b"").decode(errors="replace")
    seconds = round(time.monotonic() - started, 1)
    return {
        "command": " ".join(part.words(Path("OUT"), dry)[1:]),
        "ended": ended,
        "seconds": seconds,
        "tail": output[-TAIL:],
    }


if __name__ == "__main__":
    main()
