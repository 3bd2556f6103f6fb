"""A training step on a cluster, simulated from counted operations and bytes and a model of the links.

A step takes the time of its operations, plus the communication that does not overlap with them:

- `ddp` averages all gradients once, during the backward pass of the last micro-batch.
- `fsdp` gathers the weights twice and reduces the gradients once, for each micro-batch, over all devices.
- `hsdp` does the same within each machine, and averages the parts once over the machines.

Collectives move the bytes of ring algorithms (Thakur et al. 2005, Optimization of Collective Communication Operations
in MPICH). Data are always ready, and CLIP's gathered features, which are small, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vfm.train.cost.peaks import PEAKS

Sharding = Literal["ddp", "fsdp", "hsdp"]
LINK_EFFICIENCY = 0.8  # share of a link's rate that large collectives reach
USABLE = 0.9  # share of a device's memory, as CUDA and the allocator's gaps need the rest
# Waits for the slowest of the devices, a share of the operations for each doubling of the machines. Published runs
# lose 0.7 % (torchtitan's Llama 3.1 8B), 0.9 and 1.9 % (NeMo's CLIP g/14 on A100 and H100) for each doubling.
JITTER = 0.01
NUM_BLOCKS = 24  # of a typical model: how much of the weights FSDP gathers at a time
GATHERED_BYTES, REDUCED_BYTES = 2, 4  # of a parameter: weights are gathered in bf16, and gradients reduced in fp32


@dataclass(frozen=True)
class Card:
    """A device and its links, in operations, bytes and seconds, from data sheets.

    Attributes:
        peak_flops: Matrix products in bf16.
        memory: Bytes.
        nvlink: Bytes per second to the other devices of a machine, in one direction.
        network: Bytes per second to other machines, for each device.
        per_machine: Devices of a machine.
    """

    peak_flops: float
    memory: float
    nvlink: float
    network: float
    per_machine: int = 8


def _peak(name: str) -> float:
    return 1e12 * PEAKS[name][0]


CARDS = {
    "a100-40": Card(_peak("A100"), 40e9, 300e9, 25e9),
    "a100": Card(_peak("A100"), 80e9, 300e9, 25e9),
    "h100": Card(_peak("H100"), 80e9, 450e9, 50e9),
    "h200": Card(_peak("H200"), 141e9, 450e9, 50e9),
    "b200": Card(_peak("B200"), 180e9, 900e9, 50e9),
}


@dataclass(frozen=True)
class Load:
    """The costs of a training step that do not depend on the number of devices.

    Attributes:
        trained: Parameters that are trained.
        flops: Operations for a sample, forward and backward.
        replayed: Factor of the operations if the step has several micro-batches. Contrastive losses compute the forward
            pass twice then.
        fixed_bytes: Weights, gradients, optimizer state and averages of the trained parameters.
        frozen_bytes: Weights that are not trained. Every device has all of them.
        activation_bytes: Memory of activations for a sample.
    """

    trained: float
    flops: float
    replayed: float
    fixed_bytes: float
    frozen_bytes: float
    activation_bytes: float


@dataclass(frozen=True)
class Step:
    """A simulated step.

    Attributes:
        devices: Number of devices.
        sharding: What each device stores.
        micro_batch: Samples of a forward pass, the most that fit; 0 if the step does not fit into the memory.
        memory: Bytes of a device.
        seconds: Time of the step.
        exposed: Seconds of it in which devices wait for communication or for one another.
        samples_per_second: Over all devices.
    """

    devices: int
    sharding: Sharding
    micro_batch: int
    memory: float
    seconds: float
    exposed: float
    samples_per_second: float


def simulate(load: Load, card: Card, devices: int, sharding: Sharding, global_batch: int, utilisation: float) -> Step:
    """Simulate a step.

    Args:
        load: Cost of the step.
        card: The device.
        devices: Number of devices.
        sharding: What each device stores.
        global_batch: Samples of the step, a multiple of `devices`.
        utilisation: Share of the peak that the operations reach on one device (MFU).

    Raises:
        ValueError: If the batch is not a multiple of the devices.
    """
    share, left = divmod(global_batch, devices)
    if left or not share:
        raise ValueError(f"global_batch_size: expected a multiple of {devices} devices, got {global_batch}")
    fixed = _fixed_bytes(load, card, devices, sharding)
    room = USABLE * card.memory - fixed
    fitting = [micro for micro in _divisors(share) if micro * load.activation_bytes <= room]
    if not fitting:
        return Step(devices, sharding, 0, fixed + load.activation_bytes, math.inf, 0.0, 0.0)
    micro = max(fitting)
    passes = share // micro
    flops = load.flops * share * (load.replayed if passes > 1 else 1.0)
    computing = flops / (card.peak_flops * utilisation)
    exposed = _exposed(load, card, devices, sharding, computing / passes, passes)
    exposed += computing * JITTER * math.log2(max(1.0, devices / card.per_machine))
    memory = fixed + micro * load.activation_bytes
    return Step(devices, sharding, micro, memory, computing + exposed, exposed, global_batch / (computing + exposed))


def shardings(devices: int, card: Card) -> Iterator[Sharding]:
    """Yield the kinds of sharding that differ for a number of devices."""
    yield "ddp"
    if devices > 1:
        yield "fsdp"
    if devices > card.per_machine:
        yield "hsdp"


def _fixed_bytes(load: Load, card: Card, devices: int, sharding: Sharding) -> float:
    if sharding == "ddp":
        return load.fixed_bytes + load.frozen_bytes
    parts = devices if sharding == "fsdp" else min(devices, card.per_machine)
    gathered = GATHERED_BYTES * load.trained / NUM_BLOCKS
    return load.fixed_bytes / parts + load.frozen_bytes + 2 * gathered  # a block, and the next one, which is on its way


def _exposed(load: Load, card: Card, devices: int, sharding: Sharding, one_pass: float, passes: int) -> float:
    """Compute the seconds of communication that do not overlap with operations."""
    forward = one_pass / 3
    backward = one_pass * 2 / 3
    weights = GATHERED_BYTES * load.trained
    gradients = REDUCED_BYTES * load.trained
    if sharding == "ddp":
        return max(0.0, 2 * _ring(gradients, devices, card) - backward)
    within = devices if sharding == "fsdp" else min(devices, card.per_machine)
    gather = _ring(weights, within, card)
    reduce = _ring(gradients, within, card)
    waits = max(0.0, gather - forward) + max(0.0, gather + reduce - backward)
    machines = devices // within
    across = 2 * (machines - 1) / machines * gradients / within / (card.network * LINK_EFFICIENCY)
    return passes * waits + max(0.0, across - backward)


def _ring(size: float, devices: int, card: Card) -> float:
    """Compute the seconds of a ring all-gather or reduce-scatter, half of an all-reduce.

    Between machines, each of a machine's network cards carries a part of every ring.
    """
    if devices <= card.per_machine:
        rate = card.nvlink
    else:
        rate = min(card.nvlink, card.network * card.per_machine)
    return (devices - 1) / devices * size / (rate * LINK_EFFICIENCY)


def _divisors(number: int) -> Iterator[int]:
    for divisor in range(1, number + 1):
        if number % divisor == 0:
            yield divisor
