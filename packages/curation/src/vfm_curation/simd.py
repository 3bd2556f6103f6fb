"""Wide loads, bit counts and prefetches as functions for numba, because Python lacks these instructions.

Each is one portable LLVM operation, which compiles on every processor that numba supports. They read without bounds
checks (`load8` reads 8 bytes, `byte_masks` 64, `count_less` 16 numbers), so the caller must pad its data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])

_BIT, _BYTE, _INT32, _WORD, _WIDE = (ir.IntType(bits) for bits in (1, 8, 32, 64, 128))


def compiled(function: Function) -> Function:
    """Compile a function at its first call, and cache the machine code.

    Later processes load it from the cache. The cache is next to the source, or in the user's cache folder if the source
    is read-only (NUMBA_CACHE_DIR sets another folder). If nothing can be written, each process compiles again. This
    takes some seconds.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return cast(Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # numba: no locator available
        return cast(Function, numba.njit(**options)(function))


def _instruction(define: Callable[..., Any]) -> Callable[..., np.uint64]:
    return cast(Callable[..., np.uint64], intrinsic(define))


def _pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any, pointee: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), pointee.as_pointer())


def _product(builder: Any, args: Any) -> tuple[Any, Any]:
    """Compute the low and high half of the 128-bit product of two words."""
    wide = builder.mul(builder.zext(args[0], _WIDE), builder.zext(args[1], _WIDE))
    return builder.trunc(wide, _WORD), builder.trunc(builder.lshr(wide, ir.Constant(_WIDE, 64)), _WORD)


@_instruction
def load8(typing: Any, data: Any, at: Any) -> Any:
    """Load the 8 bytes of `data` from `at` on as one little-endian word."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], args[0], args[1], _WORD), align=1)

    return types.uint64(data, types.uint64), generate


@_instruction
def high_product(typing: Any, a: Any, b: Any) -> Any:
    """Compute the high half of a * b.

    It scales a hash `a` to 0..b-1 without a division.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _product(builder, args)[1]

    return types.uint64(types.uint64, types.uint64), generate


@_instruction
def folded_product(typing: Any, a: Any, b: Any) -> Any:
    """Combine both halves of a * b by exclusive or, so that every bit depends on all of a and b."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.xor(*_product(builder, args))

    return types.uint64(types.uint64, types.uint64), generate


@_instruction
def lowest_bit(typing: Any, word: Any) -> Any:
    """Find the index of the lowest set bit of a word that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(_BIT, 1))

    return types.uint64(types.uint64), generate


@_instruction
def num_bits(typing: Any, word: Any) -> Any:
    """Count the set bits of a word."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), generate


def byte_masks(*sets: bytes) -> Callable[..., tuple[np.uint64, ...]]:
    """Create a function (data, at) -> words, one for each set: bit i is 1 if byte at + i is in the set."""
    vector = ir.VectorType(_BYTE, 64)

    @_instruction
    def masks(typing: Any, data: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            block = builder.load(_pointer(context, builder, signature.args[0], args[0], args[1], vector), align=1)

            def mask(characters: bytes) -> Any:
                matches = ir.Constant(ir.VectorType(_BIT, 64), [0] * 64)
                for character in characters:
                    equal = builder.icmp_unsigned("==", block, ir.Constant(vector, [character] * 64))
                    matches = builder.or_(matches, equal)
                return builder.bitcast(matches, _WORD)

            return context.make_tuple(builder, signature.return_type, [mask(characters) for characters in sets])

        return types.UniTuple(types.uint64, len(sets))(data, types.uint64), generate

    return cast(Callable[..., tuple[np.uint64, ...]], masks)


@_instruction
def count_less(typing: Any, data: Any, at: Any, value: Any, count: Any) -> Any:
    """Count how many of the `count` (at most 16) int32 numbers of `data` from `at` on are below `value`."""
    vector, half = ir.VectorType(_INT32, 16), ir.IntType(16)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = builder.load(_pointer(context, builder, signature.args[0], args[0], args[1], vector), align=1)
        undefined = ir.Constant(vector, ir.Undefined)
        first_lane = builder.insert_element(undefined, args[2], _INT32(0))
        same = builder.shuffle_vector(first_lane, undefined, ir.Constant(vector, [0] * 16))
        less = builder.zext(builder.bitcast(builder.icmp_signed("<", numbers, same), half), _WORD)
        counted = builder.sub(builder.shl(_WORD(1), args[3]), _WORD(1))  # a mask of the first `count` numbers
        return builder.ctpop(builder.and_(less, counted))

    return types.uint64(data, types.uint64, types.int32, types.uint64), generate


@_instruction
def prefetch(typing: Any, data: Any, at: Any) -> Any:
    """Request the cache line of `data[at]` without waiting for it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _pointer(context, builder, signature.args[0], args[0], args[1], _BYTE)
        kind = ir.FunctionType(ir.VoidType(), [address.type, _INT32, _INT32, _INT32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [address, _INT32(0), _INT32(3), _INT32(1)])  # for reading, into all cache levels, data
        return context.get_dummy_value()

    return types.void(data, types.uint64), generate
