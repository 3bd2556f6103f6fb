"""Signatures of roots by ed25519, so that a public key proves all results of its owner.

A signature is a file of the store, `signatures/ROOT-KEY.sig`, where KEY is the beginning of the SHA-256 of the public
key. Keys are files of openssl (PEM) or ssh-keygen.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vfm.base import UserError
from vfm.storage.publishing import write_file

FOLDER = "signatures"
_PURPOSE = b"vfm root\n"  # so that a signature of a root is none of anything else that the key signs


def sign_root(store: Path, root: str, key: Path) -> Path:
    """Sign a root with a private key, and keep the signature in the store.

    Args:
        store: Folder of the store.
        root: Root of an artifact or a run.
        key: File of the private key.

    Raises:
        UserError: If the file is not a private ed25519 key.
    """
    private = _key(key, secret=True)
    assert isinstance(private, Ed25519PrivateKey)
    file = _file(store, root, private.public_key())
    file.parent.mkdir(exist_ok=True)
    write_file(file, private.sign(_PURPOSE + root.encode()))
    return file


def check_signature(store: Path, root: str, key: Path) -> None:
    """Check that the owner of a public key has signed a root.

    Args:
        store: Folder of the store.
        root: Root of an artifact or a run.
        key: File of the public key.

    Raises:
        UserError: If the file is not a public ed25519 key, or has not signed the root.
    """
    public = _key(key, secret=False)
    assert isinstance(public, Ed25519PublicKey)
    file = _file(store, root, public)
    try:
        public.verify(file.read_bytes(), _PURPOSE + root.encode())
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; {key} has not signed this root") from None
    except InvalidSignature:
        raise UserError(f"{file}: expected a signature of this root by {key}, got other bytes") from None


def _file(store: Path, root: str, key: Ed25519PublicKey) -> Path:
    return store / FOLDER / f"{root}-{hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]}.sig"


def _key(file: Path, *, secret: bool) -> object:
    """Read a private or public key. Only ed25519 is accepted. It has no parameters that could be weak."""
    expected = Ed25519PrivateKey if secret else Ed25519PublicKey
    wrong = f"{file}: expected {'a private' if secret else 'a public'} ed25519 key of openssl or ssh-keygen"
    try:
        data = file.read_bytes()
        if secret:
            is_ssh = b"OPENSSH PRIVATE KEY" in data
            load = serialization.load_ssh_private_key if is_ssh else serialization.load_pem_private_key
            key: object = load(data, password=None)
        elif data.startswith(b"ssh-"):
            key = serialization.load_ssh_public_key(data)
        else:
            key = serialization.load_pem_public_key(data)
    except OSError as error:
        raise UserError(f"{file}: not readable: {error.strerror}") from None
    except TypeError:
        raise UserError(f"{wrong}, got one with a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(wrong) from None
    if not isinstance(key, expected):
        raise UserError(f"{wrong}, got {type(key).__name__}")
    return key
