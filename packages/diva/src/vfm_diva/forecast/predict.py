"""Measure a generator's knowledge and a CLIP model's gaps, and predict the feedback's gain (`diva.predict`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vfm.data import ImageTransform, load_choices
from vfm.eval import score_mmvp_vlm
from vfm.models import ClipModel, load_clip
from vfm.plugin import (
    PEAK_TFLOPS,
    UTILISATION,
    BarsPanel,
    Context,
    Metric,
    Preflight,
    Report,
    Score,
    TablePanel,
    TextPanel,
    seconds,
    short_name,
)
from vfm.statistics import bootstrap_interval, to_metric
from vfm.train import prepare_device
from vfm_diva.forecast.law import LAW, Floats, exposure
from vfm_diva.forecast.stages import DivaPredict
from vfm_diva.generator.conditioning import Conditioning
from vfm_diva.generator.generator import Generator, load_generator
from vfm_diva.generator.noise import NoiseSampler
from vfm_diva.prior.prior_task import PriorTask
from vfm_diva.prior.statement_losses import NUM_TIMES, patterns_and_items, rises, statement_losses, statement_pairs
from vfm_diva.tune.estimate import diva_tune_cost
from vfm_diva.tune.prompt import PromptEncoder
from vfm_diva.tune.stages import DivaTune


@dataclass(frozen=True)
class Knowledge:
    """A generator's knowledge of an attribute, and CLIP's accuracy on it.

    Attributes:
        pattern: Name of the attribute.
        preference: Share of its images that are denoised better with the right statement.
        low: Lower end of the preference's 95 % interval.
        high: Upper end of the interval.
        images: Number of images.
        pairs: CLIP's accuracy on the attribute's pairs.
    """

    pattern: str
    preference: float
    low: float
    high: float
    images: int
    pairs: Score

    @property
    def exposure(self) -> float:
        """Exposure of the attribute. The law multiplies it by its slope."""
        return float(exposure(self.preference, self.pairs.value))

    @property
    def exposure_error(self) -> float:
        """Half width of the exposure's 95 % interval, because images and pairs are few."""
        low, high = self.pairs.interval(0)
        of_preference = (self.high - self.low) / 2 * (1 - self.pairs.value)
        return math.hypot(of_preference, (high - low) / 2 * (self.preference - 0.5))


@dataclass(frozen=True)
class ExpectedGains:
    """Gains that the law predicts, with the half widths of their 95 % intervals.

    gains, widths: of each attribute, (C,).
    total, total_width: of all pairs together.
    """

    gains: Floats
    widths: Floats
    total: float
    total_width: float


def expected_gains(known: Sequence[Knowledge]) -> ExpectedGains:
    """Predict the gains of attributes by the law.

    An interval has three parts: the error of the law's slope, deviations from the law, and the errors of preference and
    accuracy. The first one is common to all attributes, and the others are independent.
    """
    exposures = np.array([each.exposure for each in known])
    errors = LAW.slope * np.array([each.exposure_error for each in known])
    gains, widths = LAW.predict(exposures)
    deviation = float(LAW.predict(0.0)[1])
    counts = np.array([each.pairs.num_independent for each in known])
    share = counts / counts.sum()
    common = LAW.slope_error * float(share @ exposures)
    independent = float(np.linalg.norm(share * np.hypot(deviation, errors)))
    return ExpectedGains(gains, np.hypot(widths, errors), float(share @ gains), math.hypot(common, independent))


class PromptedGenerator(nn.Module):
    """Pretrained generator that is conditioned on a prompt, encoded by its own text encoders.

    Args:
        generator: Generator that was loaded from a folder.
        prompt: Text before each statement.
    """

    def __init__(self, generator: Generator, prompt: str) -> None:
        super().__init__()
        assert generator.folder
        self.denoiser = generator.denoiser
        self.space = generator.space
        self.prompt = prompt
        self.encode = PromptEncoder(generator.folder)

    def condition_on_texts(self, texts: Sequence[str]) -> Conditioning:
        """Compute the conditioning on statements."""
        device: torch.device = next(self.denoiser.parameters()).device
        return self.encode([self.prompt + text for text in texts]).to(device)


def predict_gains(config: DivaPredict, ctx: Context) -> Report:
    """Run `diva.predict`.

    Raises:
        UserError: If the generator belongs to another CLIP model, or has neither a condition map nor text encoders.
    """
    device = prepare_device(config.runtime)
    clip = load_clip(ctx.load(config.clip))
    generator = load_generator(ctx.load(config.generator))
    data = config.data
    name = ctx.name_of(ctx.load(config.clip))
    source = _statement_source(clip, generator, config.prompt).to(device)
    clip.module.to(device)
    scores = score_mmvp_vlm(ctx, {name: clip}, ctx.load(data), prompt=config.prompt).results[name].scores
    by_metric = {score.metric: score for score in scores}
    pairs = list(statement_pairs(load_choices(ctx.load(data))))
    sampler = NoiseSampler(generator.noise_shape, NUM_TIMES, config.timesteps)
    losses = statement_losses(source, pairs, ImageTransform(generator.image_size, "crop"), sampler, seed=config.seed)
    prefers = rises(losses)
    patterns, items = patterns_and_items(pairs)
    known = []
    # Each pattern is forecast separately, since a generator knows some attributes better than others.
    for pattern in dict.fromkeys(patterns.tolist()):
        here = patterns == pattern
        low, high = bootstrap_interval(prefers[here], items[here], seed=config.seed)
        score = by_metric.get(f"pair_accuracy/{pattern}", by_metric["pair_accuracy"])
        known.append(Knowledge(pattern, float(prefers[here].mean()), low, high, int(here.sum()), score))
    expected = expected_gains(known)
    for line in _lines(known, expected):
        ctx.log(line)
    if config.preset:
        ctx.panel(_hours_panel(config, ctx, config.preset))
    return _report(config, ctx, known, expected)


