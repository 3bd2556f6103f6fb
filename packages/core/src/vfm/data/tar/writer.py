"""Write WebDataset tars with the same bytes as Python's tarfile, whose headers take longer than the images."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

NAME_BYTES = 100  # a longer name is split into two fields, which is left to tarfile
SIZE, CHECKSUM = slice(124, 136), slice(148, 156)  # fields of a ustar header with octal digits


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Write samples, each a key and its members by extension, to a WebDataset tar. Equal samples give equal bytes.

    Returns:
        The number of samples.
    """
    count = 0
    with path.open("wb") as file:
        for key, members in samples:
            for extension, data in members.items():
                file.write(tar_header(f"{key}.{extension}", len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE))
            count += 1
        end = file.tell() + 2 * tarfile.BLOCKSIZE  # a tar ends with two empty blocks, padded to whole records
        file.write(bytes(end - file.tell() + -end % tarfile.RECORDSIZE))
    return count


def tar_header(name: str, size: int) -> bytes:
    """Build the 512-byte header of a file with `size` bytes, without owner and time, and readable by all.

    Raises:
        ValueError: If the name does not fit into a ustar header.
    """
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > NAME_BYTES or not size < 8**11:
        return _header(name, size)
    template, checksum = _template()
    digits = b"%011o" % size
    header = bytearray(template)
    header[: len(encoded)] = encoded
    header[SIZE.start : SIZE.start + len(digits)] = digits
    header[CHECKSUM] = b"%06o\0 " % (checksum + sum(encoded) + sum(digits))
    return bytes(header)


def _header(name: str, size: int) -> bytes:
    """Build the header by tarfile, as the reference for `tar_header`."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8")


@cache
def _template() -> tuple[bytes, int]:
    """Build a header without name and size, and compute the sum of its bytes with spaces as checksum."""
    header = bytearray(_header("", 0))
    header[SIZE], header[CHECKSUM] = bytes(12), b" " * 8
    return bytes(header), sum(header)
