"""``headrace datasets view | diff | export`` on a small dataset of real text, and what training makes of a view."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ops.cli.main import main
from pipelines.dataset.dataset import Dataset
from pipelines.views.selection import open_view
from schemas.arrow import Outcome
from tests.factories import commit_records
from tests.ingest_harness import CHINESE, ENGLISH

DOMAINS = ("tech", "humanities", "daily")


def text(number: int) -> str:
    """Long enough to be kept, and unlike all others."""
    rng = np.random.default_rng(number)
    alphabet, glue = (list(CHINESE), "") if number % 4 == 3 else (ENGLISH.split(), " ")
    return glue.join(rng.choice(alphabet, 70)) + f" {number}"


def record(number: int, **fields: object) -> tuple[bytes, bytes]:
    document = {"id": f"doc-{number}", "text": text(number), "domain": DOMAINS[number % 3], **fields}
    return f"doc-{number}".encode(), json.dumps(document, ensure_ascii=False).encode()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1: 90 documents. Version 2: 45 more, and two of version 1 are retracted."""
    made = tmp_path_factory.mktemp("views")
    commit_records(made, [record(number) for number in range(90)])
    commit_records(made, [*(record(number) for number in range(90, 135)), (b"doc-4", None), (b"doc-7", None)])
    return made


