"""Many shards as arrays, of which a bounded number is mapped at a time.

Linux gives a process 65,530 maps (``vm.max_map_count``), and a dataset may have more shards than that. A shard is mapped when it is read; beyond
MAX_MAPS the one that was not read for longest gives way. A view that somebody still holds keeps its map until it is dropped, so it stays valid.
Costs a look at each file when it is opened, 2 us, and 0.1 ms for each shard that has to be mapped again.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from pipelines.dataset.shards import Tokens, open_shard
from schemas.errors import ShardCorrupt

MAX_MAPS = 8_192
"""Of one reader; a process may have several, and its libraries some thousand maps of their own."""


class ShardMaps:
    """``maps[i]`` is the shard of ``paths[i]``: (rows, S) token ids, read-only. Not for use by several threads."""

    def __init__(self, root: Path, paths: Sequence[str], rows: Sequence[int], sequence_length: int) -> None:
        """Raises ShardCorrupt if a file is missing."""
        self._paths = [root / path for path in paths]
        self._shapes = [(number, sequence_length) for number in rows]
        self._open: OrderedDict[int, Tokens] = OrderedDict()
        for path in self._paths:
            if not path.is_file():
                raise ShardCorrupt(f"{path} is missing; restore the file from a copy")

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> Tokens:
        """Raises ShardCorrupt if the file is not what its manifest promised, DatasetError if the system gives no more maps or files."""
        tokens = self._open.get(number)
        if tokens is None:
            while len(self._open) >= MAX_MAPS:
                self._open.popitem(last=False)
            tokens = self._open[number] = self._mapped(number)
        self._open.move_to_end(number)
        return tokens

    def _mapped(self, number: int) -> Tokens:
        path, shape = self._paths[number], self._shapes[number]
        tokens = open_shard(path)
        if tokens.shape != shape:
            raise ShardCorrupt(f"{path} has shape {tokens.shape}, its manifest promised {shape}; run `headrace datasets verify`")
        return tokens
