"""Keep the row groups of tables that were decoded last in memory, up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Any

MAX_BYTES = 64 << 20


class RecentGroups:
    """Keeps the last row group, and the ones before it while all of them fit into `max_bytes`.

    The readers of many tables may share it, and so may several threads.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._tables: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()  # the last one at the end
        self._lock = Lock()

    def get(self, key: Hashable) -> Any:
        """Look up a row group, None if it is not kept. It becomes the last one."""
        with self._lock:
            if key not in self._tables:
                return None
            self._tables.move_to_end(key)
            return self._tables[key][0]

    def keep(self, key: Hashable, table: Any) -> None:
        """Keep a row group, as a pyarrow table."""
        size = table.get_total_buffer_size()
        with self._lock:
            if key in self._tables:  # another thread decoded it meanwhile
                return
            self._tables[key] = (table, size)
            self.num_bytes += size
            while self.num_bytes > self.max_bytes and len(self._tables) > 1:
                _, (_, freed) = self._tables.popitem(last=False)
                self.num_bytes -= freed
