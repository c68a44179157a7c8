"""``headrace datasets semantic``: documents that say the same in other words, as a list that a view can leave out."""

import argparse
from pathlib import Path

from ops.cli.arguments import positive_int
from ops.cli.output import print_json, print_table, progress_bar
from schemas.semantic import DEFAULT_THRESHOLD
from schemas.settings import Settings


def add_actions(actions: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the action to ``headrace datasets``."""
    parser = actions.add_parser("semantic", parents=[common], help="list documents that say the same in other words (needs headrace[semantic])")
    parser.add_argument("--version", type=positive_int, help="default: the newest")
    parser.add_argument(
        "--threshold", type=_cosine, default=DEFAULT_THRESHOLD, help="two documents with at least this cosine count as the same (default 0.9)"
    )
    parser.add_argument("--model", metavar="DIR", help="a model in the layout of sentence-transformers; default: MiniLM, which reads English")
    parser.add_argument("--max-tokens", type=positive_int, metavar="N", help="read N tokens of each document (default: the limit of the model)")
    parser.add_argument("--output", metavar="FILE.parquet", help="write a copy of the list here")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.set_defaults(run=run_semantic)


def _cosine(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def run_semantic(args: argparse.Namespace, settings: Settings) -> int:
    """Embed what is new, compare, and say where the list is."""
    from pipelines.dataset.dataset import Dataset
    from pipelines.semantic.embed import Embedder, packaged_model
    from pipelines.semantic.run import semantic_duplicates
    from pipelines.storage.durable import replace_durably
    from pipelines.storage.store import read_bytes

    dataset = Dataset(Path(settings.root), args.version)
    embedder = Embedder(Path(args.model) if args.model else packaged_model(), args.max_tokens)
    with progress_bar() as bar:
        task = bar.add_task("embed", total=None)
        made = semantic_duplicates(dataset, embedder, args.threshold, lambda done, total: bar.update(task, completed=done, total=total))
    if args.output:
        replace_durably(Path(args.output), read_bytes(made.path))
    path = args.output or str(made.path)
    if args.json:
        print_json({"path": path, "sha256": made.path.stem, "num_embedded": made.num_embedded} | made.made_from.model_dump(mode="json"))
        return 0
    facts = [(name.removeprefix("num_").replace("_", " "), value) for name, value in made.made_from.model_dump(mode="json").items()]
    print_table(
        ("", "value"), [("list", path), ("embedded now", made.num_embedded), *facts], title=f"semantic duplicates of version {dataset.version}"
    )
    return 0
