"""`headrace quality`: fit, list, show, score and export, as a person uses them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from ops.cli.main import main

RIVERS = ("The river carries water to the old mill", "Boats wait in the harbour for the tide", "Children play in the meadow by the brook")
RIVERS_ZH = ("河水缓缓流向古老的磨坊", "船只在港口等待潮水", "孩子们在小溪边的草地上玩耍")


def story(rng: random.Random, phrases: tuple[str, ...], end: str) -> str:
    return "".join(f"{rng.choice(phrases)}{end}" for _ in range(12)).strip()


def write_lines(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"id": f"{path.stem}-{number}", "text": text}) + "\n" for number, text in enumerate(texts)), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("documents")
    rng = random.Random(0)
    english = [story(rng, RIVERS, ". ") for _ in range(80)]
    chinese = [story(rng, RIVERS_ZH, "。") for _ in range(80)]
    noise = [" ".join(f"0x{rng.getrandbits(32):x} ERR{rng.randint(0, 9)}; the" for _ in range(30)) for _ in range(60)]
    return {
        "references": write_lines(folder / "references.jsonl", english + chinese),
        "good": write_lines(folder / "good.jsonl", english[:50]),
        "bad": write_lines(folder / "bad.jsonl", noise[:50]),
        "new": write_lines(folder / "new.jsonl", [story(rng, RIVERS, ". "), noise[-1], story(rng, RIVERS_ZH, "。")]),
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("root"))


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["quality", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def sha256(files: dict[str, str], root: str) -> str:
    assert main(["quality", "fit", files["references"], "--root", root]) == 0
    return next(Path(root, "quality").iterdir()).name


def test_a_model_is_fitted_listed_and_shown_with_its_hold_out(capsys: pytest.CaptureFixture[str], files: dict[str, str], tmp_path: Path) -> None:
    flags = ("--root", str(tmp_path))
    fitted = run_json(capsys, "fit", files["references"], "--good", files["good"], "--bad", files["bad"], "--language", "en", *flags)
    assert fitted["languages"]["en"]["classifier"]["auc"] == 1
    assert run_json(capsys, "list", *flags)["models"] == [
        {"sha256": fitted["sha256"], "languages": {"en": ["perplexity", "informativeness", "classifier"]}}
    ]
    shown = run_json(capsys, "show", "--model", fitted["sha256"][:8], *flags)
    assert shown["path"] == str(tmp_path / "quality" / fitted["sha256"])
    assert len(shown["languages"]["en"]["perplexity"]["quantiles"]) == 1001
    assert main(["quality", "show", "--model", fitted["sha256"], *flags]) == 0
    assert "classifier" in capsys.readouterr().out


def test_languages_are_detected_and_fitting_again_gives_the_same_model(
    capsys: pytest.CaptureFixture[str], files: dict[str, str], root: str, sha256: str
) -> None:
    again = run_json(capsys, "fit", files["references"], "--root", root)
    assert again["sha256"] == sha256
    assert sorted(again["languages"]) == ["en", "zh"]
    assert [folder.name for folder in Path(root, "quality").iterdir()] == [sha256]


def test_documents_are_scored_under_the_present_settings(capsys: pytest.CaptureFixture[str], files: dict[str, str], root: str, sha256: str) -> None:
    flags = ("--root", root, "--set", f"quality_model.path={sha256}")
    scored = run_json(capsys, "score", files["new"], *flags)
    assert scored["model"] == sha256
    english, noise, chinese = scored["documents"]
    assert (english["language"], chinese["language"]) == ("en", "zh")
    assert noise["rule"] == "perplexity/too_high" or noise["perplexity"] is None
    assert english["perplexity"] < 100
    assert english["quality"] is None
    assert main(["quality", "score", files["new"], *flags]) == 0
    assert "new-0" in capsys.readouterr().out


def test_an_exported_model_is_read_by_kenlm(root: str, sha256: str, tmp_path: Path) -> None:
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed")
    path = tmp_path / "en.arpa"
    assert main(["quality", "export", "--model", sha256, "--language", "en", "--output", str(path), "--root", root]) == 0
    model = kenlm.Model(str(path))
    assert model.order == 3
    assert model.score("the river carries water to the old mill .") > model.score("mill water the old carries . the river to")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "give REFERENCE files"),
        (["fit", "--good", "x.jsonl"], "both --good and --bad"),
        (["show"], "--model"),
        (["show", "--model", "zzz"], "0 models"),
        (["export", "--model", "SHA", "--language", "fr", "--output", "x"], "no language model for 'fr'"),
    ],
)
def test_wrong_usage_says_what_to_do(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], root: str, sha256: str) -> None:
    assert main(["quality", *(sha256 if word == "SHA" else word for word in arguments), "--root", root]) == 2
    assert message in capsys.readouterr().err


def test_too_few_documents_fit_nothing(capsys: pytest.CaptureFixture[str], files: dict[str, str], tmp_path: Path) -> None:
    assert main(["quality", "fit", files["new"], str(tmp_path / "missing.jsonl"), "--root", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "nothing was fitted" in told
    assert "missing.jsonl" in told
    assert not (tmp_path / "quality").exists()
