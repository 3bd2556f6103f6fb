"""What README and docs say works: commands are run, examples executed, recipes checked, links followed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image

import small
from outside import ROOT, checked, install
from vfm.interfaces import load_plugins, stage_types

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE = ROOT / "examples/plugin"

AS_IT_STANDS = "{}"
SMALL_QUICKSTART = "{} " + " ".join(f"--set '{setting}'" for setting in small.QUICKSTART)
SMALL_PAIRS = "{} " + " ".join(f"--set '{setting}'" for setting in small.PAIRS)
COLLECT = f"cd {ROOT} && pytest --collect-only -q"  # the command is what runs this test: only that it finds tests
LOCAL = "-e packages/curation -e packages/eva -e packages/clip -e packages/diva"
CPU_ONLY = (  # without PyTorch's own index, and nothing is installed
    f"command uv pip install --help | grep -A3 -e --torch-backend | grep -q cpu && cd {ROOT}"
    f" && command uv pip install --dry-run -p {sys.executable} {LOCAL}"
)
MADE = f'set -- {{}} && shift && {sys.executable} -m "$@" --defaults'  # by the copier of this environment
MADE_STORE = "echo 'stages: [{kind: shapes.pool, name: pool, num_samples: 8}]' > r.yaml && vfm run r.yaml"
EXTRA = 'set -- {} && shift 4 && "$@"'  # an extra that is here already
BENCHMARKS = ROOT / "packages/eva/benchmarks"
CLAIM = 'set -- {} && shift 4 && vfm plan "$@"'  # tests/test_claims.py or README's test runs them
RUN_THERE = f'set -- {{}} && grep -q "^    \\"$5\\": " {ROOT}/tests/test_claims.py'  # as it stands
SMALL_EVA_TINY = "{} --set probe_train.num_samples=72 --set probe.num_samples=72" + "".join(
    f" --set {name}.steps=2 --set {name}.schedule.warmup_steps=0" for name in ("teacher", "eva")
)
PLANNED = (  # the recipe of docs/scaling.md, over files that the reader has: nothing of that size is run here
    f"grep -A9 '^stages:' {ROOT}/docs/scaling.md | sed '/^```/,$d' > crawl.yaml"
    """ && echo crawl.warc.wat.gz | gzip > wat.paths.gz && echo '["dog"]' > metadata.json"""
    """ && set -- {} && shift 2 && vfm plan "$@" """
)
COCO128 = "mkdir -p coco128/images coco128/panoptic && touch coco128/panoptic/panoptic_train2017.json && "
PLANNED_ENCODERS = (  # the recipe of docs/results.md, over files that the reader has
    f"grep -A7 '^runtime: {{threads: 1}}' {ROOT}/docs/results.md | sed '/^```/,$d' > encoders.yaml"
    f" && touch flickr8k-train.tar && {COCO128}{CLAIM}"
)
WRITTEN = f"sed -n '/^# NAME.yaml$/,/^```/{{/^```/d;p}}' {ROOT}/docs/coming_from.md > NAME.yaml && "  # a recipe there
PLAN = 'set -- {} && shift 2 && vfm plan "$@"'
PHOTOS = "for a in imagenet/train imagenet/val cifar10; do mkdir -p $a/one && cp photo.jpg $a/one; done && "
NOT_HERE = ": {}"  # starts or stops a cluster, or needs data that are not here
PLANNED_STAGE = 'set -- {} && shift 2 && vfm plan "$1" $(printf "%s\\n" "$@" | grep -x -A1 -e --set)'
TORCHRUN = 'set -- {} && shift && python -c "import sys, torch.distributed.run as t; t.parse_args(sys.argv[1:])" "$@"'

# How each command of the documents is run; one that is not here fails. Later commands find what earlier ones have made:
# a changed number of steps has one training run again.
COMMANDS = {
    "pip install uv && uv run vfm run quickstart": SMALL_QUICKSTART,
    "uv run vfm run quickstart": SMALL_QUICKSTART,
    "uv run --dev pytest -n 3": COLLECT,
    f"uv venv && uv pip install --torch-backend cpu {LOCAL}": CPU_ONLY,
    "uv sync --all-extras": f"cd {ROOT} && command uv lock --check",  # all extras are one resolution
    "uv run --extra onnx vfm doctor": EXTRA,
    "uv run vfm run pairs --set pool.path=TRAIN.tar --set val.path=VAL.tar": SMALL_PAIRS,
    "uv run vfm run pairs --set pool.path=flickr8k-train.tar --set val.path=flickr8k-dev.tar"
    " --set 'pool.texts={en: json.en}' --set 'val.texts={en: json.en}' --set runtime.threads=1": CLAIM,
    "uv run vfm run metaclip_claim": RUN_THERE,
    "uv run vfm run dense_claim": RUN_THERE,
    "uv run vfm run vocabulary_claim": RUN_THERE,
    # It reads the results of the recipe, two hours.
    "uv run python packages/eva/benchmarks/vocabulary_gap.py": f"python {BENCHMARKS}/vocabulary_gap.py --help",
    "uv run vfm run video_claim": RUN_THERE,
    "uv run vfm run encoders.yaml": PLANNED_ENCODERS,
    "uv run vfm eval store/runs/encoders/artifacts/eva store/runs/encoders/artifacts/teacher"
    " random=store/runs/encoders/artifacts/untrained --data store/runs/encoders/artifacts/coco --tasks dense_probe"
    " --set coco-dense_probe.steps=500": NOT_HERE,  # needs the photographs; core's test_eval_dense_probe runs another
    "uv run vfm run metaclip_claim_pairs --set pool.path=flickr8k-train.tar --set val.path=flickr8k-dev.tar"
    " --set 'pool.texts={en: txt, all: json.en}' --set 'val.texts={en: txt, all: json.en}' --set nouns.language=all"
    " --set val_nouns.language=all --set nouns.words=[] --set nouns.wordnet=/usr/share/wordnet"
    " --set val_nouns.words=[] --set val_nouns.wordnet=/usr/share/wordnet": CLAIM,
    "uv run vfm run eva_tiny --set pool.path=flickr8k-train.tar --set val.path=flickr8k-dev.tar"
    " --set 'pool.texts={en: json.en}' --set 'val.texts={en: json.en}' --set nouns.words=[]"
    " --set nouns.wordnet=/usr/share/wordnet --set val_nouns.words=[]"
    " --set val_nouns.wordnet=/usr/share/wordnet": SMALL_EVA_TINY,
    "uv run vfm run eva_claim": RUN_THERE,
    "uv run vfm run eva_claim_more": RUN_THERE,
    "uv run vfm run eva_claim_rates": RUN_THERE,
    "uv run vfm run eva_claim_pairs --set pool.path=pool.tar --set few.path=few.tar --set choose.path=choose.tar"
    " --set val.path=flickr8k-dev.tar --set 'pool.texts={en: json.en}' --set 'few.texts={en: json.en}'"
    " --set 'choose.texts={en: json.en}' --set 'val.texts={en: json.en}'": "for name in pool few choose; do cp"
    f" flickr8k-train.tar $name.tar; done && {CLAIM}",
    "uv run vfm run eva_teachers": RUN_THERE,
    "uv run vfm run eva_teachers_pairs --set pool.path=flickr8k-train.tar --set val.path=flickr8k-dev.tar"
    " --set scenes.path=coco128/images --set scenes.annotations=coco128/panoptic/panoptic_train2017.json"
    " --set 'pool.texts={en: json.en}' --set 'val.texts={en: json.en}' --set nouns.words=[]"
    " --set nouns.wordnet=/usr/share/wordnet --set val_nouns.words=[]"
    " --set val_nouns.wordnet=/usr/share/wordnet": f"{COCO128}{CLAIM}",
    "uv run vfm run diva_tiny": RUN_THERE,
    "uv run vfm run diva_tiny_varied": RUN_THERE,
    "uv run vfm run diva_probes": RUN_THERE,
    "uv run vfm run open_segmentation_tiny": RUN_THERE,
    "uv run vfm run diva_sweep": RUN_THERE,
    "uv run vfm run diva_retention": RUN_THERE,
    "uv run vfm run mllm_tiny": RUN_THERE,
    "uv run vfm eval clip_flickr=store/runs/clip_flickr/artifacts/clip --suite small --root ."
    " --name eval_small": "{} --dry-run",
    "uv run vfm run clip_flickr --set pool.path=flickr8k-train.tar --set val.path=flickr8k-dev.tar"
    " --set runtime.threads=1": "{} --set clip.steps=2 --set clip.schedule.warmup_steps=0"
    " --set clip.global_batch_size=16",
    "uv run vfm run diva_flickr --set pool.path=flickr8k-train.tar --set val.path=flickr8k-dev.tar"
    " --set runtime.threads=1": "{}"
    + "".join(f" --set {name}.steps=2 --set {name}.global_batch_size=16" for name in ("clip", "prior", "diva"))
    + " --set clip.schedule.warmup_steps=0 --set prior.schedule.warmup_steps=0",
    "uv run vfm run clip_finetune --set start.source=store/runs/diva_flickr/artifacts/clip --set start.pretrained=null"
    " --set pool.path=flickr8k-train.tar --set val.path=flickr8k-dev.tar --set 'pool.texts={de: json.de}'"
    " --set 'val.texts={de: json.de}' --set pool.max_bad_fraction=0.2 --set val.max_bad_fraction=0.2"
    " --set general.path=/usr/share/tuxpaint/stamps --set locked.steps=150 --set unlocked.steps=150"
    " --set locked.lr=5e-4 --set unlocked.lr=3e-4 --set runtime.threads=1": "mkdir -p photos/a photos/b"
    f" && cp photo.jpg photos/a && cp photo.jpg photos/b && {CLAIM} --set general.path=photos",
    "make fuzz": f"cd {ROOT} && make -n fuzz",  # tests/test_fuzz.py runs 300 of its 5,000 cases
    "make flip-test": f"cd {ROOT} && make -n flip-test",  # core's tests flip fewer bits
    "make oracle-test": f"cd {ROOT} && make -n oracle-test",  # these are core's tests
    "uv run vfm verify store": f"{MADE_STORE} && {{}}",
    "make kill-test": f"cd {ROOT} && make -n kill-test",  # the test itself runs beside this one, with fewer kills
    "uv run vfm run curate --set pool.path=TRAIN.tar": "{} --set 'pool.texts={en: json.en}' --set entries.min_count=2",
    "uv run vfm embed store/runs/quickstart/artifacts/clip TRAIN.tar --out embeddings.parquet": AS_IT_STANDS,
    'uv run vfm predict store/runs/quickstart/artifacts/clip photo.jpg --classes "red star,blue circle"': AS_IT_STANDS,
    "uv run vfm predict store/runs/quickstart/artifacts/clip photo.jpg --index embeddings.parquet": AS_IT_STANDS,
    'uv run vfm search "a red star" photo.jpg --index embeddings.parquet': AS_IT_STANDS,
    "uv run vfm view store/runs/quickstart/artifacts/eva photo.jpg --out maps": AS_IT_STANDS,
    "uv run vfm export store/runs/quickstart/artifacts/clip --format onnx --out clip-onnx": AS_IT_STANDS,
    "uv run vfm eval store/runs/quickstart/artifacts/clip store/runs/quickstart/artifacts/teacher"
    " --data TRAIN.tar --tasks retrieval": AS_IT_STANDS,
    "uv run vfm finetune store/runs/quickstart/artifacts/clip TRAIN.tar --val VAL.tar": "{} --steps 2 --batch 16",
    "uv run vfm data TRAIN.tar": AS_IT_STANDS,
    "uv run vfm recipes": AS_IT_STANDS,
    "uv run vfm models": AS_IT_STANDS,
    "uv run vfm models ViT-B-32": AS_IT_STANDS,
    "uv run vfm init my.yaml": AS_IT_STANDS,
    "uv run vfm stages clip.train": AS_IT_STANDS,
    "uv run vfm plan quickstart": AS_IT_STANDS,
    "uv run vfm schema": AS_IT_STANDS,
    "uv run vfm doctor": AS_IT_STANDS,
    # tests/test_kill_and_resume.py and core's test_train_dist.py train in two processes
    "uv run vfm run quickstart --set runtime.processes=2": CLAIM,
    "uv run vfm run quickstart --prepare clip": f"{SMALL_QUICKSTART} --set clip.steps=3",
    "pip install ./examples/plugin": AS_IT_STANDS,
    "vfm plugins": AS_IT_STANDS,
    "uvx copier copy examples/plugin_template my-plugin": MADE,
    "pip install ./my-plugin": AS_IT_STANDS,
    "vfm run my-plugin/recipe.yaml": AS_IT_STANDS,
    "vfm run examples/plugin/recipe.yaml": AS_IT_STANDS,
    "vfm run crawl.yaml --set runtime.workers=16": PLANNED,
    "ray start --head --port=6379": NOT_HERE,
    "ray start --address=FIRST:6379": NOT_HERE,
    "vfm run crawl.yaml --set runtime.engine=ray --set runtime.ray_address=auto": PLANNED,
    "ray stop": NOT_HERE,
    "vfm run quickstart --prepare clip --set clip.runtime.parallel=fsdp"
    " --set clip.runtime.shard_degree=8": PLANNED_STAGE,
    "torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST:29500 --rdzv-id 1"
    " -m vfm step FOLDER": TORCHRUN,
    "vfm run quickstart --set clip.runtime.parallel=fsdp --set clip.runtime.shard_degree=8": PLANNED_STAGE,
    "vfm plan clip.yaml": "mkdir pairs && touch pairs/{0000..0099}.tar && "
    + PHOTOS
    + WRITTEN.replace("NAME", "clip")
    + PLAN,
    "vfm run clip.yaml": PLAN,
    "vfm finetune ViT-B-32-quickgelu,openai TRAIN.csv --val VAL.csv": "printf 'filepath,title\nphoto.jpg,red\n'"
    " | tee TRAIN.csv > VAL.csv && {} --dry-run",
    "vfm eval ViT-B-32-quickgelu,openai --data cifar10 --tasks zero_shot": "{} --dry-run",
    "vfm eval vit_base_patch16_224 --data imagenet/val --tasks classify": "{} --dry-run",
    "vfm plan finetune_vit.yaml": WRITTEN.replace("NAME", "finetune_vit") + PLAN,
    "vfm run metaclip.yaml": "touch CRAWL.warc.gz && echo '[\"dog\"]' > metadata.json && "
    + WRITTEN.replace("NAME", "metaclip")
    + PLAN,
    "vfm plan eva_02_b --set data.path=IMAGES.tar": "touch IMAGES.tar && {}",
    "vfm run diva_openai_l14 --set pool.path=IMAGES --set mmvp_vlm.path=MMVP_VLM --set imagenet.path=IMAGENET"
    " --set coco.path=COCO --set sd.source=SD": "mkdir IMAGES MMVP_VLM IMAGENET COCO SD && cp photo.jpg IMAGES && "
    + PLAN,
    "vfm run diva_published --set paths.released=RELEASED": "mkdir -p RELEASED/MMVP_VLM && " + PLAN,
    # packages/core/tests/test_flow_jobs.py submits jobs.
    "vfm run my.yaml --on slurm --job nodes=4 --job gpus_per_node=8 --job timeout_min=1440"
    " --job slurm_partition=gpu": NOT_HERE,
    "vfm run my.yaml --on local --job timeout_min=60": NOT_HERE,
}


@dataclass(frozen=True)
class Block:
    """A fenced part of a document."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where it stands, for people."""
        return f"{self.document.name}:{self.line}"


