"""Every file and record turns up as one finding, whatever is in it."""

import gzip
import io
import json
import socket
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ops.producing.findings import Failed, Finding, Found, Skipped, TooLarge, file_id, limited, place_id
from ops.producing.readers import ReadOptions, read_paths
from schemas.events import is_document_id

LINES = b'{"id": "a", "text": "one", "lang": "en", "unknown": [1]}\n\n{"text": "\xe4\xba\x8c"}\r\n{"id": 7, "text": "three"}'


def read(*paths: Path | str, stdin: bytes = b"", options: ReadOptions = ReadOptions()) -> list[Finding]:  # noqa: B008 (frozen)
    return list(read_paths([str(path) for path in paths], options, io.BytesIO(stdin)))


def documents(findings: list[Finding]) -> list[Found]:
    return [finding for finding in findings if isinstance(finding, Found)]


def texts(findings: list[Finding]) -> list[str]:
    return [finding.document.text for finding in findings if isinstance(finding, Found)]


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".JSONL"])
def test_json_lines_are_documents_with_their_own_ids_or_ids_by_place(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"docs{suffix}"
    file.write_bytes(gzip.compress(LINES) if suffix.endswith(".gz") else zstandard.compress(LINES) if suffix.endswith(".zst") else LINES)
    findings = read(file)
    assert texts(findings) == ["one", "二", "three"]
    assert [f.document.id for f in findings if isinstance(f, Found)] == ["a", file_id(str(file), 3), "7"]
    assert findings == read(file)


def test_zstd_files_of_several_frames_are_read_to_the_end(tmp_path: Path) -> None:
    file = tmp_path / "docs.jsonl.zst"
    file.write_bytes(zstandard.compress(b'{"text": "first"}\n') + zstandard.compress(b'{"text": "second"}\n'))
    assert texts(read(file)) == ["first", "second"]


def test_a_bad_line_is_named_and_stops_nothing(tmp_path: Path) -> None:
    file = tmp_path / "docs.jsonl"
    bad = [b"plain", b"[1]", b'"text"', b'{"body": "x"}', b'{"text": 5}', b'{"text": "x", "url": 1}', b'{"text": "\xff"}', b"[" * 100_000]
    file.write_bytes(b"\n".join([b'{"text": "first"}', *bad, b'{"text": "last"}']))
    findings = read(file)
    assert texts(findings) == ["first", "last"]
    failed = [finding for finding in findings if isinstance(finding, Failed)]
    assert [finding.origin for finding in failed] == [f"{file.as_posix()} line {number}" for number in range(2, 10)]
    assert "not JSON" in failed[0].error
    assert "--text-field" in failed[3].error
    assert "text" in failed[4].error


def test_standard_input_is_json_lines_with_ids_from_the_content() -> None:
    findings = read("-", stdin=b'{"text": "x"}\n{"text": "y"}\nnot json\n')
    ids = [finding.document.id for finding in findings if isinstance(finding, Found)]
    assert len(set(ids)) == 2
    assert ids[1:] == [f.document.id for f in read("-", stdin=b'{"text": "y"}') if isinstance(f, Found)]
    assert findings[2].origin == "standard input line 3" if isinstance(findings[2], Failed) else False


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    file = tmp_path / "docs.parquet"
    columns = {"id": [1, 2, 3], "body": ["a", None, "c"], "created_at": [datetime(2026, 1, 2, tzinfo=UTC)] * 3, "vector": [[0.5]] * 3}
    pq.write_table(pa.table(columns), file)
    findings = read(file, options=ReadOptions(text_field="body"))
    assert texts(findings) == ["a", "c"]
    assert isinstance(findings[0], Found)
    assert (findings[0].document.id, findings[0].document.created_at) == ("1", "2026-01-02T00:00:00+00:00")
    assert isinstance(findings[1], Failed)
    assert findings[1].origin.endswith("docs.parquet row 2")
    (missing,) = read(file)
    assert isinstance(missing, Failed)
    assert "'text'" in missing.error


def test_folders_are_read_recursively_in_order_and_other_files_are_counted(tmp_path: Path) -> None:
    for name, content in {
        "b.md": "# Title\n\nB",
        "a/z.txt": "Z",
        "a/b/c.html": "<p>C",
        "a/x.bin": "?",
        ".hidden.txt": "H",
        ".git/x.txt": "G",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    findings = read(tmp_path)
    assert texts(findings) == ["# Title\n\nB", "Z", "<p>C"]
    assert [finding.origin for finding in findings if isinstance(finding, Skipped)] == [(tmp_path / "a/x.bin").as_posix()]
    assert isinstance(findings[0], Found)
    assert (findings[0].document.id, findings[0].document.title) == (file_id(str(tmp_path / "b.md")), "Title")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    (tmp_path / "empty.md").write_bytes(b" \n")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(LINES)[:-20])
    (tmp_path / "torn.txt.zst").write_bytes(zstandard.compress(LINES * 1_000)[:-20])
    (tmp_path / "not.jsonl.zst").write_bytes(b"not zstd")
    (tmp_path / "not.parquet").write_bytes(b"not parquet")
    (tmp_path / "program.exe").write_bytes(b"MZ")
    findings = read(tmp_path, tmp_path / "missing.txt", tmp_path / "program.exe")
    failed = {Path(finding.origin).name: finding.error for finding in findings if isinstance(finding, Failed)}
    assert failed.keys() == {"binary.txt", "empty.md", "torn.jsonl.gz", "torn.txt.zst", "not.jsonl.zst", "not.parquet", "missing.txt", "program.exe"}
    assert "character set" in failed["binary.txt"]
    assert ".parquet" in failed["program.exe"]


@pytest.mark.parametrize("name", ["missing", "missing.exe", "missing/a.txt"])
def test_what_does_not_exist_is_not_called_a_file_of_an_unknown_kind(tmp_path: Path, name: str) -> None:
    (finding,) = read(tmp_path / name)
    assert finding == Failed(str(tmp_path / name), "there is no such file or folder")


def test_a_zstd_file_with_a_wide_window_is_refused_with_what_to_do(tmp_path: Path) -> None:
    compressor = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=29, compression_level=1)).compressobj()
    (tmp_path / "wide.jsonl.zst").write_bytes(compressor.compress(LINES) + compressor.flush())
    (finding,) = read(tmp_path)
    assert isinstance(finding, Failed)
    assert "zstd -d --long=31" in finding.error


