"""Each method in one file: examples/plain runs alone, and the stages compute the same on the same data.

The files read the tar themselves and draw their own initial weights, order, crops, masks and noise, so that nothing is
shared but the tar and the settings. Losses of all steps and final weights are compared: bit for bit where both add in
the same order, else within a tolerance whose reason is beside it.
"""

from __future__ import annotations

import ast
import io
import json
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from outside import ROOT
from vfm.data import read_subset, write_tar
from vfm.data.pairs.stages import Pairs
from vfm.models import build_clip, import_generator, save_clip
from vfm.plugin import Artifact, Context, Pool, Stage
from vfm_clip import ClipTrain
from vfm_curation.balance.stages import MetaclipBalance
from vfm_curation.counts.matches import read_shards
from vfm_curation.match.stages import MatchTexts
from vfm_curation.metadata.stages import BuildMetadata
from vfm_diva import DivaTune
from vfm_eva import EvaPretrain
from vfm_kernels import block_mask

FOLDER = ROOT / "examples/plain"
NAMES = ("metaclip", "eva", "clip", "diva")
STEPS, BATCH, WARMUP = 4, 12, 2
TRAINING = {"steps": STEPS, "global_batch_size": BATCH, "log_every": 1, "precision": "fp32"}
WORDS = ["the", "of", "red", "blue", "dog", "cat", "house", "tree", "small", "big", "old", "fire", "truck", "hot"]
ENTRIES = [*WORDS, "fire truck", "hot dog", "red house", "the red", "red , blue", "U.S.", "never there"]
STUDENT = {"patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2}
PROMPT_LENGTH = 12


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain(name: str) -> Any:
    """Import a file that belongs to no package."""
    spec = spec_from_file_location(f"plain_{name}", FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def image(number: int) -> bytes:
    """An image of a size of its own, as PNG."""
    rng, buffer = np.random.default_rng(number), io.BytesIO()
    width, height = rng.integers(24, 72, 2).tolist()
    Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def caption(number: int) -> str:
    """A few words, common ones more often, between blanks and marks of all kinds."""
    rng, rank = np.random.default_rng(number), np.arange(1, len(WORDS) + 1)
    words = rng.choice(WORDS, rng.integers(1, 9), p=rank**-1.5 / sum(rank**-1.5))
    return "".join(word + rng.choice([" ", " ", " ", "  ", ", ", ". ", "!", "\t", "\n", " (", "-"]) for word in words)


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WebDataset of forty pairs, so that four steps of twelve take some samples twice."""
    file = tmp_path_factory.mktemp("tar") / "pairs.tar"
    write_tar(file, [(f"{n:03d}", {"png": image(n), "txt": caption(n).encode()}) for n in range(40)])
    return file


@pytest.fixture(scope="module")
def pool(tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    pool: Pool = run(Pairs(name="pool", path=str(tar)), tmp_path_factory.mktemp("pool"))
    return pool


def run(stage: Stage, folder: Path, **inputs: Artifact) -> Any:
    """Run a stage in a folder; the inputs have the names of its refs."""
    directory, work = folder / stage.name, folder / f"{stage.name}-work"
    directory.mkdir()
    work.mkdir()
    paths = {name: artifact.path for name, artifact in inputs.items()}
    return stage.run(Context(stage.name, directory, work, paths, lambda event: None))


def losses_of(artifact: Artifact) -> list[float]:
    lines = (artifact.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def distance(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest difference of two state dicts, which must have the same names."""
    assert ours.keys() == theirs.keys()
    return max((ours[name].double() - theirs[name].double()).abs().max().item() for name in ours)


def assert_within(ours: list[float], theirs: list[float], tolerance: float) -> None:
    assert len(ours) == len(theirs) == STEPS
    assert max(abs(one - other) for one, other in zip(ours, theirs, strict=True)) <= tolerance


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_one_page_that_imports_nothing_of_ours(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 250
    nodes = list(ast.walk(ast.parse(text)))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert [module for module in modules if module.startswith("vfm")] == []


# MetaCLIP: nothing is rounded, so all numbers are equal


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WebDataset of captions, of which some entries are in nearly all and others in none."""
    file = tmp_path_factory.mktemp("captions") / "pairs.tar"
    write_tar(file, [(f"{n:04d}", {"png": image(n % 10), "txt": caption(n).encode()}) for n in range(1500)])
    return file


@pytest.mark.parametrize("rule", [{"t": 20.0}, {"tail_share": 0.06}, {"tail_share": 0.3}], ids=str)
def test_metaclip_matches_counts_and_draws_as_the_stages(
    rule: dict[str, float], captions: Path, tmp_path: Path
) -> None:
    (tmp_path / "metadata.txt").write_text("\n".join(ENTRIES))
    pool = run(Pairs(name="pool", path=str(captions)), tmp_path)
    metadata = run(BuildMetadata(name="entries", path=str(tmp_path / "metadata.txt")), tmp_path)
    matches = run(MatchTexts(name="matches", pool="pool", metadata="entries"), tmp_path, pool=pool, entries=metadata)
    subset = run(MetaclipBalance(name="curated", matches="matches", seed=3, **rule), tmp_path, matches=matches)

    metaclip = plain("metaclip")
    texts = list(metaclip.read_captions(captions))
    result = metaclip.curate(texts, ENTRIES, seed=3, **rule)
    matched = {
        row: shard.ids_of(text)
        for shard in read_shards(matches.path)
        for text, row in enumerate(shard.table["row"].to_pylist())
    }
    assert {row: ids for row, ids in enumerate(result.matches) if ids} == matched
    assert max(map(len, result.matches)) > 5
    assert result.counts.tolist() == np.load(matches.path / "counts.npy").tolist()
    rows = read_subset(subset.path).to_pylist()
    assert [row["row"] for row in rows] == sorted(matched)
    assert [result.kept[row["row"]] for row in rows] == [row["kept"] for row in rows]
    assert 0.1 < sum(result.kept) / len(rows) < 0.9
    stored = [float(np.float32(result.probability[row["row"]])) for row in rows]  # the subset stores 32 bits
    assert stored == [row["probability"] for row in rows]


# CLIP


def clip_config(clip: Any, context_length: int) -> dict[str, Any]:
    return {**clip.SMALL, "text_cfg": {**clip.SMALL["text_cfg"], "context_length": context_length}}


@pytest.mark.parametrize("context_length", [8, 32])
def test_clip_trains_as_the_stage(context_length: int, tar: Path, pool: Pool, tmp_path: Path) -> None:
    clip = plain("clip")
    config = clip_config(clip, context_length)
    schedule = {"warmup_steps": WARMUP}
    stage = ClipTrain(name="clip", data="pool", model=config, schedule=schedule, seed=3, **TRAINING)
    trained = run(stage, tmp_path, pool=pool)

    model, pairs = clip.build_model(config, seed=3), list(clip.read_pairs(tar).values())
    losses = list(clip.train(model, pairs, steps=STEPS, batch_size=BATCH, warmup=WARMUP, seed=3))
    weights = load_file(trained.path / "open_clip_model.safetensors")
    assert distance(weights, clip.build_model(config, seed=3).state_dict()) > 1e-3
    if context_length == 8:
        assert losses == losses_of(trained)
        assert distance(weights, model.state_dict()) == 0
    else:  # the stage cuts captions after the longest one of the batch, so that attention sums over fewer tokens
        assert_within(losses, losses_of(trained), 2e-6)
        assert distance(weights, model.state_dict()) < 1e-4


# EVA


@pytest.mark.parametrize("grid", [(16, 16), (4, 4), (5, 9)])
def test_eva_masks_the_patches_that_the_stage_masks(grid: tuple[int, int]) -> None:
    eva, seeds = plain("eva"), [*range(200), 2**62 + 1]
    masks = [eva.block_mask(seed, *grid).ravel() for seed in seeds]
    assert np.array_equal(masks, block_mask(seeds, grid, round(105 / 256 * grid[0] * grid[1])).numpy())


@pytest.mark.parametrize("size", [32, 64])
def test_eva_trains_as_the_stage(size: int, tar: Path, pool: Pool, tmp_path: Path) -> None:
    eva, clip = plain("eva"), plain("clip")
    (tmp_path / "teacher").mkdir()
    teacher = save_clip(build_clip(clip.SMALL, image_size=size, seed=7), tmp_path / "teacher")
    model = {"architecture": "eva02_tiny_patch14_224", "img_size": size, **STUDENT}
    schedule = {"warmup_steps": WARMUP, "min_lr": 1e-5}
    stage = EvaPretrain(name="eva", data="pool", teacher="teacher", model=model, schedule=schedule, seed=3, **TRAINING)
    trained = run(stage, tmp_path, pool=pool, teacher=teacher)

    counts = []
    draw = eva.block_mask
    eva.block_mask = lambda *arguments: counts.append(draw(*arguments).sum()) or draw(*arguments)
    student = eva.build_student(img_size=size, seed=3, **STUDENT)
    visual = open_clip.create_model(f"local-dir:{teacher.path}").visual
    settings = {"steps": STEPS, "batch_size": BATCH, "warmup": WARMUP, "seed": 3}
    losses = list(eva.train(student, visual, eva.read_images(tar), **settings))
    weights = load_file(trained.path / "model.safetensors")
    assert distance(weights, eva.build_student(img_size=size, seed=3, **STUDENT).state_dict()) > 1e-3
    if size == 32:  # on 4 x 4 patches every mask has seven
        assert set(counts) == {7}
        assert losses == losses_of(trained)
        assert distance(weights, student.state_dict()) == 0
    else:  # with fewer patches in some masks, the stage fills up to equal counts, and adds zeros for them
        assert len(set(counts)) > 1
        assert_within(losses, losses_of(trained), 1e-6)
        assert distance(weights, student.state_dict()) < 1e-5


# DIVA


def stable_diffusion(folder: Path, prediction: str = "epsilon") -> Path:
    """Save a tiny Stable Diffusion with random weights, as diffusers does."""
    letters = "abcdefghijklmnopqrstuvwxyz."
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    text = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **ends}
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(vocab_size=len(words), max_position_embeddings=PROMPT_LENGTH, **text)
        ),
        tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=PROMPT_LENGTH),
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=24,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        scheduler=DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("prediction", "num_patches"), [("epsilon", PROMPT_LENGTH - 1), ("v_prediction", 5)], ids=["noise", "velocity"]
)
def test_diva_tunes_as_the_stage(
    prediction: str, num_patches: int, tar: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diva, clip = plain("diva"), plain("clip")
    (tmp_path / "clip").mkdir()
    start = save_clip(build_clip(clip.SMALL, seed=7), tmp_path / "clip")
    source = stable_diffusion(tmp_path / "source", prediction)
    generator = import_generator(str(source), tmp_path / "generator")
    settings = {"preset": "diva-paper", "condition": {"type": "patches", "count": num_patches}, "lr": 0.1, "seed": 3}
    schedule = {"type": "cosine", "warmup_steps": WARMUP}
    stage = DivaTune(name="diva", clip="clip", data="pool", generator="sd", schedule=schedule, **settings, **TRAINING)
    tuned = run(stage, tmp_path, clip=start, pool=pool, sd=generator)
    weights = load_file(tuned.path / "open_clip_model.safetensors")

    def tune(change: Callable[[Any], object]) -> tuple[list[float], dict[str, Tensor]]:
        model = open_clip.create_model(f"local-dir:{start.path}")
        change(model.visual)
        frozen, images = diva.load_generator(str(source)), diva.read_images(tar)
        own = {"steps": STEPS, "batch_size": BATCH, "num_patches": num_patches, "lr": 0.1, "warmup": WARMUP, "seed": 3}
        return list(diva.train(model.visual, frozen, images, **own)), model.state_dict()

    # open_clip norms all tokens at once, vfm the class token and the patches apart, so that gradients of the norm and
    # of the projection are added in another order.
    losses, state = tune(lambda visual: None)
    assert_within(losses, losses_of(tuned), 1e-6)
    assert distance(weights, state) < 1e-6
    assert distance(weights, load_file(start.path / "open_clip_model.safetensors")) > 1e-3

    def norm_apart(visual: Any) -> None:
        monkeypatch.setattr(visual, "_pool", lambda x: (visual.ln_post(x[:, 0]), visual.ln_post(x[:, 1:])))

    losses, state = tune(norm_apart)
    assert losses == losses_of(tuned)
    assert distance(weights, state) == 0


# The commands


def command(name: str, *words: str | Path) -> None:
    """Run a file as a script."""
    before, sys.argv = sys.argv, [f"{name}.py", *map(str, words)]
    try:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


def test_each_file_runs_alone_on_what_the_one_before_it_has_written(
    tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metadata.txt").write_text("\n".join(ENTRIES))
    command("metaclip", tar, "metadata.txt", "--t", "5")
    kept = (tmp_path / "kept.tsv").read_text().splitlines()
    assert f"{len(kept)} kept" in capsys.readouterr().out
    assert 5 < len(kept) < 40
    command("metaclip", "kept.tsv", "metadata.txt", "--t", "1000", "--out", "again.tsv")
    assert (tmp_path / "again.tsv").read_text().splitlines() == kept
    capsys.readouterr()

    size = ("--steps", "2", "--batch-size", "4")
    command("clip", tar, "--kept", "kept.tsv", *size)
    clip = open_clip.create_model("local-dir:clip")
    command("eva", tar, "--teacher", "local-dir:clip", *size)
    student = timm.create_model("eva02_tiny_patch14_224", img_size=32, patch_size=8, num_classes=0, global_pool="avg")
    student.load_state_dict(load_file("eva.safetensors"))
    source = stable_diffusion(tmp_path / "sd")
    command("diva", tar, "--clip", "local-dir:clip", "--generator", source, "--patches", "11", *size)
    assert 0 < distance(load_file("diva.safetensors"), clip.state_dict()) < 0.1
    assert capsys.readouterr().out.count("step 2 of 2: loss ") == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_tar_without_samples_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "empty.tar", [("0", {"json": b"{}"})])
    (tmp_path / "metadata.txt").write_text("dog\n")
    more = {"metaclip": [tmp_path / "metadata.txt"], "clip": [], "eva": ["--teacher", "x"], "diva": []}
    if name == "diva":
        more["diva"] = ["--clip", "x", "--generator", "x"]
    with pytest.raises(SystemExit) as stopped:
        command(name, tmp_path / "empty.tar", *more[name])
    assert stopped.value.code == 2
    assert "expected" in capsys.readouterr().err.splitlines()[-1]
