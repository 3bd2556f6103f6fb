"""The choice from measured times: what a table may say about other sizes, and what its choices cost over many sizes."""

import math
import random
from collections.abc import Callable

import pytest

from vfm_kernels.dispatch.choosing import OURS, Measurement, Size, choose_by_times, winner

CARD = ("H100", "torch 2.10.0, triton 3.6.0")
WANTED = Size("attention", 4096, 257, 64, "bfloat16")


def row(rows: int = 4096, length: int = 257, direction: str = "forward", noise: float = 0.01, **times: float):
    spread = {name: [time, time * (1 - noise), time * (1 + noise)] for name, time in times.items()}
    return Measurement("attention", direction, rows, length, 64, "bfloat16", *CARD, spread)


def chosen(table: list[Measurement], **changes) -> str | None:
    choice = choose_by_times(table, WANTED._replace(**changes))
    return choice and choice.name


FASTER, SLOWER = {"triton_short": 1.0, "fa3": 1.5}, {"triton_short": 2.0, "fa3": 1.5}


def test_a_row_holds_for_its_op_width_dtype_kind_and_number_of_tiles():
    table = [row(**FASTER)]
    assert choose_by_times(table, WANTED) == ("triton_short", 0.5)
    assert chosen(table, length=272) == "triton_short"
    for changes in ({"width": 72}, {"dtype": "float16"}, {"kind": ("rope",)}, {"op": "rotate"}):
        assert chosen(table, **changes) is None, changes


def test_a_big_batch_says_nothing_about_a_small_one_but_holds_for_bigger_ones():
    table = [row(**FASTER)]
    assert chosen(table, rows=16) is None
    assert chosen(table, rows=2048) == chosen(table, rows=100_000) == "triton_short"


def test_times_are_interpolated_between_two_sizes():
    assert chosen([row(64, **FASTER), row(4096, **FASTER)], rows=500) == "triton_short"
    crossing = [row(64, **SLOWER), row(4096, **FASTER)]
    assert (chosen(crossing, rows=100), chosen(crossing, rows=3000)) == ("fa3", "triton_short")
    crossing = [row(length=197, **FASTER), row(length=257, **SLOWER)]
    assert (chosen(crossing, length=215), chosen(crossing, length=240)) == ("triton_short", "fa3")
    assert chosen([row(length=197, **FASTER)], length=230) == "triton_short"
    assert chosen([row(length=197, **FASTER)], length=300) is None


def test_directions_are_separate_and_both_count_for_training():
    """Ours wins forward alone: teachers and evaluations take it, a training step does not."""
    backward = row(direction="backward", triton_short=4.0, fa3=3.0)
    assert chosen([row(**FASTER), backward]) == "triton_short"
    assert chosen([row(**FASTER), backward], backward=True) == "fa3"
    assert chosen([row(**FASTER)], backward=True) is None


def test_ours_must_win_by_more_than_the_noise_and_the_margin():
    assert winner(row(**FASTER).times).name == "triton_short"
    assert winner(row(triton_short=1.0, fa3=1.02, noise=0.0).times) == ("fa3", 0.0)
    assert winner(row(triton_short=1.0, fa3=1.2, noise=0.2).times) == ("fa3", 0.0)


def test_what_inductor_compiles_counts_only_where_it_is_compiled():
    times = row(**{"ours": 1.0, "torch": 2.0, "torch.compile": 0.5}).times
    assert winner(times).name == "ours"
    assert winner(times, compiled=True).name == "torch.compile"


LENGTHS, ROWS = (50, 129, 197, 257, 577, 1025), (16, 128, 1024, 4096)


def cost_model(name: str, size: Size) -> float:
    """Return milliseconds on a Hopper card: a launch, waves of tiles, bytes, and products at a share of the peak."""
    tile, share, launch = {
        "triton_short": (16, 0.5, 0.006),
        "triton_stream": (64, 0.5, 0.006),
        "fa3": (128, 0.75, 0.008),
        "sdpa_cudnn": (128, 0.7, 0.012),
    }[name]
    side = math.ceil(size.length / tile) * tile
    if name == "triton_short" and size.length > 272:
        share *= 0.1  # it would spill
    products = {"triton_short": 7, "triton_stream": 7}.get(name, 5) if size.backward else 0
    flops = (2 + products) * 2 * side * size.length * size.width
    waves = math.ceil(size.rows / 132) * 132
    return launch + max(waves * flops / 8e11 / share, size.rows * size.length * size.width * 16 / 3e9)


def planted(seed: int) -> Callable[[str, Size], float]:
    """Return times in which each implementation wins in regions of its own, with crossings between measured sizes."""
    draw = random.Random(seed)
    crossing = {name: (draw.uniform(60, 900), draw.uniform(30, 3000)) for name in ("triton_short", "fa3")}

    def times(name: str, size: Size) -> float:
        base = 0.01 + size.rows * size.length**2 * (3 if size.backward else 1) / 1e9
        length, rows = crossing.get(name, (1e9, 1e9))
        at = math.log(size.length / length) + 0.3 * math.log(size.rows / rows)
        return base * (1.0 if name not in crossing else 1 + 0.25 * math.tanh(at if name == "fa3" else -at))

    return times


@pytest.mark.parametrize("seed", [None, 1, 2, 3], ids=str)
def test_choices_over_200_sizes_cost_less_than_two_percent_of_an_oracle(seed):
    times = cost_model if seed is None else planted(seed)
    names = ("triton_short", "triton_stream", "fa3", "sdpa_cudnn")
    draw = random.Random(0)

    def measured(size: Size, name: str) -> list[float]:
        middle = times(name, size) * draw.gauss(1, 0.01)
        return [middle, middle * 0.985, middle * 1.015]

    table = []
    for rows in ROWS:
        for length in LENGTHS:
            size = WANTED._replace(rows=rows, length=length)
            forward = {name: measured(size, name) for name in names}
            both = {name: measured(size._replace(backward=True), name) for name in names}
            backward = {name: [b - f for b, f in zip(both[name], forward[name], strict=True)] for name in names}
            for direction, of in (("forward", forward), ("backward", backward)):
                table.append(Measurement("attention", direction, rows, length, 64, "bfloat16", *CARD, of))
    regrets, of_library, ours = [], [], 0
    for _ in range(200):
        rows, length = round(16 * 256 ** draw.random()), round(48 * 24 ** draw.random())
        size = WANTED._replace(rows=rows, length=length, backward=draw.random() < 0.5)
        choice = choose_by_times(table, size)
        name = choice.name if choice else "fa3"
        ours += name in OURS
        best = min(times(each, size) for each in names)
        regrets.append(times(name, size) / best - 1)
        of_library.append(min(times(each, size) for each in ("fa3", "sdpa_cudnn")) / best - 1)
    mean, library = sum(regrets) / 200, sum(of_library) / 200
    print(f"regret {mean:.2%}, of the best library alone {library:.2%}, largest {max(regrets):.1%}, ours in {ours}")
    assert mean < 0.02
    assert ours > 0
    assert mean < library  # the table is worth having
