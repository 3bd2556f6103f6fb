"""Importing pretrained models: the weights must arrive unchanged, and never in a model of another activation."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from vfm.base import UserError
from vfm.data import write_tar
from vfm.interfaces import Artifact, ClipCheckpoint, Context, Preflight, VisionCheckpoint
from vfm.models import (
    ClipModel,
    build_clip,
    build_vision,
    import_clip,
    import_vision,
    load_clip,
    load_state_dict,
    load_vision,
    save_clip,
    save_state_dict,
    save_vision,
)
from vfm.models.interchange.clip_import import check_clip_source, check_import_clip
from vfm.models.interchange.hugging_face import save_hugging_face
from vfm.models.interchange.vision_import import check_vision_source
from vfm.models.stages import ImportClip, ImportVision

NAME = "ViT-Pico-8-32"
IMAGES = [np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)]


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    model = build_clip(NAME, seed=7)
    model.module.eval()
    return model


def equal_features(ours: ClipModel, theirs: ClipModel) -> bool:
    return torch.equal(ours.encode_images(IMAGES), theirs.encode_images(IMAGES)) and torch.equal(
        ours.encode_texts(["a red square"]), theirs.encode_texts(["a red square"])
    )


@pytest.mark.parametrize("kind", ["models.clip", "models.vision"])
def test_weights_that_are_not_finite_are_refused(kind: str, tmp_path: Path) -> None:
    model = build_clip(NAME, seed=0).module if kind == "models.clip" else build_vision("eva02_pico_patch8_32")
    weights = model.state_dict()
    keys = list(weights)[3:5]
    for key in keys:
        weights[key].view(-1)[-1] = float("nan")
    save_state_dict(weights, tmp_path / "w.safetensors")
    stage = {"models.clip": ImportClip, "models.vision": ImportVision}[kind](
        name="m",
        source=NAME if kind == "models.clip" else "eva02_pico_patch8_32",
        pretrained=str(tmp_path / "w.safetensors"),
    )
    context = Context("m", tmp_path / "m", tmp_path / "work", {}, lambda event: None)
    with pytest.raises(UserError, match=r"w\.safetensors: expected finite weights, got NaN .* and 1 more tensors"):
        stage.run(context)


def test_wrong_value_of_an_encoders_preprocessing_is_one_line(tmp_path: Path) -> None:
    save_vision(build_vision("vit_pico_patch8_32", seed=0), tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["pretrained_cfg"]["crop_pct"] = "x"
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: .*crop_pct"):
        import_vision(str(tmp_path))


def torchscript_archive(model: ClipModel, file: Path) -> Path:
    """Save an archive like OpenAI's: a program with the model's sizes beside its weights."""
    root = nn.Module()
    for name, value in model.module.state_dict().items():
        *path, last = name.split(".")
        owner = root
        for part in path:
            if part not in dict(owner.named_children()):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_buffer(last, value)
    for name, value in (("input_resolution", 32), ("context_length", 24), ("vocab_size", 49408)):
        root.register_buffer(name, torch.tensor(value))
    torch.jit.script(root).save(str(file))
    return file


@pytest.mark.parametrize("write", [save_clip, save_hugging_face], ids=["open_clip layout", "hugging face layout"])
@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_folder_loads_in_either_layout(
    write: Callable[..., object], prefix: str, clip: ClipModel, tmp_path: Path
) -> None:
    write(clip, tmp_path)
    assert equal_features(import_clip(f"{prefix}{tmp_path}"), clip)


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "module.", "compiled", "ema", "safetensors"])
def test_file_loads_with_any_wrapper_around_the_weights(wrap: str, clip: ClipModel, tmp_path: Path) -> None:
    weights = clip.module.state_dict()
    zeros = {key: torch.zeros_like(value) for key, value in weights.items()}
    file = tmp_path / ("w.safetensors" if wrap == "safetensors" else "w.pt")
    content = {
        "plain": weights,
        "state_dict": {"epoch": 3, "state_dict": weights},
        "module.": {"state_dict": {f"module.{key}": value for key, value in weights.items()}},
        "compiled": {"state_dict": {f"module._orig_mod.{key}": value for key, value in weights.items()}},
        "ema": {"model": zeros, "model_ema": weights},
        "safetensors": weights,
    }[wrap]
    save_state_dict(weights, file) if wrap == "safetensors" else torch.save(content, file)
    assert equal_features(import_clip(NAME, str(file)), clip)


def test_a_training_checkpoint_of_open_clip_loads(clip: ClipModel, tmp_path: Path) -> None:
    """With optimizer and scaler; schedules that use numpy leave learning rates that are numpy's numbers."""
    optimizer = torch.optim.AdamW(clip.module.parameters())
    optimizer.param_groups[0]["lr"] = np.float64(1e-3)
    optimizer.param_groups[0]["betas"] = (np.float32(0.9), np.float16(0.98))
    state = {f"module.{key}": value for key, value in clip.module.state_dict().items()}
    record = {
        "epoch": np.int64(3),
        "best": np.bool_(True),
        "name": "run",
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
    }
    torch.save({**record, "scaler": torch.amp.GradScaler("cpu").state_dict()}, tmp_path / "epoch_3.pt")
    assert equal_features(import_clip(NAME, str(tmp_path / "epoch_3.pt")), clip)


