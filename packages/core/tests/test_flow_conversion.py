"""Command lines of open_clip, timm, CLIP_benchmark and LLaVA become recipes, and no option is dropped in silence."""

from __future__ import annotations

import ast
import json
import random
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli_world import run_here
from peer_options import SNAPSHOT, options_of
from vfm.base import UserError
from vfm.flow.conversion import clip_benchmark, llava, open_clip, timm
from vfm.flow.conversion.arguments import OptionTable
from vfm.flow.conversion.command_lines import CommandLine, read_command_line
from vfm.flow.conversion.draft import Draft
from vfm.flow.conversion.tools import convert
from vfm.flow.recipe.recipe import load_recipe
from vfm.interfaces import load_plugins, stage_types

TABLES = [open_clip.OPTIONS, timm.TRAIN, timm.VALIDATE, clip_benchmark.OPTIONS, llava.OPTIONS]
INSTALLED = {
    "open_clip": "open_clip_train/params.py",
    "clip_benchmark eval": "clip_benchmark/cli.py",
    "LLaVA's train.py": "transformers/training_args.py",
}
# transformers' options when LLaVA was released, which its later versions have not.
OLDER_TRAINER = {"evaluation_strategy", "warmup_ratio", "overwrite_output_dir", "group_by_length", "tf32"}
OLDER_TRAINER |= {"local_rank", "torch_compile", "resume_from_checkpoint", "run_name"}


def installed_source(file: str) -> str:
    """The source of a module of an installed package, which is not imported. Empty without the package."""
    package, _, rest = file.partition("/")
    spec = find_spec(package) if package else None
    return (Path(str(spec.origin)).parent / rest).read_text(encoding="utf-8") if spec and spec.origin else ""


def installed_options(tool: str) -> dict[str, str]:
    return options_of(installed_source(INSTALLED.get(tool, "")))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.tool)
def test_a_table_has_the_options_of_the_peer_and_no_others(table: OptionTable) -> None:
    snapshot = dict(word.rsplit(":", 1) for word in json.loads(SNAPSHOT.read_text())[table.tool]["options"].split())
    installed = installed_options(table.tool)
    ours = {name: option.values for name, option in table.options.items()}
    older = OLDER_TRAINER if table is llava.OPTIONS else set()
    assert set(ours) - set(snapshot) - set(installed) - older == set()
    assert (set(snapshot) | set(installed)) - set(ours) == set()
    assert {name: values for name, values in snapshot.items() if ours[name] != values} == {}


def typed(option: Any, draw: random.Random) -> list[str]:
    """A way to type an option: its values, after the name or after `=`."""
    if option.values == "!":
        return [f"--{option.names[0]}"]
    value = str(draw.randint(1, 9))
    return [f"--{option.names[0]}={value}"] if draw.random() < 0.3 else [f"--{option.names[0]}", value]


@pytest.mark.parametrize("seed", range(20))
def test_words_are_read_as_by_open_clip_itself(seed: int) -> None:
    params = pytest.importorskip("open_clip_train.params")
    draw, known = random.Random(seed), installed_options("open_clip")
    table = open_clip.OPTIONS
    plain = ["lr", "wd", "warmup", "batch-size", "epochs", "seed", "name", "siglip", "lock-image", "lr-cooldown-end"]
    options = [table.options[name] for name in plain if name in known]
    words = [word for option in draw.sample(options, 6) for word in typed(option, draw)]
    words[:0] = ["--model", "ViT-B-32", "--epochs-c", "3"]  # a beginning is enough for argparse
    theirs, ours = params.parse_args(words), table.read(words)
    assert ours.text("epochs-cooldown") == str(theirs.epochs_cooldown)
    for option in options:
        given = getattr(theirs, option.names[0].replace("-", "_"))
        if option.values == "!":
            assert ours.flag(option.names[0]) == given
        elif option.names[0] in ours.values:
            assert type(given)(ours.text(option.names[0])) == given


def test_defaults_that_are_written_out_are_those_of_open_clip() -> None:
    params = pytest.importorskip("open_clip_train.params")
    words = ["--train-data", "a.tar", "--precision", "amp"]  # the default of the precision differs between versions
    draft = Draft(CommandLine("", words), open_clip.OPTIONS.read(words))
    open_clip.convert_open_clip(draft)
    theirs = vars(params.parse_args([]))
    assert len(draft.arguments.defaults) > 10
    assert draft.arguments.defaults == {name: theirs[name.replace("-", "_")] for name in draft.arguments.defaults}


