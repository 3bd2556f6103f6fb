"""A store that several people use: links in place of locks, permissions, other people's runs, credentials."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cli_world import RECIPE, Outcome, install, run_here, toys
from vfm.base import UserError
from vfm.flow.plan.store import Slot, Store
from vfm.storage.locks import is_locked, locked

__all__ = ["toys"]
STORE = Path("store")


def refused(*words: str | Path) -> str:
    done = run_here(*words)
    assert done.code == 2, done
    (line,) = done.errors
    return line


@pytest.fixture
def site(toys: Path) -> Path:
    """The folder `toys` with the plugin for processes of their own, and with a finished run."""
    install(toys / "site", "toys", "toy_plugin")
    shutil.copy(Path(__file__).parent / "toy_plugin.py", toys / "site")
    assert run_here("run", "r.yaml").code == 0
    return toys


def as_user(*words: str, folder: Path) -> Outcome:
    """The command by somebody to whom permissions apply, which they do not to root."""
    user = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if user and not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and setpriv is missing")
    environment = {**os.environ, "PYTHONPATH": "site", "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*user, sys.executable, "-m", "vfm", *words], capture_output=True, text=True, env=environment, timeout=1800
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def forbid_writing(*folders: Path) -> None:
    for folder in folders:
        for place in [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]:
            place.chmod(0o555)


def test_lock_that_is_a_link_leaves_its_target_alone(toys: Path) -> None:
    target = toys / "precious.txt"
    target.write_text("precious")
    run_here("run", "r.yaml")
    slot = next(path for path in STORE.iterdir() if path.name.startswith("toy.add"))
    lock = STORE / f".{slot.name}.lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(target)
    assert f"{lock.name}: expected a regular file as the lock, got a link" in refused("run", "r.yaml", "--fresh")
    assert target.read_text() == "precious"
    assert slot.is_dir()


@pytest.mark.parametrize("kind", ["FIFO", "folder", "link to nothing"])
def test_lock_is_a_regular_file(kind: str, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    {"FIFO": os.mkfifo, "folder": os.mkdir, "link to nothing": lambda path: path.symlink_to("gone")}[kind](lock)
    for use in (lambda: locked(lock, "it").__enter__(), lambda: is_locked(lock)):
        with pytest.raises(UserError, match="lock: expected a regular file"):
            use()
    assert not (tmp_path / "gone").exists()


def test_clean_removes_neither_links_nor_what_they_lead_to(toys: Path) -> None:
    run_here("run", "r.yaml")
    outside = toys / "outside"
    outside.mkdir()
    for name in ("artifact.json", "manifest.json"):
        (outside / name).write_text("{}")
    links = [STORE / "toy.draw-0123abcd", STORE / ".toy.draw-0123abcd.work", STORE / ".toy.add-0123abcd.part"]
    for link in links:
        link.symlink_to(outside)
    done = run_here("clean")
    assert (done.code, "nothing to remove" in done.out) == (0, True)
    assert all(link.is_symlink() for link in links)
    assert len(list(outside.iterdir())) == 2


def test_clean_spares_what_a_link_to_a_link_leads_to(toys: Path) -> None:
    run_here("run", "r.yaml")
    mine = STORE / "runs/mine/artifacts"
    mine.mkdir(parents=True)
    (mine / "best").symlink_to("../../r/artifacts/sum")
    artifact = (mine / "best").resolve()
    (mine / "loop").symlink_to("loop")
    shutil.move(STORE / "runs/r@1", toys / "elsewhere")
    (STORE / "runs/r").unlink()
    (STORE / "runs/r").symlink_to(toys / "elsewhere")
    (toys / "elsewhere/artifacts/sum").unlink()
    (toys / "elsewhere/artifacts/sum").symlink_to(artifact)
    assert "nothing to remove" in run_here("clean").out


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_published_files_obey_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        slot = Slot(tmp_path, "toy.draw-00000000")
        slot.begin()
        (slot.part / "clip").mkdir(mode=0o700)
        for file in (slot.part / "model.safetensors", slot.part / "clip/model.safetensors"):
            save_file({"weight": np.zeros(3)}, file)
            file.chmod(0o600)  # as several versions of safetensors leave it
        slot.publish({"identity": "x"})
    finally:
        os.umask(before)
    for path in [slot.artifact, *slot.artifact.rglob("*")]:
        expected = 0o777 & ~umask if path.is_dir() else 0o666 & ~umask
        assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(expected | (0o700 if path.is_dir() else 0o600)), path


def test_store_that_may_only_be_read_is_planned_run_and_reported(site: Path) -> None:
    forbid_writing(STORE)
    before = sorted(STORE.rglob("*"))
    try:
        assert as_user("plan", "r.yaml", folder=site).out.count("cached") == 3
        done = as_user("run", "r.yaml", folder=site)
        assert (done.code, done.err) == (0, "")
        assert done.out.count("cached") == 3
        assert "store may not be written, and all artifacts exist: this run is kept in" in done.out
        page = Path(done.out.split("report: ")[1].strip())
        assert page.is_relative_to(site)
        assert page.is_file()
        assert as_user("report", "r", folder=site).code == 0
        assert as_user("report", "r", "--out", "mine.html", folder=site).code == 0
        assert Path("mine.html").is_file()
        (line,) = as_user("run", "r.yaml", "--set", "b.seed=6", folder=site).errors
        assert "store/runs: no permission to write: store/runs has the permissions 555" in line
    finally:
        subprocess.run(["chmod", "-R", "u+w", STORE], check=True)
    assert sorted(STORE.rglob("*")) == before


def test_run_of_somebody_else_says_so_in_one_line(site: Path) -> None:
    artifact = (STORE / "runs/r/artifacts/sum").resolve()
    shutil.rmtree(artifact)
    forbid_writing(STORE / "runs/r@1")
    try:
        done = as_user("run", "r.yaml", folder=site)
        (line,) = done.errors
        assert done.code == 2
        assert "store/runs/r@1: no permission to write" in line
        assert not artifact.exists()
    finally:
        subprocess.run(["chmod", "-R", "u+w", STORE], check=True)


def test_lock_file_of_somebody_else_is_locked_too(site: Path) -> None:
    for lock in STORE.rglob(".*lock"):
        lock.chmod(0o444)
    assert as_user("run", "r.yaml", "--fresh", folder=site).code == 0


SECRETS = {
    "hunter2": "https://me:hunter2@example.org/words.txt",
    "5ignature": "https://example.org/words.txt?X-Amz-Date=1&X-Amz-Signature=5ignature&x=1",
    "sharedKey": "https://a.blob.core.windows.net/c/w.txt?sv=2024&sig=sharedKey%3D",
    "ghp_abc": "https://ghp_abc@example.org/words.txt",
}


def test_credentials_are_in_no_file_that_is_kept(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["vfm", "run", "r.yaml", *(f"--set=b.path={url}" for url in SECRETS.values())])
    Path("r.yaml").write_text(
        f"description: see {SECRETS['hunter2']} and aws_secret_access_key=ghp_abc\n"
        "stages:\n"
        + "".join(
            f"  - {{kind: toy.address, name: w{index}, path: '{url}'}}\n" for index, url in enumerate(SECRETS.values())
        )
        + "  - {kind: toy.address, name: s, path: x}\n"
    )
    done = run_here("run", "r.yaml", "--set", "s.path=s3://k:hunter2@bucket/w", "--set", "s.token=ghp_abc")
    assert done.code == 0, done
    shown = [
        done.out,
        run_here("runs").out,
        run_here("show", STORE / "runs/r/artifacts/w0").out,
        run_here("plan", "r.yaml").out,
    ]
    texts = {str(file): file.read_text() for file in STORE.rglob("*") if file.is_file()}
    names = {Path(name).name for name in texts}
    assert {"report.html", "manifest.json", "run.json", "events.jsonl", "recipe.yaml", "50-places.json"} <= names
    for secret in SECRETS:
        assert [name for name, text in texts.items() if secret in text and not name.endswith("artifact.json")] == []
        assert not [text for text in shown if secret in text]
    assert "https://me:***@example.org/words.txt" in texts["store/runs/r@1/report.html"]
    with_step = json.loads((STORE / "runs/r/artifacts/w0/artifact.json").read_text())
    assert with_step["text"] == SECRETS["hunter2"]  # the stage itself gets the address whole


def test_credentials_are_in_no_error(toys: Path) -> None:
    Path("r.yaml").write_text(RECIPE + "  - {kind: toy.read, name: w, path: 'x?sig=5ignature'}\n")
    assert refused("run", "r.yaml") == "error: x?sig=***: no such file or folder; w of r.yaml reads it"
    assert Store(STORE).artifacts() == []


@pytest.mark.parametrize("command", ["plan r.yaml", "run r.yaml", "runs", "report r", "clean", "verify"])
@pytest.mark.parametrize("target", ["loop", "gone", "r.yaml"])
def test_store_that_is_no_folder_is_one_line(command: str, target: str, toys: Path) -> None:
    place = Path("loop") if target == "loop" else Path("elsewhere")
    place.symlink_to(target)
    words = command.split()
    assert str(place) in refused(*words, *([] if words[0] == "verify" else ["--store"]), place)


def test_links_of_a_run_that_lead_to_themselves_are_one_line(toys: Path) -> None:
    run_here("run", "r.yaml")
    link = STORE / "runs/r/artifacts/sum"
    link.unlink()
    link.symlink_to("sum")
    assert "store/runs/r: no artifact of sum" in refused("report", "r")
    assert "artifacts/sum: expected a link to sum, which is missing" in refused("verify")


@pytest.mark.parametrize("kind", ["FIFO", "link"])
def test_events_are_written_to_a_regular_file_only(kind: str, toys: Path) -> None:
    run_here("run", "r.yaml")
    events, target = STORE / "runs/r/events.jsonl", toys / "precious.txt"
    target.write_text("precious")
    events.unlink()
    os.mkfifo(events) if kind == "FIFO" else events.symlink_to(target)
    assert "events.jsonl: expected a regular file" in refused("run", "r.yaml")
    assert target.read_text() == "precious"


def test_report_is_not_written_over_a_folder(toys: Path) -> None:
    run_here("run", "r.yaml")
    assert refused("report", "r", "--out", ".") == "error: .: expected a file to write the report to, got a folder"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("a.password=hunter2", "set a.password=***: a.password: unknown key; known: count"),
        ("a.token=hunter2", "set a.token=***: a.token: unknown key; known: count"),
        ("z.token=hunter2", "set z.token=***: no stage is named 'z'"),
        ("a.count=https://me:hunter2@h/x", "set a.count=https://me:***@h/x: a.count: expected an integer"),
    ],
)
def test_error_of_a_setting_hides_its_credential_and_nothing_else(setting: str, said: str, toys: Path) -> None:
    line = refused("run", "r.yaml", "--set", setting)
    assert said in line
    assert "hunter2" not in line


@pytest.mark.parametrize("value", ["47114711", "[47114711]", "{of: me47114711}", "true47114711: x"])
def test_wrong_value_of_a_secret_is_in_no_error(value: str, toys: Path) -> None:
    Path("r.yaml").write_text(f"stages:\n  - kind: toy.address\n    name: s\n    path: x\n    token: {value}\n")
    line = refused("plan", "r.yaml")
    assert "s.token: " in line or "not readable" in line or "mapping values" in line
    assert "47114711" not in line


@pytest.mark.parametrize("place", ["runs", "runs/r@1/artifacts"])
@pytest.mark.parametrize("broken", ["link", "file"])
def test_clean_removes_nothing_if_links_cannot_be_read(place: str, broken: str, toys: Path) -> None:
    run_here("run", "r.yaml")
    before = Store(STORE).artifacts()
    (STORE / place).rename(toys / "elsewhere")
    (STORE / place).symlink_to("/not/mounted") if broken == "link" else (STORE / place).write_text("")
    assert f"store/{place}: expected a folder of links" in refused("clean")
    assert Store(STORE).artifacts() == before
