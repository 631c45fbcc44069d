"""Tables of the last masks with tensors, so that an equal expression made anew finds its table."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence

from torch import Tensor

Table = list[Tensor]


class KeptTables:
    """At most `most` tables, each as long as the tensors live that its mask holds.

    A key names tensors by their ids, which another tensor may get once they are gone.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: dict[Hashable, tuple[Table, list[weakref.ref]]] = {}

    def get(self, key: Hashable) -> Table | None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._entries[key] = entry  # the last used stands last
        return entry[0]

    def keep(self, key: Hashable, tensors: Sequence[Tensor], table: Table) -> None:
        def forget(_: weakref.ref) -> None:
            self._entries.pop(key, None)

        self._entries[key] = table, [weakref.ref(tensor, forget) for tensor in tensors]
        while len(self._entries) > self._most:
            self._entries.pop(next(iter(self._entries)), None)