def test_a_boolean_is_no_id(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": true, "text": "The mill."}\n{"id": 7, "text": "The river."}\n')
    refused, taken = read(tmp_path)
    assert isinstance(refused, Failed)
    assert "id" in refused.error
    assert isinstance(taken, Found)
    assert taken.document.id == "7"


@pytest.mark.parametrize(
    ("name", "text"), [("gb18030", "水从山上流下来，推动石磨转动。"), ("shift_jis", "水車がゆっくり回る。"), ("utf-16-le", "The mill.")]
)
def test_text_files_are_read_in_their_character_set(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(name))
    assert texts(read(tmp_path)) == [text]


def test_what_is_larger_than_the_largest_record_is_not_read_to_its_end(tmp_path: Path) -> None:
    options = ReadOptions(max_bytes=100)
    (tmp_path / "large.txt").write_text("x" * 101)
    (tmp_path / "small.txt").write_text("y" * 100)
    (tmp_path / "lines.jsonl").write_text(json.dumps({"text": "z" * 1000}) + '\n{"text": "after"}\n')
    findings = read(tmp_path, options=options)
    assert texts(findings) == ["after", "y" * 100]
    sizes = {Path(finding.origin).name: finding.size_bytes for finding in findings if isinstance(finding, TooLarge)}
    assert sizes == {"large.txt": 101, "lines.jsonl line 1": 1013}


def test_a_limit_counts_documents_only() -> None:
    findings = read("-", stdin=b'{"text": "a"}\nbad\n{"text": "b"}\n{"text": "c"}\n')
    assert list(limited(iter(findings), 2)) == findings[:3]
    assert list(limited(iter(findings), None)) == findings


def test_a_file_has_one_id_however_its_path_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("Water runs downhill.")
    monkeypatch.chdir(tmp_path)
    ids = {
        found.document.id for path in ("notes", "./notes", "../" + tmp_path.name + "/notes", tmp_path / "notes") for found in documents(read(path))
    }
    assert ids == {f"file://{socket.gethostname()}{(tmp_path / 'notes' / 'a.md').resolve().as_posix()}"}


def test_files_of_the_same_name_below_two_folders_have_two_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for person in ("ann", "bo"):
        (tmp_path / person / "notes").mkdir(parents=True)
        (tmp_path / person / "notes" / "a.md").write_text("Water runs downhill.")
        monkeypatch.chdir(tmp_path / person)
        ids += [found.document.id for found in documents(read("notes"))]
    assert len(set(ids)) == 2


@given(st.text(max_size=1100))
def test_any_place_gives_an_id_that_a_document_can_have(place: str) -> None:
    assert is_document_id(place_id(place))
    assert place_id(place) == place_id(place)


def test_html_goes_out_as_html_with_its_title_decoded_from_the_encoding_that_it_names(tmp_path: Path) -> None:
    page = '<meta charset="gb2312"><title> 引\n水渠 </title><p>水从山上流下来'
    (tmp_path / "page.html").write_bytes(page.encode("gb18030"))
    (finding,) = read(tmp_path / "page.html")
    assert isinstance(finding, Found)
    assert (finding.document.text, finding.document.format, finding.document.title) == (page, "html", "引 水渠")
