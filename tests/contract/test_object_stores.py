"""What a root rests on, on a folder and on two object stores: files that are whole or absent, a log with one writer per entry, and answers that a
network loses, spoils or delays.
"""

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.storage import mirror, objects
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.durable import check_root, create_durably, durable_file, durable_folder, file_entry, replace_durably
from pipelines.storage.mirror import is_mirror, mirror_of, root_folder
from pipelines.storage.pinned import check_present, read_pinned, verify_once, verify_pinned
from pipelines.storage.store import file_names, is_there, local, missing, modified_at, names, read_bytes, remove, remove_folder, size_of
from schemas.errors import CommitConflict, DatasetNotFound, SettingsError, ShardCorrupt, StoreUnavailable
from schemas.settings_sources import load_settings
from tests.object_stores import KINDS, SECRET, Fault, Kind, Store, running_store

PLACES = ("folder", *KINDS)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Kind, Store]]:
    """Both stores."""
    with running_store("moto", tmp_path_factory.mktemp("moto")) as moto, running_store("alocals3", tmp_path_factory.mktemp("alocals3")) as alocals3:
        yield {"moto": moto, "alocals3": alocals3}


def use(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects, "FIRST_PAUSE_S", 0.01)
    store.proxy.requests.clear()
    return store


@pytest.fixture
def store(stores: dict[Kind, Store], monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The one that most tests of faults use."""
    store = use(stores["moto"], monkeypatch)
    yield store
    assert store.proxy.left == 0


@pytest.fixture(params=PLACES)
def root(request: pytest.FixtureRequest, stores: dict[Kind, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root: in a folder, or on a store."""
    if request.param == "folder":
        return tmp_path / "root"
    return on(use(stores[request.param], monkeypatch), tmp_path)


def on(store: Store, folder: Path) -> Path:
    """A root on the store, with the mirror in a folder."""
    root = root_folder(store.url(folder.name), str(folder / "cache"))
    check_root(root)
    return root


def elsewhere(root: Path) -> Path:
    """The same root, as another host sees it."""
    if not is_mirror(root):
        return root
    return root_folder(mirror.url_of(root), str(root.parents[1] / "elsewhere"))


def test_a_file_is_whole_everywhere_once_its_block_has_ended_and_absent_before(root: Path) -> None:
    path = root / "shards" / "one.arrow"
    with durable_file(path) as file:
        file.write(b"whole")
        assert not is_there(path)
    there = elsewhere(root) / "shards" / "one.arrow"
    assert (is_there(there), size_of(there), read_bytes(there), local(there).read_bytes()) == (True, 5, b"whole", b"whole")
    with pytest.raises(ZeroDivisionError), durable_file(path):
        raise ZeroDivisionError
    assert read_bytes(path) == b"whole"
    assert abs(modified_at(there) - path.stat().st_mtime) < 60


def test_a_name_is_given_once_whatever_the_bytes(root: Path) -> None:
    create_durably(root / "name", b"first")
    for data in (b"first", b"second"):
        with pytest.raises(FileExistsError):
            create_durably(elsewhere(root) / "name", data)
    assert read_bytes(root / "name") == b"first"


def test_of_many_writers_of_an_entry_one_publishes_it_and_the_others_are_fenced(root: Path) -> None:
    log, won, begin = CommitLog(root / "log"), [], threading.Barrier(8)

    def write(number: int) -> None:
        begin.wait()
        try:
            log.publish(1, f"writer {number}".encode())
        except CommitConflict:
            return
        won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert log.read(1) == f"writer {won[0]}".encode()


def test_a_log_says_its_newest_entry_from_wherever_it_is_asked_and_refuses_holes(root: Path) -> None:
    log = CommitLog(root / "log")
    assert (log.latest(), log.latest(3)) == (0, 0)
    for number in range(1, 13):
        log.publish(number, b"%d" % number)
    replace_durably(root / "log" / "checkpoints" / "00000001-00000016.arrow", b"")
    assert [CommitLog(elsewhere(root) / "log").latest(known) for known in (0, 1, 5, 12, 40)] == [12] * 5
    assert log.read(7) == b"7"
    with pytest.raises(DatasetNotFound, match="has no entry 13; its newest is 12"):
        log.read(13)
    with pytest.raises(CommitConflict, match="cannot be published before entry 13"):
        log.publish(14, b"")


def test_names_are_those_of_a_folder_and_not_of_the_folders_in_it(root: Path) -> None:
    assert names(root / "quality") == []
    for name in ("quality/a/model.json", "quality/a/b.npy", "quality/c", "quality-not"):
        replace_durably(root / name, b"1")
    there = elsewhere(root)
    assert sorted(names(there / "quality")) == ["a", "c"]
    assert sorted(file_names(there / "quality", re.compile("[a-c]"))) == ["c"]
    assert missing([there / "quality/c", there / "quality/d", there / "quality/a/b.npy"]) == [there / "quality/d"]
    remove_folder(there / "quality" / "a")
    assert (names(root / "quality"), is_there(root / "quality/a/b.npy")) == (["c"], False)
    remove(there / "quality" / "c")
    remove(there / "quality" / "c")
    assert names(root / "quality") == []
    assert names(root) == ["quality-not"] or not is_mirror(root)


def test_a_folder_counts_as_there_when_its_last_file_is(root: Path) -> None:
    with durable_folder(root / "model", "card") as writing:
        (writing / "card").write_bytes(b"card")
        (writing / "z").write_bytes(b"z")
        assert not is_there(root / "model" / "card")
    assert sorted(names(elsewhere(root) / "model")) == ["card", "z"]
    with pytest.raises(FileExistsError), durable_folder(elsewhere(root) / "model", "card") as writing:
        (writing / "card").write_bytes(b"other")
    assert read_bytes(root / "model" / "card") == b"card"


def test_a_file_that_a_manifest_pins_is_found_good_fetched_again_or_refused(root: Path) -> None:
    path = root / "documents" / "a.parquet"
    replace_durably(path, b"pinned")
    entry = file_entry(root, path, 1)
    there = elsewhere(root)
    assert verify_pinned(there, entry).read_bytes() == b"pinned" == read_pinned(there, entry)
    assert verify_once(there, entry) == there / entry.path
    check_present(there, [entry])
    replace_durably(path, b"other!")
    if is_mirror(root):
        assert read_pinned(there, entry) == b"pinned", "the copy there is what the manifest says"
    for check in (verify_pinned, read_pinned):
        with pytest.raises(ShardCorrupt, match="these are other bytes"):
            check(root, entry)
    remove(path)
    with pytest.raises(ShardCorrupt, match="is gone, or no longer has its 6 bytes"):
        check_present(there, [entry])
    with pytest.raises(ShardCorrupt, match=r"missing, but a manifest lists it"):
        verify_pinned(root, entry)


def test_a_damaged_copy_is_fetched_again(store: Store, tmp_path: Path) -> None:
    root = on(store, tmp_path)
    path = root / "shards" / "a.arrow"
    replace_durably(path, b"pinned")
    entry = file_entry(root, path, 1)
    for damage in (b"PINNED", b"", b"longer than it was"):
        path.unlink()
        path.write_bytes(damage)
        assert verify_pinned(root, entry).read_bytes() == b"pinned"


@pytest.mark.parametrize("fault", ["500", "503", "lost", "done_500", "not_sent"])
@pytest.mark.parametrize("times", [1, 3])
def test_an_entry_whose_answer_was_spoilt_is_published_once(store: Store, tmp_path: Path, fault: Fault, times: int) -> None:
    log = CommitLog(on(store, tmp_path) / "log")
    store.proxy.plan("PUT", "/log/", fault, times)
    log.publish(1, b"ours")
    assert log.read(1) == b"ours"
    store.proxy.plan("PUT", "/log/", fault, times)
    with pytest.raises(CommitConflict):
        log.publish(1, b"another's")
    assert log.read(1) == b"ours"


def test_an_entry_whose_answers_are_all_lost_is_found_by_reading_it(store: Store, tmp_path: Path) -> None:
    log = CommitLog(on(store, tmp_path) / "log")
    store.proxy.plan("PUT", "/log/", "lost")
    store.proxy.plan("PUT", "/log/", "500", objects.TRIES - 1)
    log.publish(1, b"ours")
    assert log.read(1) == b"ours"


def test_a_store_that_takes_nothing_is_told_in_one_line_without_secrets(store: Store, tmp_path: Path) -> None:
    root = on(store, tmp_path)
    store.proxy.plan("PUT", "/log/", "503", objects.TRIES)
    with pytest.raises(StoreUnavailable) as raised:
        CommitLog(root / "log").publish(1, b"ours")
    assert str(raised.value).startswith(f"could not create {store.url(tmp_path.name)}/log/00000001.json in 7 tries: HTTP status 503, SlowDown.")
    assert SECRET not in str(raised.value)
    assert (raised.value.__cause__, raised.value.__suppress_context__) == (None, True)
    assert CommitLog(root / "log").latest() == 0


def test_a_store_that_does_not_answer_is_asked_again_after_a_while(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "REQUEST_TIMEOUT_S", 1.0)
    log = CommitLog(on(store, tmp_path) / "log")
    store.proxy.plan("PUT", "/log/", "stuck")
    log.publish(1, b"ours")
    store.proxy.plan("GET", "/log/00000001", "stuck")
    assert log.read(1) == b"ours"


@pytest.mark.parametrize("fault", ["half", "500", "not_sent"])
def test_a_read_that_breaks_off_gives_all_bytes_or_none(store: Store, tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PART_BYTES", 100_000)
    root, data = on(store, tmp_path), os.urandom(950_000)
    replace_durably(root / "shards" / "a", data)
    there = elsewhere(root) / "shards" / "a"
    store.proxy.plan("GET", "/shards/", fault, 4)
    assert local(there).read_bytes() == data
    assert there.stat().st_mode & 0o777 == 0o400
    store.proxy.plan("GET", "/shards/", fault, 2)
    assert read_bytes(there) == data
    (there).unlink()
    store.proxy.plan("GET", "/shards/", fault, 100)
    with pytest.raises(StoreUnavailable):
        local(there)
    store.proxy._planned.clear()
    assert sorted(path.name for path in there.parent.iterdir()) == []


def test_a_large_file_is_written_and_read_in_parts(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "WHOLE_BYTES", 5 * 2**20)
    monkeypatch.setattr(objects, "PART_BYTES", 5 * 2**20)
    root, data = on(store, tmp_path), os.urandom(12 * 2**20)
    store.proxy.plan("PUT", "partNumber=2", "503")
    replace_durably(root / "shards" / "a", data)
    assert local(elsewhere(root) / "shards" / "a").read_bytes() == data
    assert store.proxy.requests["POST"] >= 2, "it was begun and completed"


def test_the_copies_of_a_host_stay_below_their_limit_and_what_is_mapped_stays_valid(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mirror.LIMIT_VARIABLE, "1000000")
    monkeypatch.setattr(mirror, "SPARED_S", 0.0)
    root = on(store, tmp_path)
    (root / "ingest.lock").write_bytes(b"of this host only")
    with durable_file(root / "shards" / "0") as file:
        file.write(bytes(100_000))
    with (root / "shards" / "0").open("rb") as opened:
        for number in range(1, 30):
            replace_durably(root / "shards" / str(number), os.urandom(100_000))
        assert opened.read() == bytes(100_000)
    held = [path for path in (root / "shards").iterdir() if path.stat().st_size]
    assert sum(path.stat().st_size for path in held) <= 1_000_000 + 100_000
    assert root / "shards" / "0" not in held, "the least recently used goes first"
    assert (root / "ingest.lock").read_bytes() == b"of this host only"
    assert local(root / "shards" / "0").read_bytes() == bytes(100_000)


def test_processes_that_add_little_keep_the_limit_too(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mirror.LIMIT_VARIABLE, "1000000")
    monkeypatch.setattr(mirror, "SPARED_S", 0.0)
    root = on(store, tmp_path)
    for number in range(30):
        monkeypatch.setattr(mirror, "_added", -1)  # as in a new process
        replace_durably(root / "shards" / str(number), os.urandom(60_000))
        os.utime(root.parent / ".trim", (0, 0))  # long ago
    assert len(list((root / "shards").iterdir())) <= 17


def test_only_the_owner_may_read_the_copies(store: Store, tmp_path: Path) -> None:
    root = on(store, tmp_path)
    replace_durably(root / "documents" / "a", b"text of people")
    folders = [root / "documents", root, *root.parents[: root.parts.index("cache") - len(root.parts) + 1]]
    assert {folder.stat().st_mode & 0o077 for folder in folders} == {0}


def test_a_path_in_a_mirror_is_enough_for_a_process_to_find_the_store(store: Store, tmp_path: Path) -> None:
    root = on(store, tmp_path)
    found = mirror_of(Path(str(root / "log" / "00000001.json")))
    assert found is not None
    assert (found.objects.url, found.key(root / "log" / "00000001.json")) == (store.url(tmp_path.name), "log/00000001.json")
    assert mirror_of(Path("/data/log/00000001.json")) is None
    assert mirror.shown(f"'{root}/log' and {root}: no") == f"'{store.url(tmp_path.name)}/log' and {store.url(tmp_path.name)}: no"


def test_a_bucket_that_is_not_there_is_a_setting_that_is_wrong(store: Store, tmp_path: Path) -> None:
    root = root_folder("s3://no-bucket/a", str(tmp_path))
    with pytest.raises(SettingsError, match="there is no bucket for the root s3://no-bucket/a: create it"):
        check_root(root)
    with pytest.raises(SettingsError, match="there is no bucket"):
        CommitLog(root / "log").latest()


def test_a_store_without_tls_is_used_on_loopback_only_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example:9000")
    with pytest.raises(SettingsError, match=r"store[.]example would be used without TLS"):
        mirror_of(root_folder("s3://bucket/a", str(tmp_path / "refused")))
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    assert mirror_of(root_folder("s3://bucket/a", str(tmp_path / "allowed"))) is not None


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (f"s3://AKID:{SECRET}@bucket/a", "holds a user, a query or a fragment"),
        (f"s3://bucket/a?token={SECRET}", "holds a user, a query or a fragment"),
        ("ftp://host/a", "it must be a folder, or s3://BUCKET/PREFIX"),
        ("s3://bucket/../a", "without '..'"),
        ("s3:///a", "write s3://BUCKET/PREFIX"),
        ("s3://bucket/a b", "in letters, digits"),
        ("s3://bucket/" + "a" * 300, "too long"),
    ],
)
def test_a_url_that_is_no_root_is_refused_and_its_secret_not_repeated(url: str, told: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings("", {}, {"root": url})
    assert told in str(raised.value)
    assert SECRET not in str(raised.value)
