"""Load recipe YAML safely, with YAML 1.2 scalars (`1e-4` is a number, `no` is a string) and the line of every key.

Written values are read back unchanged, so strings that only YAML 1.2 reads as numbers are quoted too.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from vfm.base import UserError, map_items

KeyPath = tuple[str | int, ...]
MAX_DEPTH = 32  # far beyond any recipe; deeper nesting would exhaust the stack
MAX_VALUES = 100_000  # a few lines of aliases can expand to billions of values
TEXT_TAG = "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):
    """Load `1e-4` and `010` as numbers and every key as a string, and reject duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "expected a plain key, got a list or mapping", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
            seen.add(key.value)
        self.flatten_mapping(node)
        for key, _ in node.value:
            key.tag = TEXT_TAG
        return super().construct_mapping(node, deep)


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """Parse a decimal integer. With YAML 1.1's rules, a leading zero would make it octal."""
    return int(loader.construct_scalar(node))


_FLOAT = re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_INTEGER = re.compile(r"^[-+]?\d+$")
_BOOLEAN = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_REPLACED = {f"tag:yaml.org,2002:{name}" for name in ("float", "int", "bool", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in _REPLACED]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOLEAN, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


class _Dumper(yaml.SafeDumper):
    """Quote every string that `_Loader` would read as another type, and write repeated lists in full."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        """Return True, because anchors and aliases are hard to read."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Represent a text. If it has control characters or line breaks, it is escaped in double quotes."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


def parse(text: str, where: str) -> tuple[Any, dict[KeyPath, int]]:
    """Parse YAML, and find the 1-based line of each key path.

    Args:
        text: The YAML.
        where: Name of the file, for error messages.

    Raises:
        UserError: If the text is not valid YAML, or nested too deeply.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            value = loader.construct_document(node) if node else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else "?"
        raise UserError(f"{where}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    except ValueError as error:  # a number with thousands of digits, or a tagged date that does not exist
        raise UserError(f"{where}: not valid YAML: {error}") from None
    lines: dict[KeyPath, int] = {}
    _collect(node, (), lines, where)
    return _unshared(value), lines


def _unshared(value: Any) -> Any:
    """Copy a value without sharing, so that an override of a YAML alias changes only one place."""
    return map_items(_unshared, value)


def parse_value(text: str, where: str) -> Any:
    """Parse a value from the command line as YAML.

    `5e-4` is a float, `null` is None, and `[a, b]` is a list. Text that is not valid YAML is a string, such as the
    brace pattern `{000..009}.tar`.
    """
    try:
        return parse(text, where)[0]
    except UserError:
        return text


def dump(value: Any) -> str:
    """Serialize plain data as YAML that `parse` reads back."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None
    )
    return text


def flow_text(value: Any) -> str:
    """Serialize a value as one line of YAML, for a flow mapping or `parse_value`. Text is quoted only if it must be."""
    if isinstance(value, str) and parse_value(f"{{key: {value}}}", "value") == {"key": value}:
        return value
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {flow_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(flow_text, value))}]"
    style = "'" if isinstance(value, str) else None  # a plain text with braces is valid in a block only
    text: str = yaml.dump(value, Dumper=_Dumper, allow_unicode=True, width=1 << 30, default_style=style)
    return text.removesuffix("...\n").strip()


def one_line(text: str) -> str:
    r"""Escape unprintable characters: a newline becomes `\n`."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _collect(node: yaml.Node | None, path: KeyPath, lines: dict[KeyPath, int], where: str) -> None:
    if node is None:
        return
    if len(path) > MAX_DEPTH:
        raise UserError(f"{where}:{node.start_mark.line + 1}: nested too deeply; an alias may contain itself")
    if len(lines) > MAX_VALUES:
        raise UserError(f"{where}:{node.start_mark.line + 1}: more than {MAX_VALUES} values; check the aliases")
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            _collect(value, (*path, key.value), lines, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _collect(item, (*path, index), lines, where)
