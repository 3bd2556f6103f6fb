"""Numbers that are not finite in annotations: only their annotation is bad, and texts are left as they are."""

from __future__ import annotations

import io
import json

from hypothesis import given, settings, strategies as st

from vfm.storage.finite_json import FiniteJson

VALUES = st.recursive(
    st.none()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8"))
    | st.sampled_from(['NaN "', "1e999\\", "-Infinity"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def finite(value: object) -> object:
    """Replace numbers that are not finite, and integers of more than 64 bits, by None."""
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else None
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, list):
        return [finite(item) for item in value]
    return {key: finite(item) for key, item in value.items()} if isinstance(value, dict) else value


@settings(max_examples=300)
@given(VALUES, st.integers(1, 12), st.booleans())
def test_what_json_reads_after_any_cut_is_the_value_with_null(value: object, size: int, ascii_only: bool) -> None:
    stream = FiniteJson(io.BytesIO(json.dumps(value, ensure_ascii=ascii_only).encode()))
    parts = list(iter(lambda: stream.read(size), b""))
    assert json.loads(b"".join(parts)) == finite(value)


def test_large_exponents_are_null_and_other_numbers_stay() -> None:
    text = b'[1e999, -1E+400, 1e308, 1e-999, 1.5e003, "1e999", NaN]'
    assert json.loads(FiniteJson(io.BytesIO(text)).read()) == [None, None, 1e308, 0.0, 1500.0, "1e999", None]


def test_integers_of_more_than_64_bits_are_null_and_long_fractions_stay() -> None:
    words = [str(number) for number in (2**63, 2**63 - 1, -(2**63), -(2**63) - 1)]
    words += ["9" * 5000, "0.12345678901234567890123", f'"{"1" * 30}"']
    text = f"[{', '.join(words)}]".encode()
    expected = [None, 2**63 - 1, -(2**63), None, None, 0.12345678901234567890123, "1" * 30]
    assert json.loads(FiniteJson(io.BytesIO(text)).read()) == expected
