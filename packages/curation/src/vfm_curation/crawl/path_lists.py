"""Lists of crawl files as Common Crawl publishes them (`wat.paths.gz`), one path a line."""

from __future__ import annotations

import gzip
import io
import os
import zlib

from vfm.plugin import UserError, files

MAX_BYTES = 1 << 28  # of a list when unpacked; a crawl's is 15 MB, and a few MB of zeros unpack to all of the memory


def is_path_list(path: str) -> bool:
    """Check by its suffix whether a path is a list of paths."""
    return path.endswith((".paths", ".paths.gz"))


def paths_in(file: str, root: str) -> list[str]:
    """Read the paths in a list, with `root` before relative ones.

    Raises:
        UserError: If the file does not exist or is not a readable list.
    """
    try:
        data = files.read_bytes(file)
        if file.endswith(".gz"):
            # One byte more than allowed shows that there is more, without unpacking it.
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(f"{file}: expected a list of paths of at most {MAX_BYTES >> 20} MiB, got more")
        lines = data.decode("utf-8").split()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except UserError:
        raise
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise UserError(f"{file}: not a readable list of paths: {error}") from None
    if not lines:
        raise UserError(f"{file}: expected a list of paths, got an empty file")
    paths = []
    for line in lines:
        is_absolute = files.is_remote(line) or os.path.isabs(line)
        paths.append(line if is_absolute else f"{root.rstrip('/')}/{line}")
    return paths


def expand_lists(paths: list[str], root: str) -> list[str]:
    """Replace the lists among the paths by the crawl files that they contain."""
    expanded: list[str] = []
    for path in paths:
        expanded += paths_in(path, root) if is_path_list(path) else [path]
    return expanded
