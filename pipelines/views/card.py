"""The card of an exported dataset: README.md with the YAML header that Hugging Face's ``datasets`` and its hub read; huggingface_hub writes it.

Source: https://huggingface.co/docs/hub/datasets-manual-configuration and https://github.com/huggingface/hub-docs/blob/main/datasetcard.md
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa


def card(told: Mapping[str, Any], schema: pa.Schema) -> str:
    """The text of README.md, from what ``headrace.json`` says. Splits are named as ``datasets`` allows it, without hyphens."""
    from huggingface_hub import DatasetCard, DatasetCardData  # takes 0.24 s; only an export needs it

    splits = {re.sub(r"\W", "_", name): (name, split) for name, split in told["splits"].items()}
    header = DatasetCardData(
        task_categories=["text-generation"],
        size_categories=[_size_category(sum(split["documents"] for split in told["splits"].values()))],
        configs=[{"config_name": "default", "data_files": [{"split": key, "path": f"{name}/*.parquet"} for key, (name, _) in splits.items()]}],
        dataset_info={
            "features": [{"name": entry.name, "dtype": _dtype(entry.type)} for entry in schema],
            "splits": [
                {"name": key, "num_bytes": sum(file["size_bytes"] for file in split["files"]), "num_examples": split["documents"]}
                for key, (_, split) in splits.items()
            ],
        },
    )
    return str(DatasetCard(f"---\n{header.to_yaml()}\n---\n\n{_text(told)}"))


def _size_category(num_documents: int) -> str:
    """As the hub names sizes, in powers of ten: ``1K<n<10K``."""
    bounds = [(10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"), (10**7, "10M"), (10**8, "100M"), (10**9, "1B")]
    above = [name for bound, name in bounds if num_documents < bound]
    below = [name for bound, name in bounds if num_documents >= bound]
    if not below:
        return "n<1K"
    return f"{below[-1]}<n<{above[0]}" if above else "n>1B"


def _dtype(kind: pa.DataType) -> str:
    return "float32" if pa.types.is_float32(kind) else str(kind)


def _text(told: Mapping[str, Any]) -> str:
    view = told["view"]
    lines = [
        f"# Dataset version {told['dataset_version']}" + (f", view {view['name']}@{view['version']}" if view else ""),
        "",
        f"Written by Headrace from the dataset version with manifest SHA-256 `{told['manifest_sha256']}`"
        + (f" and the view with SHA-256 `{view['sha256']}`" if view else "")
        + f". {_retracted(told)} Texts are decoded from the tokens that models are trained on "
        f"(tokenizer.json SHA-256 `{told['tokenizer']['sha256']}`); topic, partition and offset say where a document stood in Kafka.",
        "",
        "| split | documents | tokens |",
        "|---|---|---|",
        *(f"| {name} | {split['documents']:,} | {split['tokens']:,} |" for name, split in told["splits"].items()),
        "",
        "The column `license` is what the producer of each document said. Documents by licence: " + _licenses(told) + ".",
    ]
    if view:
        lines += [
            "",
            "Shares in which training reads the groups: " + ", ".join(f"{name} {share:.1%}" for name, share in view["weights"].items()) + ".",
        ]
    return "\n".join(lines) + "\n"


def _retracted(told: Mapping[str, Any]) -> str:
    """Which retractions the export follows."""
    later = told["retracted_later"]
    if later["included"] and later["documents"]:
        return f"Of the documents here {later['documents']:,} may have been retracted by later versions: they were asked for."
    return "Documents that were retracted, up to the day of the export, are not here."


def _licenses(told: Mapping[str, Any]) -> str:
    counts: Counter[str] = Counter()
    for split in told["splits"].values():
        counts.update(split["licenses"])
    return ", ".join(f"{' '.join(name.split()) or 'not said'} {count:,}" for name, count in counts.most_common())
