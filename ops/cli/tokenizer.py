"""``headrace tokenizer fit | import | list | show | inspect | switch``: make, compare and change tokenizers."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.cli.arguments import positive_int
from ops.cli.output import print_json, print_table, progress_bar, say, tell
from ops.cli.tokenizer_texts import Source, Texts, fit_texts
from schemas.counting import counted
from schemas.errors import SettingsError
from schemas.settings import Settings
from schemas.settings_data import TokenizerSettings

if TYPE_CHECKING:
    from pipelines.tokenizers.folders import Opened
    from pipelines.views.carrying import Carried

LANGUAGE_COLUMNS = ("lang", "docs", "tokens", "/word", "/char", "bytes/token", "1 byte", "fragments")
"""Documents; tokens, per word and per character; bytes per token; shares of the tokens that are one byte, and that are part of a character."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("tokenizer", help="fit, import, compare and switch tokenizers")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    fit = actions.add_parser("fit", parents=[common], help="train a byte-level BPE on documents")
    importing = actions.add_parser("import", parents=[common], help="take over a Hugging Face tokenizer")
    listing = actions.add_parser("list", parents=[common], help="the tokenizers under the root")
    showing = actions.add_parser("show", parents=[common], help="one tokenizer: ids, engine, round trip")
    inspecting = actions.add_parser("inspect", parents=[common], help="fertility per language, fragments, unused ids; compares two tokenizers")
    switching = actions.add_parser("switch", parents=[common], help="begin a new lineage: the same dataset with another tokenizer, under a new root")
    _add_fit_flags(fit)
    _add_import_flags(importing)
    for action in (showing, inspecting, switching):
        action.add_argument("tokenizer", metavar="SHA256|DIR", help="first characters of a SHA-256 under the root, or a folder with tokenizer.json")
    _add_text_flags(inspecting)
    inspecting.add_argument("--against", metavar="SHA256|DIR", help="a second tokenizer for the same documents")
    switching.add_argument("--into", required=True, metavar="NEW_ROOT", help="root of the new dataset; the old one is left as it is")
    switching.add_argument("--version", type=positive_int, metavar="N", help="take over versions 1..N (default: all)")
    functions = (run_fit, run_import, run_list, run_show, run_inspect, run_switch)
    for action, function in zip((fit, importing, listing, showing, inspecting, switching), functions, strict=True):
        action.add_argument("--json", action="store_true", help="one JSON document on standard output")
        action.set_defaults(run=function)


def _add_fit_flags(parser: argparse.ArgumentParser) -> None:
    _add_text_flags(parser)
    parser.add_argument("--vocab-size", type=positive_int, metavar="N", help="ids, special tokens included (default: tokenizer.vocab_size)")
    parser.add_argument("--balance", action="store_true", help="give every language the same weight, if it has enough text")
    parser.add_argument("--output", metavar="DIR", help="folder to write (default: tokenizer/SHA256 under the root)")
    parser.add_argument("--name", help="what you call it")


def _add_import_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="DIR|FILE", help="a folder with a tokenizer.json, or that file")
    parser.add_argument("--name", help="what you call it")
    parser.add_argument("--eos-token", metavar="TOKEN", help="end-of-text token, where the tokenizer's own files do not say")
    parser.add_argument("--pad-token", metavar="TOKEN", help="padding token (default: the tokenizer's, or its end-of-text token)")


def _add_text_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", metavar="FILE", help="documents, as for `headrace produce`; - is standard input (JSON Lines)")
    parser.add_argument("--from-dataset", action="store_true", help="the documents that the dataset keeps (the default of inspect)")
    parser.add_argument("--version", type=positive_int, metavar="N", help="documents of this dataset version (default: the newest)")
    parser.add_argument("--language", metavar="L", help="language of all FILEs (default: detected)")
    parser.add_argument("--text-field", default="text", metavar="NAME", help="field of JSON Lines and Parquet that holds the text (default: text)")


def run_fit(args: argparse.Namespace, settings: Settings) -> int:
    """Train and write a tokenizer, and tell its fertility on what it was trained on."""
    from pipelines.tokenizers.fertility import Inspection
    from pipelines.tokenizers.folders import FOLDER, TokenizerCard, keep_tokenizer, open_tokenizer
    from pipelines.tokenizers.tokenizer import train_tokenizer

    chosen = settings.tokenizer.model_copy(update={"vocab_size": _vocab_size(args, settings), "path": ""})
    counts: dict[str, int] = {}
    batches = list(fit_texts(_source(args, settings), settings.tokenizer.max_training_bytes, balance=args.balance, counted=counts))
    if not batches:
        raise SettingsError("there is no text to train on")
    files = train_tokenizer(_balanced(batches, chosen) if args.balance else (text for batch in batches for text in batch.texts.to_pylist()), chosen)
    seen = {"num_documents": sum(len(batch.texts) for batch in batches), "num_bytes": sum(counts.values()), "languages": dict(sorted(counts.items()))}
    card = TokenizerCard(origin="trained", name=args.name, created_at=datetime.now(UTC), **seen)
    output = Path(args.output) if args.output else None
    ref = keep_tokenizer(Path(settings.root), files, card, output)
    folder = output or Path(settings.root, FOLDER, ref.sha256)
    inspection = Inspection(open_tokenizer(folder, settings.tokenizer))
    for batch in batches:
        inspection.add(batch.texts, batch.languages)
    if ref.vocab_size < chosen.vocab_size:
        say(f"the texts give {ref.vocab_size:,} ids only, not {chosen.vocab_size:,}: fit more text (tokenizer.max_training_bytes limits it)")
    told = {"sha256": ref.sha256, "path": str(folder), "vocab_size": ref.vocab_size, **card.model_dump(mode="json"), "fertility": inspection.rows()}
    if args.json:
        print_json(told)
        return 0
    _print_rows(inspection.rows(), f"tokenizer {ref.sha256[:12]}, {ref.vocab_size:,} ids, on what it was trained on")
    say(f"written to {folder}; use --set tokenizer.path={folder} for a new dataset, `headrace tokenizer switch` for an existing one")
    return 0


def _balanced(batches: "list[Texts]", settings: TokenizerSettings) -> Iterator[str]:
    from pipelines.tokenizers.balance import Gathered

    gathered = Gathered(settings.max_training_bytes)
    for batch in batches:
        gathered.add(batch.texts.to_pylist(), batch.languages.to_pylist())
    return gathered.balanced()


def _vocab_size(args: argparse.Namespace, settings: Settings) -> int:
    size = settings.tokenizer.vocab_size if args.vocab_size is None else args.vocab_size
    if not 300 <= size <= 1_000_000:
        raise SettingsError(f"--vocab-size is {size}; it must be between 300 and 1,000,000")
    return int(size)


def _source(args: argparse.Namespace, settings: Settings, *, dataset_by_default: bool = False) -> Source:
    from_dataset = args.from_dataset or args.version is not None or (dataset_by_default and not args.paths)
    if from_dataset == bool(args.paths):
        raise SettingsError("give FILEs, or --from-dataset with or without --version; one of the two")
    return Source(args.paths, args.version, args.language, args.text_field, settings)


def run_import(args: argparse.Namespace, settings: Settings) -> int:
    """Copy a tokenizer under the root."""
    from pipelines.tokenizers.folders import FOLDER, TokenizerCard, keep_tokenizer
    from pipelines.tokenizers.tokenizer import read_tokenizer

    with _foreign(Path(args.path), args.eos_token, args.pad_token) as folder:
        files = read_tokenizer(folder)
    ref = keep_tokenizer(Path(settings.root), files, TokenizerCard(origin="imported", name=args.name, created_at=datetime.now(UTC)))
    return _show(Path(settings.root, FOLDER, ref.sha256), settings, as_json=args.json)


@contextmanager
def _foreign(path: Path, eos: str | None, pad: str | None) -> Iterator[Path]:
    """The folder of a tokenizer; a copy where the person says something that its own files do not."""
    from pipelines.tokenizers.folders import with_special_tokens
    from pipelines.tokenizers.tokenizer import CONFIG_FILE, SPECIAL_TOKENS_FILE, TOKENIZER_FILE

    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise SettingsError(f"there is no {TOKENIZER_FILE} at {str(path)!r}")
    if eos is None and pad is None and file.name == TOKENIZER_FILE:
        yield file.parent
        return
    beside = {name: file.parent / name for name in (CONFIG_FILE, SPECIAL_TOKENS_FILE, "chat_template.jinja")}
    files = {name: other.read_bytes() for name, other in beside.items() if other.is_file()} | {TOKENIZER_FILE: file.read_bytes()}
    with tempfile.TemporaryDirectory() as temporary:
        for name, data in with_special_tokens(files, eos, pad).items():
            Path(temporary, name).write_bytes(data)
        yield Path(temporary)


def run_list(args: argparse.Namespace, settings: Settings) -> int:
    """All tokenizers under the root."""
    from pipelines.dataset.tokenizer_use import origin_of, used_by_dataset
    from pipelines.tokenizers.folders import read_card, read_files, tokenizer_folders
    from pipelines.tokenizers.tokenizer import ref_of

    root = Path(settings.root)
    used = used_by_dataset(root)
    listed: list[dict[str, Any]] = []
    for folder in tokenizer_folders(root):
        ref, card = ref_of(read_files(folder)), read_card(folder)
        version = used[1] if used and used[0].sha256 == ref.sha256 else None
        name = card.name if card else None
        listed.append(
            {"sha256": ref.sha256, "name": name, "origin": origin_of(root, folder), "vocab_size": ref.vocab_size, "dataset_version": version}
        )
    if args.json:
        print_json({"tokenizers": listed})
        return 0
    rows = [(row["sha256"][:12], row["name"] or "", row["origin"], row["vocab_size"], _used(row["dataset_version"])) for row in listed]
    print_table(("sha256", "name", "origin", "ids", "used by"), rows, title=f"tokenizers of {root}")
    return 0


def _used(version: int | None) -> str:
    return "" if version is None else f"the dataset, versions 1 to {version}"


def run_show(args: argparse.Namespace, settings: Settings) -> int:
    """One tokenizer."""
    from pipelines.tokenizers.folders import find_tokenizer

    return _show(find_tokenizer(Path(settings.root), args.tokenizer), settings, as_json=args.json)


def _show(folder: Path, settings: Settings, *, as_json: bool) -> int:
    from pipelines.dataset.tokenizer_use import origin_of, used_by_dataset
    from pipelines.tokenizers.folders import encoding_of, open_tokenizer, read_card, round_trip

    opened = open_tokenizer(folder, settings.tokenizer)
    encoding, trip, card, used = encoding_of(opened), round_trip(opened.tokenizer), read_card(folder), used_by_dataset(Path(settings.root))
    told: dict[str, Any] = {
        **opened.ref.model_dump(mode="json", exclude={"path", "requested_vocab_size"}),
        "path": str(folder),
        "origin": origin_of(Path(settings.root), folder),
        "card": card.model_dump(mode="json") if card else None,
        "engine": encoding.engine,
        "engine_because": encoding.why,
        "round_trip": {"probes": trip.probes, "lossy": [{"text": text, "comes_back_as": back} for text, back in trip.lossy]},
        "dataset_version": used[1] if used and used[0].sha256 == opened.ref.sha256 else None,
    }
    if as_json:
        print_json(told)
        return 0
    facts = [(name, told[name]) for name in ("path", "vocab_size", "eos_token_id", "pad_token_id", "origin", "engine", "engine_because")]
    facts += [("name", (card.name if card else None) or ""), ("used by", _used(told["dataset_version"]))]
    facts += [("round trip", f"{trip.probes - len(trip.lossy)} of {trip.probes} probes come back as they were")]
    print_table(("", "value"), [(name, str(value)) for name, value in facts], title=f"tokenizer {opened.ref.sha256}")
    if trip.lossy:
        say(f"it does not decode every text to the original: {trip.lossy[0][0]!r} comes back as {trip.lossy[0][1]!r}")
    return 0


def run_inspect(args: argparse.Namespace, settings: Settings) -> int:
    """Fertility per language of one or two tokenizers on the same documents."""
    from pipelines.tokenizers.fertility import Inspection

    source = _source(args, settings, dataset_by_default=True)
    inspections = [Inspection(opened) for opened in _named(args, settings)]
    for batch in source.batches():
        for inspection in inspections:
            inspection.add(batch.texts, batch.languages)
    told = [inspection.facts() | {"languages": inspection.rows()} for inspection in inspections]
    if args.json:
        print_json(told[0] | ({"against": told[1]} if len(told) > 1 else {}))
        return 0
    for entry in told:
        _print_rows(entry["languages"], f"tokenizer {entry['sha256'][:12]}, {entry['vocab_size']:,} ids, {entry['unused_ids']:,} of them unused here")
        tell("longest tokens: " + " ".join(repr(token) for token in entry["longest_tokens"]))
    if len(told) > 1:
        _print_comparison(told[0], told[1])
    return 0


def _named(args: argparse.Namespace, settings: Settings) -> "list[Opened]":
    from pipelines.tokenizers.folders import find_tokenizer, open_tokenizer

    given = [args.tokenizer, *([args.against] if args.against else [])]
    return [open_tokenizer(find_tokenizer(Path(settings.root), name), settings.tokenizer) for name in given]


def _print_rows(rows: list[dict[str, Any]], title: str) -> None:
    shown = [
        (
            *(row[name] for name in ("language", "documents", "tokens")),
            *(_number(row[name]) for name in ("tokens_per_word", "tokens_per_character", "bytes_per_token")),
            *(_percent(row[name]) for name in ("single_byte_share", "fragment_share")),
        )
        for row in rows
    ]
    print_table(LANGUAGE_COLUMNS, shown, title=title)


def _print_comparison(first: dict[str, Any], second: dict[str, Any]) -> None:
    others = {row["language"]: row["tokens"] for row in second["languages"]}
    rows = [(row["language"], row["tokens"], others[row["language"]], _ratio(others[row["language"]], row["tokens"])) for row in first["languages"]]
    print_table(("language", f"tokens {first['sha256'][:8]}", f"tokens {second['sha256'][:8]}", "second / first"), rows, title="the same documents")


def _ratio(number: int, of: int) -> str:
    return f"{number / of:.3f}" if of else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def run_switch(args: argparse.Namespace, settings: Settings) -> int:
    """Write and publish the first version of a new lineage."""
    from ops.cli.datasets import summary
    from pipelines.dataset.dataset import Dataset
    from pipelines.dataset.switch import switch
    from pipelines.storage.mirror import root_folder
    from pipelines.tokenizers.folders import find_tokenizer, read_files
    from pipelines.views.carrying import carry_views
    from schemas.arrow import Outcome

    root, new_root = Path(settings.root).resolve(), root_folder(args.into, settings.storage.cache).resolve()
    files = read_files(find_tokenizer(root, args.tokenizer))
    source = Dataset(root, args.version)
    with progress_bar() as bar:
        task = bar.add_task("switch", total=source.manifest.totals.num_records)
        switched = switch(source, files, new_root, settings, datetime.now(UTC), lambda number: bar.advance(task, number))
    manifest, views = switched.manifest, carry_views(source, Dataset(new_root, switched.manifest.version))
    if args.json:
        print_json({"root": str(new_root), "is_new": switched.is_new, "views": [view._asdict() for view in views]} | summary(manifest))
        return 0
    what = "was switched" if switched.is_new else "had been switched before"
    before = source.manifest.totals.num_tokens - source.manifest.totals.num_masked_tokens
    tell(
        f"{root} {what} to tokenizer {manifest.tokenizer.sha256[:12]}: versions 1 to {source.version} are "
        f"{'version 1' if manifest.version == 1 else f'versions 1 to {manifest.version}'} of {new_root}, "
        f"{counted(manifest.totals.outcomes[Outcome.KEPT], 'document')}, {counted(before, 'token')} before, {manifest.totals.num_tokens:,} now"
    )
    for view in views:
        tell(_view_sentence(view, new_root))
    say(f"go on with `headrace ingest --once --root {new_root}`; leave tokenizer.path empty, or name this tokenizer there")
    return 0


def _view_sentence(view: "Carried", new_root: Path) -> str:
    if view.label is not None:
        return f"view {view.view} is {view.label} there"
    name = view.view.partition("@")[0]
    return f"view {view.view} stays behind: {view.why}; if you need it, make it again: `headrace datasets view create {name} … --root {new_root}`"
