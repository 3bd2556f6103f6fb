"""What README and docs say works: commands are run, examples executed, recipes checked, links followed."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import small
from outside import ROOT, checked, install
from printed_text import differences
from vfm.data import REASONS
from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import load_plugins, stage_types
from vfm_curation import Filter
from vfm_diva import Anchor

RESULTS = ROOT / "docs/results.md"
CLAIMS = re.findall(r"\]\((results/\w+\.md)\)", RESULTS.read_text(encoding="utf-8"))  # in the order of its table
USED_TOGETHER = (
    "install", "data", "recipes", "runs", "models", "evaluation", "curation", "pretraining", "clip_training", "scaling"
)  # fmt: skip
# Documents whose commands run in one folder, in this order: later ones use the artifacts of earlier ones.
GROUPS = {
    "README.md": [ROOT / "README.md", *(ROOT / f"docs/{name}.md" for name in USED_TOGETHER)],
    "results.md": [RESULTS, *(RESULTS.parent / page for page in CLAIMS)],
}
ALONE = {*ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md"} - {page for pages in GROUPS.values() for page in pages}
GROUPS |= {page.name: [page] for page in sorted(ALONE)}
DOCUMENTS = [page for pages in GROUPS.values() for page in pages]
PACKAGE_PAGES = sorted(ROOT.glob("packages/*/README.md"))
EXAMPLE = ROOT / "examples/plugin"
DEBIANS = Path("/usr/share/wordnet")  # Debian's wordnet-base

AS_IT_STANDS = "{}"
SMALL_QUICKSTART = "{} " + " ".join(f"--set '{setting}'" for setting in small.QUICKSTART)
SMALL_PAIRS = "{} " + " ".join(f"--set '{setting}'" for setting in small.PAIRS)
IN_MAKEFILE = f'set -- {{}} && grep -q "^$2:" {ROOT}/Makefile'  # not every machine has make
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
PLANNED_ENCODERS = (  # the recipe of docs/results/coco128.md, over files that the reader has
    f"grep -A7 '^runtime: {{threads: 1}}' {ROOT}/docs/results/coco128.md | sed '/^```/,$d' > encoders.yaml"
    f" && touch flickr8k-train.tar && {COCO128}{CLAIM}"
)
WRITTEN = f"sed -n '/^# NAME.yaml$/,/^```/{{/^```/d;p}}' {ROOT}/docs/coming_from.md > NAME.yaml && "  # a recipe there
PLAN = 'set -- {} && shift 2 && vfm plan "$@"'
PAIR = "MMVP_VLM/MMVP_VLM_Images/A"
GIVEN = (
    f"mkdir -p IMAGES SD {PAIR} IMAGENET/one COCO && echo caption > COCO/a.txt"
    f" && for a in IMAGES/a IMAGENET/one/a COCO/a {PAIR}/1 {PAIR}/2; do cp photo.jpg $a.jpg; done"
    r" && printf 'id,type,statement\n1,A,one\n2,A,two\n' > MMVP_VLM/Questions.csv"
)
PHOTOS = "for a in imagenet/train imagenet/val cifar10; do mkdir -p $a/one && cp photo.jpg $a/one; done && "
CLASSES = "mkdir -p TRAIN/one VAL/one && cp photo.jpg TRAIN/one && cp photo.jpg VAL/one && "
MINE = "ln -sfn quickstart store/runs/mine && "  # the run of the reader
RECIPE = (  # the recipe of README.md, over files that the reader has
    f"sed -n '/^# recipe.yaml$/,/^```/{{/^```/d;p}}' {ROOT}/README.md > recipe.yaml"
    f" && mkdir -p shards && touch shards/{{00000..00099}}.tar && {PHOTOS}"
)
LISTED = f"cd {ROOT} && make -n"
SMALL_CLIP = (  # a run that is called quickstart, of one step
    "echo 'stages: [{kind: shapes.pool, name: pool, num_samples: 64}, {kind: clip.train, name: clip, data: pool,"
    " model: ViT-Pico-8-32, steps: 1, global_batch_size: 16, schedule: {warmup_steps: 0}}]' > quickstart.yaml"
    " && vfm run quickstart.yaml && "
)
PUBLISHED_PAIRS = (
    'images=\'RELEASED/MMVP_VLM/MLLM_VLM Images/Color\' && mkdir -p "$images" && cp photo.jpg "$images/1.jpg" &&'
    ' cp photo.jpg "$images/2.jpg" &&'
    " printf 'Question ID,Type,Statement\\n1,Color,red\\n2,Color,blue\\n' > RELEASED/MMVP_VLM/Questions.csv && "
)
NOT_HERE = ": <<'COMMAND'\n{}\nCOMMAND"  # starts or stops a cluster, or needs data or an address that are not here
PLANNED_STAGE = 'set -- {} && shift 2 && vfm plan "$1" $(printf "%s\\n" "$@" | grep -x -A1 -e --set)'
TORCHRUN = 'set -- {} && shift && python -c "import sys, torch.distributed.run as t; t.parse_args(sys.argv[1:])" "$@"'

# How each command of the documents is run; one that is not here fails. Later commands find what earlier ones have made:
# a changed number of steps has one training run again.
COMMANDS = {
    "pip install uv && uv run vfm run quickstart": SMALL_QUICKSTART,
    "uv run vfm run quickstart": SMALL_QUICKSTART,
    "uv run --dev pytest -n 3": COLLECT,
    "git clone https://github.com/OWNER/vfm && cd vfm": "mkdir vfm && : {}",
    "pip install uv && uv sync --dev": f"cd {ROOT} && command uv lock --check",
    "uvx pre-commit install": f"cd {ROOT} && command uvx -q pre-commit validate-config",
    "uv run --dev pytest packages/clip -n 2": f"cd {ROOT} && pytest packages/clip --collect-only -q",
    "uv run --dev pytest tests/test_language.py": f"cd {ROOT} && pytest tests/test_language.py --collect-only -q",
    "make check": f"{LISTED} check",
    "make test": f"{LISTED} test",
    "make docs": f"{LISTED} docs",  # tests/test_site.py builds it
    "uv run vfm plan recipe.yaml": f"{RECIPE}{{}}",
    "uv run vfm plan recipe.yaml --estimate": f"{RECIPE}{{}}",
    "uv run vfm run recipe.yaml --set clip.lr=1e-4": CLAIM,
    "uv run vfm run recipe.yaml --jobs 2": 'set -- {} && shift 4 && vfm plan "$1"',
    "uv run vfm finetune ViT-B-32,openai TRAIN.tar --val VAL.tar": "{} --dry-run",
    "vfm forecast ViT-L-14,openai --generator SD --pairs MMVP_VLM --preset diva-paper": f"{GIVEN} && {{}} --dry-run",
    "uv run vfm distill PHOTOS --teacher vit_base_patch14_dinov2.lvd142m"
    " --student vit_small_patch16_224": "mkdir -p PHOTOS && cp photo.jpg PHOTOS && {} --dry-run",
    "uv run vfm eval ViT-B-32,openai store/runs/pairs/artifacts/clip --data VAL.tar": "{} --dry-run",
    "uv run vfm eval ViT-B-32,openai store/runs/mine/artifacts/clip --suite diva29 --root CLIP_BENCHMARK": f"{MINE}"
    f"{PHOTOS}mkdir -p CLIP_BENCHMARK && mv cifar10 CLIP_BENCHMARK && {{}} --dry-run",
    "vfm eval ViT-B-32,openai store/runs/mine/artifacts/clip --suite diva29 --root CLIP_BENCHMARK": NOT_HERE,
    "uv run vfm eval before=store/runs/mine/artifacts/teacher store/runs/mine/artifacts/clip --data imagenet/val"
    " --tasks zero_shot,knn,few_shot --train imagenet/train": f"{MINE}{PHOTOS}{{}} --dry-run",
    "uv run vfm eval store/runs/mine/artifacts/clip --suite small --root .": f"{MINE}{{}} --dry-run",
    "python -m vfm_kernels explain --shape 8,257,16,88 --dtype bf16": AS_IT_STANDS,
    "vfm run diva_openai_l14 --set clip.source=ViT-L-14-336-quickgelu --set pool.path=IMAGES"
    " --set mmvp_vlm.path=MMVP_VLM --set imagenet.path=IMAGENET --set coco.path=COCO": f"{GIVEN} && {PLAN}"
    " --set sd.source=SD",
    # packages/diva/tests/test_path_to_llava.py exports look-alikes.
    "vfm export store/runs/diva_openai_l14/artifacts/diva --format llava --base LLAVA --out llava-tuned": NOT_HERE,
    "vfm export store/runs/diva_openai_l14/artifacts/diva --format hf --out tower": NOT_HERE,
    f"uv venv && uv pip install --torch-backend cpu {LOCAL}": CPU_ONLY,
    "uv build --all-packages --out-dir dist": NOT_HERE,  # as the fixture `wheels`, which tests/test_wheels.py installs
    "uv venv box && uv pip install -p box --torch-backend cpu --find-links dist vfm-curation vfm-eva vfm-clip vfm-diva"
    ' "vfm-core[torch,report]"': NOT_HERE,
    "uv sync --all-extras": f"cd {ROOT} && command uv lock --check",  # all extras are one resolution
    "uv run --extra onnx vfm doctor": EXTRA,
    "uv run vfm run pairs --set pool.path=TRAIN.tar --set val.path=VAL.tar": SMALL_PAIRS,
    "uv run vfm run pairs --set pool.path=flickr8k-train.tar --set val.path=flickr8k-dev.tar"
    " --set 'pool.texts={en: json.en}' --set 'val.texts={en: json.en}' --set runtime.threads=1": CLAIM,
    "uv run vfm run metaclip_claim": RUN_THERE,
    "uv run vfm run dense_claim": RUN_THERE,
    "uv run vfm run dense_claim_controls": RUN_THERE,
    "uv run vfm run dense_claim_controls --store pilot --set 'seeds=[100]' --set train.seed=2 --set val.seed=3"
    " --set tuned_untrained.steps=600": RUN_THERE,
    # They read the results of all seeds, and of the pilot.
    "uv run --dev python packages/eva/benchmarks/dense_claim.py store/runs/dense_claim_controls": NOT_HERE,
    "uv run vfm eval untrained=pilot/runs/dense_claim_controls/artifacts/untrained@100"
    " tuned=pilot/runs/dense_claim_controls/artifacts/tuned_untrained@100/encoder"
    " --data pilot/runs/dense_claim_controls/artifacts/val --tasks dense_probe --set val-dense_probe.steps=500"
    " --set 'val-dense_probe.lrs=[1e-2]'": NOT_HERE,
    "uv run vfm run vocabulary_claim": RUN_THERE,
    # It reads the results of the recipe, two hours.
    "uv run --dev python packages/eva/benchmarks/vocabulary_gap.py": f"python {BENCHMARKS}/vocabulary_gap.py --help",
    # tests/test_vocabulary_matched.py runs it at three steps.
    "uv run vfm run vocabulary_claim_matched --until objects": NOT_HERE,
    # It reads the results of five seeds; packages/eva/tests/test_eva_benchmarks.py runs it on others.
    "uv run --dev python packages/eva/benchmarks/vocabulary_gap.py --matched store/runs/vocabulary_claim_matched"
    " --image vocabulary_matched.png": NOT_HERE,
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
    # They need Tiny ImageNet; tests/test_metaclip_images.py runs script and recipe on small tables.
    "uv run --dev python packages/curation/benchmarks/tiny_imagenet.py TRAIN.parquet VAL.parquet CAPTIONS.tsv.gz"
    " DATA": NOT_HERE,
    "uv run vfm run metaclip_images --set 'seeds=[1]' --set tower_pairs.path=DATA/tower-1.parquet"
    " --set val.path=DATA/val-1.parquet --set clean.path=DATA/clean-1.parquet --set small.path=DATA/small-1.parquet"
    " --set large.path=DATA/large-1.parquet": NOT_HERE,
    "uv run --dev python packages/curation/benchmarks/metaclip_images.py store/runs TRAIN.parquet VAL.parquet DATA"
    " metaclip_images.png": NOT_HERE,
    "uv run vfm run eva_claim": RUN_THERE,
    "uv run vfm run eva_claim_more": RUN_THERE,
    "uv run vfm run eva_claim_rates": RUN_THERE,
    "uv run vfm run eva_claim_pairs --set pool.path=pool.tar --set few.path=few.tar --set choose.path=choose.tar"
    " --set val.path=flickr8k-dev.tar --set 'pool.texts={en: json.en}' --set 'few.texts={en: json.en}'"
    " --set 'choose.texts={en: json.en}' --set 'val.texts={en: json.en}'": "for name in pool few choose; do cp"
    f" flickr8k-train.tar $name.tar; done && {CLAIM}",
    "uv run vfm run eva_teachers": RUN_THERE,
    "uv run vfm run radio_tiny": RUN_THERE,
    "uv run vfm run teacher.yaml": NOT_HERE,  # needs the images; packages/eva/tests/test_distill.py runs others
    "uv run vfm distill images.parquet --teacher store/runs/teacher/artifacts/clip --student convnext_atto"
    " --image-size 64 --steps 160 --batch-size 32 --probe val.parquet --train train.parquet"
    " --set probe.label_key=wnid --set probe_train.label_key=wnid": NOT_HERE,
    "uv run vfm run eva_teachers_pairs --set pool.path=flickr8k-train.tar --set val.path=flickr8k-dev.tar"
    " --set scenes.path=coco128/images --set scenes.annotations=coco128/panoptic/panoptic_train2017.json"
    " --set 'pool.texts={en: json.en}' --set 'val.texts={en: json.en}' --set nouns.words=[]"
    " --set nouns.wordnet=/usr/share/wordnet --set val_nouns.words=[]"
    " --set val_nouns.wordnet=/usr/share/wordnet": f"{COCO128}{CLAIM}",
    "uv run vfm run diva_tiny": RUN_THERE,
    "uv run vfm run diva_law --jobs 2": RUN_THERE,
    "uv run vfm run diva_frontier --jobs 2": RUN_THERE,
    "uv run --dev python packages/diva/benchmarks/law.py store/runs/diva_law diva_law.png": NOT_HERE,
    "uv run vfm run mask_claim --jobs 2": RUN_THERE,
    "uv run vfm run mask_claim_controls --jobs 2": RUN_THERE,
    # They need Tiny ImageNet; tests/test_mask_images.py runs script and recipe on small tables.
    "uv run --dev python packages/curation/benchmarks/tiny_imagenet.py TRAIN.parquet VAL.parquet CAPTIONS.tsv.gz DATA"
    " --claim mask_images": NOT_HERE,
    "uv run vfm run mask_images --set 'seeds=[1]' --set pool.path=DATA/pool-1.parquet"
    " --set pairs.path=DATA/pairs-1.parquet --set val.path=DATA/seen-1.parquet"
    " --set unseen_train.path=DATA/unseen_train-1.parquet --set unseen_val.path=DATA/unseen_val-1.parquet": NOT_HERE,
    "uv run --dev python packages/eva/benchmarks/mask_claim.py store/runs/mask_images@*": NOT_HERE,
    "uv run --dev python packages/eva/benchmarks/mask_claim.py store/runs/mask_images_blank@*": NOT_HERE,
    "uv run --dev python packages/eva/benchmarks/mask_claim.py store/runs/mask_images_controls": NOT_HERE,
    "uv run --dev python packages/eva/benchmarks/mask_claim.py store/runs/mask_images_permuted": NOT_HERE,
    "uv run --dev python packages/eva/benchmarks/mask_claim.py store/runs/mask_images_long@*": NOT_HERE,
    # They read the results of five seeds, two hours.
    "uv run --dev python packages/eva/benchmarks/mask_claim.py store/runs/mask_claim --image mask_claim.png": NOT_HERE,
    "uv run --dev python packages/eva/benchmarks/mask_claim.py store/runs/mask_claim_controls": NOT_HERE,
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
    "make fuzz": IN_MAKEFILE,  # tests/test_fuzz.py runs 300 of its 5,000 cases
    "make ledger-test": IN_MAKEFILE,  # core's tests draw fewer layouts
    "make flip-test": IN_MAKEFILE,  # core's tests flip fewer bits
    "make oracle-test": IN_MAKEFILE,  # these are core's tests
    "uv run vfm verify store": f"{MADE_STORE} && {{}}",
    "make kill-test": IN_MAKEFILE,  # the test itself runs beside this one, with fewer kills
    "uv run vfm run curate --set pool.path=TRAIN.tar": "{} --set 'pool.texts={en: json.en}' --set entries.min_count=2",
    "uv run vfm embed store/runs/quickstart/artifacts/clip TRAIN.tar --out embeddings.parquet": AS_IT_STANDS,
    'uv run vfm predict store/runs/quickstart/artifacts/clip photo.jpg --classes "red star,blue circle"': AS_IT_STANDS,
    "uv run vfm predict store/runs/quickstart/artifacts/clip photo.jpg --index embeddings.parquet": AS_IT_STANDS,
    'uv run vfm search "a red star" photo.jpg --index embeddings.parquet': AS_IT_STANDS,
    "uv run vfm view store/runs/quickstart/artifacts/eva photo.jpg --out maps": AS_IT_STANDS,
    "uv run vfm export store/runs/quickstart/artifacts/clip --format onnx --out clip-onnx": AS_IT_STANDS,
    "uv run vfm run coco128.yaml": NOT_HERE,  # needs the images
    "uv run vfm export store/runs/coco128/artifacts/detector --format onnx --out detector-onnx": NOT_HERE,
    "python examples/dense_onnx.py detector-onnx photo.jpg --out drawn.png --min-score 0.2": NOT_HERE,
    # packages/eva/tests/test_dense_onnx.py runs both.
    "uv run vfm export DETECTOR --format onnx --out detector-onnx": NOT_HERE,
    "python examples/dense_onnx.py detector-onnx photo.jpg --out drawn.png": NOT_HERE,
    "uv run vfm export SEGMENTER --format pt2 --out segmenter-pt2": NOT_HERE,
    # packages/eva/tests/test_import_dense_eval.py evaluates two.
    "uv run vfm eval mask2former segformer=segformer-b0 --data scenes/test.tar --tasks segmentation": NOT_HERE,
    "uv run vfm eval hf-hub:nvidia/segformer-b0-finetuned-ade-512-512 --data ADEChallengeData2016": NOT_HERE,
    "uv run vfm eval store/runs/quickstart/artifacts/clip store/runs/quickstart/artifacts/teacher"
    " --data TRAIN.tar --tasks retrieval": AS_IT_STANDS,
    "uv run vfm finetune store/runs/quickstart/artifacts/clip TRAIN.tar --val VAL.tar": "{} --steps 2 --batch-size 16",
    "vfm export CLIP --format onnx --out clip-onnx": NOT_HERE,  # tests/test_serving.py calls `vfm.export`
    "vfm export CLIP --format hf --out clip-hf": NOT_HERE,
    "uv run vfm data TRAIN.tar": AS_IT_STANDS,
    "uv run vfm doctor TRAIN.tar": AS_IT_STANDS,
    "uv run vfm data TRAIN.tar --write pool.yaml": AS_IT_STANDS,
    "uv run vfm data TRAIN.csv --data-option 'texts=a photo of a {color} {name}'": "printf 'image,color,name\\n"
    "photo.jpg,red,dog\\n' > TRAIN.csv && {}",
    "uv run vfm finetune ViT-B-32,openai imagenet/train --val imagenet/val"
    " --data-option 'texts=a photo of a {label}'": f"{PHOTOS}{{}} --dry-run",
    "vfm doctor train.parquet": f"{sys.executable} {ROOT}/tests/first_hour.py . && {{}}",
    "vfm doctor captions.csv": AS_IT_STANDS,
    "vfm doctor resnet.pth": AS_IT_STANDS,
    "vfm classify train.parquet --val val.parquet --model resnet10t,resnet.pth": AS_IT_STANDS,
    "vfm data train.parquet --data-option 'texts=a photo of a {names}' --data-option 'columns=[site]'": AS_IT_STANDS,
    "vfm finetune ViT-Pico-8-32,none train.parquet --val val.parquet --data-option 'texts=a photo of a {names}'"
    " --steps 4 --batch-size 8": AS_IT_STANDS,
    "vfm eval ViT-Pico-8-32,none --data val.parquet --tasks zero_shot --by site": AS_IT_STANDS,
    "vfm embed store/runs/finetune/artifacts/tuned captions.csv --out index.parquet": AS_IT_STANDS,
    'vfm search "something red" --index index.parquet': AS_IT_STANDS,
    "embedding-atlas embeddings.parquet --text text --vector embedding": NOT_HERE,  # a server of another package
    "vfm doctor imagenet": f"{PHOTOS}mkdir -p imagenet/train/two && cp photo.jpg imagenet/train/two && {{}}",
    "vfm classify imagenet --model vit_small_patch16_224.augreg_in21k_ft_in1k": "{} --dry-run",
    "vfm classify TRAIN --val VAL --model ViT-B-32,openai --method probe": f"{CLASSES}{{}} --dry-run",
    "vfm classify TRAIN --val VAL --model ViT-B-32,openai --method knn": "{} --dry-run",
    "vfm classify TRAIN --val VAL --model vit_small_patch16_224,none --method finetune --epochs 10": "{} --dry-run",
    "vfm eval ViT-B-32,openai --data VAL --tasks zero_shot": "{} --dry-run",
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
    " --set coco.path=COCO --set sd.source=SD": f"{GIVEN} && {PLAN}",
    "vfm run diva_published --set paths.released=RELEASED": PUBLISHED_PAIRS + PLAN,
    "vfm from open_clip --output converted.yaml -- torchrun --nproc_per_node 4 -m open_clip_train.main"
    " --model ViT-B-32 --train-data pairs.tar --batch-size 256": AS_IT_STANDS,
    "vfm plan converted.yaml": NOT_HERE,  # the data do not exist; core's test_flow_conversion plans another
    "vfm data DOWNLOADED": f"{MADE_STORE} && mkdir DOWNLOADED && cp store/runs/r/artifacts/pool/*.tar DOWNLOADED"
    " && {}",
    "vfm plan downloaded.yaml": f"{WRITTEN.replace('NAME', 'downloaded')}{{}}",
    "vfm distill PHOTOS --steps 2000 --teacher vit_base_patch14_dinov2.lvd142m"
    " --student vit_small_patch16_224": "mkdir -p PHOTOS && cp photo.jpg PHOTOS && {} --dry-run",
    "vfm embed store/runs/quickstart/artifacts/clip PHOTOS --out embeddings.parquet": f"{SMALL_CLIP}{{}}",
    'vfm search "a red star" --index embeddings.parquet': AS_IT_STANDS,
    "vfm plan quickstart --set clip.micro_batch_size=16": AS_IT_STANDS,
    "vfm plan quickstart --set clip.grad_checkpointing=true": AS_IT_STANDS,
    "vfm plan quickstart --set clip.runtime.workers=auto": AS_IT_STANDS,
    "vfm plan quickstart --set runtime.processes=2": AS_IT_STANDS,
    "vfm plan quickstart --estimate": AS_IT_STANDS,
    "vfm run quickstart": f"{SMALL_CLIP}: {{}}",  # README's test runs it
    "vfm runs": AS_IT_STANDS,
    "vfm data PICTURES": "mkdir -p PICTURES && cp photo.jpg PICTURES && {}",
    "vfm finetune ViT-B-32,openai PAIRS.tar --lora --rank 16": "cp store/runs/quickstart/artifacts/pool/00000.tar"
    " PAIRS.tar && {} --dry-run",
    "vfm doctor": AS_IT_STANDS,
    "vfm doctor PICTURES": "mkdir -p PICTURES && cp photo.jpg PICTURES && {}",
    "vfm report quickstart --watch": AS_IT_STANDS,  # it ends, since the run has ended
    "vfm clean --keep-runs 3 --dry-run": AS_IT_STANDS,
    "vfm stages clip.train": AS_IT_STANDS,
    "vfm verify": AS_IT_STANDS,
    # packages/core/tests/test_flow_jobs.py submits jobs.
    "vfm run my.yaml --on slurm --job nodes=4 --job gpus_per_node=8 --job timeout_min=1440"
    " --job slurm_partition=gpu": NOT_HERE,
    # packages/core/tests/test_flow_stage_jobs.py submits a job for each stage.
    "vfm run my.yaml --on slurm --job-per-stage --job nodes=4 --job cpu.slurm_partition=small"
    " --job clip.timeout_min=2880": NOT_HERE,
    "vfm run my.yaml --on local --job timeout_min=60": NOT_HERE,
    "vfm run my.yaml --jobs 2": NOT_HERE,  # packages/core/tests/test_cli_jobs.py
    "vfm run my.yaml --jobs ray": NOT_HERE,  # packages/core/tests/test_flow_ray_jobs.py
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
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(document: Path, language: str) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [
        Block(document, text[: found.start()].count("\n") + 1, language, found[1])
        for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]


def all_blocks(language: str, documents: list[Path] = DOCUMENTS) -> list[Block]:
    return [block for document in documents for block in blocks(document, language)]


def commands(block: Block) -> list[str]:
    """The commands of a block: its lines, those that end in a backslash joined, comments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [" ".join(line.split("  #")[0].split()) for line in lines if line.strip() and not line.startswith("#")]


