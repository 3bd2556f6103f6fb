"""Remote videos that a server does not give: counted apart from bad ones, and tried again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data_samples import context
from range_server import RangeServer, serving
from vfm.base import UserError
from vfm.data import BadSample, write_tar
from vfm.data.videos import ClipView, Media, read_clips
from vfm.data.videos.formats import list_videos
from vfm.data.videos.indexing import write_dataset
from vfm.data.videos.media import read_frame
from vfm.data.videos.probing import probe
from vfm.data.videos.stages import Videos
from vfm.interfaces import Context, Event
from vfm.storage import remote
from video_files import encode, grey_frames, write

MIDDLE = [ClipView((5,), (64, 48), (0, 0, 64, 48))]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(remote, "PAUSES", (0.0,))
    yield
    remote._failed.clear()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    """Serve a video in a file, and three in a tar."""
    write(tmp_path / "served/a.mp4", encode(grey_frames(200), key_every=20))
    clip = encode(grey_frames(10))
    write_tar(tmp_path / "served/0.tar", [(f"{n}", {"mp4": clip, "cls": b"0"}) for n in range(3)])
    with serving(tmp_path / "served") as running:
        yield running


def test_a_video_is_unreachable_whenever_its_server_stops_to_answer(server: RangeServer) -> None:
    media = Media(f"{server.url}/a.mp4")
    facts = probe(media)
    assert facts.num_frames == 200
    in_all = server.asked["a.mp4"]
    for last in range(in_all):
        server.asked.clear()
        server.fault = lambda path, count, last=last: "status 500" if count > last else None
        with pytest.raises(BadSample, match=r"/a\.mp4: unreachable$"):
            probe(media)
    server.asked.clear()
    server.fault = lambda path, count: None
    (clip,) = read_clips(media, facts, MIDDLE)
    assert abs(int(clip[0, 40, 40, 0]) - 50) < 4
    for last in range(server.asked["a.mp4"]):
        server.asked.clear()
        server.fault = lambda path, count, last=last: "status 500" if count > last else None
        with pytest.raises(BadSample, match=r"/a\.mp4: unreachable$"):
            read_clips(media, facts, MIDDLE)


@pytest.mark.parametrize("status", [404, 403])
def test_a_video_that_its_server_refuses_is_unreadable(server: RangeServer, status: int) -> None:
    server.fault = lambda path, count: f"status {status}"
    with pytest.raises(BadSample, match="unreadable_video"):
        probe(Media(f"{server.url}/a.mp4"))


def test_a_frame_and_a_folder_of_frames_are_unreachable(server: RangeServer) -> None:
    server.fault = lambda path, count: "status 503"
    with pytest.raises(BadSample, match="unreachable"):
        read_frame(f"{server.url}/folder/1.png")
    with pytest.raises(BadSample, match="unreachable"):
        probe(Media(f"{server.url}/folder", -2))
    server.fault = lambda path, count: None
    with pytest.raises(BadSample, match="missing_video"):
        read_frame(f"{server.url}/folder/1.png")


def test_videos_of_a_tar_that_do_not_come_are_left_out_with_a_warning_and_tried_again(
    tmp_path: Path, server: RangeServer
) -> None:
    stage = Videos(name="seen", path=f"{server.url}/0.tar", max_bad_fraction=0.4)

    def indexed(folder: str, config: Videos = stage) -> tuple[dict[str, int], list[Event]]:
        ctx: Context = context(tmp_path / folder)
        events: list[Event] = []

        def send(event: Event) -> None:
            events.append(event)
            if event.type == "progress" and event.data["done"] == 2 and folder != "again":
                server.fault = lambda path, count: "status 500"  # for the third video

        ctx.send = send
        dataset = config.run(ctx)
        assert dataset.num_samples + sum(dataset.bad_samples.values()) == 3
        return dataset.bad_samples, events

    bad, events = indexed("lacking")
    assert bad == {"unreachable": 1}
    (skipped,) = (event.data for event in events if event.type == "bad_sample")
    assert (skipped["reason"], skipped["lacks_data"]) == ("unreachable", True)
    (warning,) = (event.data for event in events if event.type == "warning")
    line = f"1 of 3 samples are left out: they could not be reached, such as {server.url}/0.tar"
    assert (warning["message"], warning["lacks_data"]) == (line, True)
    server.fault = lambda path, count: None
    with pytest.raises(UserError, match=r"1 of 3 samples are bad: unreachable \(1\)"):
        indexed("strict", stage.model_copy(update={"max_bad_fraction": 0.1}))
    server.fault = lambda path, count: None
    bad, events = indexed("again")
    assert bad == {}
    assert not [event for event in events if event.type in ("warning", "bad_sample")]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_unreachable_videos_end_the_stage_before_the_rest_is_tried(
    tmp_path: Path, server: RangeServer, workers: int
) -> None:
    listing = list_videos(Videos(name="seen", path=f"{server.url}/0.tar"))
    lost = [replace(video, problem=BadSample("unreachable", video.key)) for video in listing.videos]
    ctx: Context = context(tmp_path / "stage")
    events: list[Event] = []
    ctx.send = events.append
    with pytest.raises(UserError, match=r"2 of 3 samples are bad: unreachable \(2\)"):
        write_dataset(ctx, replace(listing, videos=lost), (), [0, 0, 0], max_bad_fraction=0.4, workers=workers)
    assert sum(event.type == "bad_sample" for event in events) == 2
