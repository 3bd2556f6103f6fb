"""Command lines of LLaVA's train.py, whose options are also options of transformers' Trainer."""

from __future__ import annotations

import re

from vfm.base import UserError
from vfm.flow.conversion.arguments import OptionTable
from vfm.flow.conversion.draft import Draft, Fields, Tool, not_empty

OPTIONS = OptionTable(
    "LLaVA's train.py",
    converted="""
        model_name_or_path version freeze_backbone! tune_mm_mlp_adapter! vision_tower mm_vision_select_layer
        pretrain_mm_mlp_adapter mm_projector_type mm_use_im_start_end! mm_vision_select_feature data_path image_folder
        image_aspect_ratio optim lora_enable! lora_r lora_alpha mm_projector_lr bits bf16! fp16!
        per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps learning_rate weight_decay
        adam_beta1 adam_beta2 adam_epsilon max_grad_norm lr_scheduler_type warmup_ratio warmup_steps logging_steps seed
        gradient_checkpointing! dataloader_num_workers
    """,
    elsewhere={
        "output_dir run_name": "the store and the file of the recipe name a run: vfm run RECIPE --store FOLDER",
        "report_to": "vfm run RECIPE --track wandb, tensorboard, trackio or mlflow",
        "deepspeed fsdp fsdp_config": "runtime: {processes: N}; mllm.train replicates the model",
        "save_strategy save_steps save_total_limit": "checkpoint: {every_minutes: 5, keep_last: 2}",
        "evaluation_strategy eval_strategy eval_steps per_device_eval_batch_size do_train! do_eval!":
            "a stage eval.mllm after the training",
        "lazy_preprocess! remove_unused_columns! is_multimodal! mm_use_im_patch_token! dataloader_pin_memory!":
            "not needed",
        "tf32! torch_compile!": "runtime: {compile: blocks}",
        "resume_from_checkpoint": "not needed: the same vfm run resumes",
        "local_rank ddp_backend ddp_timeout ddp_find_unused_parameters": "not needed: processes are started by vfm",
        "cache_dir": "the environment variable HF_HOME",
        "overwrite_output_dir!": "not needed: every run is kept",
    },
    missing="""
        mm_patch_merge_type freeze_mm_mlp_adapter! mpt_attn_impl model_max_length double_quant! quant_type lora_dropout
        lora_weight_path lora_bias group_by_modality_length! group_by_length! label_smoothing_factor neftune_noise_alpha
        data_seed logging_strategy logging_first_step! load_best_model_at_end! metric_for_best_model push_to_hub!
        hub_model_id full_determinism! dataloader_drop_last! dataloader_prefetch_factor dataloader_persistent_workers!
        torch_compile_backend torch_compile_mode optim_args lr_scheduler_kwargs gradient_checkpointing_kwargs
        optim_target_modules average_tokens_across_devices! bf16_full_eval! fp16_full_eval! activation_checkpointing
        activation_checkpointing_kwargs use_liger_kernel! liger_kernel_config use_cache! torch_empty_cache_steps
        auto_find_batch_size! log_on_each_node! logging_nan_inf_filter! include_num_input_tokens_seen log_level
        log_level_replica disable_tqdm project trackio_space_id trackio_bucket_id trackio_static_space_id eval_delay
        prediction_loss_only! eval_on_start! eval_do_concat_batches! eval_use_gather_object! eval_accumulation_steps
        include_for_metrics batch_eval_metrics! save_only_model! save_on_each_node! enable_jit_checkpoint! hub_token
        hub_private_repo hub_strategy hub_always_push! hub_revision greater_is_better ignore_data_skip!
        restore_callback_states_from_checkpoint! use_cpu! accelerator_config parallelism_config
        dataloader_multiprocessing_context dataloader_in_order! label_names train_sampling_strategy length_column_name
        ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph debug skip_memory_metrics! do_predict!
    """,
    underscores=True,
)  # fmt: skip
OPENAI = {
    "openai/clip-vit-large-patch14": "ViT-L-14-quickgelu",
    "openai/clip-vit-large-patch14-336": "ViT-L-14-336-quickgelu",
    "openai/clip-vit-base-patch16": "ViT-B-16-quickgelu",
    "openai/clip-vit-base-patch32": "ViT-B-32-quickgelu",
}
SCHEDULES: dict[str, Fields] = {
    "cosine": {"type": "cosine"},
    "linear": {"type": "poly", "power": 1.0},
    "constant": {"type": "constant"},
    "constant_with_warmup": {"type": "constant"},
}


def convert_llava(draft: Draft) -> None:
    """Add the vision tower, the questions and the training to a draft.

    Raises:
        UserError: If vfm has nothing like it.
    """
    arguments = draft.arguments
    tower = arguments.text("vision_tower")
    if not tower:
        raise UserError("expected --vision_tower: vfm trains no language model without images")
    if tower in OPENAI:
        draft.add("models.clip", "tower", source=OPENAI[tower], pretrained="openai")
    else:
        # Any other name is a folder or a repository of the hub.
        draft.add("models.clip", "tower", source=tower if tower.startswith(("/", ".")) else f"hf-hub:{tower}")
    data = arguments.text("data_path")
    images = arguments.text("image_folder")
    if not data:
        raise UserError("expected --data_path FILE, got none")
    draft.add("mllm.questions", "questions", path=data, image_root=images)
    draft.notes.append("each turn of a conversation is a question here, without the turns before it")
    model = arguments.text("model_name_or_path", "facebook/opt-125m")
    fields: Fields = {"vision": "tower", "data": "questions", "trained": _trained(draft)}
    fields["language_model"] = {"type": "pretrained", "source": model}
    adapter = arguments.text("pretrain_mm_mlp_adapter")
    if adapter:
        fields["projector"] = adapter
    fields |= _inputs(draft) | _length(draft) | _rates(draft)
    fields |= {"precision": _precision(draft), "seed": arguments.count("seed", 42)}
    fields["log_every"] = max(1, arguments.count("logging_steps", 500))
    if arguments.flag("gradient_checkpointing"):
        fields["grad_checkpointing"] = True
    draft.add("mllm.train", "llava", **fields)


