"""`vfm verify --root` proves a result from outside bytes to the page, and refuses what a forger makes consistent."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from cli_world import run_here, toys
from test_store_changes import RUN, artifact, link_to, other_weights, replace
from vfm.flow.records.manifest import read_manifest
from vfm.flow.records.runs import hash_of_record
from vfm.storage.integrity import seal, sealed_page

__all__ = ["toys"]
RECIPE = """\
stages:
  - {kind: toy.draw, name: a, count: 3}
  - {kind: toy.draw, name: b, seed: 5, mode: squared}
  - {kind: toy.read, name: w, path: words.txt}
  - {kind: toy.add, name: sum, inputs: [a, b]}
"""


@pytest.fixture
def published(toys: Path) -> str:
    """A run whose hash was published."""
    Path("words.txt").write_text("some words")
    Path("r.yaml").write_text(RECIPE)
    assert run_here("run", "r.yaml").code == 0
    return hash_of_record(RUN)


def reseal_page() -> None:
    page = (RUN / "report.html").read_bytes().replace(b"toy.add", b"toy.sub")
    (RUN / "report.html").write_bytes(sealed_page(page.rpartition(b"\n<!-- sha256")[0]))


def reseal_record() -> None:
    record = json.loads((RUN / "run.json").read_text())
    del record["sha256"]
    (RUN / "run.json").write_bytes(seal({**record, "roots": {}, "manifests": {}, "events": [0, ""]}))


def reseal_manifest() -> None:
    manifest = read_manifest(artifact("b"))
    (artifact("b") / "manifest.json").write_bytes(seal({**manifest, "seed": 6}))


# What a forger does who rewrites every hash inside the store, and the words of the refusal.
FORGERIES: dict[str, tuple[Callable[[], object], str]] = {
    "weights": (other_weights, "made again since this run, and not the same"),
    "manifest": (reseal_manifest, "b/manifest.json: written again since this run"),
    "record": (reseal_record, "no run or artifact has the hash"),
    "page": (reseal_page, "report.html: differs from the page drawn now"),
    "outside bytes": (lambda: Path("words.txt").write_text("some wordz"), "words.txt: changed"),
    "link": (lambda: link_to(Path("../../..") / artifact("b").name), "a: expected a link to "),
    "recipe": (lambda: replace(RUN / "recipe.yaml", "count: 3", "count: 4"), "recipe.yaml: changed"),
}


def test_a_run_is_proven_by_its_hash_and_an_artifact_by_its_root(published: str) -> None:
    assert published in (RUN / "report.html").read_text()
    assert f"r@1  {published}" in run_here("verify").out
    done = run_here("verify", "--root", published)
    assert (done.code, done.err) == (0, "")
    assert f"r@1: {published}\n4 artifacts, 4 files" in done.out
    assert "1 input," in done.out
    assert done.out.splitlines()[-1] == "proven"
    assert run_here("run", "r.yaml").out.count("cached") == 4  # more events follow, and nothing else
    assert run_here("verify", "--root", published).code == 0
    done = run_here("verify", "--root", read_manifest(artifact("sum"))["root"])
    assert done.out.splitlines()[-1] == "proven"
    assert "3 artifacts, 3 files" in done.out  # with both inputs


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_that_is_consistent_in_itself_is_refused(published: str, name: str) -> None:
    forge, words = FORGERIES[name]
    forge()
    done = run_here("verify", "--root", published)
    assert done.code == 2
    assert words in done.err
    assert "\nproven" not in done.out


def test_a_root_that_is_no_hash_is_one_line(toys: Path) -> None:
    run_here("run", "r.yaml")
    assert run_here("verify", "--root", "abc").errors == ["error: --root: expected 64 hexadecimal digits, got 'abc'"]


@pytest.fixture
def keys(published: str) -> tuple[Path, Path]:
    """A private and a public key."""
    private = Ed25519PrivateKey.generate()
    Path("key.pem").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    Path("key.pub").write_bytes(private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return Path("key.pem"), Path("key.pub")


def test_a_signed_root_is_proven_by_the_public_key_alone(published: str, keys: tuple[Path, Path]) -> None:
    private, public = keys
    unsigned = run_here("verify", "--root", published, "--key", public)
    assert unsigned.code == 2
    assert "key.pub has not signed this root" in unsigned.err
    assert run_here("verify", "--root", published, "--sign", private).code == 0
    done = run_here("verify", "--root", published, "--key", public)
    assert (done.code, done.err) == (0, "")
    assert "signed by key.pub" in done.out
    assert run_here("verify").code == 0
    (signature,) = Path("store/signatures").iterdir()
    signature.write_bytes(signature.read_bytes()[::-1])
    forged = run_here("verify", "--root", published, "--key", public)
    assert forged.code == 2
    assert "expected a signature of this root by key.pub, got other bytes" in forged.err


def test_a_root_that_is_not_proven_is_not_signed(published: str, keys: tuple[Path, Path]) -> None:
    Path("words.txt").write_text("some wordz")
    assert run_here("verify", "--root", published, "--sign", keys[0]).code == 2
    assert not Path("store/signatures").exists()


def test_a_signature_of_other_words_by_the_same_key_is_none(published: str, keys: tuple[Path, Path]) -> None:
    assert run_here("verify", "--root", published, "--sign", keys[0]).code == 0
    (signature,) = Path("store/signatures").iterdir()
    key = load_pem_private_key(keys[0].read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    signature.write_bytes(key.sign(published.encode()))
    assert run_here("verify", "--root", published, "--key", keys[1]).code == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--sign", "key.pub"], "key.pub: expected a private ed25519 key of openssl or ssh-keygen"),
        (["--key", "key.pem"], "key.pem: expected a public ed25519 key of openssl or ssh-keygen"),
        (["--key", "away.pem"], "away.pem: not readable: No such file or directory"),
        (["--sign", "locked.pem"], "expected a private ed25519 key of openssl or ssh-keygen, got one with a password"),
        (["--key", "rsa.pub"], "expected a public ed25519 key of openssl or ssh-keygen, got RSAPublicKey"),
    ],
)
def test_a_wrong_key_is_refused_in_one_line(
    published: str, keys: tuple[Path, Path], words: list[str], line: str
) -> None:
    locked, other = Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048).public_key()
    Path("locked.pem").write_bytes(
        locked.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word"))
    )
    Path("rsa.pub").write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    done = run_here("verify", "--root", published, *words)
    assert done.code == 2
    assert line in done.errors[-1]
    without = run_here("verify", *words)
    assert without.errors == [f"error: {words[0]}: expected --root HASH with it"]


def test_without_the_library_a_line_says_how_to_install_it(published: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    monkeypatch.delitem(sys.modules, "vfm.flow.records.signatures", raising=False)
    done = run_here("verify", "--root", published, "--key", "key.pub")
    assert done.code == 2
    assert done.errors[-1].startswith(
        "error: --key and --sign need cryptography: uv pip install -e 'packages/core[sign]'"
    )
