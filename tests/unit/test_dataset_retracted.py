"""What people are told of retractions: verify, trace, the garbage collector; and what a replay publishes."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from ops.cli.deadletter import _replays
from ops.cli.trace import sentence
from pipelines.dataset.dataset import Dataset
from pipelines.dataset.gc import orphans
from pipelines.dataset.retractions.lost import Lost, lost_duplicates
from pipelines.dataset.verify import verify
from pipelines.ingest.restoring import restored_record
from pipelines.kafka.letters import Letter, letter_of
from pipelines.kafka.replays import replay_record, retraction_record, with_text
from pipelines.lineage.lineage import Fate, trace
from pipelines.storage.commit_log import CommitLog
from pipelines.storage.durable import sha256_file
from pipelines.storage.model_log import MODEL_LOG
from schemas.arrow import MASKS
from schemas.documents import Retraction, decode_document
from schemas.envelope import refuse_reference
from schemas.errors import EnvelopeError
from schemas.headers import BAD_NAME, BROKEN_RECORD, REPLAY_HEADER
from schemas.settings import Settings
from tests import factories
from tests.factories import TOPIC, commit_records
from tests.unit.test_dataset_audit import DEADLETTER, edit_manifest, model_manifest, values

MAX_BYTES = 2**20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1: doc-0 to doc-29. Version 2: doc-3 is retracted twice and comes again, doc-30 comes and is retracted. Version 3: more."""
    root = tmp_path_factory.mktemp("made")
    commit_records(root, values())
    (again,) = values(40, 1)
    mended = again[0], again[1].replace(b"doc-40", b"doc-3") if again[1] else None
    commit_records(root, [(b"doc-3", None), (b"doc-3", None), mended, *values(30, 1), (b"doc-30", None), (b"nobody", None)])
    commit_records(root, values(31, 3))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def problems(root: Path) -> str:
    return "\n".join(f"{problem.version}: {problem.what}" for problem in verify(root).problems)


