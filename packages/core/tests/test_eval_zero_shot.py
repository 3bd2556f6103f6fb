"""Zero-shot with other class names, on a subset of the classes, and with several labels per image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from eval_world import NAMES, ColourModel, labeled, run_in, tiny_clip
from vfm.base import UserError
from vfm.data.labeled.tags import TAGS_FILE, write_tags
from vfm.data.prompts.templates import sentences_of
from vfm.eval.classify.checks import check_zero_shot, check_zero_shot_classes
from vfm.eval.classify.stages import ZeroShot
from vfm.eval.classify.zero_shot import Prompts, score_zero_shot, sentence_classifier
from vfm.interfaces import LabeledDataset, Preflight, TaggedImages
from vfm.models import load_clip
from vfm.plugin import ReadSettings

ORACLE = {"right": ColourModel()}


def test_only_classes_with_images_can_be_predicted_with_only_present(tmp_path: Path) -> None:
    """ImageNet-A and -R have images of 200 of 1,000 classes; the others must not be predicted."""
    data = labeled(tmp_path / "data", 3)  # images of red, green and blue; seven names
    wrong = {"wrong": ColourModel(-1.0)}
    among_all = score_zero_shot(run_in(tmp_path / "all").ctx, wrong, data).results
    among_some = score_zero_shot(run_in(tmp_path / "some").ctx, wrong, data, prompts=Prompts(only_present=True)).results
    assert among_all["wrong"].predictions["images"]["predicted"].tolist() == [4, 5, 3]  # the opposite colours
    assert set(among_some["wrong"].predictions["images"]["predicted"].tolist()) <= {0, 1, 2}
    scores = {score.metric: score for score in among_some["wrong"].scores}
    assert scores["acc1"].chance == pytest.approx(1 / 3)
    assert "acc5" not in scores  # meaningless for three classes


def test_classes_without_an_image_cause_a_warning(tmp_path: Path) -> None:
    data, whole = labeled(tmp_path / "data", 3), labeled(tmp_path / "whole", 7)
    some, everything = run_in(tmp_path / "some", photos=data), run_in(tmp_path / "all", photos=whole)
    score_zero_shot(some.ctx, ORACLE, data)
    score_zero_shot(everything.ctx, ORACLE, whole)
    messages = [event.data["message"] for event in some.events if event.type == "warning"]
    assert messages == ["photos: 4 of 7 classes have no image: 'yellow', 'cyan', 'magenta', 'white'"]
    assert not [event for event in everything.events if event.type == "warning"]


@pytest.mark.parametrize(("names", "warned"), [(NAMES, False), ([f"n0144076{n}" for n in range(7)], True)])
def test_numbers_as_class_names_cause_a_warning(
    tmp_path: Path, names: list[str], warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vfm.eval.classify.zero_shot.NUM_DIGITS", 6)
    data, run = labeled(tmp_path / "data", 7), run_in(tmp_path / "out")
    model = {"clip": load_clip(tiny_clip(tmp_path / "clip", 0).path)}
    score_zero_shot(run.ctx, model, data, prompts=Prompts(class_names=names))
    messages = [event.data["message"] for event in run.events if event.type == "warning"]
    assert [message.partition(",")[0] for message in messages] == ["class names 'n01440760'"] * warned


def test_labels_keep_their_numbers_if_the_first_classes_have_no_images(tmp_path: Path) -> None:
    data = labeled(tmp_path / "data", 7, broken=[0, 1, 2])
    run = run_in(tmp_path / "out")
    reading = ReadSettings(max_bad_fraction=0.5)
    found = score_zero_shot(run.ctx, ORACLE, data, prompts=Prompts(only_present=True), reading=reading).results
    columns = found["right"].predictions["images"]
    assert columns["predicted"].tolist() == columns["label"].tolist() == [3, 4, 5, 6]


def test_other_class_names_are_used_and_recorded(tmp_path: Path) -> None:
    data, clip = labeled(tmp_path / "data", 14), tiny_clip(tmp_path / "clip", 0)
    names = ["rosso", "verde", "blu", "giallo", "ciano", "magenta", "bianco"]
    stage = ZeroShot(
        kind="eval.zero_shot", name="z", models=["clip"], data="d", language="it", class_names=names, templates=["{}"]
    )
    report = stage.run(run_in(tmp_path / "out", d=data, clip=clip).ctx)
    (file,) = (tmp_path / "out" / "results").glob("*.json")
    assert '"language": "it"' in file.read_text()
    assert '"giallo"' in file.read_text()
    swapped = [names[(n + 1) % 7] for n in range(7)]
    other = stage.model_copy(update={"class_names": swapped})
    models = {"clip": load_clip(clip.path)}
    evaluated = [one.evaluate(run_in(tmp_path / f"{n}", d=data).ctx, models) for n, one in enumerate((stage, other))]
    first, second = (found.results["clip"].predictions["images"]["predicted"] for found in evaluated)
    assert ((second + 1) % 7 == first).all()  # the names moved, the images did not
    assert report.metrics[0].n == 14


def test_class_names_that_do_not_match_the_labels_are_refused(tmp_path: Path) -> None:
    data = labeled(tmp_path / "data", 7)
    stage = ZeroShot(kind="eval.zero_shot", name="z", data="d", class_names=["one", "two"])
    with pytest.raises(UserError, match="class_names: expected one per class of d, 7, got 2"):
        check_zero_shot_classes(stage, data)
    with pytest.raises(UserError, match="class_names: expected one per class, 7, got 2"):
        score_zero_shot(run_in(tmp_path / "out").ctx, ORACLE, data, prompts=Prompts(class_names=["one", "two"]))
    one = labeled(tmp_path / "one", 1)
    with pytest.raises(UserError, match="one: expected images of two or more classes, got one class"):
        score_zero_shot(run_in(tmp_path / "more").ctx, ORACLE, one, prompts=Prompts(only_present=True))


def test_each_label_ranks_the_images(tmp_path: Path) -> None:
    data, folder = labeled(tmp_path / "data", 14), tmp_path / "tags"
    folder.mkdir()
    write_tags(folder / TAGS_FILE, [[n % 7] for n in range(14)])
    facts = {"num_samples": 14, "class_names": NAMES, "templates": ["a {} one"], "num_images": [2] * 7}
    tags = TaggedImages.create(folder, data=str(data.path), **facts)
    found = score_zero_shot(run_in(tmp_path / "out").ctx, {**ORACLE, "wrong": ColourModel(-1.0)}, tags).results
    values = {name: {v.metric: v.value for v in result.scores} for name, result in found.items()}
    assert values["right"] == {"mean_average_precision": 1.0}
    assert values["wrong"]["mean_average_precision"] < 0.3
    assert np.stack(found["right"].predictions["images"]["scores"]).shape == (14, 7)


def test_sentences_of_a_class_are_averaged_as_plain_unit_vectors(tmp_path: Path) -> None:
    model = load_clip(tiny_clip(tmp_path / "clip", 0).path)
    sentences = {
        name: [f"a {name} square", f"{name} light", f"the colour {name}"][: 1 + n % 3] for n, name in enumerate(NAMES)
    }
    (tmp_path / "cupl.json").write_text(json.dumps(dict(reversed(sentences.items()))))
    rows = []
    for name in NAMES:
        each = [model.encode_texts([one])[0] for one in sentences[name]]
        mean = sum(vector / vector.norm() for vector in each) / len(each)
        rows.append(mean / mean.norm())
    found = sentence_classifier(model, sentences_of(str(tmp_path / "cupl.json"), NAMES), 4)
    torch.testing.assert_close(found, torch.stack(rows), rtol=0, atol=1e-6)
    same = {name: [f"a photo of {name}.", f"{name}!"] for name in NAMES}
    (tmp_path / "same.json").write_text(json.dumps(same))
    data = labeled(tmp_path / "data", 7)

    def scored(out: str, prompts: Prompts) -> list[int]:
        result = score_zero_shot(run_in(tmp_path / out).ctx, {"clip": model}, data, prompts=prompts).results["clip"]
        return result.predictions["images"]["predicted"].tolist()

    by_templates = scored("templates", Prompts(templates=["a photo of {}.", "{}!"]))
    assert scored("sentences", Prompts(sentences=str(tmp_path / "same.json"))) == by_templates


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, r"cupl\.json: no such file"),
        ('{"red": ["a"', "not readable as JSON: "),
        ("[]", r"expected {class: \[sentences\]}, got \[\]"),
        ('{"red": "a"}', "class 'red': expected a list of sentences, got a"),
        ('{"red": ["a"], "red": ["b"]}', "not readable as JSON: 'red' is there twice"),
        ('{"red": [" "]}', r"class 'red': expected a list of sentences, got \[' '\]"),
        ('{"red": ["a"], "gren": ["a"]}', "no sentences for 'green' and 1 other; did you mean 'gren'?"),
        (
            '{"red": ["a"], "green": ["a"], "blue": ["a"], "sky": ["a"]}',
            "the dataset has no class 'sky'",
        ),
    ],
)
def test_sentences_that_do_not_fit_are_one_line_before_anything_runs(
    tmp_path: Path, text: str | None, line: str
) -> None:
    if text is not None:
        (tmp_path / "cupl.json").write_text(text)
    data = LabeledDataset.create(tmp_path / "data", num_samples=3, class_names=["red", "green", "blue"])
    stage = ZeroShot(name="zero", models=["clip"], data="photos", prompts=str(tmp_path / "cupl.json"))
    with pytest.raises(UserError, match=line) as caught:
        check_zero_shot(stage, Preflight({}, {"photos": data.path}))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError, match="prompts has the sentences of each class: omit templates"):
        ZeroShot(name="zero", models=["clip"], data="photos", prompts="x.json", templates=["{}"])
