"""Convert all commands that open_clip, timm, CLIP_benchmark and LLaVA publish, and plan the recipes.

    python packages/core/benchmarks/published_commands.py
    python packages/core/benchmarks/published_commands.py --estimate

A command passes if `vfm from` converts it and `vfm plan` accepts the recipe, apart from paths that do not exist here.
With `--estimate`, the models are also built without contents, in minutes. Commands with placeholders such as <LANG> are
left out.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

import vfm.cli.commands  # noqa: F401  (registers the commands)
from vfm.cli.command import app

COMMANDS = Path(__file__).parents[1] / "tests/published_commands.txt"
TOOLS = {
    "mlfoundations/open_clip": "open_clip",
    "huggingface/pytorch-image-models": "timm",
    "LAION-AI/CLIP_benchmark": "clip_benchmark",
    "haotian-liu/LLaVA": "llava",
}
LISTS = {  # files that CLIP_benchmark's pages ask the reader to write or download, shortened
    "models.txt": "ViT-B-32,openai\n",
    "webdatasets.txt": "wds/mscoco_captions\nwds/imagenet1k\nwds/voc2007_multilabel\nwds/vtab/cifar10\n",
    "datasets.txt": "mscoco_captions\nimagenet1k\nvoc2007_multilabel\nvtab/cifar10\n",
}
# Commands that are not converted, by the message, and how many.
FAILURES = {
    "--model: eva.finetune trains vision transformers; vfm.fit trains any model from Python": 10,
    "--task captioning: vfm evaluates contrastive models, which write no captions": 3,
    "--model: vfm has no models of audio and no generative training of open_clip": 2,
    "--model: CoCa generates captions, and vfm trains contrastive models only": 1,
    "--lock-text without --pretrained: vfm does not start from a language model of the hub": 1,
    "--model_type ja_clip: expected a model of open_clip": 1,
    "clip_benchmark eval has no option --not": 1,
    "open_clip has no option --square-resize-only; did you mean 'image-resize-mode'?": 1,
}
ABSENT = re.compile(r"error: .*no such file or folder")
REMOTE = re.compile(r"error: (s3|hf)://.*")  # reported as not reachable from a machine without a network or s3fs


@dataclass(frozen=True)
class Published:
    """A command of another tool.

    Attributes:
        repository: where it is published.
        file: the file there.
        text: the command.
    """

    repository: str
    file: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """Result of a conversion: the error if it failed, and how many options have no counterpart."""

    mistake: str
    lost: int


def published() -> Iterator[Published]:
    """Read the commands."""
    for part in COMMANDS.read_text(encoding="utf-8").split("### ")[1:]:
        head, _, text = part.partition("\n")
        repository, file = head.split()
        yield Published(repository, file, text.strip())


def write_lists() -> None:
    """Write the lists that some commands name to the working folder."""
    Path("benchmark").mkdir()
    for name, text in LISTS.items():
        Path(name).write_text(text, encoding="utf-8")
        Path("benchmark", name).write_text(text, encoding="utf-8")


def attempt(command: Published, *, estimate: bool = False) -> Outcome:
    """Convert and plan a command in the working folder."""
    runner, recipe = CliRunner(), Path("recipe.yaml")
    recipe.unlink(missing_ok=True)
    done = runner.invoke(app, ["from", TOOLS[command.repository], "--output", str(recipe), "--", command.text])
    if done.exit_code:
        return Outcome(_mistake(done.output, done.exception), 0)
    lost = done.output.count("no counterpart: ")
    plans = [["plan", str(recipe)], *([["plan", str(recipe), "--estimate"]] if estimate else [])]
    for words in plans:
        planned = runner.invoke(app, words)
        wrong = [line for line in planned.output.splitlines() if not ABSENT.match(line) and not REMOTE.match(line)]
        if planned.exit_code and (wrong or planned.exit_code != 2):
            return Outcome(_mistake("\n".join(wrong), planned.exception), lost)
    return Outcome("", lost)


def _mistake(output: str, exception: BaseException | None) -> str:
    if exception and not isinstance(exception, SystemExit):
        return f"traceback: {exception!r}"
    return output.strip().splitlines()[0].removeprefix("error: ") if output.strip() else "no message"


def main() -> None:
    """Print a table by repository, and the commands that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--estimate", action="store_true")
    estimate = parser.parse_args().estimate
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_lists()
        for command in published():
            rows.append((command, attempt(command, estimate=estimate)))
    print(f"{'repository':34}{'commands':>9}{'pass':>6}{'options without counterpart':>29}")
    for repository in (*TOOLS, ""):
        outcomes = [outcome for command, outcome in rows if repository in ("", command.repository)]
        passed = [outcome for outcome in outcomes if not outcome.mistake]
        lost = sum(outcome.lost for outcome in passed)
        print(f"{repository or 'all':34}{len(outcomes):9}{len(passed):6}{lost:29}")
    for command, outcome in rows:
        if outcome.mistake:
            print(
                f"\n{command.repository} {command.file}: {' '.join(command.text.split())[:100]}\n    {outcome.mistake}"
            )


if __name__ == "__main__":
    main()