def change_masks(root: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Damage that neither hashes nor sums show."""
    (entry,) = Dataset(root, 2).manifest.masks
    before = pl.read_ipc(root / entry.path)
    masks = change(before)
    with pa.ipc.new_file(root / entry.path, MASKS) as writer:
        writer.write_table(masks.to_arrow().cast(MASKS))
    added = len(masks) - len(before)

    def recount(manifest: dict[str, Any]) -> None:
        manifest["totals"]["num_masked_documents"] += added
        if manifest["version"] == 2:
            manifest["masks"][0].update(sha256=sha256_file(root / entry.path), size_bytes=(root / entry.path).stat().st_size, rows=len(masks))
            manifest["num_masked_documents"] += added

    for version in (2, 3):
        edit_manifest(root, version, recount)


def test_two_documents_are_masked_once_each_and_nothing_is_wrong(made: Path) -> None:
    assert problems(made) == ""
    assert [manifest.num_masked_documents for manifest in Dataset(made).manifests()] == [0, 2, 0]
    assert orphans(made) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda masks: masks.with_columns(pl.col("length") - 1), "but its span is not masked"),
        (lambda masks: masks.with_columns(doc_id=pl.lit("doc-5")), "no retraction in this version takes such a span out"),
        (lambda masks: masks.with_columns(pl.col("offset") + 1), "no retraction in this version takes such a span out"),
        (lambda masks: masks.head(1), "document 'doc-30' was retracted"),
        (lambda masks: pl.concat([masks, masks]), "is masked a second time"),
        (lambda masks: masks.with_columns(pl.col("length") - 1), "the manifest says"),
    ],
)
def test_verify_sees_masks_that_are_not_what_the_retractions_ask_for(root: Path, change: Callable[[pl.DataFrame], pl.DataFrame], what: str) -> None:
    change_masks(root, change)
    assert what in problems(root)


def test_verify_sees_a_mask_file_of_another_kind(root: Path) -> None:
    (entry,) = Dataset(root, 2).manifest.masks
    with pa.ipc.new_file(root / entry.path, pa.schema([("x", pa.int64())])) as writer:
        writer.write_table(pa.table({"x": [1, 2]}))

    def relist(manifest: dict[str, Any]) -> None:
        manifest["masks"][0].update(sha256=sha256_file(root / entry.path), size_bytes=(root / entry.path).stat().st_size)

    edit_manifest(root, 2, relist)
    assert "cannot be checked" in problems(root)


def test_verify_sees_a_mask_file_that_changed_or_is_gone(root: Path) -> None:
    path = root / Dataset(root, 2).manifest.masks[0].path
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert "SHA-256 is" in problems(root)
    path.unlink()
    assert "the file is missing" in problems(root)


def test_trace_tells_which_versions_and_models_saw_a_retracted_document_and_what_grew_out_of_them(root: Path) -> None:
    log = CommitLog(root / MODEL_LOG)
    for number, (dataset_version, parent) in enumerate([(1, None), (2, 1), (2, None), (3, 2)], 1):
        manifest = model_manifest(root, number, dataset_version)
        training = manifest.training.model_copy(update={"parent_model": parent})
        log.publish(number, manifest.model_copy(update={"training": training}).model_dump_json().encode())
    fates = trace(root, "doc-3", deadletter_topic=DEADLETTER)
    assert [fate.outcome for fate in fates] == ["kept", "retracted", "retracted", "kept"]
    first, last = fates[0], fates[-1]
    assert (first.retracted_in, first.retracted_by, first.dataset_versions) == (2, f"{TOPIC}/0/30", {"first": 1, "last": 1})
    assert (last.retracted_in, last.dataset_versions) == (None, {"first": 2, "last": None})
    if first.split == "train":
        assert (first.models, first.heirs) == ([1], [2, 4])
        assert "trained into model version 1; models that started from these: 2, 4" in sentence(first)
    assert "retracted in version 2" in sentence(first)


def test_trace_of_a_document_that_was_retracted_in_its_own_version_names_no_version(made: Path) -> None:
    fate: Fate = trace(made, "doc-30", deadletter_topic=DEADLETTER)[0]
    assert (fate.retracted_in, fate.dataset_versions, fate.models) == (2, None, [])
    assert "no version holds it" in sentence(fate)


def test_what_was_dropped_against_a_retracted_document_is_lost_until_it_is_kept_represented_or_retracted_itself(tmp_path: Path) -> None:
    (first, other), text = values(0, 2), json.loads(values(0, 1)[0][1] or b"")["text"]

    def like_first(*doc_ids: str) -> list[tuple[bytes | None, bytes | None]]:
        return [(None, json.dumps({"id": doc_id, "text": text}).encode()) for doc_id in doc_ids]

    def lost(*doc_ids: str) -> list[str]:
        return [found.doc_id for found in lost_duplicates(Dataset(tmp_path), doc_ids)]

    commit_records(tmp_path, [first, other, *values(2, 20), *like_first("b", "c", "gone", "doc-1", "doc-0")])
    commit_records(tmp_path, [(b"gone", None)])
    assert (lost("doc-0"), lost("doc-1")) == (["b", "c"], [])  # doc-1 is kept under another text
    commit_records(tmp_path, [(b"doc-0", None), *like_first("b", "c")])
    assert [(fate.doc_id, fate.outcome) for fate in trace(tmp_path, "b", deadletter_topic=DEADLETTER)] == [("b", "duplicate"), ("b", "kept")]
    assert (lost("doc-0"), lost("b")) == ([], ["c"])  # c is represented by b


def test_trace_says_that_a_document_came_again_after_its_retraction(made: Path) -> None:
    first, *_, last = trace(made, "doc-3", deadletter_topic=DEADLETTER)
    assert (first.returned_after, last.returned_after) == (None, f"{TOPIC}/0/31")
    assert f"published again after its retraction at {TOPIC}/0/31" in sentence(last)


def test_ids_that_come_after_their_retraction_are_warned_of_and_no_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    commit_records(tmp_path, values())
    commit_records(tmp_path, [(b"doc-3", None), *values(40, 1)])
    assert caplog.text == ""
    commit_records(tmp_path, [*values(3, 1), *values(41, 1), (b"doc-41", None), *values(41, 1), *values(50, 2)])
    assert "so they count as new: 2 documents: 'doc-3', 'doc-41'" in caplog.text


def letter(data: bytes | None, key: bytes | None = None, headers: list[tuple[str, bytes | None]] | None = None, **ours: bytes) -> Letter:
    added = [("headrace_error", b"bad_json: it is not JSON"), ("headrace_rule", b"bad_json")]
    added += [("headrace_key", key)] if key is not None else []
    return letter_of(b"t/1/42", data, [*(headers or []), *added, *ours.items()], 1_700_000_000_000)


def test_a_letter_is_taken_apart() -> None:
    found = letter(b"\xff", b"k", [("a", b"1")])
    assert (found.place, found.rule, found.error, found.key, found.headers, found.size_bytes) == (
        "t/1/42",
        "bad_json",
        "it is not JSON",
        b"k",
        [("a", b"1")],
        1,
    )
    assert found.died_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert letter(b"", headrace_value_omitted=b"3000000").size_bytes == 3_000_000


@pytest.mark.parametrize(
    ("data", "key", "doc_id"),
    [
        (b'{"text": "x"}', None, "t/1/42"),
        (b'{"text": "x"}', b"k", "k"),
        (b'{"id": "own", "text": "x"}', b"k", "own"),
        (b'{"text": "x"}', b"\xff", "t/1/42"),
    ],
)
def test_a_replay_is_keyed_by_the_id_that_ingest_gives_it_wherever_it_lands(data: bytes, key: bytes | None, doc_id: str) -> None:
    record = replay_record(letter(data, key), MAX_BYTES)
    assert (record.key, record.value, record.headers) == (doc_id.encode(), data, [(REPLAY_HEADER, b"t/1/42")])
    for place in (("p", 0, 1), ("q", 5, 9)):
        assert decode_document(*record, *place, max_bytes=MAX_BYTES).doc_id == doc_id


def test_a_replay_leaves_out_header_names_that_were_no_utf8_and_is_refused_where_the_value_is_not_known() -> None:
    record = replay_record(letter(b'{"text": "x"}', headers=[(f"{BAD_NAME}\\xff", b"1"), ("note", b"stays")]), MAX_BYTES)
    assert record.headers == [("note", b"stays"), (REPLAY_HEADER, b"t/1/42")]
    with pytest.raises(EnvelopeError, match="could not be told"):
        replay_record(letter(b'{"text": "x"}', headers=[(BROKEN_RECORD, None)]), MAX_BYTES)


def test_a_replay_reads_what_lies_outside_its_record() -> None:
    named = {"id": "1", "source": "/x", "specversion": "1.0", "type": "document.received", "dataref": "blobs/" + "0" * 64}
    dead = letter(None, headers=[(f"ce_{name}", text.encode()) for name, text in named.items()])
    with pytest.raises(EnvelopeError, match="not read here"):
        replay_record(dead, MAX_BYTES)
    record = replay_record(dead, MAX_BYTES, read_reference=lambda reference: b'{"id": "own", "text": "x"}')
    assert (record.key, record.value) == (b"own", None)


def test_a_replay_is_refused_by_the_share_of_damage_that_the_settings_allow() -> None:
    damaged = letter("价格".encode() + b"\xff\xff" + "是三十元".encode(), headers=[("content-type", b"text/plain; charset=utf-8")])
    with pytest.raises(EnvelopeError, match="max_damaged_fraction"):
        replay_record(damaged, MAX_BYTES)
    assert replay_record(damaged, MAX_BYTES, max_damage=0.5).value == damaged.value


def test_a_replay_of_a_replay_names_the_first_place() -> None:
    record = replay_record(letter(b'{"text": "x"}', headers=[(REPLAY_HEADER, b"t/0/1")]), MAX_BYTES)
    assert (record.key, record.headers) == (b"t/0/1", [(REPLAY_HEADER, b"t/0/1")])


def test_a_letter_of_a_replay_that_died_names_the_replay_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stood at t/0/1 died, its first replay (offset 30) died again, the second (31) is kept."""
    replay = [[{"key": REPLAY_HEADER, "value": b"t/0/1"}]] * 2
    plain = factories.records_table([*values(), (None, b"{"), *values(30, 1)])
    headers = pa.array([[]] * 30 + replay, plain.schema.field("headers").type)
    marked = plain.set_column(plain.schema.get_field_index("headers"), plain.schema.field("headers"), headers)
    monkeypatch.setattr(factories, "records_table", lambda *_: marked)
    commit_records(tmp_path, [(None, b"")] * 32)
    assert letter(b"{").first_place == "t/1/42"
    died = letter(b"{", headers=[(REPLAY_HEADER, b"t/0/1")])
    places = {"t/0/1": "t/0/1", f"{TOPIC}/0/30": died.first_place, "t/0/2": "t/0/2"}
    found = _replays(Settings(root=str(tmp_path)), places)
    assert [[(at.position, at.outcome) for at in found[place]] for place in places] == [
        [(f"{TOPIC}/0/30", "dead"), (f"{TOPIC}/0/31", "kept")],
        [(f"{TOPIC}/0/31", "kept")],
        [],
    ]
    assert _replays(Settings(root=str(tmp_path / "none")), places) == {place: [] for place in places}


def test_a_lost_duplicate_is_published_under_its_own_id_and_only_if_its_record_is_still_that_document() -> None:
    event = {"ce_id": b"7", "ce_source": b"/wiki", "ce_specversion": b"1.0", "ce_type": b"document.received"}
    row = {"is_control": False, "key": None, "value": b'{"text": "x"}', "headers": list(event.items())}

    def restored(doc_id: str, **changes: Any) -> Any:
        lost = Lost(doc_id, "a", "t", 1, 42, "near", 0.9, 1)
        return restored_record(lost, row | changes, Settings(), refuse_reference)

    record = restored("/wiki#7")
    assert (record.key, record.value, record.headers[-1]) == (b"/wiki#7", row["value"], (REPLAY_HEADER, b"t/1/42"))
    assert decode_document(record.key, record.value, record.headers, "t", 0, 7, max_bytes=MAX_BYTES).doc_id == "/wiki#7"
    again = restored("/wiki#7", headers=record.headers)
    assert again.headers[-1] == (REPLAY_HEADER, b"t/1/42")
    assert "stands '/wiki#7' now: the topic is another one" in restored("b")
    assert "does not hold t/1/42 any more" in restored("/wiki#7", is_control=True)
    assert "dead letter (bad_json)" in restored("/wiki#7", value=b"{", headers=[])


def test_what_would_die_again_is_not_published() -> None:
    for data, rule in ((b"{", "bad_json"), (None, "nothing_to_replay")):
        with pytest.raises(EnvelopeError) as caught:
            replay_record(letter(data), MAX_BYTES)
        assert caught.value.rule == rule
    with pytest.raises(EnvelopeError, match="3,000,000 bytes were too large"):
        replay_record(letter(b"", headrace_value_omitted=b"3000000"), MAX_BYTES)
    with pytest.raises(EnvelopeError):
        replay_record(letter(b"{"), MAX_BYTES, b"[]")


def test_a_plain_document_mends_an_event_whose_headers_were_wrong() -> None:
    broken = letter(b'{"text": "x"}', headers=[("ce_specversion", b"9"), ("content-type", b"text/plain"), ("note", b"stays")])
    record = replay_record(broken, MAX_BYTES, with_text(broken, "新的文字"))
    assert record.headers == [("note", b"stays"), (REPLAY_HEADER, b"t/1/42")]
    assert json.loads(record.value or b"") == {"text": "新的文字"}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xff", {"text": "new"}),
        (b"[1]", {"text": "new"}),
        (b'{"id": "a", "text": 5, "lang": "en"}', {"id": "a", "text": "new", "lang": "en"}),
        (b'{"specversion": "1.0", "data": {"text": 5}}', {"specversion": "1.0", "data": {"text": "new"}}),
    ],
)
def test_a_new_text_keeps_what_else_the_document_says(data: bytes, expected: object) -> None:
    assert json.loads(with_text(letter(data), "new")) == expected


def test_a_retraction_is_an_event_under_the_documents_key() -> None:
    record = retraction_record("doc-1", "asked", datetime(2026, 1, 1, tzinfo=UTC))
    assert record.key == b"doc-1"
    assert decode_document(*record, "t", 0, 0, max_bytes=MAX_BYTES) == Retraction("doc-1")
    with pytest.raises(EnvelopeError, match="cannot be a document id"):
        retraction_record("a\nb", None, datetime(2026, 1, 1, tzinfo=UTC))