def test_every_command_has_a_rule_and_every_rule_a_command() -> None:
    every = all_blocks("sh", DOCUMENTS + PACKAGE_PAGES)
    found = {command: block.place for block in every for command in commands(block)}
    assert {command: place for command, place in found.items() if command not in COMMANDS} == {}
    assert sorted(set(COMMANDS) - set(found)) == []


def test_no_command_hides_in_a_fence_of_another_kind() -> None:
    languages = {match for document in DOCUMENTS for match in re.findall(r"^```(\w*)$", document.read_text(), re.M)}
    assert languages <= {"", "sh", "python", "yaml", "toml"}


SLOW = {"README.md", "results.md"}


@pytest.mark.parametrize("group", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in GROUPS])
def test_commands_run(group: str, wheels: Path, tmp_path: Path) -> None:
    """In order, in one folder, where `uv run` is this environment, and `pip install` fills one of its own."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    wanted = [command for block in all_blocks("sh", GROUPS[group]) for command in commands(block)]
    if group != "README.md":  # which runs it
        wanted = [command for command in wanted if command != "uv run vfm run quickstart"]
    programs = Path(sys.executable).parent
    if any(command.startswith("pip install ./") for command in wanted):
        programs = install(tmp_path / "box", wheels, "vfm-core[report]").python.parent
    elif any("vfm run pairs" in command for command in wanted):
        _made_pairs(tmp_path, {"TRAIN.tar": 0, "VAL.tar": 1, "flickr8k-train.tar": 0, "flickr8k-dev.tar": 1})
    Image.new("RGB", (80, 60), "red").save(tmp_path / "photo.jpg")
    wordnet = DEBIANS if DEBIANS.is_dir() else _made_wordnet(tmp_path / "wordnet")
    shims = (
        'uv() { shift; "$@"; }\n'
        f'pip() {{ [ "$2" = uv ] || command uv pip "$1" -q -p {programs}/python --find-links {wheels} "${{@:2}}"; }}\n'
    )
    for command in wanted:
        script = shims + COMMANDS[command].replace("{}", command, 1).replace(str(DEBIANS), str(wordnet))
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    for block in all_blocks("python", GROUPS[group]):
        if OF_QUICKSTART in block.text:
            run_python(block.text.replace(OF_QUICKSTART, SMALL_RUN), tmp_path)


def _made_pairs(folder: Path, seeds: dict[str, int]) -> None:
    """Tars of pictures and captions, as the user's own."""
    for name, seed in seeds.items():
        recipe = f"stages:\n  - {{kind: shapes.pool, name: pool, num_samples: 150, seed: {seed}}}\n"
        (folder / "made.yaml").write_text(recipe)
        command = [sys.executable, "-m", "vfm", "run", "made.yaml", "--store", "made", "--quiet"]
        checked(subprocess.run(command, cwd=folder, capture_output=True, text=True))
        shutil.copy(folder / "made/runs/made/artifacts/pool/00000.tar", folder / name)


