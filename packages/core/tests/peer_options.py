"""The options of other tools, read from their source without running it: `python peer_options.py FOLDER_OF_CHECKOUTS`.

The folder has a checkout of each repository under its name. `peer_options.json` keeps what it printed: names, how many
values follow, and the commit.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SNAPSHOT = Path(__file__).with_name("peer_options.json")
SOURCES = {
    "open_clip": ("open_clip", "src/open_clip_train/params.py"),
    "timm's train.py": ("pytorch-image-models", "train.py"),
    "timm's validate.py": ("pytorch-image-models", "validate.py"),
    "clip_benchmark eval": ("CLIP_benchmark", "clip_benchmark/cli.py"),
    "LLaVA's train.py": ("LLaVA", "llava/train/train.py"),
}


def options_of(source: str) -> dict[str, str]:
    """Each name of an option, without dashes, with `!` for a switch, `?`, `*` or `1` for its values."""
    return {name: values for names, values in _calls(ast.parse(source)) for name in names}


def _calls(tree: ast.AST) -> Iterator[tuple[list[str], str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Arguments"):  # of transformers' HfArgumentParser
            for field in node.body:
                if isinstance(field, ast.AnnAssign):
                    yield [ast.unparse(field.target)], "!" if ast.unparse(field.annotation) == "bool" else "1"
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        if node.func.attr != "add_argument" or ast.unparse(node.func.value) == "parser_build":
            continue
        words = {keyword.arg: ast.unparse(keyword.value).strip("'\"") for keyword in node.keywords}
        names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and str(arg.value).startswith("-")]
        values = "!" if words.get("action", "").startswith("store_") and words["action"] != "store" else "1"
        if "nargs" in words:
            values = "?" if words["nargs"] == "?" else "*"
        yield [str(name).lstrip("-") for name in names], values


def main() -> None:
    """Print the snapshot."""
    root, snapshot = Path(sys.argv[1]), {}
    for tool, (repository, file) in SOURCES.items():
        folder = root / repository
        git = ["git", "-C", str(folder)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        text = subprocess.run([*git, "show", f"HEAD:{file}"], capture_output=True, text=True, check=True).stdout
        snapshot[tool] = {
            "commit": commit,
            "options": " ".join(f"{k}:{v}" for k, v in sorted(options_of(text).items())),
        }
    print(json.dumps(snapshot, indent=1))


if __name__ == "__main__":
    main()
