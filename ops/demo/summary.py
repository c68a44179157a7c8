"""The demo's summary: counts from the manifests, the rollout log and the inference topic, not from what the demo remembers."""

from collections import Counter
from typing import Any

from ops.demo.story import PROMPT, Story, one_line
from pipelines.kafka.events import read_events
from pipelines.kafka.topics import topic_names
from schemas.arrow import Outcome
from schemas.events import InferenceCompleted
from schemas.manifest import ModelManifest
from schemas.rollout import Decision
from schemas.settings import Settings


def summarize(settings: Settings, story: Story, duration_s: float) -> dict[str, Any]:
    """Everything as plain JSON values."""
    totals = story.datasets[-1].totals
    last = story.rollouts[-1]
    return {
        "duration_s": round(duration_s, 1),
        "documents": {outcome.value: totals.outcomes.get(outcome, 0) for outcome in Outcome},
        "records": totals.num_records,
        "planted": story.planted,
        "duplicates": _duplicates(story),
        "tokens": totals.num_tokens,
        "datasets": [manifest.version for manifest in story.datasets],
        "models": [_model(manifest) for manifest in story.models],
        "rollout": [{"number": state.number, "decision": state.decision.value, "reason": state.reason} for state in story.rollouts],
        "promoted": last.decision is Decision.PROMOTE,
        "champion": last.champion,
        "requests": _requests(settings),
        "completion": {"prompt": PROMPT, "text": story.completion},
        "urls": {
            "api": f"{story.addresses['api']}/v1",
            "ray_dashboard": story.addresses["dashboard"],
            "kafka": story.addresses["kafka"],
        },
        "root": settings.root,
    }


def _duplicates(story: Story) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for manifest in story.datasets:
        counts.update({name.partition("/")[2]: count for name, count in manifest.reasons.items() if name.startswith("duplicate/")})
    return dict(counts)


def _model(manifest: ModelManifest) -> dict[str, Any]:
    run, evaluation = manifest.training, manifest.evaluation
    return {
        "version": manifest.version,
        "dataset": manifest.dataset.version,
        "parent": run.parent_model,
        "first_loss": run.first_loss,
        "last_loss": run.last_loss,
        "validation_loss": evaluation.loss if evaluation else None,
        "perplexity": evaluation.perplexity if evaluation else None,
    }


def _requests(settings: Settings) -> dict[str, int]:
    """Answers by who gave them as what, counted from the events on Kafka."""
    counts = Counter({"champion": 0, "challenger": 0, "shadow": 0, "errors": 0})
    with read_events(settings, topic_names(settings).inference) as reader:
        while events := reader.poll(1.0):
            for event in events:
                if isinstance(event.data, InferenceCompleted):
                    name = "errors" if event.data.status != "ok" else "shadow" if event.data.shadow else event.data.role
                    counts[name] += 1
    return dict(counts)


def lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The summary for people: what, and its value."""
    documents = ", ".join(f"{count:,} {name}" for name, count in summary["documents"].items() if count)
    duplicates = ", ".join(f"{count:,} {name}" for name, count in summary["duplicates"].items()) or "none"
    requests = summary["requests"]
    outcome = "took over" if summary["promoted"] else "was withdrawn"
    return [
        ("records from Kafka", f"{summary['records']:,}: {documents}"),
        ("duplicates caught", duplicates),
        ("tokens", f"{summary['tokens']:,}"),
        *[(f"model {model['version']}", _model_line(model)) for model in summary["models"]],
        ("its trial", f"{outcome}: {summary['rollout'][-1]['reason']}"),
        (
            "A/B and shadow",
            f"{requests['champion']} champion, {requests['challenger']} challenger, {requests['shadow']} shadow, {requests['errors']} errors",
        ),
        (f"model {summary['champion']}, the champion", f"“{summary['completion']['prompt']}” → “{one_line(summary['completion']['text'])}”"),
        ("OpenAI API", summary["urls"]["api"]),
        *([("Ray dashboard", f"{summary['urls']['ray_dashboard']} (token: `ray get-auth-token`)")] if summary["urls"]["ray_dashboard"] else []),
        ("Kafka", summary["urls"]["kafka"]),
        ("data and logs", summary["root"]),
        ("took", f"{summary['duration_s']:.0f} s"),
    ]


def _model_line(model: dict[str, Any]) -> str:
    origin = f"from model {model['parent']}" if model["parent"] else "from scratch"
    quality = "" if model["perplexity"] is None else f", validation loss {model['validation_loss']:.3f}, perplexity {model['perplexity']:.1f}"
    return f"dataset {model['dataset']}, {origin}: loss {model['first_loss']:.3f} → {model['last_loss']:.3f}{quality}"
