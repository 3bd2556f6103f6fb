"""`make fuzz`: damages every kind of file that vfm reads, and writes the table of outcomes."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from fuzz.cases import FORBIDDEN, Fuzz
from fuzz.page import page
from fuzz.suite import TARGETS


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> int:
    """Run the cases that a file of outcomes lacks; return 1 if a forbidden outcome is among them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this case alone, and keep its files")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with its share of the targets")
    parser.add_argument("--job", type=int, help="run the cases of this process only, and write no page")
    parser.add_argument("--only", default="", help="only targets whose name contains this")
    parser.add_argument(
        "--resume",
        type=Path,
        help="file of outcomes, one JSON line each; its cases are not run again. It is"
        " removed when the page is written",
    )
    parser.add_argument("--out", type=Path, help="write the page here")
    args = parser.parse_args()
    targets = [target for target in TARGETS if args.only in target.name]
    if args.jobs > 1 and not args.resume:
        parser.error("--jobs needs --resume, the file in which all processes write their outcomes")
    if args.jobs > 1 and args.job is None and args.case is None:
        words = [sys.executable, "-m", "fuzz", *sys.argv[1:], "--job"]
        for process in [subprocess.Popen([*words, str(job)]) for job in range(args.jobs)]:
            process.wait()  # what one has left out, if it was killed, is run below
    fuzz = Fuzz(Path(tempfile.mkdtemp(prefix="vfm-fuzz-")), targets, args.seed)
    done = {}
    if args.resume and args.resume.exists():
        records = [json.loads(line) for line in args.resume.read_text().splitlines()]
        done = {record["case"]: record for record in records if record["seed"] == args.seed}
    for case in [args.case] if args.case is not None else range(args.cases):
        if case in done or (args.job is not None and case % len(targets) % args.jobs != args.job):
            continue
        begun = cpu_seconds()
        target, file, damage, outcome = fuzz.run(case)
        record = {"seed": args.seed, "case": case, "target": target.name, "file": file, "damage": damage.kind,
                  "outcome": outcome.kind,
                  "seconds": round(cpu_seconds() - begun, 3), "detail": outcome.detail}  # fmt: skip
        done[case] = record
        if args.resume:
            with args.resume.open("a") as stream:
                stream.write(json.dumps(record) + "\n")
        if outcome.kind in FORBIDDEN:
            print(json.dumps(record), flush=True)
    if args.case is None:
        shutil.rmtree(fuzz.folder, ignore_errors=True)
    counts = Counter(record["outcome"] for record in done.values())
    print(dict(counts), f"{cpu_seconds():.0f} s of CPU time", fuzz.folder if args.case is not None else "")
    if args.out and args.job is None:
        before = args.out.read_text() if args.out.exists() else ""
        args.out.write_text(page([done[case] for case in sorted(done)], args.seed, before))
        if args.resume:
            args.resume.unlink(missing_ok=True)
    return int(any(counts[kind] for kind in FORBIDDEN))


if __name__ == "__main__":
    raise SystemExit(main())
