from .decoding import read_clips as read_clips
from .media import Media as Media, VideoFacts as VideoFacts, VideoSample as VideoSample
from .sampling import ClipSampling as ClipSampling
from .source import VideoSource as VideoSource
from .views import ClipView as ClipView, center_box as center_box, drawn_view as drawn_view, fixed_views as fixed_views