def blocks(document: Path, language: str) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [
        Block(document, text[: found.start()].count("\n") + 1, language, found[1])
        for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]


def all_blocks(language: str) -> list[Block]:
    return [block for document in DOCUMENTS for block in blocks(document, language)]


def commands(block: Block) -> list[str]:
    """The commands of a block: its lines, those that end in a backslash joined, comments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [" ".join(line.split("  #")[0].split()) for line in lines if line.strip() and not line.startswith("#")]


def test_every_command_has_a_rule_and_every_rule_a_command() -> None:
    found = {command: block.place for block in all_blocks("sh") for command in commands(block)}
    assert {command: place for command, place in found.items() if command not in COMMANDS} == {}
    assert sorted(set(COMMANDS) - set(found)) == []


def test_no_command_hides_in_a_fence_of_another_kind() -> None:
    languages = {match for document in DOCUMENTS for match in re.findall(r"^```(\w*)$", document.read_text(), re.M)}
    assert languages <= {"", "sh", "python", "yaml", "toml"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_commands_run(document: Path, wheels: Path, tmp_path: Path) -> None:
    """In order, in one folder, where `uv run` is this environment, and `pip install` fills one of its own."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    wanted = [command for block in blocks(document, "sh") for command in commands(block)]
    if document.name != "README.md":  # which runs it
        wanted = [command for command in wanted if command != "uv run vfm run quickstart"]
    programs = Path(sys.executable).parent
    if any(command.startswith("pip install ./") for command in wanted):
        programs = install(tmp_path / "box", wheels, "vfm-core[report]").python.parent
    elif any("vfm run pairs" in command for command in wanted):
        _made_pairs(tmp_path, {"TRAIN.tar": 0, "VAL.tar": 1, "flickr8k-train.tar": 0, "flickr8k-dev.tar": 1})
    Image.new("RGB", (80, 60), "red").save(tmp_path / "photo.jpg")
    shims = (
        'uv() { shift; "$@"; }\n'
        f'pip() {{ [ "$2" = uv ] || command uv pip "$1" -q -p {programs}/python --find-links {wheels} "${{@:2}}"; }}\n'
    )
    for command in wanted:
        script = shims + COMMANDS[command].replace("{}", command, 1)
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def _made_pairs(folder: Path, seeds: dict[str, int]) -> None:
    """Tars of pictures and captions, as the user's own."""
    for name, seed in seeds.items():
        recipe = f"stages:\n  - {{kind: shapes.pool, name: pool, num_samples: 150, seed: {seed}}}\n"
        (folder / "made.yaml").write_text(recipe)
        command = [sys.executable, "-m", "vfm", "run", "made.yaml", "--store", "made", "--quiet"]
        checked(subprocess.run(command, cwd=folder, capture_output=True, text=True))
        shutil.copy(folder / "made/runs/made/artifacts/pool/00000.tar", folder / name)


