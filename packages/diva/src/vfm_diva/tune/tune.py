"""Stage `diva.tune`: improve a CLIP's vision tower by a diffusion model's feedback."""

from __future__ import annotations

from dataclasses import replace

from vfm.data import BadSample, ImageTransform, TrainingData, decode_image, open_head, open_samples
from vfm.models import blueprint, load_clip, open_clip_incompatibility
from vfm.plugin import ClipCheckpoint, Context, EvaluationPolicy, ImageDataset, Preflight, UserError
from vfm.train import exporting, fit, show_panels
from vfm_diva.generator.generator import load_generator, randomize_weights
from vfm_diva.generator.inputs import MakeImageInputs, MakeTuneInputs, TuneInputs
from vfm_diva.generator.latents import check_latents, open_latents
from vfm_diva.generator.noise import NoiseSampler
from vfm_diva.parts.loss_parts import ViewLoss
from vfm_diva.parts.parts import TrainedAdapter
from vfm_diva.tune.conditioner import check_feedback, needs_prompt
from vfm_diva.tune.panels import before_after_panel, control_panel, image_samples_panel
from vfm_diva.tune.prompt import check_encoder, encode_prompt
from vfm_diva.tune.stages import DivaTune
from vfm_diva.tune.tune_task import TuneTask

NUM_CHECKED = 8  # images, of which at least one must be readable before anything runs


def check_tune(config: DivaTune, ctx: Preflight) -> None:
    """Check that an image can be read, widths fit and the CLIP model has the tokens that the condition needs.

    Only artifacts that exist are checked, and only configurations are read. When the stage runs, it also checks that
    the generator was trained on this CLIP model.

    Raises:
        UserError: If one of these checks fails.
    """
    clip = ctx.artifact(config.clip)
    generator = ctx.artifact(config.generator)
    data = ctx.artifact(config.data)
    config.trained.check()
    if data:
        check_readable(data)
    if clip and generator:
        model = blueprint(clip)
        loaded = load_generator(generator, weights=False)
        check_feedback(model, loaded, config)
        latents = ctx.artifact(config.latents) if config.latents else None
        if latents:
            shape = loaded.noise_shape_at(config.image_size or loaded.image_size)
            check_latents(latents, data, shape)
        if needs_prompt(model, loaded, config):
            check_encoder(generator.path)


def check_readable(data: ImageDataset) -> None:
    """Check that one of a dataset's first images can be read.

    Raises:
        UserError: If none can. The message names the first.
    """
    source = open_head(data)
    bad: list[str] = []
    for index in range(min(NUM_CHECKED, len(source))):
        try:
            decode_image(source[index].image, source.where(index))
            return
        except BadSample as error:
            bad.append(f"{error.where} ({error.reason})")
    if bad:
        raise UserError(f"{data.path}: none of the first {len(bad)} images can be read: {bad[0]}")


def tune_clip(config: DivaTune, ctx: Context) -> ClipCheckpoint:
    """Run `diva.tune`. Panels show losses and generated images before and after."""
    task = build_task(config, ctx)
    if config.preset == "recommended" and task.generator.condition_map and task.conditioner.adapter is not None:
        ctx.warn(
            "the generator has a map from CLIP's joint space, which the adapter replaces: preset: toy-prior uses it"
        )
    data = build_data(config, ctx, task)
    _train_adapter(config, ctx, task, data)
    fit(task, data, config, ctx)
    with exporting(config.runtime, ctx):
        checkpoint = task.export(ctx.directory)
    reason = open_clip_incompatibility(task.clip)  # of the merged tower
    if reason:
        ctx.warn(reason)
    if config.control:
        ctx.panel(control_panel(config.control))
    # At least two images per pass: each is also denoised with the conditioning of another one.
    batch_size = max(2, config.micro_batch_size or config.global_batch_size)
    show_panels(
        ctx,
        lambda: before_after_panel(task, data, batch_size=batch_size),
        lambda: image_samples_panel(task, data, ctx.directory),
    )
    return checkpoint


def build_task(config: DivaTune, ctx: Context) -> TuneTask:
    """Build the task of a configuration, with the models loaded."""
    checkpoint = ctx.load(config.generator)
    clip = load_clip(ctx.load(config.clip))
    generator = load_generator(checkpoint)
    if config.control == "random_prior":
        randomize_weights(generator, seed=config.seed)
    if config.grad_checkpointing:
        clip.module.set_grad_checkpointing()  # type: ignore[operator]
        generator.denoiser.network.enable_gradient_checkpointing()
    prompt = None
    if needs_prompt(clip, generator, config):
        prompt = encode_prompt(checkpoint.path, config.prompt.text)
    return TuneTask(clip, generator, config, prompt=prompt, seed=config.seed)


def build_data(config: DivaTune, ctx: Context, task: TuneTask) -> TrainingData[TuneInputs]:
    """Build the batches of a training run.

    Args:
        config: Settings of the tuning.
        ctx: Context of the stage.
        task: Task that the batches are for.
    """
    images = ctx.load(config.data)
    crops = config.augmentation
    sampler = NoiseSampler(task.generator.noise_shape_at(task.image_size), config.num_timesteps, config.timesteps)
    transform = ImageTransform(task.image_size, "crop", scale=crops.crop_scale, ratio=crops.crop_ratio)
    preprocess = task.clip.preprocess
    make = MakeImageInputs(transform, sampler, preprocess, sample_latents=config.sample_latents)
    if config.latents:
        cache = ctx.load(config.latents)
        stored, transform = open_latents(cache, images, task.generator, transform, config.global_batch_size)
        make = replace(make, transform=transform, stored=stored)
    num_draws = task.condition.num_draws * (config.num_timesteps if task.condition.draws_per_time else 1)
    view = None
    if isinstance(config.loss, ViewLoss):
        view = ImageTransform(
            preprocess.image_size,
            scale=config.loss.view_scale,
            ratio=config.loss.view_ratio,
            interpolation=preprocess.interpolation,
        )
    return TrainingData.of(config, open_samples(images, config, ctx), MakeTuneInputs(make, num_draws, view))


def _train_adapter(config: DivaTune, ctx: Context, task: TuneTask, data: TrainingData[TuneInputs]) -> None:
    """Train the adapter with CLIP frozen if `first_steps` is set. Its curves are in the folder `adapter`."""
    plan = first_training(config)
    if plan is None:
        return
    # A separate folder: otherwise the second training run would resume from the checkpoints of the first.
    adapter_ctx = replace(ctx, directory=ctx.directory / "adapter", work=ctx.work / "adapter")
    with task.adapter_only():
        fit(task, data, plan, adapter_ctx)


def first_training(config: DivaTune) -> DivaTune | None:
    """Derive the settings of the adapter's first training, with CLIP frozen.

    Returns:
        None without such a training.
    """
    adapter = config.adapter
    if not isinstance(adapter, TrainedAdapter) or not adapter.first_steps:
        return None
    return config.model_copy(
        update={
            "steps": adapter.first_steps,
            "samples_seen": None,
            "lr": adapter.first_lr,
            "evaluation": EvaluationPolicy(),
        }
    )