def _made_wordnet(folder: Path) -> Path:
    """Files as WordNet's, with nouns of the captions of `_made_pairs`."""
    nouns = ("circle", "square", "star", "heart")
    folder.mkdir()
    for part in ("noun", "verb", "adj", "adv"):
        lemmas = nouns if part == "noun" else ()
        (folder / f"index.{part}").write_text("".join(f"{lemma} n 1 0 1 1 00000001\n" for lemma in lemmas))
        (folder / f"{part}.exc").touch()
    (folder / "cntlist.rev").write_text("".join(f"{lemma}%1:06:00:: 1 9\n" for lemma in nouns))
    return folder


@pytest.mark.parametrize("page", PACKAGE_PAGES, ids=lambda page: page.parent.name)
def test_a_package_is_installed_by_the_line_on_its_page(page: Path, tmp_path: Path) -> None:
    """Only what the line names may come from this clone: the packages are on no index."""
    (words,) = re.findall(r"^    pip install (.*?)(?:  #.*)?$", page.read_text(encoding="utf-8"), re.MULTILINE)
    command = f"uv pip install --no-sources --dry-run --target {tmp_path} {words}"
    done = checked(subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True))
    assert f"vfm-{page.parent.name}" in done.stderr


EXAMPLES = {file.read_text(encoding="utf-8") for file in ROOT.glob("examples/**/*.py")}  # each has its own test
OF_QUICKSTART = 'vfm.run("quickstart")'  # runs after the commands, in their folder
SMALL_SETTINGS = {name: yaml.safe_load(value) for name, _, value in (s.partition("=") for s in small.QUICKSTART)}
SMALL_RUN = f'vfm.run("quickstart", set={SMALL_SETTINGS})'
ELSEWHERE = ROOT / "docs/serving.md"  # tests/test_serving.py runs its files, each beside the others
EXECUTED = [
    block
    for block in all_blocks("python")
    if block.text not in EXAMPLES and OF_QUICKSTART not in block.text and block.document != ELSEWHERE
]


