"""A model's files may name Python code of their own; no command runs it, and the error says what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import dense_toy  # noqa: F401  (declares a predictor)
from cli_world import run_here
from eval_world import png, tiny_clip
from vfm.base import UserError
from vfm.eval.video.videos import load_video_predictor
from vfm.interfaces import DenseCheckpoint
from vfm.models.clip.text import build_tokenizer
from vfm.models.custom_code import without_custom_code
from video_predictor import make_classifier

transformers = pytest.importorskip("transformers")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A CLIP folder with a Python file beside its weights, and an image."""
    tiny_clip(tmp_path / "model", 0)
    (tmp_path / "photo.png").write_bytes(png("red", 1))
    mark = f"from pathlib import Path\nPath({str(tmp_path / 'executed')!r}).touch()\n"
    (tmp_path / "model" / "tok.py").write_text(f"{mark}class Tok: pass\nclass Config: pass\n")
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
    done = run_here("predict", model, world / "photo.png", "--classes", "a,b", answers="y\n" * 9)
    assert not (world / "executed").exists()
    assert (done.code, len(done.errors)) == (2, 1), done.err
    assert reason in done.err


def test_a_text_towers_own_code_is_refused_in_one_line(world: Path) -> None:
    model = world / "model"
    change_text(model, hf_model_name=str(model))
    (model / "config.json").write_text(json.dumps({"model_type": "new", "auto_map": {"AutoConfig": "tok.Config"}}))
    done = run_here("predict", model, world / "photo.png", "--classes", "a,b", answers="y\n" * 9)
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
    done = run_here("predict", world / "model", world / "photo.png", "--classes", "a,b", answers="y\n" * 9)
    assert (done.code, len(done.errors)) == (2, 1), done.err
    assert reason in done.err


def test_a_damaged_vocabulary_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    vocabulary = {word: number for number, word in enumerate(("a", "b", "<|startoftext|>", "<|endoftext|>"))}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")  # `ab` is not in the vocabulary
    with pytest.raises(UserError, match=r"m: cannot load its tokenizer 'x': .*out of vocabulary") as error:
        build_tokenizer({"hf_tokenizer_name": "x"}, 77, "m", tmp_path)
    assert "\n" not in str(error.value)


def test_a_callers_waiting_time_of_transformers_is_restored(world: Path) -> None:
    (world / "model" / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "tok.Config"}}))
    waits = transformers.dynamic_module_utils
    before = waits.TIME_OUT_REMOTE_CODE
    with pytest.raises(UserError, match="Python code of their own"), without_custom_code("m"):
        transformers.AutoConfig.from_pretrained(world / "model")
    assert before == waits.TIME_OUT_REMOTE_CODE
    with pytest.raises(ValueError, match="other"), without_custom_code("m"):
        raise ValueError("other")


@pytest.mark.parametrize("address", ["os:system", "hostile:load", "no_such_module:load", "", "dense_toy:checkpoint"])
def test_only_a_predictor_that_a_stage_declares_is_called(
    world: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world / "path").mkdir()
    (world / "path" / "hostile.py").write_text((world / "model" / "tok.py").read_text())
    monkeypatch.syspath_prepend(world / "path")
    expected = "predictor: expected one that an installed stage declares (dense_toy:load"
    facts: dict[str, Any] = {"tasks": ["boxes"], "class_names": ["a"], "image_size": 8, "predictor": address}
    dense = DenseCheckpoint.create(world / "dense", **facts)
    done = run_here("predict", dense.path, world / "photo.png", "--out", world / "out")
    assert (done.code, len(done.errors)) == (2, 1), done.err
    assert f"{dense.path}: {expected}" in done.err
    video = make_classifier(world / "video").model_copy(update={"predictor": address})
    with pytest.raises(UserError, match=re.escape(expected)):
        load_video_predictor(video, torch.device("cpu"))
    assert not (world / "executed").exists()
