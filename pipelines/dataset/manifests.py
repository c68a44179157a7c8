"""The manifests of versions, in order, read one by one when they are asked for: none stays in memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from schemas.manifest import DatasetManifest


class Manifests(Sequence[DatasetManifest]):
    """Element i is the manifest of ``versions[i]``. Costs one file of up to 100 KB, and some milliseconds, for each that is read."""

    def __init__(self, read: Callable[[int], DatasetManifest], versions: range) -> None:
        self._read = read
        self._versions = versions

    def __len__(self) -> int:
        return len(self._versions)

    def __iter__(self) -> Iterator[DatasetManifest]:
        return map(self._read, self._versions)

    @overload
    def __getitem__(self, index: int) -> DatasetManifest: ...
    @overload
    def __getitem__(self, index: slice) -> "Manifests": ...
    def __getitem__(self, index: int | slice) -> "DatasetManifest | Manifests":
        if isinstance(index, slice):
            return Manifests(self._read, self._versions[index])
        return self._read(self._versions[index])