def test_files_of_weights_have_the_permissions_that_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for _ in range(2):  # also where a file is replaced
            save_state_dict({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
            assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o640
    finally:
        os.umask(before)


@pytest.mark.parametrize("layout", ["folder", "mapping"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"vocab_size": 1000}, "the tokenizer returns token 49407, the text tower has 1000 embeddings"),
        ({"tokenizer_kwargs": {"context_length": 30}}, "returns 30 tokens per text, the text tower has 12 positions"),
        ({"tokenizer_kwargs": {"context_length": 9}}, "returns 9 tokens per text, the text tower has 12 positions"),
    ],
)
def test_a_wrong_tokenizer_is_a_line_before_anything_runs(
    text: dict[str, object], message: str, layout: str, tmp_path: Path
) -> None:
    text_cfg = {"context_length": 12, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 24, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    good = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text_cfg}
    wrong = {**good, "text_cfg": {**text_cfg, **text}}
    if layout == "folder":
        save_clip(build_clip(wrong), tmp_path)
        stage = ImportClip(name="clip", source=str(tmp_path))
    else:
        torch.save({"w": torch.zeros(1)}, tmp_path / "w.pt")
        stage = ImportClip(name="clip", source=wrong, pretrained=str(tmp_path / "w.pt"))
    with pytest.raises(UserError, match=message):
        stage.preflight(Preflight({}, {}))


def test_raw_weights_can_be_chosen_over_averaged_ones(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.zeros(2)}, "model_ema": {"w": torch.ones(2)}}, tmp_path / "w.pt")
    assert load_state_dict(tmp_path / "w.pt")["w"].tolist() == [1, 1]
    assert load_state_dict(tmp_path / "w.pt", ema=False)["w"].tolist() == [0, 0]


def test_openai_weights_are_never_loaded_into_a_gelu_model(clip: ClipModel, tmp_path: Path) -> None:
    torch.save({**clip.module.state_dict(), "input_resolution": torch.tensor(32)}, tmp_path / "openai.pt")
    with pytest.raises(UserError, match="trained with QuickGELU"):
        import_clip(NAME, str(tmp_path / "openai.pt"))
    quick = {**clip.config, "quick_gelu": True}
    loaded = import_clip(quick, str(tmp_path / "openai.pt"))
    assert torch.equal(loaded.module.visual.proj, clip.module.visual.proj)
    assert not equal_features(loaded, clip)  # the same weights, another activation


def test_metaclip_file_is_recognised_by_its_name(clip: ClipModel, tmp_path: Path) -> None:
    torch.save(clip.module.state_dict(), tmp_path / "b32_400m.pt")
    with pytest.raises(UserError, match=r"b32_400m's weights were trained with QuickGELU.*ViT-B-32-quickgelu"):
        import_clip(NAME, str(tmp_path / "b32_400m.pt"))
    import_clip({**clip.config, "quick_gelu": True}, str(tmp_path / "b32_400m.pt"))
    (tmp_path / "b32_400m.pt").rename(tmp_path / "mine.pt")
    assert equal_features(import_clip(NAME, str(tmp_path / "mine.pt")), clip)


def test_torchscript_archive_is_read_only_if_published_by_openai(
    clip: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = torchscript_archive(clip, tmp_path / "openai.pt")
    with pytest.raises(UserError, match="a TorchScript archive, which could run code"):
        load_state_dict(file)
    url = f"https://example.org/{hashlib.sha256(file.read_bytes()).hexdigest()}/openai.pt"
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, {"openai": {"url": url}})
    loaded = import_clip({**clip.config, "quick_gelu": True}, str(file))
    assert torch.equal(loaded.module.visual.proj, clip.module.visual.proj)
    with pytest.raises(UserError, match="trained with QuickGELU"):
        import_clip(NAME, str(file))


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_tag_decides_between_quickgelu_and_gelu(
    quick_gelu: bool, clip: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tag.safetensors"
    save_state_dict(clip.module.state_dict(), file)
    facts = {"file": str(file), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "quick_gelu": quick_gelu}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, {"tagged": facts})
    model = import_clip(NAME, "tagged")
    assert model.config.get("quick_gelu", False) is quick_gelu
    assert model.preprocess.mean == (0.1, 0.2, 0.3)
    assert model.name == f"{NAME}/tagged"
    model.preprocess = clip.preprocess
    assert equal_features(model, clip) is not quick_gelu
    save_clip(model, tmp_path / "saved")
    assert load_clip(tmp_path / "saved").config.get("quick_gelu", False) is quick_gelu