@pytest.mark.parametrize("page", sorted(ROOT.glob("packages/*/README.md")), ids=lambda page: page.parent.name)
def test_a_package_is_installed_by_the_line_on_its_page(page: Path, tmp_path: Path) -> None:
    """Only what the line names may come from this clone: the packages are on no index."""
    (words,) = re.findall(r"^    pip install (.*?)(?:  #.*)?$", page.read_text(encoding="utf-8"), re.MULTILINE)
    command = f"uv pip install --no-sources --dry-run --target {tmp_path} {words}"
    done = checked(subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True))
    assert f"vfm-{page.parent.name}" in done.stderr


EXAMPLES = {file.read_text(encoding="utf-8") for file in ROOT.glob("examples/**/*.py")}  # each has its own test
EXECUTED = [block for block in all_blocks("python") if block.text not in EXAMPLES]


@pytest.mark.parametrize("block", EXECUTED, ids=lambda block: block.place)
def test_python_example_runs(block: Block, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning", "-c"]
    checked(subprocess.run([*command, block.text], cwd=tmp_path, env=environment, capture_output=True, text=True))


DOCUMENTED = [*sorted(ROOT.glob("examples/*/*.py")), EXAMPLE / "pyproject.toml", EXAMPLE / "recipe.yaml"]


@pytest.mark.parametrize("file", DOCUMENTED, ids=lambda file: file.name)
def test_documented_plugins_are_those_that_are_installed(file: Path) -> None:
    text = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    assert f"```\n{file.read_text(encoding='utf-8')}```" in re.sub(r"```\w+\n", "```\n", text)


RECIPES = [block for block in all_blocks("yaml") if "words.count" not in block.text]


@pytest.mark.parametrize("block", RECIPES, ids=lambda block: block.place)
def test_recipe_is_well_formed(block: Block) -> None:
    """Kinds, keys and values are right, each stage by itself: files and artifacts that it names are the reader's."""
    known = stage_types(load_plugins())
    for stage in yaml.safe_load(block.text)["stages"]:
        known[stage["kind"]].model_validate(stage)


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, *sorted(ROOT.glob("packages/*/README.md"))], ids=lambda d: str(d.parent.name)
)
def test_links_lead_to_files_that_are_there(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []
