"""``headrace quality fit | list | show | score | export``: models of quality, fitted to documents that the user trusts."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.cli.output import print_json, print_table, say, tell
from schemas.counting import counted
from schemas.errors import SettingsError
from schemas.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from ops.producing.batches import Batch
    from pipelines.quality.card import LanguageCard
    from pipelines.quality.fit import Fitted
    from pipelines.quality.models import QualityModels

ENOUGH_HELD_OUT = 100
"""Held-out documents from which on a quantile of 1 % means something."""
SHOWN_QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
UNDETERMINED = "und"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("quality", help="fit, show and try quality models")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    fit = actions.add_parser("fit", parents=[common], help="fit models to trusted documents, and to good and bad examples", description=_FIT)
    _add_fit_flags(fit)
    listing = actions.add_parser("list", parents=[common], help="the models under the root")
    showing = actions.add_parser("show", parents=[common], help="one model: languages, sizes, hold-out metrics, quantiles")
    scoring = actions.add_parser("score", parents=[common], help="scores and verdicts of documents under the present settings")
    scoring.add_argument("paths", nargs="+", metavar="FILE", help="as for `headrace produce`; - is standard input (JSON Lines)")
    _add_reading_flags(scoring)
    exporting = actions.add_parser("export", parents=[common], help="write a language model as an ARPA file, for kenlm and others")
    exporting.add_argument("--language", type=_language, required=True, metavar="L", help="language of the model")
    exporting.add_argument("--output", required=True, metavar="FILE", help="the ARPA file to write")
    for action, function in ((fit, run_fit), (listing, run_list), (showing, run_show), (scoring, run_score), (exporting, run_export)):
        if action in (showing, scoring, exporting):
            action.add_argument("--model", metavar="SHA256", help="SHA-256 of the model, or its first characters (default: quality_model.path)")
        action.add_argument("--json", action="store_true", help="one JSON document on standard output")
        action.set_defaults(run=function)


_FIT = (
    "From REFERENCE documents: an n-gram language model (perplexity) and term weights (informativeness) for each of their languages. "
    "From --good and --bad examples: a classifier for each language that has 50 of both. "
    "A tenth of the documents (more if there are few) is held out for thresholds and metrics."
)


def _add_fit_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("references", nargs="*", metavar="REFERENCE", help="files or folders of documents you trust, as for `headrace produce`")
    parser.add_argument("--good", nargs="+", default=[], metavar="FILE", help="good examples for the classifier")
    parser.add_argument("--bad", nargs="+", default=[], metavar="FILE", help="bad examples for the classifier")
    parser.add_argument("--order", type=int, choices=range(2, 7), default=3, help="longest n-gram (default: 3)")
    parser.add_argument(
        "--prune", type=_count, default=1, metavar="N", help="leave out n-grams of 3 or more units that occur at most N times (default: 1)"
    )
    parser.add_argument("--max-megabytes", type=_count, default=64, metavar="N", help="read at most N MB of text per language (default: 64)")
    _add_reading_flags(parser)


def _add_reading_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--language", type=_language, metavar="L", help="language of all documents (default: detected; * in fit: any)")
    parser.add_argument("--text-field", default="text", metavar="NAME", help="field of JSON Lines and Parquet that holds the text (default: text)")


def _language(text: str) -> str:
    if not re.fullmatch(r"\*|[a-z]{2,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an ISO 639 code such as en or zh, nor *")
    return text


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return int(text)


def run_fit(args: argparse.Namespace, settings: Settings) -> int:
    """Fit and write a model; 1 if no language had enough documents."""
    from pipelines.quality.models import write_model

    if not args.references and not (args.good and args.bad):
        raise SettingsError("give REFERENCE files, or both --good and --bad, or all three")
    if bool(args.good) != bool(args.bad):
        raise SettingsError("a classifier needs both --good and --bad")
    fitted = _fit_all(args, settings)
    if not fitted:
        say("headrace quality: nothing was fitted: no language has 50 different documents of each kind that was given")
        return 1
    sha256 = write_model(Path(settings.root), fitted)
    cards = {language: model.card for language, model in fitted.items()}
    if args.json:
        print_json({"sha256": sha256, "languages": {language: _summary(card) for language, card in cards.items()}})
    else:
        _print_cards(sha256, cards)
        say(f'to use it: quality_model.path = "{sha256}"')
    return 0


def _fit_all(args: argparse.Namespace, settings: Settings) -> "dict[str, Fitted]":
    import pyarrow as pa

    from pipelines.quality.fit import FitOptions, fit_language

    kinds = [_by_language(paths, args, settings) for paths in (args.references, args.good, args.bad)]
    nothing = pa.array([], pa.large_string())
    fitted = {}
    for language in sorted({language for kind in kinds for language in kind} - {UNDETERMINED}):
        references, good, bad = (kind.get(language, nothing) for kind in kinds)
        say(f"{language}: {len(references):,} references, {len(good):,} good and {len(bad):,} bad examples")
        model = fit_language(references, good, bad, FitOptions(args.order, args.prune))
        if model.card != type(model.card)():
            fitted[language] = model
            _warn(language, model.card)
    return fitted


def _warn(language: str, card: "LanguageCard") -> None:
    counts = [part.num_held_out for part in (card.perplexity, card.informativeness) if part]
    counts += [card.classifier.held_out_good] if card.classifier else []
    if min(counts) < ENOUGH_HELD_OUT:
        say(f"{language}: only {min(counts)} held-out documents determine the thresholds: fit more documents, or set absolute thresholds")


def _by_language(paths: list[str], args: argparse.Namespace, settings: Settings) -> "dict[str, pa.Array]":
    """All documents of the paths, up to --max-megabytes of each language."""
    import numpy as np
    import pyarrow as pa

    parts: dict[str, list[pa.Array]] = {}
    sizes: dict[str, int] = {}
    left_out = 0
    for batch in _batches(paths, args, settings):
        codes = np.asarray(batch.languages, dtype=object).astype(str)
        for language in np.unique(codes).tolist():
            if sizes.get(language, 0) >= args.max_megabytes * 2**20:
                left_out += int((codes == language).sum())
                continue
            texts = batch.texts.filter(pa.array(codes == language))
            parts.setdefault(language, []).append(texts)
            sizes[language] = sizes.get(language, 0) + texts.nbytes
    if left_out:
        say(f"headrace quality: {left_out:,} documents beyond --max-megabytes {args.max_megabytes} were left out")
    return {language: pa.concat_arrays(arrays) for language, arrays in parts.items()}


def _batches(paths: list[str], args: argparse.Namespace, settings: Settings) -> "Iterator[Batch]":
    from ops.producing.batches import read_batches
    from ops.producing.readers import ReadOptions

    options = ReadOptions(text_field=args.text_field, max_bytes=settings.kafka.max_request_bytes, max_damage=settings.formats.max_damaged_fraction)
    return read_batches(paths, options, args.language, lambda message: say(f"headrace quality: {message}"))


def _folder(args: argparse.Namespace, settings: Settings) -> Path:
    """The folder of --model or of the settings."""
    from pipelines.quality.models import model_folder, model_folders

    if not args.model:
        if settings.quality_model.path:
            return model_folder(settings.root, settings.quality_model.path)
        raise SettingsError("name a model with --model, or set quality_model.path; `headrace quality list` shows the models")
    found = [folder for folder in model_folders(Path(settings.root)) if folder.name.startswith(args.model)]
    if len(found) != 1:
        raise SettingsError(f"{len(found)} models under {settings.root} begin with {args.model!r}; `headrace quality list` shows them")
    return found[0]


def run_list(args: argparse.Namespace, settings: Settings) -> int:
    """All models under the root."""
    from pipelines.quality.models import model_folders, read_card

    cards = {folder.name: read_card(folder) for folder in model_folders(Path(settings.root))}
    if args.json:
        print_json(
            {"models": [{"sha256": sha, "languages": {name: _parts(entry) for name, entry in card.languages.items()}} for sha, card in cards.items()]}
        )
        return 0
    rows = [(sha, name, ", ".join(_parts(entry))) for sha, card in cards.items() for name, entry in card.languages.items()]
    print_table(("sha256", "language", "models"), rows, title=f"quality models of {settings.root}")
    return 0


def run_show(args: argparse.Namespace, settings: Settings) -> int:
    """One model."""
    from pipelines.quality.models import read_card

    folder = _folder(args, settings)
    card = read_card(folder)
    if args.json:
        print_json({"sha256": folder.name, "path": str(folder)} | card.model_dump(mode="json"))
    else:
        _print_cards(folder.name, card.languages)
    return 0


def run_score(args: argparse.Namespace, settings: Settings) -> int:
    """Scores and verdicts of documents."""
    from pipelines.quality.models import QualityModels, read_model

    folder = _folder(args, settings)
    models = QualityModels(read_model(folder), settings.quality_model)
    rows = [row for batch in _batches(args.paths, args, settings) for row in _scored(models, batch)]
    rejected = sum(row["rule"] is not None for row in rows)
    if args.json:
        print_json({"model": folder.name, "documents": rows, "num_rejected": rejected})
        return 0
    shown = [(row["id"], row["language"], *(_shown(row[name]) for name in _SCORES), row["rule"] or "accepted") for row in rows]
    print_table(("document", "language", *_SCORES, "verdict"), shown, title=f"model {folder.name[:12]}")
    say(f"{counted(len(rows), 'document')}, {rejected:,} rejected")
    return 0


_SCORES = ("quality", "perplexity", "informativeness")


def _scored(models: "QualityModels", batch: "Batch") -> list[dict[str, Any]]:
    scores = models.score(batch.texts, batch.languages)
    columns = {"language": batch.languages, **{name: getattr(scores, name) for name in _SCORES}, "rule": scores.rules}
    values = {"id": batch.ids} | {name: column.to_pylist() for name, column in columns.items()}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def _shown(score: float | None) -> str:
    return "" if score is None else f"{score:,.3f}" if score < 100 else f"{score:,.0f}"


def run_export(args: argparse.Namespace, settings: Settings) -> int:
    """Write an ARPA file."""
    from pipelines.quality.arpa import write_arpa
    from pipelines.quality.models import read_model, read_units

    folder = _folder(args, settings)
    model = read_model(folder)
    entry = model.card.languages.get(args.language)
    if entry is None or entry.perplexity is None:
        raise SettingsError(f"model {folder.name} has no language model for {args.language!r}; it is for {', '.join(model.card.languages)}")
    write_arpa(Path(args.output), model.parts[args.language].language_model, read_units(folder, args.language))
    if args.json:
        print_json({"sha256": folder.name, "language": args.language, "output": args.output, "num_grams": list(entry.perplexity.num_grams)})
    else:
        tell(args.output)
    return 0


def _parts(card: "LanguageCard") -> list[str]:
    return [name for name, value in card if value is not None]


def _summary(card: "LanguageCard") -> dict[str, Any]:
    """The card with a few quantiles instead of all."""
    value = card.model_dump(mode="json")
    for part in value.values():
        if part is not None:
            grid = part["quantiles"]
            part["quantiles"] = {str(q): grid[round(q * (len(grid) - 1))] for q in SHOWN_QUANTILES} if grid else {}
    return value


def _print_cards(sha256: str, cards: "dict[str, LanguageCard]") -> None:
    rows = []
    for language, card in cards.items():
        for name, part in _summary(card).items():
            if part is not None:
                rows += [(language, name, key, _told(value)) for key, value in part.items() if key != "bounds"]
    print_table(("language", "model", "", "value"), rows, title=f"quality model {sha256}")


def _told(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{float(name):.0%}: {number:.4g}" for name, number in value.items())
    return ", ".join(f"{number:,}" for number in value) if isinstance(value, list) else str(value)