SCRIPT = r"""#!/bin/bash
#SBATCH --nodes=32
#SBATCH --ntasks-per-node=4
# a comment
export DATA=/data/pairs
cd /shared/open_clip
srun --cpu_bind=v --accel-bind=gn python -u src/open_clip_train/main.py \
    --train-data="$DATA/{00000..41455}.tar" \
    --name "${EXPERIMENT}" \
    --batch-size=256 | tee log.txt
"""


@pytest.mark.parametrize(
    ("words", "processes", "machines"),
    [
        (["python", "-m", "open_clip_train.main", "--model", "RN50"], 1, 1),
        (["CUDA_VISIBLE_DEVICES=0 torchrun --nproc_per_node 4 -m open_clip_train.main --model RN50"], 4, 1),
        (["torchrun --nproc-per-node=8 --nnodes 2:4 src/training/main.py \\\n  --model RN50"], 8, 2),
        (["accelerate launch --num_processes 8 --num_machines 2 -m training.main --model RN50"], 4, 2),
        (["srun -N 3 --ntasks-per-node=2 python -m training.main --model RN50 2>&1"], 2, 3),
        (["srun -n 6 -N 3 python -m training.main --model RN50 && rm -r old"], 2, 3),
        (["deepspeed --num_gpus=2 open_clip_train/main.py \\n --model RN50 \\n"], 2, 1),
        (["mpirun -np 4 python -m training.main", "\\", "--model", "\n  RN50"], 4, 1),
        (["$ python -m training.main --model RN50 # as in the paper"], 1, 1),
        (["--model", "RN50"], 1, 1),
        ([SCRIPT], 4, 32),
    ],
)
def test_launchers_and_line_breaks_are_read(words: list[str], processes: int, machines: int) -> None:
    words = words if len(words) < 3 or words[0].startswith(("-", "python")) else " ".join(words).split(" ")
    line = read_command_line(words, open_clip.OPEN_CLIP.programs)
    assert (line.processes, line.machines) == (processes, machines)
    expected = ["--train-data=/data/pairs/{00000..41455}.tar", "--name", "$EXPERIMENT", "--batch-size=256"]
    assert line.words == (expected if words == [SCRIPT] else ["--model", "RN50"])


def stages_of(tool: str, command: str) -> dict[str, dict[str, Any]]:
    return {stage["name"]: stage for stage in yaml.safe_load(convert(tool, [command]).text)["stages"]}


def test_the_batch_of_a_process_becomes_the_batch_of_all() -> None:
    command = (
        "torchrun --nproc_per_node 4 --nnodes 2 -m training.main --train-data a.tar --batch-size 32 --accum-freq 3"
    )
    clip = stages_of("open_clip", command)["clip"]
    assert (clip["global_batch_size"], clip["micro_batch_size"]) == (4 * 2 * 32 * 3, 32)
    timm_command = "./distributed_train.sh 4 --data-dir d --model vit_tiny_patch16_224 -b 32"
    assert stages_of("timm", timm_command)["classifier"]["global_batch_size"] == 128
    llava_command = "deepspeed --num_gpus 8 llava/train/train_mem.py --vision_tower openai/clip-vit-large-patch14"
    llava_command += " --data_path d.json --per_device_train_batch_size 16 --gradient_accumulation_steps 2"
    assert stages_of("llava", llava_command)["llava"]["global_batch_size"] == 256


def test_every_option_is_in_the_recipe_or_named_in_its_comments() -> None:
    table = open_clip.OPTIONS
    for name in table.fates:
        option = table.options[name]
        words = [f"--{name}"] + ([] if option.values == "!" else ["17"])
        recipe = convert("open_clip", ["--train-data", "a.tar", *words])
        assert f"#   --{name}" in recipe.text
        assert (" ".join(words) in recipe.lost) == (table.fates[name] == "no counterpart")


