"""Files of generators and language models may name Python code; none of it runs, and the error says so in one line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from diva_families import add_text_encoder, family_generator
from vfm.models import import_generator
from vfm.plugin import UserError
from vfm_diva.mllm.language_models import planned_language_model, pretrained
from vfm_diva.mllm.model import empty_mllm, load_mllm
from vfm_diva.mllm.stages import MllmCheckpoint, PretrainedLanguageModel
from vfm_diva.tune.prompt import encode_prompt

pytest.importorskip("transformers")


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What exists if code was executed; a user answers yes to every question, and a folder on the path has a module."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    (tmp_path / "path").mkdir()
    write_code(tmp_path / "path" / "hostile.py", tmp_path / "executed")
    monkeypatch.syspath_prepend(tmp_path / "path")
    return tmp_path / "executed"


def write_code(file: Path, mark: Path) -> None:
    """Write a module that leaves a mark, and has the classes that files may name."""
    names = "\n".join(f"class {name}: pass" for name in ("Config", "Model", "Tokenizer", "CLIPTextModel"))
    file.write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n{names}\n")


def change(file: Path, **values: Any) -> None:
    record = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**record, **values}))


@pytest.mark.parametrize("library", ["hostile", "antigravity", "part"])
@pytest.mark.parametrize("part", ["text_encoder", "tokenizer"])
def test_a_part_of_a_module_is_not_imported(library: str, part: str, mark: Path, tmp_path: Path) -> None:
    folder = family_generator("sd", tmp_path).path
    add_text_encoder(folder, "StableDiffusionPipeline")
    write_code(folder / part / "part.py", mark)
    change(folder / "model_index.json", **{part: [library, "CLIPTextModel"]})
    for load in (lambda: encode_prompt(folder, ""), lambda: import_generator(str(folder), tmp_path / "out")):
        with pytest.raises(UserError, match=rf"model_index\.json: {part}: expected a class of transformers") as caught:
            load()
        assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["logging", "DDIMScheduler", "DiffusionPipeline.from_pretrained", ["hostile", "Model"]]
)
def test_a_pipeline_is_one_of_diffusers(name: Any, mark: Path, tmp_path: Path) -> None:
    folder = family_generator("sd", tmp_path).path
    add_text_encoder(folder, "StableDiffusionPipeline")
    write_code(folder / "hostile.py", mark)
    change(folder / "model_index.json", _class_name=name)
    with pytest.raises(UserError, match="diffusers has no pipeline"):
        encode_prompt(folder, "")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("file", "key", "value", "expected"),
    [
        ("unet/config.json", "_class_name", "logging", "diffusers has no ModelMixin 'logging'"),
        ("text_encoder/config.json", "architectures", ["pipeline"], "transformers has no PreTrainedModel 'pipeline'"),
        ("model_index.json", "tokenizer", ["transformers", "AutoModel"], "no PreTrainedTokenizerBase 'AutoModel'"),
    ],
)
def test_a_part_is_of_the_class_of_its_kind(
    file: str, key: str, value: Any, expected: str, mark: Path, tmp_path: Path
) -> None:
    folder = family_generator("sd", tmp_path).path
    add_text_encoder(folder, "StableDiffusionPipeline")
    change(folder / file, **{key: value})
    change(folder / "tokenizer" / "config.json", auto_map={"AutoConfig": "part.Config"})
    write_code(folder / "tokenizer" / "part.py", mark)
    with pytest.raises(UserError, match=expected):
        import_generator(str(folder), tmp_path / "out")
    assert not mark.exists()


def test_a_language_models_own_code_is_refused_without_a_question(mark: Path, tmp_path: Path) -> None:
    folder = tmp_path / "llm"
    folder.mkdir()
    write_code(folder / "part.py", mark)
    auto_map = {
        "AutoConfig": "part.Config",
        "AutoModelForCausalLM": "part.Model",
        "AutoTokenizer": ["part.Tokenizer", None],
    }
    change(folder / "config.json", model_type="new", auto_map=auto_map)
    change(folder / "tokenizer_config.json", auto_map=auto_map)
    part = PretrainedLanguageModel(source=str(folder))
    for load in (lambda: pretrained(part, [], 0), lambda: planned_language_model(part, [])):
        with pytest.raises(UserError, match=f"^{folder}: its files name Python code of their own"):
            load()
    facts = MllmCheckpoint.create(folder, tower="t", layer=1, tokens="all", prompt="<image>", preprocess={})
    change(folder / "config.json", model_type="llava", text_config={"model_type": "new", "auto_map": auto_map})
    for read in (load_mllm, empty_mllm):
        with pytest.raises(UserError):
            read(facts)
    assert not mark.exists()