@pytest.mark.parametrize("block", EXECUTED, ids=lambda block: block.place)
def test_python_example_runs_and_prints_what_follows_it(block: Block, tmp_path: Path) -> None:
    output = run_python(block.text, tmp_path)
    if committed := printed_by(block):
        assert differences(committed, output) == []


def printed_by(block: Block) -> str:
    """The fence after an example, if the page says that the example prints it."""
    _, _, rest = block.document.read_text(encoding="utf-8").partition(block.text)
    output = re.match(r"```\n\nprints\n\n```\n(.*?)^```", rest, re.DOTALL | re.MULTILINE)
    return output[1] if output else ""


WRONG_MEANINGS = {
    "the dropped share for the kept": (
        "len(curated.kept) / len(captions):.0%",
        "1 - len(curated.kept) / len(captions):.0%",
    ),
    "a share for a percentage": ("len(captions):.0%", "len(captions):.2f"),
    "others counted": ('startswith("heron")', 'startswith("boat")'),
}


@pytest.mark.parametrize(("right", "wrong"), WRONG_MEANINGS.values(), ids=WRONG_MEANINGS)
def test_a_wrong_meaning_of_a_page_is_noticed(right: str, wrong: str, tmp_path: Path) -> None:
    """A test of the test: the changed example runs without an error, and prints something else."""
    (block,) = [block for block in EXECUTED if right in block.text]
    assert differences(printed_by(block), run_python(block.text.replace(right, wrong), tmp_path))