@pytest.fixture
def headrace(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Run":
    monkeypatch.chdir(tmp_path)
    return Run(root, capsys)


class Run:
    """The real command in this process."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.capsys = capsys
        self.err = ""

    def __call__(self, *arguments: str, code: int = 0) -> str:
        found = main([*arguments, "--root", str(self.root)])
        out, self.err = self.capsys.readouterr()
        assert found == code, self.err
        return out

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


def kept(root: Path, version: int | None = None) -> pl.DataFrame:
    """Kept documents of a version that were not retracted in it."""
    dataset = Dataset(root, version)
    files = [pl.read_parquet(root / entry.path) for manifest in dataset.manifests() for entry in manifest.documents]
    gone = ["doc-4", "doc-7"] if dataset.version > 1 else []
    return pl.concat(files).filter((pl.col("outcome") == Outcome.KEPT) & ~pl.col("doc_id").is_in(gone))


def test_a_view_with_weights_tells_what_each_group_wants_and_has(headrace: Run, root: Path) -> None:
    told = headrace.json("datasets", "view", "create", "mix", "--weight", "domain=tech:30", "--weight", "domain=humanities:25", "--weight", "rest:20")
    assert "made view mix@1" in headrace.err and "sum to 75" in headrace.err and "tech 40.0%" in headrace.err
    assert [group["name"] for group in told["groups"]] == ["tech", "humanities", "rest"]
    assert [round(group["wanted"], 3) for group in told["groups"]] == [0.4, 0.333, 0.267]
    train = kept(root).filter(pl.col("shard").str.contains("-train-"))
    by_domain = dict(train.group_by("domain").agg(pl.col("length").sum()).iter_rows())
    assert [group["tokens"] for group in told["groups"]] == [by_domain[name] for name in DOMAINS]
    tech = told["groups"][0]
    assert tech["epochs_per_million_tokens"] == pytest.approx(0.4 * 1e6 / 32 / tech["rows"])
    assert told["documents"] == len(kept(root)) and told["excluded"] == {
        "retracted": {"documents": 2, "tokens": told["excluded"]["retracted"]["tokens"]}
    }
    again = headrace("datasets", "view", "create", "mix", "--weight", "domain=tech:30", "--weight", "domain=humanities:25", "--weight", "rest:20")
    assert "is the same already" in headrace.err and "tech" in again
    assert [view["version"] for view in headrace.json("datasets", "view", "list")["views"] if view["name"] == "mix"] == [1]


def test_each_document_that_a_view_leaves_out_is_counted_under_its_rule(headrace: Run, root: Path, tmp_path: Path) -> None:
    chosen = kept(root, 1)
    listed = tmp_path / "semantic.parquet"
    pl.DataFrame({"doc_id": ["doc-1", "doc-9"], "duplicate_of": ["doc-0", "doc-0"], "similarity": [0.9, 0.8]}).write_parquet(listed)
    # One word changed in doc-2, doc-13 as it is, and something that is not in the dataset.
    near = text(2).replace("mill", "windmill", 1)
    evaluation = tmp_path / "Quiz Set.jsonl"
    evaluation.write_text(
        "".join(json.dumps({"id": name, "text": value}) + "\n" for name, value in (("q1", near), ("q2", text(13)), ("q3", text(999))))
    )
    file = tmp_path / "view.toml"
    file.write_text(
        'dataset = 1\nexclude = ["semantic.parquet"]\nevaluation = ["Quiz Set.jsonl"]\n[filter]\nnot_domain = ["daily"]\n'
        '[[holdout]]\nname = "zh"\nlanguage = ["zh"]\n[[group]]\nname = "tech"\nweight = 0.5\ndomain = ["tech"]\n'
    )
    told = headrace.json("datasets", "view", "create", "strict", "--file", str(file))
    assert [(hit["doc_id"], hit["evaluation"], hit["evaluation_document"], hit["reason"]) for hit in told["contaminated"]] == [
        ("doc-2", "quiz-set", "q1", "near"),
        ("doc-13", "quiz-set", "q2", "exact"),
    ]
    assert 0.7 <= told["contaminated"][0]["similarity"] < 1
    rest = chosen.filter(pl.col("domain") != "daily")
    counts = {rule: entry["documents"] for rule, entry in told["excluded"].items()}
    assert counts["filter/not_domain"] == len(chosen) - len(rest)
    assert counts["list/semantic"] == rest.filter(pl.col("doc_id").is_in(["doc-1", "doc-9"])).height
    assert counts["contaminated/quiz-set"] == rest.filter(pl.col("doc_id").is_in(["doc-13"])).height
    assert (
        told["splits"]["zh"]["documents"]
        == rest.filter((pl.col("language") == "zh") & ~pl.col("doc_id").is_in(["doc-1", "doc-9", "doc-13"])).height
        > 0
    )
    assert sum(counts.values()) + told["documents"] == len(chosen)
    assert told["dataset_version"] == 1
    headrace("datasets", "view", "show", "strict@1", "--dataset", "2", code=2)
    assert "bound to dataset version 1" in headrace.err


def test_a_view_of_the_newest_version_is_kept_clean_of_later_documents_too(headrace: Run, root: Path, tmp_path: Path) -> None:
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps({"id": f"q{number}", "text": text(number)}) + "\n" for number in (13, 100)))
    headrace("datasets", "view", "create", "clean", "--dataset", "1", "--evaluation", str(tmp_path / "quiz.jsonl"))
    headrace("datasets", "view", "create", "clean", "--evaluation", str(tmp_path / "quiz.jsonl"))
    assert [hit["doc_id"] for hit in headrace.json("datasets", "view", "show", "clean@1")["contaminated"]] == ["doc-13"]
    assert [hit["doc_id"] for hit in headrace.json("datasets", "view", "show", "clean", "--dataset", "1")["contaminated"]] == ["doc-13"]
    assert [(hit["doc_id"], hit["version"]) for hit in headrace.json("datasets", "view", "show", "clean")["contaminated"]] == [
        ("doc-13", 1),
        ("doc-100", 2),
    ]
    for stored in (root / "views" / "clean" / "00000002").iterdir():  # what is stored is what is found again
        stored.unlink()
    assert [hit["doc_id"] for hit in headrace.json("datasets", "view", "show", "clean")["contaminated"]] == ["doc-13", "doc-100"]


def test_a_document_that_contains_a_passage_of_an_evaluation_document_is_left_out(headrace: Run, tmp_path: Path) -> None:
    passage = " ".join(text(16).split()[5:45])  # 40 of its 71 words
    (tmp_path / "quiz.jsonl").write_text(
        "".join(json.dumps({"id": name, "text": value}) + "\n" for name, value in (("q1", passage), ("q2", text(19)[9:59])))
    )
    found = headrace.json("datasets", "view", "create", "passages", "--evaluation", str(tmp_path / "quiz.jsonl"))["contaminated"]
    assert [(hit["doc_id"], hit["evaluation_document"], hit["reason"]) for hit in found] == [("doc-16", "q1", "passage"), ("doc-19", "q2", "passage")]
    assert 0.9 < found[0]["similarity"] <= 1
    told = headrace.json("datasets", "view", "create", "whole", "--evaluation", str(tmp_path / "quiz.jsonl"), "--min-passage-tokens", "0")
    assert told["contaminated"] == []


def test_the_difference_of_versions_and_views_is_told_by_language(headrace: Run, root: Path) -> None:
    told = headrace.json("datasets", "diff", "1", "2")
    old, new = kept(root, 1), kept(root, 2)
    assert (told["added"]["documents"], told["removed"]["documents"], told["retracted"]["documents"]) == (len(new) - len(old) + 2, 0, 2)
    assert told["tokens"] == [old["length"].sum(), new["length"].sum()]
    assert told["outcomes"]["retracted"] == 2 and told["outcomes"]["kept"] == told["added"]["documents"]
    headrace("datasets", "view", "create", "english", "--filter", "language=en")
    told = headrace.json("datasets", "diff", "2", "english")
    assert set(told["removed"]["by_language"]) == set(new["language"]) - {"en"}
    assert told["removed"]["documents"] == new.filter(pl.col("language") != "en").height and told["added"]["documents"] == 0
    back = headrace.json("datasets", "diff", "english@1", "2")
    assert back["added"] == told["removed"]
    assert "removed" in headrace("datasets", "diff", "2", "english")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("view", "create", "Bad Name"), "cannot be the name of a view"),
        (("view", "create", "x", "--filter", "colour=red"), "is not a filter"),
        (("view", "create", "x", "--filter", "quality"), "is not a filter"),
        (("view", "create", "x", "--filter", "quality>=good"), "min_quality"),
        (("view", "create", "x", "--filter", "num_tokens>=9&num_tokens<=2"), "nothing lies between"),
        (("view", "create", "x", "--weight", "domain=tech"), "is not a weight"),
        (("view", "create", "x", "--weight", "domain=tech:-1"), "greater than 0"),
        (("view", "create", "x", "--weight", "domain=a:1", "--weight", "source=a:1"), "two groups are called 'a'"),
        (("view", "create", "x", "--weight", "domain=a:1", "--weight", "rest:9999"), "the smallest is one row in 1,000"),
        (("view", "create", "x", "--holdout", "train:domain=tech"), "cannot be called 'train'"),
        (("view", "create", "x", "--exclude", "missing.parquet"), "cannot be read as Parquet"),
        (("view", "create", "x", "--evaluation", "missing.jsonl"), "cannot be read"),
        (("view", "create", "x", "--file", "missing.toml"), "cannot be read as TOML"),
    ],
)
def test_what_cannot_be_a_view_is_refused_in_one_line(headrace: Run, root: Path, arguments: tuple[str, ...], said: str) -> None:
    headrace("datasets", *arguments, code=2)
    assert said in headrace.err and headrace.err.count("\n") == 1
    assert not (root / "views" / "x" / "00000001.json").exists()


def test_a_group_or_holdout_without_documents_is_named(headrace: Run) -> None:
    weights = ("--weight", "domain=nosuch:10%", "--weight", "domain=tech:90%")
    headrace("datasets", "view", "create", "odd", *weights, "--holdout", "quiz:source=nosuch", "--holdout", "seen:domain=humanities")
    assert "group nosuch holds no document to train on" in headrace.err
    assert "holdout quiz holds no document" in headrace.err and "holdout seen" not in headrace.err


def test_groups_are_named_after_what_they_take_in_any_script(headrace: Run) -> None:
    weights = ("domain=科技,tech:20%", "num_tokens<=40:0.2", "domain!=a:0.2", "rest:20%", "language=中文:0.2")
    arguments = [part for weight in weights for part in ("--weight", weight)]
    told = headrace.json("datasets", "view", "create", "named", *arguments, "--holdout", "新闻:source=新闻")
    assert [group["name"] for group in told["groups"]] == ["科技-tech", "max_num_tokens-40", "not_domain-a", "rest", "中文"]
    assert "新闻" in told["splits"] and told["groups"][0]["wanted"] == pytest.approx(0.2)


def test_views_and_versions_that_are_not_there_are_named(headrace: Run) -> None:
    headrace("datasets", "view", "show", "nothing", code=1)
    assert "there is no view 'nothing'" in headrace.err
    headrace("datasets", "view", "create", "one", "--filter", "language=en")
    headrace("datasets", "view", "show", "one@7", code=1)
    assert "has no version 7; versions 1 to 1 exist" in headrace.err


def test_training_on_a_view_that_is_not_there_is_refused_before_anything_big_is_loaded(headrace: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ray_apps.training.app", "torch", "ray"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it is an error
    headrace("datasets", "view", "create", "there", "--filter", "language=en")
    headrace("train", "--view", "nowhere", code=1)
    assert "there is no view 'nowhere'" in headrace.err
    headrace("train", "--view", "there@9", code=1)
    assert "view 'there' has no version 9" in headrace.err
    headrace("train", "--view", "Not a name", code=2)


def test_a_file_that_a_view_rests_on_cannot_change_unnoticed(headrace: Run, root: Path, tmp_path: Path) -> None:
    pl.DataFrame({"doc_id": ["doc-1"]}).write_parquet(tmp_path / "list.parquet")
    headrace("datasets", "view", "create", "listed", "--exclude", str(tmp_path / "list.parquet"))
    (tmp_path / "list.parquet").unlink()  # the view has its own copy
    entry = open_view(root, "listed").view.exclusions[0]
    assert "doc-1" not in open_view(root, "listed").chosen("train")["doc_id"].to_list()
    pl.DataFrame({"doc_id": ["doc-2"]}).write_parquet(root / entry.path)
    headrace("datasets", "view", "show", "listed", code=1)
    assert "restore it from a copy" in headrace.err


def test_a_switch_of_the_tokenizer_takes_views_along_and_names_those_that_stay_behind(headrace: Run, root: Path, tmp_path: Path) -> None:
    old, new = (Run(tmp_path / name, headrace.capsys) for name in ("old", "new"))
    shutil.copytree(root, old.root, ignore=shutil.ignore_patterns("views"))
    quiz, listed = tmp_path / "quiz.jsonl", tmp_path / "listed.parquet"
    passage = " ".join(text(16).split()[5:45])
    quiz.write_text("".join(json.dumps({"id": name, "text": value}) + "\n" for name, value in (("q1", passage), ("q2", text(13)))))
    pl.DataFrame({"doc_id": ["doc-1"]}).write_parquet(listed)
    view = ("datasets", "view")
    old(*view, "create", "mix", "--weight", "domain=tech:1", "--weight", "rest:3")
    made = ("--evaluation", str(quiz), "--exclude", str(listed), "--holdout", "h:domain=humanities", "--dataset", "2")
    old(*view, "create", "clean", "--filter", "language=en", *made)
    old(*view, "create", "clean", *made)
    old(*view, "create", "early", "--dataset", "1")
    switch = ("tokenizer", "switch", old.json("tokenizer", "fit", "--from-dataset", "--vocab-size", "320")["sha256"], "--into", str(new.root))
    told = old(*switch)
    assert "view mix@1 is mix@1 there" in told and "view clean@2 is clean@1 there" in told
    assert "view early@1 stays behind: it is bound to dataset version 1" in told and f"view create early … --root {new.root}" in told
    assert [carried["label"] for carried in old.json(*switch)["views"]] == ["clean@1", None, "mix@1"]
    shown = [run.json(*view, "show", "clean") for run in (old, new)]
    hits = [[(hit["doc_id"], hit["evaluation_document"], hit["reason"]) for hit in one["contaminated"]] for one in shown]
    assert hits[0] == hits[1] == [("doc-13", "q2", "exact"), ("doc-16", "q1", "passage")]
    splits = [{name: counts["documents"] for name, counts in one["splits"].items()} for one in shown]
    assert splits[0] == splits[1]
    assert new.json(*view, "show", "mix")["dataset_version"] == 1
