"""Videos with one class each: readers of many layouts, one index on disk, and decoding of clips by frame number.

Needs `vfm-core[video]` (PyAV, which brings its own FFmpeg). `VideoSource` opens an artifact.
"""

from vfm.data.videos.decoding import read_clips
from vfm.data.videos.media import Media, VideoFacts, VideoSample
from vfm.data.videos.sampling import ClipSampling
from vfm.data.videos.source import VideoSource
from vfm.data.videos.views import View, center_box, drawn_view, fixed_views

__all__ = [
    "ClipSampling", "Media", "VideoFacts", "VideoSample", "VideoSource", "View", "center_box", "drawn_view",
    "fixed_views", "read_clips",
]  # fmt: skip
