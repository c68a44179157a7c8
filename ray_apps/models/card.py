"""The model card (README.md) of a version: the hub's header (written by huggingface_hub), training data, quality, and uses it is not meant for.

A pure function of the manifest and the languages of its documents: the same model gives the same card.
Source: https://huggingface.co/docs/hub/model-cards
"""

from schemas.manifest import ModelManifest

CARD_FILE = "README.md"
_NO_LANGUAGE = frozenset({"", "und", "unknown", "xx", "zxx"})


def model_card(manifest: ModelManifest, languages: dict[str, int]) -> str:
    """Markdown with a YAML header."""
    sections = (
        _header(manifest, languages),
        _summary(manifest),
        _data(manifest, languages),
        _training(manifest),
        _evaluation(manifest),
        _use(manifest),
    )
    return "\n".join(sections)


def _header(manifest: ModelManifest, languages: dict[str, int]) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # takes 0.24 s; only the registration of a model needs it

    results = []
    if manifest.evaluation is not None:
        dataset = f"dataset version {manifest.evaluation.dataset_version}, validation rows"
        values = {"loss": round(manifest.evaluation.loss, 4), "perplexity": round(manifest.evaluation.perplexity, 3)}
        results = [EvalResult("text-generation", "headrace", dataset, name, value) for name, value in values.items()]
    header = ModelCardData(
        language=[language for language in languages if language.lower() not in _NO_LANGUAGE] or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["headrace", "llama"],
        model_name=f"headrace-{manifest.version}",
        eval_results=results or None,
    )
    return f"---\n{header.to_yaml()}\n---\n"


def _summary(manifest: ModelManifest) -> str:
    parent = manifest.training.parent_model
    origin = f"It continues model version {parent}." if parent else "It was trained from random weights."
    return (
        f"# Headrace model {manifest.version}\n\n{manifest.architecture} with {manifest.num_parameters:,} parameters, "
        f"registered {manifest.created_at:%Y-%m-%d %H:%M} UTC. {origin}\n"
    )


def _data(manifest: ModelManifest, languages: dict[str, int]) -> str:
    lines = [
        "## Training data\n",
        f"Dataset version {manifest.dataset.version} (manifest SHA-256 `{manifest.dataset.manifest_sha256}`), "
        f"{manifest.dataset.num_train_tokens:,} training tokens{_view(manifest)}, from these Kafka offsets:\n",
        "| topic | partition | from | up to (not included) |",
        "|---|---|---|---|",
    ]
    for topic, partitions in manifest.dataset.offsets.items():
        lines += [f"| {topic} | {partition} | {span.start} | {span.end} |" for partition, span in partitions.items()]
    if languages:
        counted = ", ".join(f"{language} {count:,}" for language, count in languages.items())
        lines.append(f"\nDocuments by language: {counted}.")
    lines.append(f"\nTokenizer: {manifest.tokenizer.vocab_size:,} ids, tokenizer.json SHA-256 `{manifest.tokenizer.sha256}`.\n")
    return "\n".join(lines)


def _view(manifest: ModelManifest) -> str:
    view = manifest.dataset.view
    if view is None:
        return ""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in view.groups.items())
    return (
        f", of which view `{view.name}@{view.version}` (SHA-256 `{view.sha256}`) chose {view.num_train_tokens:,} "
        f"of {view.num_train_documents:,} documents, read in these shares: {shares}"
    )


def _training(manifest: ModelManifest) -> str:
    run = manifest.training
    return (
        f"## Training\n\nRun `{run.run_id}`: {run.steps:,} steps, {run.tokens:,} predicted tokens, {run.num_workers} data-parallel processes, "
        f"{run.duration_s:.1f} s. Training loss {run.first_loss:.4f} -> {run.last_loss:.4f} nats per token. "
        f"Settings fingerprint `{manifest.settings_fingerprint}`, code {manifest.code_version}.\n"
    )


def _evaluation(manifest: ModelManifest) -> str:
    result = manifest.evaluation
    if result is None:
        return "## Evaluation\n\nThe dataset version has no validation rows, so the model was not evaluated.\n"
    return (
        f"## Evaluation\n\nOn {result.num_tokens:,} tokens of the validation rows of dataset version {result.dataset_version}: "
        f"loss {result.loss:.4f} nats per token, perplexity {result.perplexity:.2f}.\n"
    )


def _use(manifest: ModelManifest) -> str:
    folder = f"models/{manifest.version:08d}"
    return f"""## Limits

A language model trained on a stream of documents repeats what they say, mistakes, bias and private matters included, and invents
the rest. It was not tuned to follow instructions or to refuse. Perplexity on its own stream says nothing about other text.

## How to load

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```
"""
