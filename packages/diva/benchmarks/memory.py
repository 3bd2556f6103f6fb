"""Measure the peak memory of a process that takes a step of tiny models, with activations stored or recomputed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CASES = {"models, no step": None, "a step": False, "a step, grad_checkpointing": True}


def measured(batch_size: int) -> dict[str, int]:
    """Measure the peak resident bytes (Linux) of each case's process."""
    found = {}
    for name in CASES:
        done = subprocess.run(
            [sys.executable, __file__, name, str(batch_size)], stdout=subprocess.PIPE, text=True, check=True
        )
        found[name] = int(done.stdout)
    return found


def run_case(name: str, batch_size: int) -> int:
    """Run a case in this process, and return its peak memory in bytes."""
    import torch
    from parts import TOY, build

    torch.set_num_threads(1)
    parts = build(TOY, "cpu")
    checkpointing = CASES[name]
    if checkpointing:
        parts.clip.module.set_grad_checkpointing()
        parts.generator.denoiser.network.enable_gradient_checkpointing()
    task, inputs = parts.task(), parts.inputs(batch_size)
    if checkpointing is not None:
        task(inputs)[0].backward()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(run_case(sys.argv[1], int(sys.argv[2])))
