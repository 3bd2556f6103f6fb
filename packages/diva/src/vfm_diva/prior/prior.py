"""Train a small diffusion model over a CLIP's joint space, and report its results (`diva.prior`)."""

from __future__ import annotations

from dataclasses import replace

import torch

from vfm.data import ImageTransform, TrainingData, load_choices, open_samples
from vfm.models import ClipModel, blueprint, load_clip
from vfm.plugin import Context, GeneratorCheckpoint, ImageDataset, PairDataset, Preflight, UserError
from vfm.train import fit, prepare_device, show_panels
from vfm_diva.generator.generator import Generator, build_generator
from vfm_diva.generator.inputs import MakeImageInputs, MakePriorInputs
from vfm_diva.generator.latents import check_latents, open_latents
from vfm_diva.generator.noise import NoiseSampler
from vfm_diva.generator.space import check_sampling, load_latent_space
from vfm_diva.prior.panels import condition_panel, samples_panel
from vfm_diva.prior.prior_task import PriorTask, measure_data, states_width
from vfm_diva.prior.stages import DivaPrior
from vfm_diva.prior.statement_losses import NUM_TIMES, statement_panel


def check_prior(config: DivaPrior, ctx: Preflight) -> None:
    """Check that the captions exist, the CLIP model can be read, and the VAE fits the image size.

    Raises:
        UserError: If one of these checks fails.
    """
    data = ctx.artifact(config.data)
    clip = ctx.artifact(config.clip)
    if data:
        _language(config, data)
    vae = ctx.artifact(config.vae) if config.vae else None
    latents = ctx.artifact(config.latents) if config.latents else None
    if clip and (vae or config.vae is None):
        with torch.device("meta"):  # shapes without weights: models of any size cost no memory
            generator = build_prior(config, blueprint(clip), vae, weights=False)
        if config.sample_latents:
            check_sampling(generator.space)
        if latents:
            check_latents(latents, data, generator.noise_shape)


def train_prior(config: DivaPrior, ctx: Context) -> GeneratorCheckpoint:
    """Run `diva.prior`. Panels show samples, and the effect of the condition on the loss."""
    images = ctx.load(config.data)
    language = _language(config, images)
    clip = load_clip(ctx.load(config.clip))
    generator = build_prior(config, clip, ctx.load(config.vae) if config.vae else None)
    if config.grad_checkpointing:
        generator.denoiser.network.enable_gradient_checkpointing()
    task = PriorTask(clip, generator, condition_noise=config.condition.noise)
    task.to(prepare_device(config.runtime))  # before the data are measured with its models
    samples = open_samples(images, config, ctx)
    data = TrainingData.of(config, samples, _make_inputs(config, ctx, task, images, language))
    measure_data(task, data, with_gap=config.condition.source in ("text", "both"))
    fit(task, data, config, ctx)
    checkpoint = task.export(ctx.directory)
    show_panels(
        ctx,
        lambda: condition_panel(task, data, with_texts=language is not None),
        lambda: samples_panel(task, data, language, ctx.directory),
    )
    if config.choices:
        choices = load_choices(ctx.load(config.choices))
        transform = ImageTransform(generator.image_size, "crop")
        sampler = NoiseSampler(generator.noise_shape, NUM_TIMES, config.timesteps)
        show_panels(ctx, lambda: statement_panel(task, choices, transform, sampler, seed=config.seed))
    return checkpoint


def build_prior(
    config: DivaPrior, clip: ClipModel, vae: GeneratorCheckpoint | None, *, weights: bool = True
) -> Generator:
    """Build the generator of a configuration with random weights.

    Args:
        config: Settings of the prior.
        clip: CLIP model whose embeddings condition it.
        vae: Generator to take the VAE from. None works in pixels.
        weights: False on the meta device.
    """
    of_states = config.condition.source == "text_states"
    return build_generator(
        image_size=config.image_size,
        embed_dim=None if of_states else clip.embed_dim,
        num_tokens=config.condition.num_tokens,
        condition_width=states_width(clip) if of_states else config.condition.width,
        layers=config.condition.layers,
        network=config.denoiser,
        prediction=config.prediction,
        space=load_latent_space(vae.path, weights=weights) if vae else None,
        seed=config.seed,
    )


def _language(config: DivaPrior, data: ImageDataset) -> str | None:
    """Choose the language of the captions.

    Returns:
        None if the prior is trained on images alone.

    Raises:
        UserError: If there are no captions, or none in the language, and the condition needs them.
    """
    if isinstance(data, PairDataset):
        data.check_languages([config.language], config.data)
        if data.languages:
            return config.language or data.languages[0]
    if config.condition.source != "image":
        raise UserError(
            f"data: {config.data} has no captions, which condition.source: {config.condition.source} needs; set it to"
            " image"
        )
    return None


def _make_inputs(
    config: DivaPrior, ctx: Context, task: PriorTask, data: ImageDataset, language: str | None
) -> MakePriorInputs:
    generator = task.generator
    clip = task.clip
    condition = config.condition
    sampler = NoiseSampler(generator.noise_shape, 1, config.timesteps)
    transform = ImageTransform(generator.image_size, "crop")
    images = MakeImageInputs(transform, sampler, clip.preprocess, sample_latents=config.sample_latents)
    if config.latents:
        cache = ctx.load(config.latents)
        stored, transform = open_latents(cache, data, generator, transform, config.global_batch_size)
        images = replace(images, transform=transform, stored=stored)
    return MakePriorInputs(
        images,
        clip.tokenizer,
        language or "",
        embed_dim=clip.embed_dim,
        text_share={"image": 0.0, "both": condition.text_share}.get(condition.source, 1.0),
        dropout=condition.dropout,
    )
