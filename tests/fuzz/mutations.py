"""Damage to a file, as disks, networks, editors and other programs do it: pure functions of bytes and a generator."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

HUGE = [b"1000000000000000000", b"-1", b"1e308", b"NaN", b"4294967296", b"0", b"-0.0", b"Infinity", b"9" * 5000]
BINARY = [b"\xff\xff\xff\x7f", b"\xff" * 8, b"\0" * 4, b"\0\0\0\0\0\0\0\x40", b"\x80\x80\x80\x80\x08"]
REPLACED = [
    b"",
    b"\n",
    b"null",
    b"[]",
    b"{}",
    b"3",
    b'""',
    b"[[1]]",
    b"true",
    b"PK\x03\x04",
    b"\x1f\x8b\x08",
    b"\0" * 4096,
]
NESTED = [b"[", b'{"a":', b"- ", b"{a: ", b"<a>", b"(", b'"', b"&a [*a, "]
VALUES: list[Any] = [
    None,
    3,
    -1,
    1e300,
    10**30,
    "x",
    "",
    "\ud800",
    "\0",
    "../../x",
    [],
    {},
    [[]],
    {"x": 1},
    True,
    "z" * 100_000,
]


@dataclass(frozen=True)
class Damage:
    """Damaged bytes; `start` and `stop` are the range of the original that may have changed."""

    kind: str
    data: bytes
    start: int
    stop: int


Mutation = Callable[[bytes, random.Random], Damage]


def flip(data: bytes, rng: random.Random) -> Damage:
    """Flip one bit."""
    changed, bit = bytearray(data), rng.randrange(8 * len(data))
    changed[bit // 8] ^= 1 << bit % 8
    return Damage("flip", bytes(changed), bit // 8, bit // 8 + 1)


def truncate(data: bytes, rng: random.Random) -> Damage:
    """Keep the beginning only."""
    cut = rng.randrange(len(data))
    return Damage("truncate", data[:cut], cut, len(data))


def replace_range(data: bytes, rng: random.Random) -> Damage:
    """Overwrite a range with zeros, ones or random bytes."""
    start, length = _range(data, rng)
    fill = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length)])
    return Damage("range", data[:start] + fill + data[start + length :], start, start + length)


def insert(data: bytes, rng: random.Random) -> Damage:
    """Insert random bytes."""
    start = rng.randrange(len(data) + 1)
    return Damage("insert", data[:start] + rng.randbytes(rng.randint(1, 64)) + data[start:], start, start)


def remove(data: bytes, rng: random.Random) -> Damage:
    """Remove a range."""
    start, length = _range(data, rng)
    return Damage("remove", data[:start] + data[start + length :], start, start + length)


def duplicate(data: bytes, rng: random.Random) -> Damage:
    """Repeat a block behind itself."""
    start, length = _range(data, rng)
    stop = start + length
    return Damage("duplicate", data[:stop] + data[start:], start, stop)


def swap(data: bytes, rng: random.Random) -> Damage:
    """Exchange two neighbouring blocks."""
    start, length = _range(data, rng)
    middle, stop = start + length, min(len(data), start + 2 * length)
    return Damage("swap", data[:start] + data[middle:stop] + data[start:middle] + data[stop:], start, stop)


def number(data: bytes, rng: random.Random) -> Damage:
    """Replace a number by a huge, negative or impossible one: in a text its digits, elsewhere some bytes."""
    if (found := list(re.finditer(rb"\d+(\.\d+)?", data))) and rng.random() < 0.7:
        match = rng.choice(found)
        return Damage("number", data[: match.start()] + rng.choice(HUGE) + data[match.end() :], *match.span())
    start, new = rng.randrange(len(data)), rng.choice(BINARY)
    stop = min(len(data), start + len(new))
    return Damage("number", data[:start] + new + data[stop:], start, stop)


def encoding(data: bytes, rng: random.Random) -> Damage:
    """Store a text in another encoding or with other line breaks, or add a byte order mark."""
    text = data.decode("latin-1")
    forms = [
        ("\ufeff" + text).encode("utf-16-le"), text.encode("utf-32"), b"\xef\xbb\xbf" + data, text.encode(),
        data.replace(b"\n", b"\r\n"), data.replace(b"\n", b"\r"), data.replace(b"\n", b"\0"),
        data.replace(b"a", b"\xe4"),
    ]  # fmt: skip
    return Damage("encoding", rng.choice(forms), 0, len(data))


def nesting(data: bytes, rng: random.Random) -> Damage:
    """Begin with brackets that are opened a hundred thousand times."""
    return Damage("nesting", rng.choice(NESTED) * 100_000 + data, 0, len(data))


def replace_all(data: bytes, rng: random.Random) -> Damage:
    """Replace the content by that of another kind of file."""
    return Damage("replaced", rng.choice(REPLACED), 0, len(data))


def value(data: bytes, rng: random.Random) -> Damage:
    """Replace or remove one value of a JSON or YAML file, or of one line of JSON; flip a bit in any other file."""
    lines = data.splitlines(keepends=True)
    for place in (None, rng.randrange(len(lines)) if lines else None):
        start = 0 if place is None else sum(map(len, lines[:place]))
        piece = data if place is None else lines[place]
        if changed := _other_value(piece, rng):
            changed = changed.rstrip(b"\n") + piece[len(piece.rstrip(b"\n")) :]
            stop = start + len(piece)
            return Damage("value", data[:start] + changed + data[stop:], start, stop)
    return flip(data, rng)


def _other_value(piece: bytes, rng: random.Random) -> bytes | None:
    try:
        tree, dump = json.loads(piece), lambda tree: json.dumps(tree).encode()
    except (ValueError, RecursionError):
        try:
            tree, dump = yaml.safe_load(piece), lambda tree: yaml.safe_dump(tree, sort_keys=False).encode()
        except (yaml.YAMLError, ValueError, RecursionError):
            return None
    places = list(_places(tree))
    if not places:
        return None
    owner, key = rng.choice(places)
    if rng.random() < 0.2:
        del owner[key]
    else:
        owner[key] = rng.choice(VALUES)
    return dump(tree)


def _places(tree: Any) -> Any:
    """Yield each place of a nested value: the list or mapping that holds it, and its key."""
    for key, inner in list(
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    ):
        yield tree, key
        yield from _places(inner)


def _range(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Return start and length of a range: mostly short, sometimes a sector or more."""
    length = min(len(data), rng.choice([1, 2, 4, 16, 64, 512, 4096]))
    return rng.randrange(len(data) - length + 1), length


MUTATIONS: list[Mutation] = [
    flip, flip, flip, truncate, replace_range, insert, remove, duplicate, swap, number, encoding, nesting, replace_all,
    value, value,
]  # fmt: skip


def damage(data: bytes, rng: random.Random) -> Damage:
    """Return one random damage of a file that is not empty."""
    while (changed := rng.choice(MUTATIONS)(data, rng)).data == data:
        pass
    return changed
