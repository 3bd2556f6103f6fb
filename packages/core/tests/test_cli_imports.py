"""What small commands must not import: a process prints its modules at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from eval_world import labeled, tiny_clip

HEAVY = ("torch", "timm", "open_clip", "scipy", "matplotlib")  # of a command that describes and computes nothing
LIGHT = ("plan r.yaml", "plan files.yaml", "stages", "stages shapes.pool", "plugins", "schema", "--help", "eval --help")
# What timm and open_clip import where it is installed, and what only other commands need.
UNUSED: tuple[str, ...] = ("torch._dynamo", "torch.distributed.tensor", "wandb", "transformers", "peft", "sympy")
UNUSED += ("scipy.special", "matplotlib", "sklearn", "faster_coco_eval", "ray")
UNUSED += ("torchvision.datasets", "torchvision.io", "torchvision.models", "torchvision.ops")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, a CLIP model, labelled images and a picture."""
    here = tmp_path_factory.mktemp("world")
    (here / "r.yaml").write_text("stages:\n  - {kind: shapes.pool, name: pool}\n")
    tiny_clip(here / "clip", 0)
    labeled(here / "labeled", 6)
    (here / "photos" / "red").mkdir(parents=True)
    for file in (here / "red.png", here / "photos" / "red" / "red.png"):
        Image.new("RGB", (40, 40), "red").save(file)
    item = {"images": ["red.png"], "statements": ["red", "blue"], "truth": [0, -1]}
    (here / "items.jsonl").write_text(json.dumps(item) + "\n")
    (here / "captioned").mkdir()
    Image.new("RGB", (40, 40), "red").save(here / "captioned" / "red.png")
    (here / "captioned" / "red.txt").write_text("red")
    imports = {"data.pairs": "captioned", "data.labeled": "photos", "data.choices": "items.jsonl"}
    stages = [{"kind": kind, "name": f"s{n}", "path": path} for n, (kind, path) in enumerate(imports.items())]
    (here / "files.yaml").write_text(json.dumps({"stages": stages}))
    return here


def modules_after(code: str, cwd: Path) -> set[str]:
    """The modules that are imported when a program ends."""
    program = f"import sys\ntry:\n    {code}\nfinally:\n    print('modules:', *sys.modules)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    return set(last.split()[1:])


def modules_of(words: list[str], cwd: Path) -> set[str]:
    return modules_after(f"sys.argv = {['vfm', *words]}; import vfm.cli; vfm.cli.main()", cwd)


@pytest.mark.parametrize("words", [*LIGHT, "eval clip --data labeled --tasks zero_shot --dry-run"])
def test_commands_that_compute_nothing_import_nothing_that_computes(words: str, world: Path) -> None:
    assert not modules_of(words.split(), world).intersection(HEAVY)


def test_a_name_of_open_clip_with_its_tag_is_known_without_importing_it(world: Path) -> None:
    words = "eval ViT-B-32,openai --data labeled --tasks zero_shot --dry-run"
    assert not modules_of(words.split(), world).intersection(HEAVY)


def test_predict_imports_neither_a_compiler_nor_trackers_nor_charts(world: Path) -> None:
    loaded = modules_of(["predict", "clip", "red.png", "--classes", "red,blue"], world)
    assert "open_clip" in loaded
    assert loaded.intersection(UNUSED) == set()


def test_importing_open_clip_alone_imports_some_of_them(world: Path) -> None:
    """A test of the test: without the stand-ins of `vfm.models`, the compiler is imported."""
    assert "torch._dynamo" in modules_after("import open_clip", world)
