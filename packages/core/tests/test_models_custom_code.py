"""A model's files may name Python code of their own; no command runs it, and the error says what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, dynamic_module_utils

from cli_world import run_here
from eval_world import png, tiny_clip
from vfm.base import UserError
from vfm.models.custom_code import without_custom_code


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CLIP folder with a Python file beside its weights, an image, and a user who answers yes to every question."""
    tiny_clip(tmp_path / "model", 0)
    (tmp_path / "photo.png").write_bytes(png("red", 1))
    mark = f"from pathlib import Path\nPath({str(tmp_path / 'executed')!r}).touch()\n"
    (tmp_path / "model" / "tok.py").write_text(f"{mark}class Tok: pass\nclass Config: pass\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    return tmp_path


def change_text(folder: Path, **values: Any) -> None:
    file = folder / "open_clip_config.json"
    record = json.loads(file.read_text())
    record["model_cfg"]["text_cfg"].update(values)
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"trust_remote_code": True}, "tokenizer_kwargs.trust_remote_code: not allowed; allowed: clean,"),
        ({}, "its files name Python code of their own"),
    ],
)
def test_a_tokenizers_own_code_is_refused_in_one_line(world: Path, options: dict[str, Any], reason: str) -> None:
    model = world / "model"
    change_text(model, hf_tokenizer_name="x", tokenizer_kwargs=options)
    (model / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["tok.Tok", None]}}))
    done = run_here("predict", model, world / "photo.png", "--classes", "a,b")
    assert not (world / "executed").exists()
    assert (done.code, len(done.errors)) == (2, 1), done.err
    assert reason in done.err


def test_a_text_towers_own_code_is_refused_in_one_line(world: Path) -> None:
    model = world / "model"
    change_text(model, hf_model_name=str(model))
    (model / "config.json").write_text(json.dumps({"model_type": "new", "auto_map": {"AutoConfig": "tok.Config"}}))
    done = run_here("predict", model, world / "photo.png", "--classes", "a,b")
    assert not (world / "executed").exists()
    assert (done.code, len(done.errors)) == (2, 1), done.err
    assert "Python code of their own" in done.err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cache_dir": "/tmp"}, "tokenizer_kwargs.cache_dir: not allowed"),
        ({"bpe_path": "/etc/passwd"}, "tokenizer_kwargs.bpe_path: not allowed"),
        ({"clean": ["lower"]}, r"tokenizer_kwargs.clean: expected str, got ['lower']"),
        ([1], "tokenizer_kwargs: expected a mapping, got [1]"),
        ({"clean": "unknown"}, "cannot load its tokenizer"),
        ({"strip_sep_token": True}, "cannot load its tokenizer"),  # is of Hugging Face's tokenizers only
    ],
)
def test_other_options_of_a_tokenizer_are_refused_by_name(world: Path, options: Any, reason: str) -> None:
    change_text(world / "model", tokenizer_kwargs=options)
    done = run_here("predict", world / "model", world / "photo.png", "--classes", "a,b")
    assert (done.code, len(done.errors)) == (2, 1), done.err
    assert reason in done.err


def test_a_callers_waiting_time_of_transformers_is_restored(world: Path) -> None:
    (world / "model" / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "tok.Config"}}))
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    with pytest.raises(UserError, match="Python code of their own"), without_custom_code("m"):
        AutoConfig.from_pretrained(world / "model")
    assert before == dynamic_module_utils.TIME_OUT_REMOTE_CODE
    with pytest.raises(ValueError, match="other"), without_custom_code("m"):
        raise ValueError("other")
