"""Which tokenizer the dataset under a root uses, and who brought it."""

from pathlib import Path

from pipelines.dataset.dataset import Dataset, latest_version
from pipelines.tokenizers.folders import read_card
from schemas.manifest import TokenizerRef


def used_by_dataset(root: Path) -> tuple[TokenizerRef, int] | None:
    """The tokenizer of the dataset under the root, and its newest version."""
    newest = latest_version(root)
    return (Dataset(root).tokenizer, newest) if newest else None


def origin_of(root: Path, folder: Path) -> str:
    """``trained`` or ``imported``: by a person, says the card; by the dataset itself, says its manifest."""
    card, used = read_card(folder), used_by_dataset(root)
    if card is not None:
        return card.origin
    if used is not None and used[0].sha256 == folder.name:
        return "imported" if used[0].requested_vocab_size is None else "trained"
    return "unknown"
