"""The samples of a lane, in blocks that are shuffled as they arrive."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vfm.base import UserError
from vfm.data.samples.sample import BadSample, Sample
from vfm.data.samples.shards import Lost
from vfm.data.streaming.lanes import Group, Lanes
from vfm.data.streaming.streamed_tar import StreamedTar

HELD_BACK = 512  # entries before a position that are still held, from which bad samples are replaced
LEAST_AHEAD = 256  # entries before its first one, at least, from which the next block is requested, part by part
STRIDE = 64  # entries after which further parts are requested

Entry = tuple[Sample | BadSample, str]
"""A sample, or the reason why it cannot be used, with its address."""


@dataclass(frozen=True)
class Tars:
    """The tars of a stream.

    Attributes:
        open: Opens the tar of a number.
        size: Looks up the number of entries of a tar, or counts them.
        keep: Keeps the offsets of a tar that was read to its end.
    """

    open: Callable[[int], StreamedTar]
    size: Callable[[int], int]
    keep: Callable[[int, StreamedTar], None]


class Lane:
    """Reads the entries of a lane by their positions, and requests the bytes that follow.

    Positions should ascend. An entry is a row of a tar, or a sample that is lost with a damaged header or a repeated
    key.
    """

    def __init__(self, number: int, lanes: Lanes, tars: Tars) -> None:
        self.number, self.lanes, self.tars = number, lanes, tars
        self._ahead = max(LEAST_AHEAD, lanes.run)  # at least until the next turn of this lane
        self._enter(0)

    def __getitem__(self, position: int) -> Entry:
        """Read the entry at a position.

        Raises:
            UserError: If a tar cannot be read, or has changed.
        """
        first = self._end - sum(map(len, self._blocks))
        if position < first or position >= self._end + HELD_BACK:
            self._enter(position)
        while position >= self._end:
            self._take(self._group.block())
        if position >= self._request_at:
            self._request(position)
        end = self._end
        for block in reversed(self._blocks):
            end -= len(block)
            if position >= end:
                return block[position - end]
        raise IndexError(f"entry {position} of lane {self.number}")

    def _enter(self, position: int) -> None:
        """Go to the block with a position, past the groups before it, whose tars are counted but not read."""
        self._blocks: deque[list[Entry]] = deque()
        self._turn, self._end = 0, 0
        empty = 0
        while position:
            size = sum(map(self.tars.size, self.lanes.group(self.number, self._turn).shards))
            if self._end + size > position:
                break
            empty = 0 if size else empty + 1
            self._check_empty(empty)
            self._turn, self._end = self._turn + 1, self._end + size
        self._group = self._opened(self._turn)
        self._following: OpenGroup | None = None
        self._request_at = 0
        size = self._group.block_size() if position else 0
        while size and self._end + size <= position:
            self._end += size
            self._group.skip_block()
            size = self._group.block_size()

    def _take(self, block: list[Entry]) -> None:
        """Append a block, and drop those that are far behind. Without one, go to the next group."""
        empty = 0
        while not block:
            for shard, tar in self._group.tars.items():
                self.tars.keep(shard, tar)
            self._turn += 1
            self._group, self._following = self._following or self._opened(self._turn), None
            block = self._group.block()
            empty += 1
            self._check_empty(empty)
        self._request_at = 0
        self._blocks.append(block)
        self._end += len(block)
        while sum(map(len, self._blocks)) - len(self._blocks[0]) - len(block) >= HELD_BACK:
            self._blocks.popleft()

    def _request(self, position: int) -> None:
        """Request the part of the next block that corresponds to the position in this one, a turn ahead."""
        self._request_at = position + STRIDE
        if not self._group.ended:
            size = len(self._blocks[-1])
            self._group.request((position + self._ahead - (self._end - size)) / size)
        elif self._following is None:
            self._following = self._opened(self._turn + 1, self._group.bytes_of_block)

    def _opened(self, turn: int, bytes_of_block: int = 1) -> OpenGroup:
        group = self.lanes.group(self.number, turn)
        tars = {shard: self.tars.open(shard) for shard in group.shards}
        return OpenGroup(group, self.lanes, tars, bytes_of_block)

    def _check_empty(self, num_groups: int) -> None:
        if num_groups > self.lanes.groups_in_epoch:
            raise UserError(f"the stream has no samples: {self.lanes.num_shards} tars are empty")


class OpenGroup:
    """Reads the tars of a group together, a block of rows of each at a time.

    A block is requested from all tars at once.

    Args:
        group: Numbers of the tars.
        lanes: Sizes and orders of the blocks.
        tars: The tars by their numbers.
        bytes_of_block: Expected bytes of the first block in a tar. They are requested together.
    """

    def __init__(self, group: Group, lanes: Lanes, tars: dict[int, StreamedTar], bytes_of_block: int = 1) -> None:
        self.group, self.lanes, self.tars = group, lanes, tars
        self._block = 0  # number of the next block
        for tar in tars.values():
            tar.arriving.request(bytes_of_block)

    @property
    def ended(self) -> bool:
        """Whether all tars were parsed to their ends."""
        return all(tar.ended for tar in self.tars.values())

    @property
    def bytes_of_block(self) -> int:
        """Expected bytes of the first block of a tar, by the rows of these tars."""
        return self.lanes.first_row(1) * max(tar.bytes_of_row for tar in self.tars.values())

    def request(self, fraction: float = 1.0) -> None:
        """Request a fraction of the next block of each tar, from its beginning."""
        first, last = map(self.lanes.first_row, (self._block, self._block + 1))
        for tar in self.tars.values():
            tar.request(first + round(min(1.0, fraction) * (last - first)) + 1)  # a row ends where another one begins

    def block_size(self) -> int:
        """Count the entries of the next block. 0 at the end of the group."""
        return sum(len(rows) + len(lost) for _, rows, lost in self._parts())

    def block(self) -> list[Entry]:
        """Read the next block, shuffled. Empty at the end of the group."""
        entries: list[Entry] = []
        for tar, rows, lost in self._parts():
            for row in rows:
                entries.append((tar.entry(row), tar.where(row)))
            for reason, where in lost:
                entries.append((BadSample(reason, where), where))
        order = self.lanes.shuffled(self.group, self._block, len(entries))
        self.skip_block()
        return [entries[number] for number in order.tolist()]

    def skip_block(self) -> None:
        """Go to the block after the next one, and drop the bytes before it."""
        self._block += 1
        for tar in self.tars.values():
            tar.drop(self.lanes.first_row(self._block))

    def _parts(self) -> Iterator[tuple[StreamedTar, range, Sequence[Lost]]]:
        """Find the rows of each tar in the next block, and its lost samples if its last row is there."""
        self.request()
        first, last = map(self.lanes.first_row, (self._block, self._block + 1))
        for tar in self.tars.values():
            start, stop = tar.advance(first), tar.advance(last)
            has_last = tar.ended and (start < stop == len(tar) or first == len(tar) == 0)
            yield tar, range(start, stop), tar.lost if has_last else ()
