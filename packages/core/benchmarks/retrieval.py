"""Time and memory of retrieval over many images and captions: python packages/core/benchmarks/retrieval.py

Recall in both directions on random features with five captions per image. Each size runs in its own process, whose
peak memory is reported beside that of one score matrix, which clip_benchmark holds. Writes `retrieval.json` and
`retrieval.md` into `results/`. About two CPU minutes; `--full` adds 100,000 images x 500,000 captions, a quarter of an
hour at width 512; `--quick` takes seconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

CAPTIONS = 5
CASES, QUICK_CASES, FULL_CASES = (
    ((5_000, 512), (20_000, 64), (20_000, 512)),
    ((500, 16),),
    ((100_000, 64), (100_000, 512)),
)
RESULTS = Path(__file__).parent / "results"


def measure(num_images: int, width: int) -> dict[str, float]:
    """CPU seconds and most memory of this process, on one thread."""
    import torch

    from vfm.eval import retrieval_ranks
    from vfm.eval.encode.ranking import hits_at

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, width, generator=generator)
    image_of_text = torch.arange(num_images).repeat_interleave(CAPTIONS)
    texts = torch.randn(num_images * CAPTIONS, width, generator=generator)
    for caption in range(CAPTIONS):  # a caption looks like its image, in place: nothing is held twice
        texts[caption::CAPTIONS].add_(images, alpha=0.5)
    features = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    begun = time.process_time()
    ranks = retrieval_ranks(images, texts, image_of_text)
    seconds = time.process_time() - begun
    return {
        "images": num_images,
        "captions": len(texts),
        "width": width,
        "cpu_seconds": seconds,
        "scores_per_ns": num_images * len(texts) / seconds / 1e9,
        "gib_before": features,
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "gib_of_the_matrix": 4 * num_images * len(texts) / 2**30,
        "text_retrieval_recall@1": float(hits_at(ranks.text_retrieval, 1).mean()),
        "image_retrieval_recall@1": float(hits_at(ranks.image_retrieval, 1).mean()),
    }


def table(results: list[dict[str, float]], machine: str) -> str:
    """The results in Markdown."""
    lines = ["| images | captions | width | CPU seconds | GiB, features and torch | GiB at most | GiB of the matrix |"]
    lines.append("|---:" * 7 + "|")
    for one in results:
        counts = [f"{one[name]:,}" for name in ("images", "captions", "width")]
        numbers = [
            f"{one['cpu_seconds']:,.0f}",
            *(f"{one[n]:,.2f}" for n in ("gib_before", "gib", "gib_of_the_matrix")),
        ]
        lines.append(f"| {' | '.join(counts + numbers)} |")
    return "\n".join([*lines, "", f"One thread; {machine}.", ""])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small size: to see that it works")
    parser.add_argument("--full", action="store_true", help="also 100,000 images x 500,000 captions")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--case", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(*options.case)))
        return
    cases = QUICK_CASES if options.quick else CASES + (FULL_CASES if options.full else ())
    options.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, float]] = []
    for case in cases:  # what is measured is kept at once: the last cases take long
        command = [sys.executable, __file__, "--case", *map(str, case)]
        results.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        found = table(results, f"{platform.machine()} CPU")
        (options.out / "retrieval.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (options.out / "retrieval.md").write_text(found, encoding="utf-8")
        print(found, flush=True)


if __name__ == "__main__":
    main()