def test_open_clip_marks_the_tags_of_openai_and_metaclip_as_quickgelu() -> None:
    """Imports depend on it: the weights of an unmarked tag would be loaded into a GELU model."""
    marked = ("openai", "metaclip_400m", "metaclip_fullcc")
    tags = [(name, tag) for name, tag in open_clip.list_pretrained() if tag in marked]
    assert len(tags) > 20
    assert all(open_clip.get_pretrained_cfg(name, tag)["quick_gelu"] for name, tag in tags)


def hub_folder(cache: Path, repo: str) -> Path:
    """Create the folder of a model in the hub's cache."""
    model = cache / f"models--{repo.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("abc")
    return model / "snapshots" / "abc"


@pytest.mark.parametrize("write", [save_clip, save_hugging_face], ids=["open_clip layout", "hugging face layout"])
def test_hub_model_loads_from_the_cache_without_a_network(
    write: Callable[..., object], clip: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    write(clip, hub_folder(tmp_path, "org/model"))
    model = import_clip("hf-hub:org/model")
    assert model.name == "hf-hub:org/model"
    assert equal_features(model, clip)
    with pytest.raises(UserError, match="hf-hub:org/other: cannot be downloaded") as caught:
        import_clip("hf-hub:org/other")
    assert "\n" not in str(caught.value)


def test_failed_download_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="ViT-B-32 laion2b_s34b_b79k: not on this machine") as caught:
        import_clip("ViT-B-32", "laion2b_s34b_b79k")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="vit_tiny_patch16_224") as caught:
        import_vision("vit_tiny_patch16_224")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "pretrained", "message"),
    [
        ("ViT-B-33", "openai", "did you mean 'ViT-B-3"),
        ("ViT-B-32", "opnai", "did you mean 'openai'"),
        ("ViT-B-32", None, r"pretrained is required for 'ViT-B-32'; tags of open_clip: openai, "),
        (NAME, None, "open_clip lists no tag for it"),
        (NAME, "none.safetensors", "no such checkpoint file"),
        ("local-dir:nowhere", None, "no such folder"),
        ("hf-hub:a/b", "openai", "leave pretrained out"),
    ],
)
def test_invalid_clip_source_is_reported_before_any_download(source: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_clip_source(source, pretrained)


def test_folder_without_a_clip_model_is_reported_before_the_stage_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no CLIP model "):
        check_clip_source(f"local-dir:{tmp_path}", None)


def test_tensors_that_share_memory_or_are_not_contiguous_are_saved_whole(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(2, 3, 2, 2)
    saved = {
        "whole": whole, "tied": whole, "part": whole[1], "turned": whole.mT, "empty": whole[:0],
        "last": whole.contiguous(memory_format=torch.channels_last),
    }  # fmt: skip
    save_state_dict(saved, tmp_path / "weights.safetensors")
    found = load_state_dict(tmp_path / "weights.safetensors")
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], value) for name, value in saved.items())


