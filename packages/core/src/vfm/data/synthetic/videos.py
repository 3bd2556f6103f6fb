"""Draw clips of the moving world, write them as H.264 to tars, and index them (`shapes.videos`)."""

# T frames, S side in pixels

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vfm.data.samples.images import VIDEO_EXTENSIONS
from vfm.data.samples.spec import DatasetSpec
from vfm.data.synthetic.actions import REVERSED, Action, quantity_of, turning_shapes
from vfm.data.synthetic.datasets import write_shards
from vfm.data.synthetic.drawing import draw_ground, draw_objects, to_pixels
from vfm.data.synthetic.sampling import Stream, generator, sample_nuisance
from vfm.data.synthetic.scene import DIRECTED, Nuisance, Orientation, Scene, Shape
from vfm.data.synthetic.stages import ShapesVideos
from vfm.data.synthetic.world import World
from vfm.data.videos.formats import list_tar
from vfm.data.videos.indexing import write_dataset
from vfm.data.videos.listing import ListedVideo, Listing
from vfm.interfaces import Context, VideoDataset

RADIUS = (0.13, 0.19)  # smallest and largest radius of a shape, in image widths
SMALLEST = 0.35  # size at the beginning of growth, relative to the largest
GROWN = 0.26  # largest radius of a shape that grows, in image widths
FAINTEST = 0.15  # opacity at the beginning of appearing
# A fixed quantizer: with `crf`, x264 encoded about one in 50 of these small clips differently when it was repeated.
CODING = {"qp": "12", "preset": "veryfast"}


@dataclass(frozen=True)
class MovingScene:
    """A moving shape in front of still shapes.

    It has the moving quantity and its direction, the state in the middle, and the distance moved.
    """

    mover: Scene
    centre: tuple[float, float]
    radius: float
    still: tuple[tuple[Scene, tuple[float, float], float], ...]
    background: Nuisance
    quantity: int
    direction: int
    middle: float
    speed: float


@dataclass(frozen=True)
class RenderedVideo:
    """A sample, with its key, file and class."""

    key: str
    video: bytes
    label: int
    facts: dict[str, Any]

    def members(self) -> dict[str, bytes]:
        """Encode the files of a WebDataset tar."""
        return {"mp4": self.video, "cls": str(self.label).encode(), "json": json.dumps(self.facts).encode()}


def make_videos(config: ShapesVideos, ctx: Context) -> VideoDataset:
    """Draw the videos and index them."""
    render = partial(
        render_videos,
        actions=config.actions,
        num_frames=config.num_frames,
        num_still=config.num_still,
        speed=config.speed,
        rate=config.rate,
    )
    shards = write_shards(config, ctx, render)
    names = list(config.actions)
    spec = DatasetSpec(image_key=",".join(VIDEO_EXTENSIONS), label_key="cls", class_names=names)
    videos: list[ListedVideo] = []
    for shard in shards:
        videos += list_tar(shard.path, spec)
    listing = Listing("shapes.videos", videos, names)
    pairs = {name: REVERSED[name] for name in config.actions if REVERSED[name] in names}
    return write_dataset(ctx, listing, *listing.labelled(names), 0.0, config.runtime.num_workers, reversals=pairs)


def render_videos(
    world: World,
    seed: int,
    start: int,
    stop: int,
    *,
    actions: Sequence[Action],
    num_frames: int,
    num_still: int,
    speed: float,
    rate: int,
) -> Iterator[RenderedVideo]:
    """Yield videos of moving shapes. Each depends only on the seed and its number.

    Args:
        world: Distribution of the shapes.
        seed: Seed of the videos.
        start: Number of the first video.
        stop: Number after the last video.
        actions: Classes of the videos.
        num_frames: Frames of a video.
        num_still: Number of still shapes.
        speed: Speed of the motion.
        rate: Frames per second.
    """
    for index in range(start, stop):
        label = index % len(actions)
        scene = sample_moving(world, generator(seed, Stream.VIDEOS, index), actions[label], num_still, speed)
        facts = {"action": actions[label], "shape": scene.mover.shape, "colour": scene.mover.colour}
        video = encode_video(draw_moving(scene, world.image_size, num_frames), rate)
        yield RenderedVideo(f"{index:08d}", video, label, facts)


