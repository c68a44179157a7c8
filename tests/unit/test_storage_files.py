"""What files are created by: links where there are some, answers that NFS loses, holds that the garbage collector respects."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.storage.commit_log import CommitLog
from pipelines.storage.durable import check_root, create_durably, durable_file, durable_folder, replace_durably
from pipelines.storage.holds import is_held, remove_unheld
from schemas.errors import CommitConflict, DatasetError, SettingsError

Call = Callable[..., None]


def done_and_answered(real: Call, answer: OSError) -> Call:
    """As over NFS when the server's answer is lost: the call is done, sent again, and refused because it is done."""

    def call(*arguments: str) -> None:
        real(*arguments)
        raise answer

    return call


def test_a_link_whose_answer_was_lost_is_no_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", done_and_answered(os.link, FileExistsError(errno.EEXIST, "File exists")))
    log = CommitLog(tmp_path / "log")
    log.publish(1, b"ours")
    assert log.read(1) == b"ours"
    with pytest.raises(CommitConflict, match="published by another writer"):
        log.publish(1, b"ours")  # the same bytes, and another attempt


def test_a_rename_whose_answer_was_lost_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", done_and_answered(os.replace, FileNotFoundError(errno.ENOENT, "No such file or directory")))
    replace_durably(tmp_path / "state", b"ours")
    assert (tmp_path / "state").read_bytes() == b"ours"


def test_a_file_that_vanished_before_its_rename_is_an_error(tmp_path: Path) -> None:
    replace_durably(tmp_path / "state", b"before")
    with pytest.raises(FileNotFoundError), durable_file(tmp_path / "state"):
        next(tmp_path.glob(".tmp-*")).unlink()


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_refused_before_any_work_and_at_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: str) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(SettingsError, match=r"has no hard links.*put the root on one that does"):
        check_root(tmp_path / "data")
    with pytest.raises(SettingsError, match="has no hard links"):
        CommitLog(tmp_path / "log").publish(1, b"ours")
    assert list((tmp_path / "data").iterdir()) == list((tmp_path / "log").iterdir()) == []


def test_a_root_that_cannot_be_written_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(SettingsError, match=f"nothing can be written under the root {tmp_path / 'data'}"):
        check_root(tmp_path / "data")


def test_a_full_disk_is_no_wrong_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(DatasetError, match="free some space") as caught:
        check_root(tmp_path)
    assert caught.value.exit_code == 1


def test_a_usable_root_is_created_and_left_empty(tmp_path: Path) -> None:
    check_root(tmp_path / "new" / "data")
    assert list((tmp_path / "new" / "data").iterdir()) == []


def test_a_writer_whose_new_file_or_folder_was_collected_begins_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[Path] = []

    def collected_first(_: int) -> None:
        if len(removed) < 2:
            removed.append(next(tmp_path.glob(".tmp-*")))
            assert remove_unheld(removed[-1])

    monkeypatch.setattr("pipelines.storage.durable.hold", collected_first)
    create_durably(tmp_path / "file", b"whole")
    with durable_folder(tmp_path / "folder") as folder:
        (folder / "file").write_bytes(b"whole")
    assert len(removed) == 2
    assert (tmp_path / "file").read_bytes() == (tmp_path / "folder" / "file").read_bytes() == b"whole"


HOLD = """
import sys
from pathlib import Path
from pipelines.storage.durable import durable_file, durable_folder
with durable_file(Path(sys.argv[1], "file")), durable_folder(Path(sys.argv[1], "folder")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_another_process_writes_is_held_until_it_ends_however(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "held\n"
        written = sorted(tmp_path.glob(".tmp-*"))
        assert len(written) == 2
        assert all(map(is_held, written))
        assert not any(map(remove_unheld, written))
        writer.kill()
    assert not any(map(is_held, written))
    assert all(map(remove_unheld, written))
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_not_held_and_is_gone(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "nothing")
    assert remove_unheld(tmp_path / "nothing")


def test_a_folder_that_another_writer_creates_at_the_same_moment_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, folder = Path.is_dir, tmp_path / "log"

    def created_after_the_look(path: Path) -> bool:
        answer = real(path)
        if path == folder and not answer:
            folder.mkdir()
        return answer

    monkeypatch.setattr(Path, "is_dir", created_after_the_look)
    create_durably(folder / "entry", b"ours")
    assert (folder / "entry").read_bytes() == b"ours"


def test_a_folder_appears_whole_or_not_at_all_and_never_over_another(tmp_path: Path) -> None:
    def write(text: str) -> None:
        with durable_folder(tmp_path / "model") as folder:
            (folder / "weights").write_text(text)
            if text == "broken":
                raise ValueError(text)

    with pytest.raises(ValueError, match="broken"):
        write("broken")
    assert list(tmp_path.iterdir()) == []
    write("first")
    with pytest.raises(FileExistsError):
        write("second")
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["first"]