def test_a_folder_whose_configuration_is_damaged_is_named_before_the_stage_runs(tmp_path: Path) -> None:
    model_cfg = {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {"laqers": 2}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    with pytest.raises(UserError, match=f"^{tmp_path}: .*text_cfg.laqers: unknown key; did you mean 'layers'"):
        check_import_clip(ImportClip(name="clip", source=str(tmp_path)), Preflight({}, {}))


@pytest.mark.parametrize(
    ("source", "pretrained", "message"),
    [
        ("vit_bse_patch16_224", None, "did you mean 'vit_base_patch16_224'"),
        ("vit_pico_patch8_32", None, "timm lists no weights"),
        ("vit_pico_patch8_32", "none.pt", "no such checkpoint file"),
    ],
)
def test_invalid_vision_source_is_reported_before_any_download(
    source: str, pretrained: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_vision_source(source, pretrained)


@pytest.mark.parametrize("num_classes", [0, 5])
def test_vision_encoder_loads_from_a_folder_and_from_a_file(num_classes: int, tmp_path: Path) -> None:
    model = build_vision("eva02_pico_patch8_32", num_classes=num_classes, seed=3).eval()
    save_vision(model, tmp_path)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(import_vision(str(tmp_path))(images), model(images))
    file = str(tmp_path / "model.safetensors")
    assert torch.equal(import_vision("eva02_pico_patch8_32", file)(images), model(images))


def test_official_eva_pretraining_weights_load_under_timms_names(tmp_path: Path) -> None:
    model = build_vision("eva02_pico_patch8_32", seed=3).eval()  # pooled by average: its final norm is fc_norm
    official = {
        "mask_token": torch.zeros(1, 1, 64),
        "lm_head.weight": torch.zeros(8, 64),
        "lm_head.bias": torch.zeros(8),
    }
    names = {
        "fc_norm.": "norm.",
        "mlp.fc1_g.": "mlp.w1.",
        "mlp.fc1_x.": "mlp.w2.",
        "mlp.fc2.": "mlp.w3.",
        "mlp.fc1.": "mlp.w12.",
    }
    for key, value in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        official[key] = value
    official["rope.freqs_cos"] = torch.zeros(16, 32)
    torch.save({"model": official}, tmp_path / "eva02_Ti_pt.pt")
    loaded = import_vision("eva02_pico_patch8_32", str(tmp_path / "eva02_Ti_pt.pt"))
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))


def test_weights_of_another_architecture_are_a_one_line_error(tmp_path: Path, clip: ClipModel) -> None:
    save_vision(build_vision("vit_pico_patch8_32", seed=0), tmp_path)
    with pytest.raises(UserError, match="does not fit") as caught:
        import_vision("eva02_pico_patch8_32", str(tmp_path / "model.safetensors"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="does not fit") as caught:
        import_clip(NAME, str(tmp_path / "model.safetensors"))
    assert "\n" not in str(caught.value)


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('ran')",)


@pytest.mark.parametrize("content", ["pickle", "noise", "empty", "no tensors", "truncated"])
def test_harmful_or_damaged_file_is_a_one_line_error_and_nothing_runs(content: str, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save({"pickle": Harmful(), "no tensors": {"epoch": 3}}.get(content, {"w": torch.zeros(1000)}), file)
    if content in ("noise", "empty"):
        file.write_bytes(b"noise" * 50 if content == "noise" else b"")
    if content == "truncated":
        file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"w\.pt") as caught:
        load_state_dict(file)
    assert "\n" not in str(caught.value)


def test_a_shard_in_place_of_a_checkpoint_is_named_as_such(tmp_path: Path) -> None:
    write_tar(tmp_path / "w.tar", [("0", {"txt": b"caption"})])
    with pytest.raises(UserError, match="expected a checkpoint, got a tar archive"):
        load_state_dict(tmp_path / "w.tar")
    torch.save({"w": torch.ones(2)}, tmp_path / "checkpoint.pth.tar")  # timm's name, which is no archive
    assert load_state_dict(tmp_path / "checkpoint.pth.tar")["w"].tolist() == [1, 1]


@pytest.mark.parametrize(("thing", "name"), [(Harmful(), "exec"), (np.str_("a"), "numpy.dtypes.StrDType")])
def test_the_class_that_a_checkpoint_must_not_hold_is_named(thing: object, name: str, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2), "more": thing}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"holds objects other than tensors \(the first: {name}\), which could run"):
        load_state_dict(tmp_path / "w.pt")


def run(stage: ImportClip | ImportVision, folder: Path) -> Artifact:
    artifact = stage.run(Context(stage.name, folder / "out", folder / "work", {}))
    return Artifact.load(artifact.path)


def test_stages_save_checkpoints_and_list_their_local_sources(clip: ClipModel, tmp_path: Path) -> None:
    save_clip(clip, tmp_path / "clip")
    stage = ImportClip(kind="models.clip", name="clip", source=str(tmp_path / "clip"))
    assert list(stage.sources()) == [str(tmp_path / "clip")]
    imported = run(stage, tmp_path / "a")
    assert isinstance(imported, ClipCheckpoint)
    assert equal_features(load_clip(imported), clip)

    encoder = build_vision("vit_pico_patch8_32", seed=0)
    file = save_vision(encoder, tmp_path / "vision").path / "model.safetensors"
    vision = ImportVision(kind="models.vision", name="v", source="vit_pico_patch8_32", pretrained=str(file))
    assert list(vision.sources()) == [str(file)]
    imported = run(vision, tmp_path / "b")
    assert isinstance(imported, VisionCheckpoint)
    assert torch.equal(load_vision(imported).pos_embed, encoder.pos_embed)
    assert json.loads((imported.path / "config.json").read_text())["architecture"] == "vit_pico_patch8_32"
