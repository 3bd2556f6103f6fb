"""Write a page with the first samples, the statistics and the bad samples of a dataset. It needs no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import chain

from vfm.data import BadSample, Sample, Source, decode_image

NUM_SAMPLES = 500  # a page of some MB
SIDE = 160  # pixels of the longer side of a small image
STYLE = """
body { font: 15px system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 1rem }
figure { margin: 0 } img { max-width: 100%; border-radius: 4px } figcaption { font-size: 13px; overflow-wrap: anywhere }
small { color: #666 }
"""


def dataset_page(title: str, lines: Iterable[str], source: Source, class_names: Sequence[str] = ()) -> str:
    """Write the page as HTML.

    Args:
        title: Path of the data.
        lines: Facts about the data.
        source: The samples.
        class_names: Names of the classes, by label.
    """
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    figures = "".join(_figures(source, class_names))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{STYLE}</style>'
        f"<h1>{escape(title)}</h1><ul>{items}</ul><main>{figures}</main></html>\n"
    )


def _figures(source: Source, class_names: Sequence[str]) -> Iterator[str]:
    for number in range(min(len(source), NUM_SAMPLES)):
        where = source.where(number)
        try:
            sample = source[number]
            image = decode_image(sample.image, where)
        except BadSample as bad:
            yield f"<figure><figcaption>{escape(bad.reason)}<br><small>{escape(where)}</small></figcaption></figure>"
            continue
        width, height = image.size
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode()
        words = escape(_words(sample, class_names))
        about = f"{words}<br><small>{width} x {height}, {escape(where)}</small>"
        yield f'<figure><img alt="" src="data:image/jpeg;base64,{data}"><figcaption>{about}</figcaption></figure>'


def _words(sample: Sample, class_names: Sequence[str]) -> str:
    if sample.label is not None and class_names:
        return class_names[sample.label]
    return " / ".join(chain.from_iterable(sample.texts.values()))
