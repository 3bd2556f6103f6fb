"""Compare the simulated scaling of a training with published throughputs, one table.

The utilisation is set so that the first row of each run is right; the other rows are predicted. Sources: NVIDIA NeMo's
user guide, CLIP performance (g/14, 2308); torchtitan, benchmarks/llama3_h100_202412_torchtitan.md (Llama 3.1 8B, FSDP);
Cherti et al. 2023 (arXiv:2212.07143), the released table of training runs (`samples_per_sec`, JUWELS, A100 40 GB).

    uv run --dev python packages/core/benchmarks/cluster.py
"""

from __future__ import annotations

from dataclasses import dataclass

from vfm.train.cost.cluster import CARDS, Load, Sharding, simulate


@dataclass(frozen=True)
class Run:
    """A published run: devices and samples (or tokens) per second, with the batch of a device."""

    name: str
    card: str
    sharding: Sharding
    parameters: float
    flops: float  # of a sample, forward and backward
    batch: int  # samples of a device
    published: dict[int, float]


def transformer(parameters: float, tokens: int) -> float:
    """Count the operations of a forward and a backward pass, without attention's products of positions."""
    return 6 * parameters * tokens


RUNS = [
    Run("NeMo, CLIP g/14", "a100", "ddp", 1.37e9, transformer(1.01e9, 257) + transformer(0.35e9, 77), 64,
        {8: 559, 16: 1115, 32: 2190, 64: 4407, 128: 8633}),
    Run("NeMo, CLIP g/14", "h100", "ddp", 1.37e9, transformer(1.01e9, 257) + transformer(0.35e9, 77), 64,
        {8: 935, 16: 1795, 32: 3502, 64: 6771, 128: 13829}),
    Run("torchtitan, Llama 3.1 8B, samples of 8,192 tokens", "h100", "fsdp", 8.03e9, transformer(8.03e9, 8192), 2,
        {8: 8 * 5762 / 8192, 128: 128 * 5605 / 8192}),
    Run("torchtitan, the same compiled", "h100", "fsdp", 8.03e9, transformer(8.03e9, 8192), 2,
        {8: 8 * 6667 / 8192, 128: 128 * 6514 / 8192}),
    Run("open_clip, L/14", "a100-40", "ddp", 0.43e9, transformer(0.304e9, 257) + transformer(0.085e9, 77), 84,
        {768: 60328, 1024: 79116}),
    Run("open_clip, B/32", "a100-40", "ddp", 0.15e9, transformer(0.087e9, 50) + transformer(0.038e9, 77), 256,
        {128: 108845, 344: 219759}),
]  # fmt: skip


def predicted(run: Run) -> dict[int, float]:
    """Predict the samples per second of all rows from the first one."""
    load = Load(run.parameters, run.flops, 1.0, 0.0, 0.0, 0.0)

    def rate(devices: int, utilisation: float) -> float:
        batch = run.batch * devices
        return simulate(load, CARDS[run.card], devices, run.sharding, batch, utilisation).samples_per_second

    first = min(run.published)
    low, high = 1e-4, 1.0
    for _ in range(50):  # the rate grows with the utilisation
        middle = (low + high) / 2
        low, high = (middle, high) if rate(first, middle) < run.published[first] else (low, middle)
    return {devices: rate(devices, low) for devices in run.published} | {0: low}


def main() -> None:
    """Print the table."""
    print("| run | card | devices | published, samples/s | simulated | error |\n|---|---|--:|--:|--:|--:|")
    for run in RUNS:
        rates = predicted(run)
        for devices, published in run.published.items():
            at_first = devices == min(run.published)
            error = f"set: {100 * rates[0]:.0f} % of the peak" if at_first else f"{rates[devices] / published - 1:+.1%}"
            print(f"| {run.name} | {run.card} | {devices} | {published:,.0f} | {rates[devices]:,.0f} | {error} |")


if __name__ == "__main__":
    main()
