"""Print the tables of `mask_claim` or `mask_images` over their seeds, with the tests fixed before they ran.

    uv run vfm run mask_claim && uv run --dev python packages/eva/benchmarks/mask_claim.py store/runs/mask_claim
    uv run --dev python packages/eva/benchmarks/mask_claim.py store/runs/mask_images@*

With `--image FILE` the scores are drawn, those of `mask_claim` against the share of masked patches. `--weaker RUN ...`
compares runs of `mask_images` with runs of the same seeds and a weaker teacher. `mask_images_blank` and
`mask_images_long` have their own tests.
Of a run of `mask_claim_controls` or `mask_images_controls`, only the scores of the controls are printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import scipy.stats
from mask_scores import (
    ENCODERS,
    END_POINT,
    LAST,
    LONG,
    PROBES,
    STUDENTS,
    Floats,
    Scores,
    is_control,
    problem_of,
    read_scores,
    run_probes,
    seeds_of,
)
from matplotlib.figure import Figure

from vfm.statistics import holm, paired_t, t_interval

MASKED = {"unmasked": 0, "masked_25": 25, "eva": 44, "masked_75": 75}  # percent of the patches, 0, 4, 7 and 12 of 16


def interval(values: Floats, signed: bool = False) -> str:
    """Format a mean with its 95 % t-interval."""
    low, high = t_interval(values)
    return f"{values.mean():{'+' if signed else ''}.1f} ({low:.1f} to {high:.1f})"


def print_models(scores: Scores) -> None:
    """Print the scores of the students and of the encoders, with their intervals."""
    print("| student | mean over log samples, % | after the last step, % |\n|---|---|---|")
    for student in STUDENTS:
        if (END_POINT, student) in scores:
            cells = [interval(scores[metric, student]) for metric in (END_POINT, LAST)]
            print(f"| `{student}` | {' | '.join(cells)} |")
    probes = run_probes(scores)
    print(f"\n| encoder | {' | '.join(probes)} |\n|---{'|---' * len(probes)}|")
    for encoder in ENCODERS:
        if (probes[0], encoder) in scores:
            cells = [interval(scores[probe, encoder]) for probe in probes]
            print(f"| `{encoder}` | {' | '.join(cells)} |")


def print_end_point(difference: Floats, margin: float) -> None:
    """Print the end point of each seed, its interval and the decision by the margin of equivalence."""
    low, high = t_interval(difference)
    if abs(low) < margin and abs(high) < margin:
        decision = "equivalent"
    elif low > 0 or high < 0:
        decision = "different"
    else:
        decision = "open"
    seeds = ", ".join(f"{value:+.1f}" for value in difference)
    p = scipy.stats.ttest_1samp(difference, 0).pvalue
    print(f"\nend point: {seeds}; {interval(difference, signed=True)},", end="")
    print(f" p = {p:.2g}, standard deviation {difference.std(ddof=1):.1f}, margin {margin:.1f}: {decision}")


def print_second(differences: dict[str, Floats]) -> None:
    """Print the other comparisons with p-values by Holm."""
    corrected = holm([scipy.stats.ttest_1samp(values, 0).pvalue for values in differences.values()])
    print("\n| second | points | p by Holm |\n|---|---|--:|")
    for (name, values), p in zip(differences.items(), corrected, strict=True):
        print(f"| {name} | {interval(values, signed=True)} | {p:.2g} |")


def print_tests(scores: Scores) -> None:
    """Print the tests of `mask_claim` and `mask_images`, and the gate of the teachers."""
    unmasked, masked = scores[END_POINT, "from_unmasked"], scores[END_POINT, "from_eva"]
    scratch = scores[END_POINT, "scratch"]
    print_end_point(unmasked - masked, margin=(unmasked - scratch).mean() / 2)
    second = {"from_eva - scratch": masked - scratch}
    if (END_POINT, "from_blank") in scores:
        second["from_eva - from_blank"] = masked - scores[END_POINT, "from_blank"]
    for probe in run_probes(scores):
        second[f"{probe}, unmasked - eva"] = scores[probe, "unmasked"] - scores[probe, "eva"]
    print_second(second)
    gate = scores["probe/lp_acc1", "teacher"] - scores["probe/lp_acc1", "untrained"]
    print(f"\ngate, teacher minus random weights: {', '.join(f'{value:+.1f}' for value in gate)}")


def print_blank_tests(scores: Scores) -> None:
    """Print the tests of `mask_images_blank`."""
    student = {model: values for (metric, model), values in scores.items() if metric == END_POINT}
    margin = (student["from_eva"] - student["scratch"]).mean() / 2
    print_end_point(student["from_eva"] - student["from_blank"], margin)
    print_second(
        {
            "from_unmasked - from_blank_unmasked": student["from_unmasked"] - student["from_blank_unmasked"],
            "from_blank - scratch": student["from_blank"] - student["scratch"],
            "linear probe, eva - of_blank": scores[PROBES[0], "eva"] - scores[PROBES[0], "of_blank"],
        }
    )


def print_long_tests(scores: Scores) -> None:
    """Print the scores after the last step and the tests of `mask_images_long`."""
    student = {model: values for (metric, model), values in scores.items() if metric == LONG}
    print("\n| student | after the last step, % |\n|---|---|")
    for model, values in student.items():
        print(f"| `{model}` | {interval(values)} |")
    margin = (student["from_eva"] - student["scratch"]).mean() / 2
    print_end_point(student["from_eva"] - student["scratch_long"], margin)
    print_second(
        {
            "from_unmasked - scratch_long": student["from_unmasked"] - student["scratch_long"],
            "scratch_long - scratch": student["scratch_long"] - student["scratch"],
        }
    )


def print_controls(scores: Scores) -> None:
    """Print the scores of the controls, which have one seed."""
    print("| student | mean over log samples, % | after the last step, % |\n|---|--:|--:|")
    for metric, model in scores:
        if metric == "curves_controls/mean_over_log_samples":
            last = scores["zero_shot_controls/acc1", model]
            print(f"| `{model}` | {scores[metric, model].item():.1f} | {last.item():.1f} |")
    for metric, model in scores:
        if metric == "probe_controls/lp_acc1":
            print(f"linear probe of unseen classes, {model}: {scores[metric, model].item():.1f} %")


def draw_masks(file: Path, scores: Scores) -> None:
    """Draw the end point and the probes against the share of masked patches, a line for each seed."""
    panels = {
        "student, mean over log samples (%)": (END_POINT, "from_{}", "scratch", "from scratch"),
        "linear probe of unseen classes (%)": ("probe/lp_acc1", "{}", "untrained", "random weights"),
        "dense probe, mean IoU (%)": ("dense/dense_miou", "{}", "untrained", "random weights"),
    }
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, (label, (metric, pattern, base, base_label)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        lines = np.array([scores[metric, pattern.format(encoder)] for encoder in MASKED])
        axes.plot(list(MASKED.values()), lines, color="tab:blue", alpha=0.3, linewidth=1)
        axes.plot(list(MASKED.values()), lines.mean(1), color="tab:blue", marker="o")
        axes.axhline(scores[metric, base].mean(), color="grey", linestyle="--", label=base_label)
        axes.set(xlabel="masked patches (%)", ylabel=label, xticks=list(MASKED.values()))
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(file, dpi=120)


def print_change(scores: Scores, weaker: Scores) -> None:
    """Print by how much the end point's difference changes from a weaker teacher to a stronger one, seed by seed."""
    stronger, before = (each[END_POINT, "from_unmasked"] - each[END_POINT, "from_eva"] for each in (scores, weaker))
    _, p = paired_t(before, stronger)
    print(f"end point, change from the weaker teacher: {interval(stronger - before, signed=True)}, p = {p:.2g}")


