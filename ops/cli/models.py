"""``headrace models``: the registry: list versions, show one, follow its lineage back to Kafka, evaluate it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.cli.arguments import positive_int
from ops.cli.output import print_json, print_table, say, tell
from schemas.counting import counted
from schemas.settings import Settings

if TYPE_CHECKING:
    from ray_apps.models.registry import Registry
    from schemas.manifest import ModelManifest

COLUMNS = ("model", "aliases", "data", "params", "val. loss", "registered")
"""Of ``list`` where 80 characters must do: the dataset version, parameters, loss on its validation rows, UTC."""
WIDE_COLUMNS = ("model", "aliases", "data", "view", "parameters", "steps", "train loss", "validation loss", "perplexity", "registered (UTC)")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Define the command and its actions."""
    parser = subparsers.add_parser("models", help="list, show and evaluate registered models")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = _add_action(actions, common, "list", "all versions", show_list)
    listing.add_argument("--wide", action="store_true", help="show all columns (wider than 80 characters)")
    _add_version(_add_action(actions, common, "show", "one version's manifest", show))
    _add_version(_add_action(actions, common, "lineage", "from a version back to shards and Kafka offsets", show_lineage))
    evaluate = _add_action(actions, common, "evaluate", "validation loss and perplexity on a dataset version", evaluate_version)
    _add_version(evaluate)
    evaluate.add_argument("--dataset", type=positive_int, metavar="N", help="dataset version (default: the newest)")
    evaluate.add_argument("--view", metavar="NAME[@N]", help="use a split of this view instead of the validation rows")
    evaluate.add_argument("--split", default="validation", help="which split of the view: validation (default), train, or a holdout")


def _add_action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser, name: str, text: str, run: Any
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, parents=[common], help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", nargs="?", default="latest", metavar="VERSION", help="number, champion, challenger or latest (default)")


def _registry(settings: Settings) -> "Registry":
    from ray_apps.models.registry import Registry

    return Registry(Path(settings.root))


def show_list(args: argparse.Namespace, settings: Settings) -> int:
    """All versions, oldest first."""
    registry = _registry(settings)
    manifests = [registry.manifest(version) for version in registry.versions()]
    aliases = registry.aliases()
    if args.json:
        print_json({"aliases": aliases, "models": [manifest.model_dump(mode="json") for manifest in manifests]})
    elif manifests:
        rows = [_row(manifest, aliases, wide=args.wide) for manifest in manifests]
        print_table(WIDE_COLUMNS if args.wide else COLUMNS, rows)
    else:
        say(f"no model is registered under {settings.root}; run `headrace train`")
    return 0


def _row(manifest: "ModelManifest", aliases: dict[str, int], *, wide: bool) -> list[object]:
    names = ", ".join(name for name, version in aliases.items() if version == manifest.version)
    result, training, view = manifest.evaluation, manifest.training, manifest.dataset.view
    loss, perplexity = (f"{result.loss:.4f}", f"{result.perplexity:.2f}") if result else ("-", "-")
    first = [manifest.version, names, manifest.dataset.version]
    if not wide:
        return [*first, _short(manifest.num_parameters), loss, f"{manifest.created_at:%Y-%m-%d %H:%M}"]
    losses = f"{training.first_loss:.3f} -> {training.last_loss:.3f}"
    size = [f"{view.name}@{view.version}" if view else "", manifest.num_parameters, training.steps, losses]
    return [*first, *size, loss, perplexity, f"{manifest.created_at:%Y-%m-%d %H:%M:%S}"]


def _short(number: int) -> str:
    """A number of parameters as people say it: 124.4 M."""
    unit, name = next(((unit, name) for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")) if number >= unit), (1, ""))
    return f"{number / unit:.1f} {name}" if name else str(number)


def show(args: argparse.Namespace, settings: Settings) -> int:
    """One version."""
    registry = _registry(settings)
    manifest = registry.manifest(registry.resolve(args.version))
    if args.json:
        print_json(manifest.model_dump(mode="json"))
        return 0
    from ray_apps.models.card import model_card
    from ray_apps.models.lineage import language_counts

    card = model_card(manifest, language_counts(registry.root, manifest.dataset.version))
    tell(card.split("---\n", 2)[-1].strip())
    return 0


def show_lineage(args: argparse.Namespace, settings: Settings) -> int:
    """From a model to the data that it was trained on."""
    from ray_apps.models.lineage import lineage

    registry = _registry(settings)
    traced = lineage(registry.root, _ancestors(registry, registry.resolve(args.version)))
    if args.json:
        print_json(traced)
        return 0
    dataset = traced["dataset"]
    parents = "".join(f" <- model {parent['model']} (dataset {parent['dataset_version']})" for parent in traced["parents"])
    tell(f"model {traced['model']} <- run {traced['run_id']} <- {_data(dataset)}{parents}")
    tell(f"documents by language: {', '.join(f'{name} {count:,}' for name, count in dataset['languages'].items()) or 'none'}")
    columns = ("dataset", "topic", "partition", "from", "up to", "train shards", "train tokens")
    print_table(columns, [row for version in traced["versions"] for row in _lineage_rows(version)])
    return 0


def _data(dataset: dict[str, Any]) -> str:
    view = dataset["view"]
    return (f"view {view['name']}@{view['version']} <- " if view else "") + f"dataset {dataset['version']}"


def _ancestors(registry: "Registry", version: int) -> "list[ModelManifest]":
    """The version and its parents, newest first."""
    manifests = [registry.manifest(version)]
    while (parent := manifests[-1].training.parent_model) is not None:
        manifests.append(registry.manifest(parent))
    return manifests


def _lineage_rows(version: dict[str, Any]) -> list[list[object]]:
    shards, tokens = len(version["shards"]), sum(shard["tokens"] for shard in version["shards"])
    spans = [(topic, int(partition), span) for topic, partitions in version["offsets"].items() for partition, span in partitions.items()]
    sums: list[object] = [shards, tokens]  # once for each version: they are those of all its partitions
    return [
        [version["version"], topic, partition, span["start"], span["end"], *(["", ""] if row else sums)]
        for row, (topic, partition, span) in enumerate(spans)
    ]


def evaluate_version(args: argparse.Namespace, settings: Settings) -> int:
    """Evaluate in this process."""
    from ray_apps.training.evaluate import evaluate_model

    version = _registry(settings).resolve(args.version)
    result = evaluate_model(settings, version, args.dataset, view=args.view, split=args.split)
    if args.json:
        print_json({"model": version, **result.model_dump(mode="json")})
    else:
        rows = f"{result.view} of " if result.view else ""
        tell(
            f"model version {version} on {rows}dataset version {result.dataset_version}: loss {result.loss:.4f} nats per token, "
            f"perplexity {result.perplexity:.2f} over {counted(result.num_tokens, 'token')}"
        )
    return 0
