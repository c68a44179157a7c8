"""Files that a manifest pins are compared with it before they are used."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.storage.durable import create_durably, file_entry, sha256_file
from pipelines.storage.pinned import read_pinned, verify_once, verify_pinned
from schemas.errors import ShardCorrupt
from schemas.manifest import FileEntry

READERS = (read_pinned, lambda root, entry: verify_pinned(root, entry).read_bytes(), lambda root, entry: verify_once(root, entry).read_bytes())


def pinned(root: Path) -> FileEntry:
    path = root / "models/1/weights"
    create_durably(path, b"weights of version 1")
    return file_entry(root, path, 0)


@pytest.mark.parametrize("read", READERS)
def test_a_pinned_file_is_read_as_its_manifest_promised(tmp_path: Path, read: Callable[[Path, FileEntry], bytes]) -> None:
    assert read(tmp_path, pinned(tmp_path)) == b"weights of version 1"


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("bytes_there", "told"),
    [(b"weights of version 2", "SHA-256"), (b"weights", "has 7 bytes, its manifest says 20"), (None, "is missing, but a manifest lists it")],
)
def test_another_file_in_the_place_of_a_pinned_one_is_refused(
    tmp_path: Path, read: Callable[[Path, FileEntry], bytes], bytes_there: bytes | None, told: str
) -> None:
    entry = pinned(tmp_path)
    if bytes_there is None:
        (tmp_path / entry.path).unlink()
    else:
        (tmp_path / entry.path).write_bytes(bytes_there)
    with pytest.raises(ShardCorrupt, match=told):
        read(tmp_path, entry)


def test_a_file_that_was_verified_once_is_read_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, hashed = pinned(tmp_path), list[Path]()

    def counted(path: Path) -> str:
        hashed.append(path)
        return sha256_file(path)

    monkeypatch.setattr("pipelines.storage.pinned.sha256_file", counted)
    for _ in range(3):
        verify_once(tmp_path, entry)
    assert len(hashed) == 1
    (tmp_path / entry.path).unlink()
    create_durably(tmp_path / entry.path, b"weights of version 2")
    with pytest.raises(ShardCorrupt, match="SHA-256"):
        verify_once(tmp_path, entry)
    assert len(hashed) == 2