def draw_arms(file: Path, scores: Scores, weaker: Scores) -> None:
    """Draw the end point of the students and the linear probe of the encoders, a line for each seed."""
    panels = {
        "student, mean over log samples (%)": (END_POINT, ["scratch", "from_eva", "from_unmasked"]),
        "linear probe of unseen classes (%)": (PROBES[0], ["untrained", "eva", "unmasked", "teacher"]),
    }
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (label, (metric, models)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for runs, name, colour in ((weaker, "weaker teacher", "tab:grey"), (scores, "teacher", "tab:blue")):
            if runs:
                lines = np.array([runs[metric, model] for model in models])
                axes.plot(models, lines, color=colour, alpha=0.3, linewidth=1)
                axes.plot(models, lines.mean(1), color=colour, marker="o", label=name)
        axes.set(ylabel=label)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        if weaker:
            axes.legend(frameon=False, loc="upper left")
    figure.savefig(file, dpi=120)


def main(argv: list[str] | None = None) -> None:
    """Print the tables, and draw the image if it is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--weaker", type=Path, nargs="+", metavar="RUN", default=[])
    arguments = parser.parse_args(argv)
    if problem := problem_of(arguments.runs):
        parser.error(problem)
    scores = read_scores(arguments.runs)
    if is_control(scores):
        print_controls(scores)
        return
    if arguments.weaker:
        seeds, weaker_seeds = seeds_of(arguments.runs), seeds_of(arguments.weaker)
        if weaker_seeds != seeds:
            parser.error(f"--weaker: expected the seeds {seeds}, got {weaker_seeds}")
        if problem := problem_of(arguments.weaker):
            parser.error(f"--weaker: {problem}")
    print_models(scores)
    if (END_POINT, "from_blank_unmasked") in scores:
        print_blank_tests(scores)
        return
    if (LONG, "scratch_long") in scores:
        print_long_tests(scores)
        return
    print_tests(scores)
    weaker = read_scores(arguments.weaker)
    if weaker:
        print_change(scores, weaker)
    if arguments.image and (END_POINT, "from_masked_25") in scores:
        draw_masks(arguments.image, scores)
    elif arguments.image:
        draw_arms(arguments.image, scores, weaker)


if __name__ == "__main__":
    main()