def sample_moving(world: World, rng: np.random.Generator, action: Action, num_still: int, speed: float) -> MovingScene:
    """Draw a scene. All draws except the direction are the same for both actions of a pair.

    Args:
        world: Distribution of the shapes.
        rng: Random generator of the draws.
        action: Class of the video.
        num_still: Number of still shapes.
        speed: Speed of the motion.
    """
    quantity, direction = quantity_of(action)
    looks = [_look(world, rng, world.shapes) for _ in range(num_still)]
    shapes = turning_shapes(world.shapes) if action.startswith("turn") else world.shapes
    mover = _look(world, rng, shapes)
    # All still shapes are drawn, and then some are left out, so that the number of draws does not vary.
    positions = rng.random((num_still + 1, 2))
    sizes = rng.uniform(*RADIUS, num_still + 1)
    count = int(rng.random() * (num_still + 1))
    middle = float(rng.random())
    centres = (0.15 + 0.7 * positions[:-1]).tolist()
    still = []
    for look, (x, y), size in zip(looks, centres, sizes[:-1].tolist(), strict=True):
        still.append((look, (x, y), size))
    x, y = (0.25 + 0.5 * positions[-1]).tolist()
    background = sample_nuisance(world, rng)
    return MovingScene(
        mover, (x, y), float(sizes[-1]), tuple(still[:count]), background, quantity, direction, middle, speed
    )


def draw_moving(scene: MovingScene, size: int, num_frames: int) -> NDArray[np.uint8]:
    """Draw the frames of a scene, (T, S, S, 3) uint8."""
    ground = draw_ground(scene.background, size)
    for look, centre, radius in scene.still:
        draw_objects(ground, look, [centre], radius)
    frames = np.empty((num_frames, size, size, 3), dtype=np.uint8)
    for number in range(num_frames):
        shift = scene.direction * (number - (num_frames - 1) / 2) / (num_frames - 1) * scene.speed
        frames[number] = to_pixels(_drawn_mover(ground, scene, (scene.middle + shift) % 1.0))
    return frames


def _drawn_mover(ground: NDArray[np.float32], scene: MovingScene, state: float) -> NDArray[np.float32]:
    """Draw the moving shape over the planes, at a state from 0 to 1 of its circle."""
    channels = ground.copy()
    look = scene.mover
    centres = [scene.centre]
    radius = scene.radius
    opacity = 1.0
    x, y = scene.centre
    if scene.quantity == 0:
        centres = [(state + shift, y) for shift in (-1, 0, 1)]  # it leaves on one side and enters on the other
    elif scene.quantity == 1:
        centres = [(x, state + shift) for shift in (-1, 0, 1)]
    elif scene.quantity == 2:
        radius = GROWN * (SMALLEST + (1 - SMALLEST) * state)
    elif scene.quantity == 3:
        look = replace(look, nuisance=replace(look.nuisance, angle=look.nuisance.angle + 360 * state))
    else:
        opacity = FAINTEST + (1 - FAINTEST) * state
    for centre in centres:
        if all(-0.5 < part < 1.5 for part in centre):
            draw_objects(channels, look, [centre], radius)
    mixed: NDArray[np.float32] = ground + np.float32(opacity) * (channels - ground)
    return mixed


def encode_video(frames: NDArray[np.uint8], rate: int) -> bytes:
    """Encode frames, (T, S, S, 3) uint8, as H.264 in mp4, nearly lossless."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=CODING)
        stream.height, stream.width = frames.shape[1:3]
        stream.codec_context.thread_count = 1
        stream.pix_fmt = "yuv444p"  # with halved colour resolution, small shapes would lose their edges
        for frame in frames:
            video_frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(video_frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def _look(world: World, rng: np.random.Generator, shapes: Sequence[Shape]) -> Scene:
    first, second, tilt, *tint = rng.random(6).tolist()
    shape = shapes[int(first * len(shapes))]
    colour = world.colours[int(second * len(world.colours))]
    red, green, blue = (0.1 * (part - 0.5) for part in tint)
    nuisance = Nuisance(angle=14 * (tilt - 0.5), tint=(red, green, blue))
    orientation: Orientation | None = "up" if shape in DIRECTED else None
    return Scene(shape, colour, orientation=orientation, nuisance=nuisance)
