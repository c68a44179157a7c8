"""``headrace deadletter list | show | replay``: records that could not be read as documents, and what to do about them."""

import argparse
import base64
import sys
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.cli.output import print_json, print_table, say, tell
from pipelines.text.log_lines import escaped
from schemas.counting import counted
from schemas.errors import SettingsError
from schemas.settings import Settings

if TYPE_CHECKING:
    from datetime import datetime

    from pipelines.kafka.letters import Letter
    from pipelines.lineage.lineage import Replay
    from schemas.envelope import KafkaRecord

SHOWN_BYTES = 4096
"""Bytes of a value that ``show`` prints without --json."""
BATCH, BATCH_BYTES = 1_000, 32 * 2**20
"""Letters that ``replay`` publishes at a time, and how much they hold; whichever comes first."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = subparsers.add_parser("deadletter", help="list, show and replay records that could not be read")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", parents=[common], help="which records could not be read, and why")
    listing.add_argument("--rule", help="only those that broke this rule")
    listing.add_argument("--since", type=_moment, metavar="TIME", help="only those since this time: 2026-01-31T12:00:00Z, or 90m, 12h or 7d ago")
    listing.add_argument("--limit", type=_number, default=100, help="how many of the newest to list (default: 100)")
    showing = actions.add_parser("show", parents=[common], help="one record: its bytes, headers and error, and the outcome of its replays")
    replaying = actions.add_parser("replay", parents=[common], help="publish records again, unchanged or repaired")
    replaying.add_argument("--rule", help="all records that broke this rule")
    replaying.add_argument("--edit", metavar="FILE", help="file with the value to publish instead (-: standard input)")
    replaying.add_argument("--set-text", metavar="TEXT", help="publish the document with this text")
    showing.add_argument("position", type=_position, help="topic/partition/offset of the record")
    replaying.add_argument("position", nargs="*", type=_position, help="topic/partition/offset of the record")
    for action, function in ((listing, run_list), (showing, run_show), (replaying, run_replay)):
        action.add_argument("--json", action="store_true", help="one JSON document on standard output")
        action.set_defaults(run=function)
    replaying.set_defaults(check=_check_replay)


def _moment(text: str) -> "datetime":
    from datetime import UTC, datetime, timedelta

    units = {"m": "minutes", "h": "hours", "d": "days"}
    try:
        if text[-1:] in units:
            return datetime.now(UTC) - timedelta(**{units[text[-1]]: float(text[:-1])})
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 2026-01-31T12:00:00Z, 90m, 12h or 7d") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _position(text: str) -> str:
    topic, *numbers = text.rsplit("/", 2)
    if not topic or len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not topic/partition/offset, such as headrace.documents/0/17")
    return text


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of letters; give 1 or more")
    return int(text)


def run_list(args: argparse.Namespace, settings: Settings) -> int:
    """The newest letters, oldest first, what became of their replays, and how many letters there are of each rule."""
    from pipelines.kafka.letters import read_letters

    rules: Counter[str] = Counter()
    newest: deque[tuple[str, str, str, str, int, str | None, str]] = deque(maxlen=args.limit)
    for letter in read_letters(settings, args.since):
        if args.rule in (None, letter.rule):
            rules[letter.rule] += 1
            known = (letter.place, letter.rule, letter.error, letter.size_bytes, _printable(letter.key), letter.first_place)
            newest.append((f"{letter.died_at:%Y-%m-%d %H:%M:%S}", *known))
    rows = sorted(newest)
    replayed = _replays(settings, {row[1]: row[-1] for row in rows})
    if args.json:
        names = ("died_at", "position", "rule", "error", "size_bytes", "key")
        letters = [dict(zip(names, row[:-1], strict=True)) | {"replays": [at._asdict() for at in replayed[row[1]]]} for row in rows]
        print_json({"num_letters": rules.total(), "rules": dict(rules.most_common()), "letters": letters})
        return 0
    columns = ("died (UTC)", "position", "rule", "error", "replayed")
    shown = [(*row[:4], _replayed(replayed[row[1]])) for row in rows]
    print_table(columns, shown, unbroken=("position",))
    say(f"{counted(rules.total(), 'dead letter')}{_listed(': ', rules)}{_of_what(args)}")
    return 0


def _replays(settings: Settings, first_places: dict[str, str]) -> "dict[str, list[Replay]]":
    """By the place of each letter; one of a replay that died is mended by any other replay of the first place."""
    from pipelines.lineage.lineage import replays

    found = replays(Path(settings.root), set(first_places.values())) if first_places else {}
    return {place: [at for at in found.get(first, []) if at.position != place] for place, first in first_places.items()}


def _listed(before: str, rules: "Counter[str]") -> str:
    return before + ", ".join(f"{rule} {count:,}" for rule, count in rules.most_common()) if rules else ""


def _replayed(found: "list[Replay]") -> str:
    """The replay that counts: the one that is kept, else the newest."""
    if not found:
        return ""
    counts = next((at for at in found if at.outcome == "kept"), found[-1])
    return f"{counts.position} {counts.outcome}" + (f" ({counts.reason})" if counts.reason else "")


def _of_what(args: argparse.Namespace) -> str:
    """What narrowed the list, so that an empty one explains itself."""
    rule = f" with the rule {args.rule}" if args.rule else ""
    return rule + (f" since {args.since:%Y-%m-%d %H:%M:%S} UTC" if args.since else "")


def run_show(args: argparse.Namespace, settings: Settings) -> int:
    """One letter; nothing of it reaches the terminal unescaped."""
    from pipelines.kafka.letters import find_letters

    (letter,) = find_letters(settings, [args.position])
    outcomes = _outcomes(settings, letter)
    if args.json:
        print_json(_as_json(letter) | {"outcomes": outcomes})
        return 0
    value = letter.value or b""
    facts: list[tuple[str, object]] = [
        ("rule", letter.rule),
        ("error", letter.error),
        ("died", f"{letter.died_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("key", _printable(letter.key)),
    ]
    facts += [("bytes", letter.size_bytes), *((f"header {_printable(name.encode())}", _printable(text)) for name, text in letter.headers)]
    facts += [("outcome", sentence) for sentence in outcomes]
    for name, fact in facts:
        tell(f"{name}: {fact}")
    if letter.omitted_bytes is None:
        tell(f"value: {_printable(value[:SHOWN_BYTES])}" + (f" … and {len(value) - SHOWN_BYTES:,} bytes more" if len(value) > SHOWN_BYTES else ""))
    return 0


def _check_replay(args: argparse.Namespace) -> None:
    mends = args.edit is not None or args.set_text is not None
    if bool(args.position) == bool(args.rule) or (mends and (len(args.position) != 1 or (args.edit is not None and args.set_text is not None))):
        raise SettingsError("name the positions to replay, or --rule; --edit and --set-text take one position at a time")
    if args.edit not in (None, "-"):
        try:
            Path(args.edit).open("rb").close()
        except OSError as error:
            raise SettingsError(f"cannot read {args.edit}: {error.strerror}") from error


def run_replay(args: argparse.Namespace, settings: Settings) -> int:
    """0 if every record that was asked for is published, 1 if one would only die again."""
    from pipelines.kafka.replays import publish
    from pipelines.kafka.topics import topic_names
    from schemas.errors import EnvelopeError

    refused: list[dict[str, str]] = []
    replayed: list[dict[str, Any]] = []
    for batch in _batches(_letters(args, settings)):
        records: dict[str, KafkaRecord] = {}
        for letter in batch:
            try:
                records[letter.place] = _record(args, settings, letter)
            except EnvelopeError as error:
                refused.append({"position": letter.place, "rule": error.rule, "error": str(error)})
        replayed += [{"position": place, **at._asdict()} for place, at in zip(records, publish(settings, records.values()), strict=True)]
    _print_replayed(topic_names(settings).documents, replayed, refused, as_json=args.json)
    return 1 if refused else 0


def _letters(args: argparse.Namespace, settings: Settings) -> "Iterator[Letter]":
    from pipelines.kafka.letters import find_letters, read_letters

    if args.position:
        return iter(find_letters(settings, list(dict.fromkeys(args.position))))
    return (letter for letter in read_letters(settings) if letter.rule == args.rule)


def _batches(letters: "Iterator[Letter]") -> "Iterator[list[Letter]]":
    from pipelines.kafka.sizes import size_of

    batch: list[Letter] = []
    size_bytes = 0
    for letter in letters:
        batch.append(letter)
        size_bytes += size_of(letter.key, letter.value, letter.headers)
        if len(batch) == BATCH or size_bytes >= BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _record(args: argparse.Namespace, settings: Settings, letter: "Letter") -> "KafkaRecord":
    from functools import partial

    from pipelines.kafka.replays import replay_record, with_text
    from pipelines.steps.formats.references import read_reference

    value = with_text(letter, args.set_text) if args.set_text is not None else None
    if args.edit is not None:
        value = sys.stdin.buffer.read() if args.edit == "-" else Path(args.edit).read_bytes()
    reading = partial(read_reference, settings=settings)
    return replay_record(letter, settings.ingest.max_document_bytes, value, reading, settings.formats.max_damaged_fraction)


def _print_replayed(topic: str, replayed: list[dict[str, Any]], refused: list[dict[str, str]], *, as_json: bool) -> None:
    if as_json:
        print_json({"topic": topic, "replayed": replayed, "refused": refused})
        return
    for entry in replayed:
        tell(f"{entry['position']}: published again at {topic}/{entry['partition']}/{entry['offset']}")
    for entry in refused:
        tell(f"{entry['position']}: not published, because it still cannot be read ({entry['rule']}): {entry['error']}")
    hint = "; a document that is kept already will be a duplicate for the reason `replayed`" if replayed else ""
    say(f"{len(replayed):,} replayed, {len(refused):,} not{hint}")


def _outcomes(settings: Settings, letter: "Letter") -> list[str]:
    """What the dataset says of the record and of its replays."""
    from ops.cli.trace import sentence
    from pipelines.kafka.topics import topic_names
    from pipelines.lineage.lineage import trace
    from schemas.errors import DatasetError

    try:
        return [sentence(fate) for fate in trace(Path(settings.root), letter.first_place, deadletter_topic=topic_names(settings).deadletter)]
    except DatasetError:
        return []


def _as_json(letter: "Letter") -> dict[str, Any]:
    return {
        "position": letter.place,
        "rule": letter.rule,
        "error": letter.error,
        "died_at": letter.died_at.isoformat(),
        "size_bytes": letter.size_bytes,
        "key": _printable(letter.key),
        "headers": [{"name": name, "value": _printable(text)} for name, text in letter.headers],
        "value": _printable(letter.value),
        "value_base64": None if letter.value is None else base64.b64encode(letter.value).decode(),
        "omitted_bytes": letter.omitted_bytes,
    }


def _printable(data: bytes | None) -> str | None:
    """UTF-8 as text; what is not UTF-8, and what would steer a terminal, as backslash escapes."""
    if data is None:
        return None
    return escaped(data.decode("utf-8", "backslashreplace"))