def _trained(draft: Draft) -> Fields:
    """Choose the trained weights of the language model. The projector is always trained."""
    arguments = draft.arguments
    if arguments.count("bits", 16) < 16:
        draft.lose("bits", "weights are not quantized")
    if arguments.flag("tune_mm_mlp_adapter") or arguments.flag("freeze_backbone"):
        return {"type": "frozen"}
    scale: Fields = {}
    projector = arguments.number("mm_projector_lr")
    if projector:
        scale = {"lr_scale": (arguments.number("learning_rate", 5e-5) or 0) / projector}
    if arguments.flag("lora_enable"):
        return {
            "type": "lora",
            "rank": arguments.count("lora_r", 64),
            "alpha": arguments.count("lora_alpha", 16),
            **scale,
        }
    return {"type": "all", **scale}


def _inputs(draft: Draft) -> Fields:
    """Choose how images and prompts become the model's input."""
    arguments = draft.arguments
    if arguments.text("mm_projector_type", "linear") != "mlp2x_gelu":
        draft.notes.append(f"--mm_projector_type {arguments.text('mm_projector_type', 'linear')}: here mlp2x_gelu")
    if arguments.text("version", "v0") not in ("v1", "plain"):
        draft.lose("version", "prompt: is that of Vicuna v1.5")
    if arguments.text("version") == "plain":
        draft.notes.append("--version plain: the questions of the data stay in the prompt")
    if arguments.flag("mm_use_im_start_end"):
        draft.lose("mm_use_im_start_end")
    patches = arguments.text("mm_vision_select_feature", "patch") == "patch"
    return {
        "layer": arguments.count("mm_vision_select_layer", -1),
        "tokens": "patches" if patches else "all",
        "prompt": "<image>{question}"
        if arguments.text("version") == "plain"
        else "USER: <image>\n{question} ASSISTANT:",
        "pad": arguments.text("image_aspect_ratio", "square") == "pad",
    }


def _length(draft: Draft) -> Fields:
    """Choose the batch and the length. The Trainer's batch is for each process."""
    arguments = draft.arguments
    command = draft.command
    batch = arguments.count("per_device_train_batch_size", 8)
    accumulated = arguments.count("gradient_accumulation_steps", 1)
    fields: Fields = {"global_batch_size": batch * accumulated * command.all_processes}
    draft.notes.append(f"--per_device_train_batch_size {batch} is for a process there, and global_batch_size over all")
    if accumulated > 1:
        fields["micro_batch_size"] = batch
    settings = {"processes": command.processes if command.processes > 1 else None}
    settings["workers"] = arguments.count("dataloader_num_workers", 0) or None
    draft.runtime |= not_empty(settings)
    steps = arguments.count("max_steps", -1)
    return fields | ({"steps": steps} if steps > 0 else {"epochs": arguments.number("num_train_epochs", 3)})


def _rates(draft: Draft) -> Fields:
    """Choose learning rate, schedule and optimizer."""
    arguments = draft.arguments
    shape = arguments.text("lr_scheduler_type", "linear")
    schedule = dict(SCHEDULES.get(shape, SCHEDULES["cosine"]))
    if shape not in SCHEDULES:
        draft.lose("lr_scheduler_type", "the recipe has cosine")
    ratio = arguments.number("warmup_ratio")
    steps = arguments.count("max_steps", -1)
    warmup = arguments.count("warmup_steps", 0) or round((ratio or 0) * max(0, steps))
    if ratio and not warmup:
        draft.notes.append(f"--warmup_ratio {ratio}: set schedule.warmup_steps to that share of the steps of vfm plan")
    schedule |= {"warmup_steps": warmup} if warmup else {}
    if not arguments.text("optim", "adamw_torch").startswith("adamw"):
        draft.lose("optim", "the recipe has adamw")
    optimizer: Fields = {
        "type": "adamw",
        # The defaults of transformers' Trainer, which runs LLaVA.
        "betas": [arguments.number("adam_beta1", 0.9), arguments.number("adam_beta2", 0.999)],
        "eps": arguments.number("adam_epsilon", 1e-8),
        "weight_decay": arguments.number("weight_decay", 0.0),
        "grad_clip_norm": arguments.number("max_grad_norm", 1.0),
    }
    lr = arguments.number("mm_projector_lr") or arguments.number("learning_rate", 5e-5)
    return {"lr": lr, "optimizer": optimizer, "schedule": schedule}


def _precision(draft: Draft) -> str:
    if draft.arguments.flag("bf16"):
        return "amp_bf16"
    if draft.arguments.flag("fp16"):
        return "amp_fp16"
    return "fp32"


LLAVA = Tool(
    re.compile(r"(.*/)?train(_mem|_xformers)?\.py|llava\.train\.train(_mem|_xformers)?"), OPTIONS, convert_llava
)
