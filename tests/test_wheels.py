"""The wheels and sdists as a user gets them: whole, installed outside the workspace, and no heavier than needed."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import small
from outside import PACKAGES, ROOT, Installed, call, checked, install

CURATION = """\
description: Curation alone, on a box without torch.
stages:
  - {kind: shapes.pool, name: pool, num_samples: 400, samples_per_shard: 100}
  - {kind: curation.metadata, name: entries, captions: pool, min_count: 2}
  - {kind: curation.match, name: matches, pool: pool, metadata: entries, runtime: {workers: 2}}
  - {kind: curation.balance, name: curated, matches: matches, t: 20}
"""
HEAVY = {"torch", "torchvision", "timm", "open-clip-torch", "diffusers", "transformers", "scipy", "scikit-learn"}


def wheel_of(package: str, wheels: Path) -> Path:
    (wheel,) = wheels.glob(f"vfm_{package}-*.whl")
    return wheel


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_holds_all_of_the_source_and_nothing_else(package: str, wheels: Path) -> None:
    with zipfile.ZipFile(wheel_of(package, wheels)) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        about = wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))).decode()
        licence = [name for name in wheel.namelist() if name.endswith("LICENSE")]
    source = ROOT / "packages" / package / "src"
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert packed == {str(file) for file in files if "__pycache__" not in file.parts}
    assert any(name.endswith("/py.typed") for name in packed)
    assert f"Name: vfm-{package}" in about
    assert "License-Expression: Apache-2.0" in about
    assert "Description-Content-Type: text/markdown" in about
    assert licence


def test_shipped_recipes_and_the_files_of_the_page_are_in_the_wheel(wheels: Path) -> None:
    with zipfile.ZipFile(wheel_of("diva", wheels)) as wheel:
        assert {f"vfm_diva/recipes/start/{name}.yaml" for name in ("quickstart", "pairs")} <= set(wheel.namelist())
    with zipfile.ZipFile(wheel_of("core", wheels)) as wheel:
        names = set(wheel.namelist())
    assert {f"vfm/report/page.{ending}" for ending in ("js", "css", "html.j2")} <= names


@pytest.mark.needs("git")
@pytest.mark.parametrize("package", PACKAGES)
def test_sdist_holds_sources_and_tests_and_nothing_that_git_ignores(package: str, wheels: Path) -> None:
    (sdist,) = wheels.glob(f"vfm_{package}-*.tar.gz")
    with tarfile.open(sdist) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    folder = ROOT / "packages" / package
    listed = checked(call("git", "ls-files", "--cached", "--others", "--exclude-standard", ".", cwd=folder)).stdout
    files = {name for name in listed.splitlines() if (folder / name).is_file()}
    assert packed - {"PKG-INFO", ".gitignore", "LICENSE"} == files - {"LICENSE"}
    assert "LICENSE" in packed


def test_twine_finds_nothing_that_an_index_would_refuse(wheels: Path) -> None:
    files = [*wheels.glob("*.whl"), *wheels.glob("*.tar.gz")]
    assert len(files) == 2 * len(PACKAGES)
    done = checked(call(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=wheels))
    assert done.stdout.count("PASSED") == len(files)


@pytest.fixture(scope="module")
def curation_box(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    box = install(tmp_path_factory.mktemp("curation"), wheels, "vfm-core", "vfm-curation")
    (box.folder / "curation.yaml").write_text(CURATION)
    return box


def test_curation_box_has_no_torch(curation_box: Installed) -> None:
    installed = curation_box.modules()
    assert {"vfm-core", "vfm-curation"} <= installed
    assert installed & HEAVY == set()


@pytest.mark.slow
def test_curation_box_lists_plans_and_runs_a_recipe_up_to_its_report(curation_box: Installed) -> None:
    listed = checked(curation_box.vfm("stages")).stdout
    assert "curation.balance" in listed
    assert "clip.train" not in listed
    assert checked(curation_box.vfm("plan", "curation.yaml")).stdout.count(" new ") == 4
    checked(curation_box.vfm("run", "curation.yaml"))
    page = (curation_box.folder / "store/runs/curation/report.html").read_text()
    assert "Curation alone, on a box without torch." in page
    assert page.count("<script>") == page.count("<style>") == 1
    assert checked(curation_box.vfm("run", "curation.yaml")).stdout.count("cached") == 4
    checked(curation_box.vfm("doctor"))


def test_recipe_that_needs_more_says_what_to_install(curation_box: Installed) -> None:
    done = curation_box.vfm("run", ROOT / "packages/diva/src/vfm_diva/recipes/start/quickstart.yaml")
    assert done.returncode == 2
    for package in ("eva", "clip", "diva"):
        assert f"needs a package that is not installed: uv pip install -e packages/{package} in" in done.stderr
    assert "Traceback" not in done.stderr


def test_stage_of_core_that_needs_torch_says_what_to_install(curation_box: Installed) -> None:
    recipe = curation_box.folder / "torch.yaml"
    recipe.write_text("stages:\n  - {kind: models.vision, name: encoder, source: vit_tiny_patch16_224}\n")
    done = curation_box.vfm("run", recipe)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "uv pip install -e 'packages/core[torch]'" in line


def test_sdists_install_as_the_wheels_do(wheels: Path, tmp_path: Path) -> None:
    """Two of the six, since the wheels themselves are built from sdists: those that need no torch."""
    sdists = [next(wheels.glob(f"vfm_{package}-*.tar.gz")) for package in ("core", "curation")]
    box = install(tmp_path, tmp_path, *sdists)
    assert "curate " in checked(box.vfm("recipes")).stdout
    assert "curation.balance" in checked(box.vfm("stages")).stdout


@pytest.mark.slow
def test_all_six_run_the_whole_chain_outside_the_workspace(
    wheels: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    box = install(tmp_path_factory.mktemp("all"), wheels, *(f"vfm-{package}" for package in PACKAGES))
    listed = checked(box.vfm("stages")).stdout
    for kind in ("data.pairs", "curation.balance", "eva.pretrain", "clip.train", "diva.tune"):
        assert kind in listed
    done = checked(box.vfm("run", "quickstart", *small.words(small.QUICKSTART)))
    assert "zero_shot" in done.stdout
    page = box.folder / "store/runs/quickstart/report.html"
    assert page.stat().st_size > 100_000
