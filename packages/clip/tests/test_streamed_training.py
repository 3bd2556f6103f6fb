"""A CLIP model trains on a list of tars without an index, and goes on to the same bits after it was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clip_world import make_pool, plan, run_stage
from vfm.data import open_dataset
from vfm.data.streaming.stages import Stream
from vfm.plugin import Context, Event, TarList, UserError

STEPS = 8
SETTINGS: dict[str, Any] = {"steps": STEPS, "global_batch_size": 16, "checkpoint": {"every_steps": 3}}


def listed(folder: Path, path: str, **changes: Any) -> TarList:
    folder.mkdir()
    stage = Stream.model_validate(
        {"name": "pool", "path": path, "texts": "json.en", "lanes": 2, "lane_samples": 8, **changes}
    )
    stage.preflight(None)  # type: ignore[arg-type]
    tars = stage.run(Context("pool", folder, folder / "work", {}))
    assert isinstance(tars, TarList)
    return tars


def test_a_cut_training_ends_with_the_bits_of_one_that_nothing_cut(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool")
    path = f"{tmp_path}/pool/{{0..1}}.tar"
    whole, _ = run_stage(plan(**SETTINGS), tmp_path / "whole", pool=listed(tmp_path / "a", path))
    tars = listed(tmp_path / "b", path)

    def cut(event: Event) -> None:
        if event.type == "metrics" and event.data["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(plan(**SETTINGS), tmp_path / "cut", send=cut, pool=tars)
    events: list[Event] = []
    resumed, _ = run_stage(plan(**SETTINGS), tmp_path / "cut", send=events.append, pool=tars)
    assert next(event.data["step"] for event in events if event.type == "metrics") == 4
    for file in ("open_clip_model.safetensors", "metrics.jsonl"):
        assert (resumed.path / file).read_bytes() == (whole.path / file).read_bytes()


def test_what_needs_an_index_refuses_a_list_of_tars(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool")
    tars = listed(tmp_path / "a", f"{tmp_path}/pool/{{0..1}}.tar")
    with pytest.raises(UserError, match="expected an index of samples, got a list of tars; import it as"):
        open_dataset(tars)
    with pytest.raises(UserError, match="epochs: the samples of its data are not counted; set steps or samples_seen"):
        run_stage(plan(steps=None, epochs=1), tmp_path / "epochs", pool=tars)
    mixed = plan(data=[{"data": "pool"}, {"data": "tars"}])
    with pytest.raises(UserError, match="'tars': expected an index to mix datasets, got a list of tars"):
        run_stage(mixed, tmp_path / "mixed", pool=pool, tars=tars)


def test_workers_that_read_the_same_tars_are_named(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool")
    events: list[Event] = []
    tars = listed(tmp_path / "a", f"{tmp_path}/pool/{{0..1}}.tar")
    settings = plan(steps=1, global_batch_size=16, runtime={"device": "cpu", "workers": 2})
    run_stage(settings, tmp_path / "run", send=events.append, pool=tars)
    warnings = [event.data["message"] for event in events if event.type == "warning"]
    expected = "clip: each tar is read by 2 workers: set lanes of its data to a multiple of"
    assert any(expected in line for line in warnings)