def _hours_panel(config: DivaPredict, ctx: Context, preset: str) -> TextPanel:
    """Estimate the GPU hours of the tuning by a preset, as `vfm plan --estimate` does."""
    settings = {
        "name": "tune",
        "clip": config.clip,
        "generator": config.generator,
        "data": config.data,
        "preset": preset,
    }
    cost = diva_tune_cost(DivaTune.model_validate(settings), Preflight({}, ctx.inputs))
    time = seconds(cost, 1, 1e12 * PEAK_TFLOPS, UTILISATION)
    assert time is not None  # both models are known
    hours = f"{time / 3600:,.3g} GPU hours for {cost.flops:.3g} floating-point operations"
    assumed = f"{PEAK_TFLOPS:g} TFLOP/s, of which {100 * UTILISATION:g} % are reached"
    ctx.log(f"diva.tune with preset {preset}: {hours}")
    return TextPanel(
        title="What the feedback costs", order=12, text=f"diva.tune, preset {preset}: {hours} ({assumed})."
    )


def _statement_source(clip: ClipModel, generator: Generator, prompt: str) -> PriorTask | PromptedGenerator:
    """Build the module that conditions the generator on statements.

    It uses CLIP's text tower or the generator's own encoders.
    """
    if generator.condition_map:
        generator.condition_map.check_width(clip)
        generator.condition_map.check_space(clip)
        return PriorTask(clip, generator)
    return PromptedGenerator(generator, prompt)


def _lines(known: Sequence[Knowledge], expected: ExpectedGains) -> Iterator[str]:
    """Yield a line about each attribute, and one about all."""

    def points(gain: float, half: float) -> str:
        return f"{100 * gain:+.1f} points ({100 * (gain - half):+.1f} to {100 * (gain + half):+.1f})"

    for each, gain, half in zip(known, expected.gains.tolist(), expected.widths.tolist(), strict=True):
        # Its interval includes 50 %, which is chance.
        knows = "knows nothing of" if each.low <= 0.5 else "knows"
        preference = f"{100 * each.preference:.0f} % ({100 * each.low:.0f} to {100 * each.high:.0f})"
        yield (
            f"the generator {knows} {each.pattern or 'the pairs'}: it denoises {preference} of the images better with"
            f" their own statement, 50 % by chance. CLIP is right on {100 * each.pairs.value:.1f} % of the pairs. Gain"
            f" to expect: {points(gain, half)}"
        )
    yield f"gain to expect on all pairs: {points(expected.total, expected.total_width)}"


def _report(config: DivaPredict, ctx: Context, known: Sequence[Knowledge], expected: ExpectedGains) -> Report:
    """Write the report and its panels."""
    gains = expected.gains
    widths = expected.widths
    total = expected.total
    width = expected.total_width
    model = short_name(config.generator)
    metrics = list[Metric]()
    for each, gain, half in zip(known, gains.tolist(), widths.tolist(), strict=True):
        accuracy = to_metric(each.pairs, model=model)
        metrics += [
            Metric(
                name=f"gain/{each.pattern}", value=gain, unit="points", n=accuracy.n, low=gain - half, high=gain + half,
                model=model,
            ),
            Metric(
                name=f"preference/{each.pattern}", value=each.preference, n=each.images, low=each.low, high=each.high,
                model=model, chance=0.5,
            ),
            accuracy.model_copy(update={"name": f"accuracy/{each.pattern}"}),
        ]  # fmt: skip
    count = sum(each.pairs.num_independent for each in known)
    overall = Metric(
        name="gain", value=total, unit="points", n=count, low=total - width, high=total + width, model=model
    )
    ctx.panel(_table(known, gains, widths, overall))
    ctx.panel(
        BarsPanel(
            title="Gain to expect of feedback",
            note="In points of pair accuracy, with the 95 % prediction interval.",
            order=11,
            labels=[each.pattern for each in known],
            values=(100 * gains).tolist(),
            low=(100 * (gains - widths)).tolist(),
            high=(100 * (gains + widths)).tolist(),
            reference=0,
            x_label="points",
        )
    )
    return Report.create(
        ctx.directory, task="diva_predict", dataset=short_name(config.data), metrics=[overall, *metrics]
    )


def _table(known: Sequence[Knowledge], gains: Floats, widths: Floats, overall: Metric) -> TablePanel:
    def percent(value: float) -> float:
        return round(100 * value, 1)

    rows: list[list[str | float | int | None]] = []
    for each, gain, half in zip(known, gains.tolist(), widths.tolist(), strict=True):
        accuracy = each.pairs.value
        shares = (each.preference, each.low, each.high, accuracy, 1 - accuracy)
        rows.append([each.pattern, *map(percent, (*shares, gain, gain - half, gain + half))])
    rows.append(["all", *[None] * 5, *map(percent, (overall.value, overall.low, overall.high))])
    return TablePanel(
        title="What the generator knows, what CLIP lacks, and the gain to expect",
        note="Preference: images that are denoised better with their own statement than with the other one of the pair,"
        " 50 % by chance. Gain: by the law of the recipe diva_law, with its 95 % prediction interval, in points,"
        " which includes the errors of preference and pairs; it was fitted to small models of synthetic images.",
        order=10,
        columns=["attribute", "preference, %", "low", "high", "CLIP's pairs, %", "room", "gain", "low ", "high "],
        rows=rows,
    )
