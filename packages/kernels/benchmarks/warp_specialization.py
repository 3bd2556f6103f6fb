"""Compile streaming attention with specialised warps: `python packages/kernels/benchmarks/warp_specialization.py`.

The kernel is compiled as it is, and in a copy whose loop over keys asks for specialised warps, for Hopper and Blackwell
cards, which need not be here. `setmaxnreg` in the code means that groups of warps have other numbers of registers, so
the compiler has specialised them. Equal rows mean that it has ignored the wish.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent
LOOP = re.compile(r"(for start in )range\((.*)\):")
CASES = ("stream 64", "stream 128")
COLUMNS = ("warps", "registers", "spills", "setmaxnreg", "shared_bytes")


def records(sources: Path) -> list[dict[str, Any]]:
    """Compile the cases from some sources, and return a record for each case and architecture."""
    environment = {**os.environ, "PYTHONPATH": str(sources), "TRITON_CACHE_DIR": str(sources / "cache")}
    cases = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("all_cases", {str(PACKAGE / "tests/aot/cases_attention.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
CASES = {{name: module.CASES[name] for name in {CASES!r}}}
"""
    file = sources / "cases.py"
    file.write_text(cases)
    command = [sys.executable, str(PACKAGE / "tests/aot/worker.py"), str(file), "90", "100"]
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def main() -> None:
    """Print the table."""
    print(f"| case | warps | architecture | {' | '.join(COLUMNS)} |")
    print(f"|---|---|---|{'--:|' * len(COLUMNS)}")
    for words in ("as they are", "specialised"):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(PACKAGE / "src/vfm_kernels", f"{folder}/vfm_kernels")
            if words == "specialised":
                file = Path(folder) / "vfm_kernels/triton/attention_stream.py"
                text, count = LOOP.subn(r"\1tl.range(\2, warp_specialize=True):", file.read_text())
                assert count == 1
                file.write_text(text)
            for record in records(Path(folder)):
                cells = (str(record[name]) for name in COLUMNS)
                print(f"| {record['case']} | {words} | {record['architecture']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