def run_python(code: str, folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning", "-c"]
    return checked(subprocess.run([*command, code], cwd=folder, env=environment, capture_output=True, text=True)).stdout


DOCUMENTED = [*sorted(ROOT.glob("examples/*plugin/*.py")), EXAMPLE / "pyproject.toml", EXAMPLE / "recipe.yaml"]


@pytest.mark.parametrize("file", DOCUMENTED, ids=lambda file: file.name)
def test_documented_plugins_are_those_that_are_installed(file: Path) -> None:
    text = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    assert f"```\n{file.read_text(encoding='utf-8')}```" in re.sub(r"```\w+\n", "```\n", text)


RECIPES = [block for block in all_blocks("yaml") if "words.count" not in block.text]


@pytest.mark.parametrize("block", RECIPES, ids=lambda block: block.place)
def test_recipe_loads(block: Block, tmp_path: Path) -> None:
    """Kinds, keys and values are right, and every input is an earlier stage of the right type."""
    (tmp_path / "recipe.yaml").write_text(block.text, encoding="utf-8")
    assert load_recipe(str(tmp_path / "recipe.yaml"), stage_types(load_plugins())).stages


def stages_of(page: str, kind: str) -> list[dict[str, Any]]:
    """The stages of a kind in the recipes of a page."""
    recipes = [yaml.safe_load(block.text) for block in blocks(ROOT / page, "yaml")]
    return [stage for recipe in recipes for stage in recipe["stages"] if stage["kind"] == kind]


def test_page_on_curation_shows_every_filter_and_the_paper_s_sources() -> None:
    (stage,) = stages_of("docs/curation.md", "curation.filter")
    ours = {name for name, choice in Filter.choices.items() if choice.__module__.startswith("vfm_curation.")}
    assert {choice["type"] for choice in stage["filters"]} == ours
    _, stage, _ = stages_of("docs/curation.md", "curation.metadata")
    assert {source["type"] for source in stage["merge"]} == {"wordnet", "wikipedia", "pageviews", "captions"}


def test_page_on_data_lists_every_reason_of_a_bad_sample() -> None:
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    assert [reason for reason in REASONS if f"`{reason}`" not in text] == []


def test_page_on_segmentation_has_the_numbers_of_the_comparison_with_naclips_code() -> None:
    found = json.loads((ROOT / "packages/core/benchmarks/results/open_segmentation_peer.json").read_text())
    text = " ".join((ROOT / "docs/detection.md").read_text(encoding="utf-8").split())
    assert f"features differ by {max(found['largest_difference_of_features'].values()):.1e} at most" in text
    assert f"cosines by {found['largest_difference_of_cosines']:.1e} at most" in text
    assert f"and {found['pixels_that_differ']} of {found['pixels']:,} pixels in their class" in text


def test_anchor_of_the_page_on_feedback_is_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks(ROOT / "docs/feedback.md", "python")
    (tmp_path / "my_anchor.py").write_text(block.text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("my_anchor")
    try:
        anchor = stage_types(load_plugins())["diva.tune"].model_validate(
            {"name": "d", "clip": "c", "data": "p", "generator": "g", "steps": 1, "anchor": {"type": "distance"}}
        )
        new, old = torch.eye(3)[:2]
        assert anchor.anchor.build(None)(new[None], old[None]).tolist() == [2.0]
    finally:
        del Anchor.choices["distance"]


@pytest.mark.parametrize("document", [*DOCUMENTS, *PACKAGE_PAGES], ids=lambda d: str(d.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d,.]*\d|\d", text))


def test_every_claim_has_a_row_whose_numbers_are_on_its_page() -> None:
    assert sorted(CLAIMS) == sorted(f"results/{page.name}" for page in RESULTS.with_suffix("").glob("*.md"))
    for row in RESULTS.read_text(encoding="utf-8").splitlines():
        for page in re.findall(r"\]\((results/\w+\.md)\)", row):
            answer = re.sub(r"`.*?`|\[.*", "", row)
            assert numbers(answer) - numbers((RESULTS.parent / page).read_text(encoding="utf-8")) == set(), row


@pytest.mark.parametrize(("pages", "longest"), [([ROOT / "README.md"], 130), (PACKAGE_PAGES, 60)])
def test_first_pages_are_short(pages: list[Path], longest: int) -> None:
    lengths = {page.parent.name: len(page.read_text(encoding="utf-8").splitlines()) for page in pages}
    assert {name: length for name, length in lengths.items() if length > longest} == {}
