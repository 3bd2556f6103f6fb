"""Conditions over columns, such as `clip_l14 > q70 & punsafe < 0.1 & ~noai`, parsed to a tree that is evaluated safely.

The syntax is Python's for comparisons, arithmetic, `and`, `or`, `not` and `in`. `&`, `|`, `~` and SQL's capitals are
other spellings of the three words, and so bind less than comparisons. Nothing but the listed nodes and functions is
evaluated. A comparison with a missing value is neither true nor false, and a text passes only if the whole is true.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

WORDS = {"&": "and", "|": "or", "~": "not", "AND": "and", "OR": "or", "NOT": "not", "IN": "in"}
QUANTILE = re.compile(r"q(\d{1,2})(?:_(\d+))?")  # q70, or q99_5 for 99.5 %
FUNCTIONS = {
    "abs": 1,
    "contains": 2,
    "is_null": 1,
    "len": 1,
    "lower": 1,
    "matches": 2,
    "max": None,
    "min": None,
    "startswith": 2,
}
"""Number of arguments of each function, None for two or more."""

SHARES = ("top", "bottom")  # the share of the texts with the largest, or smallest, values
ALLOWED = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp, ast.Add, ast.Sub, ast.Mult,
    ast.Div, ast.Compare, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Call, ast.Name,
    ast.Attribute, ast.Constant, ast.Tuple, ast.List, ast.Load,
)  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """A bound that depends on all values of an expression.

    Attributes:
        node: The expression.
        share: Share of the values below a quantile, or share to keep by `top` or `bottom`.
        rule: `quantile`, `top` or `bottom`.
    """

    node: ast.expr
    share: float
    rule: str

    @property
    def name(self) -> str:
        """Text by which the cut is known."""
        return f"{self.rule} {self.share:g} of {ast.unparse(self.node)}"

    @property
    def names(self) -> frozenset[str]:
        """Columns that the expression reads."""
        return frozenset(_names(self.node))


class Expression:
    """A condition over columns.

    Attributes:
        text: What the user wrote.
        parts: Trees of the conditions.
        conditions: The parts of the expression that are joined by `and` at its top.
        names: Columns that it reads.
        cuts: Bounds that depend on all values, by their names.

    Raises:
        ValueError: If the text is not such a condition.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            tree = ast.parse(_as_python(text), mode="eval")
        except (SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
            raise ValueError(
                f"expected a condition such as `score > 0.3 & width >= 200`, got {text!r}: {error}"
            ) from None
        for node in ast.walk(tree):
            if not isinstance(node, ALLOWED):
                raise ValueError(f"{_shown(node)}: not allowed in a condition; see docs/curation.md for what is")
        top = tree.body
        parts = top.values if isinstance(top, ast.BoolOp) and isinstance(top.op, ast.And) else [top]
        self.parts = list(map(_checked, parts))
        self.conditions = list(map(ast.unparse, parts))
        self.names = frozenset(_names(top))
        self.cuts = {cut.name: cut for cut in _cuts(top)}


parsed = lru_cache(64)(Expression)
"""Parse a condition once, however often its properties are read."""


def _as_python(text: str) -> str:
    """Spell the operators and SQL's words as Python does."""
    tokens = []
    for token in tokenize.generate_tokens(io.StringIO(f"({' '.join(text.split())})").readline):
        is_word = token.type in (tokenize.OP, tokenize.NAME) and token.string in WORDS
        tokens.append((tokenize.NAME, WORDS[token.string]) if is_word else (token.type, token.string))
    return tokenize.untokenize(tokens).strip()


def _checked(part: ast.expr) -> ast.expr:
    """Check the calls, lists, constants and quantiles of a condition."""
    # A quantile has a meaning only in a comparison with a column.
    compared: set[int] = set()
    for node in ast.walk(part):
        if isinstance(node, ast.Compare):
            compared |= {id(side) for side in (node.left, *node.comparators)}
    for node in ast.walk(part):
        match node:
            case ast.Name() if is_quantile(node) and id(node) not in compared:
                raise ValueError(f"{node.id}: expected a comparison with it, as in score > {node.id}")
            case ast.Attribute(value=owner) if not isinstance(owner, ast.Name | ast.Attribute):
                raise ValueError(f"{_shown(node)}: expected the name of a column")
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
                _check_arguments(node, name)
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in SHARES:
                share_of(node)
            case ast.Call():
                known = ", ".join(sorted({*FUNCTIONS, *SHARES}))
                raise ValueError(f"{_shown(node)}: not a function of conditions; choose from {known}")
            case ast.Constant(value=str() | bool() | int() | float()):
                pass
            case ast.Constant():
                raise ValueError(
                    f"{_shown(node)}: expected a number, a text, True or False; is_null(x) finds missing ones"
                )
            case ast.Compare():
                _check_comparison(node)
    return part


def _check_arguments(node: ast.Call, name: str) -> None:
    num_expected = FUNCTIONS[name]
    if num_expected is not None and len(node.args) != num_expected:
        raise ValueError(f"{_shown(node)}: expected {num_expected} arguments, got {len(node.args)}")
    if num_expected is None and len(node.args) < 2:
        raise ValueError(f"{_shown(node)}: expected two or more arguments, got {len(node.args)}")
    if num_expected == 2 and not (isinstance(node.args[1], ast.Constant) and isinstance(node.args[1].value, str)):
        raise ValueError(f"{_shown(node)}: expected a text in quotes, got {ast.unparse(node.args[1])}")


def _check_comparison(node: ast.Compare) -> None:
    for left, op, right in pairs_of(node):
        if isinstance(op, ast.In | ast.NotIn):
            listed = isinstance(right, ast.Tuple | ast.List) and right.elts
            if not listed or any(constant_of(each) is None for each in right.elts):  # type: ignore[attr-defined]
                raise ValueError(f"{_shown(node)}: expected a list of texts or numbers after `in`, as in ['en', 'de']")
        elif is_quantile(left) and is_quantile(right):
            raise ValueError(f"{_shown(node)}: expected a column on one side of a quantile")


def constant_of(node: ast.expr) -> Any:
    """Read a constant, or a constant with a minus. Return None for other nodes."""
    match node:
        case ast.Constant(value=constant):
            return constant
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
    return None


def pairs_of(node: ast.Compare) -> list[tuple[ast.expr, ast.cmpop, ast.expr]]:
    """Split `a < b < c` into its comparisons."""
    sides = [node.left, *node.comparators]
    return list(zip(sides[:-1], node.ops, sides[1:], strict=True))


def is_quantile(node: ast.expr) -> bool:
    """Check whether a side of a comparison is a quantile of the other side."""
    return isinstance(node, ast.Name) and QUANTILE.fullmatch(node.id) is not None


def quantile_of(side: ast.expr, other: ast.expr) -> Cut | None:
    """Find the cut if a side of a comparison is a quantile, such as `q70`, of the other side."""
    match = QUANTILE.fullmatch(side.id) if isinstance(side, ast.Name) else None
    return Cut(other, float(f"{match[1]}.{match[2] or 0}") / 100, "quantile") if match else None


def share_of(node: ast.Call) -> Cut:
    """Read `top(x, 0.3)`."""
    name = node.func.id  # type: ignore[attr-defined]
    share = node.args[1].value if len(node.args) == 2 and isinstance(node.args[1], ast.Constant) else None
    if not isinstance(share, float) or not 0 < share < 1:
        raise ValueError(
            f"{_shown(node)}: expected an expression and a share between 0 and 1, as in {name}(score, 0.3)"
        )
    return Cut(node.args[0], share, name)


def _cuts(part: ast.expr) -> list[Cut]:
    cuts = []
    for node in ast.walk(part):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SHARES:
            cuts.append(share_of(node))
        elif isinstance(node, ast.Compare):
            for left, _, right in pairs_of(node):
                found = (quantile_of(left, right), quantile_of(right, left))
                cuts += [cut for cut in found if cut]
    for cut in cuts:
        if _cuts(cut.node):
            raise ValueError(f"{_shown(cut.node)}: expected no quantile or share within another one")
    return cuts


def _names(node: ast.AST) -> list[str]:
    """List the columns of a tree. `json.score` is one name."""
    if isinstance(node, ast.Attribute):
        return [ast.unparse(node)]
    if isinstance(node, ast.Name):
        return [] if QUANTILE.fullmatch(node.id) else [node.id]
    children = node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
    return list(chain.from_iterable(map(_names, children)))


def _shown(node: ast.AST) -> str:
    try:
        text = ast.unparse(node)  # empty for an operator
        return f"`{text}`" if text else type(node).__name__.lower()
    except (AttributeError, ValueError, RecursionError):
        return type(node).__name__.lower()