@pytest.mark.parametrize(
    ("tool", "command", "message"),
    [
        ("open_clip", "python -m training.main --lr", "--lr: expected a value"),
        ("open_clip", "python -m training.main --train-data a.tar --lr fast", "--lr: expected a number, got 'fast'"),
        ("open_clip", "python -m training.main --bach-size 3", "open_clip has no option --bach-size; did you mean"),
        ("open_clip", "python -m training.main --model RN50", "expected --train-data to train, or --pretrained"),
        ("open_clip", "python train.py --model RN50", "expected a command with"),
        ("open_clip", "python -m training.main --name 'a", "not a whole command: no closing quotation"),
        ("open_clip", "python -m training.main --train-data a --model coca_base", "CoCa generates captions"),
        ("timm", "python train.py --dataset hfds/a --model vit_tiny_patch16_224", "--dataset hfds/a: expected files"),
        ("clip_benchmark", "clip_benchmark build a.json", "expected clip_benchmark eval, got build a.json"),
        ("clip_benchmark", "clip_benchmark eval --task captioning", "--task captioning"),
        ("llava", "deepspeed llava/train/train_mem.py --vision_tower x", "expected --data_path FILE"),
        ("clip", "x", "expected a command of open_clip, timm, clip_benchmark, llava, got clip"),
    ],
)
def test_a_command_that_cannot_be_converted_is_one_line(tool: str, command: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        convert(tool, [command])
    assert "\n" not in str(caught.value)


def test_the_command_writes_a_file_that_plans_and_names_what_is_lost(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    command = "python -m training.main --dataset-type synthetic --epochs 1 --use-bnb-linear x --report-to wandb"
    done = run_here("from", "open_clip", "--output", "clip.yaml", "--", *command.split())
    assert (done.code, done.errors) == (0, ["no counterpart: --use-bnb-linear x"])
    assert "--report-to wandb: vfm run RECIPE --track" in Path("clip.yaml").read_text()
    if find_spec("vfm_clip"):  # core's tests also run alone
        assert run_here("plan", "clip.yaml").code == 0
    again = run_here("from", "open_clip", "--output", "clip.yaml", "--", *command.split())
    assert (again.code, len(again.errors)) == (2, 1)
    printed = run_here("from", "open_clip", answers=command)
    assert printed.out == Path("clip.yaml").read_text()


def test_collections_of_datasets_are_those_of_clip_benchmark() -> None:
    source = installed_source("clip_benchmark/datasets/builder.py")
    if not source:
        pytest.skip("clip_benchmark is not installed")
    (theirs,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "dataset_collection"
    ]
    for name, datasets in clip_benchmark.COLLECTIONS.items():
        assert sorted(datasets) == sorted(theirs[name])


def test_a_converted_fine_tuning_has_none_of_evas_defaults(tmp_path: Path) -> None:
    """A mapping in a recipe changes the defaults of the stage, so what timm does not do has to be written."""
    pytest.importorskip("vfm_eva")
    recipe = tmp_path / "timm.yaml"
    recipe.write_text(convert("timm", ["python train.py d --model vit_tiny_patch16_224 --opt adamw"]).text)
    stages = {stage.name: stage for stage in load_recipe(str(recipe), stage_types(load_plugins())).stages}
    classifier: Any = stages["classifier"]
    assert (classifier.trained.layer_decay, classifier.trained.freeze_patch_embed) == (1.0, False)
    assert (classifier.drop_path, classifier.ema_decay, classifier.head_init_scale) == (0.0, None, 1.0)
    assert (classifier.augmentation.rand_augment, classifier.optimizer.weight_decay) == (None, 2e-5)


def test_published_commands_convert_except_those_without_a_counterpart(tmp_path: Path, monkeypatch: Any) -> None:
    """The table of `benchmarks/published_commands.py`, here without the plans."""
    pytest.importorskip("timm")
    pytest.importorskip("clip_benchmark")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import published_commands

    monkeypatch.chdir(tmp_path)
    published_commands.write_lists()
    failed: dict[str, int] = {}
    for command in published_commands.published():
        try:
            convert(published_commands.TOOLS[command.repository], [command.text])
        except UserError as error:
            reason = re.sub(r"--model \w.*?:", "--model:", str(error))
            failed[reason] = failed.get(reason, 0) + 1
    assert failed == published_commands.FAILURES
