"""The demo's story: two rounds of documents, two models, and how the second takes over from the first, or honestly does not."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.demo.documents import plant
from ops.demo.screen import Screen
from ops.demo.settings import ROUND_DOCUMENTS
from ops.demo.traffic import Traffic, complete, is_healthy
from ops.demo.watching import ResultT, StageFailed, Watch
from ops.producing.samples import Share
from ops.supervisor.services import accepts
from pipelines.kafka.topics import ensure_topics
from pipelines.runtime.child import Child
from ray_apps.loop.commands import child_environment, headrace
from schemas.arrow import Outcome
from schemas.counting import counted
from schemas.manifest import DatasetManifest, ModelManifest
from schemas.rollout import Decision, Phase, RolloutState
from schemas.settings import Settings

NUM_STAGES = 7
NUM_ROUNDS = 2
START_TIMEOUT_S = 300.0
INGEST_TIMEOUT_S = 180.0
TRAINING_TIMEOUT_S = 600.0
TRIAL_TIMEOUT_S = 300.0
PROMPT = "This function returns"


@dataclass
class Story:
    """What came of it."""

    addresses: dict[str, Any] = field(default_factory=dict)
    planted: int = 0
    published: int = 0
    """Records that were acknowledged, the planted ones included: as many must be in the dataset."""
    datasets: list[DatasetManifest] = field(default_factory=list)
    models: list[ModelManifest] = field(default_factory=list)
    rollouts: list[RolloutState] = field(default_factory=list)
    completion: str = ""


def tell_story(settings: Settings, watch: Watch, screen: Screen) -> Story:
    """Run all stages. Raises StageFailed."""
    story = Story()
    with screen.stage("Start: embedded Kafka broker, Ray, ingest, serving; and the first round of documents"):
        _start_and_produce(settings, watch, story)
    with screen.stage("Round 1: Kafka → clean, deduplicate, tokenize → dataset 1"):
        _ingest(watch, story)
    with screen.stage("Model 1: trained from scratch on dataset 1, becomes champion"):
        _train(watch, story)
        _serve_champion(watch, story)
    with screen.stage("Round 2: more documents → dataset 2"):
        _produce(settings, watch, story, 2)
        _ingest(watch, story)
    with screen.stage("Model 2: continues from the champion on both rounds"):
        _train(watch, story)
    with screen.stage("Trial of model 2 under live traffic: shadow, then a share of the users, then a decision"):
        _trial(watch, story)
    with screen.stage("A last question to the champion"):
        story.completion = _ask(watch, story)
    story.rollouts = watch.rollouts()
    return story


def _start_and_produce(settings: Settings, watch: Watch, story: Story) -> None:
    """The documents are in the topic before ingest starts, so that round 1 is one dataset version."""
    servers = settings.kafka.bootstrap_servers
    if servers == settings.broker.listen:
        host, _, port = servers.rpartition(":")
        answers = accepts(host.strip("[]"), int(port))
        watch.until(lambda: answers() or None, "the broker started", START_TIMEOUT_S, "broker")
    watch.screen.line(f"  Kafka at {servers}")
    ensure_topics(settings)
    _produce(settings, watch, story, 1)
    story.addresses = watch.until(_showing(watch, watch.addresses, "Ray, ingest and serving are starting"), "everything started", START_TIMEOUT_S)
    dashboard = story.addresses["dashboard"]
    watch.screen.line(f"  API {story.addresses['api']}{f', Ray dashboard {dashboard}' if dashboard else ''}")


def _produce(settings: Settings, watch: Watch, story: Story, number: int) -> None:
    """``headrace produce --sample``; in the first round also what is planted."""
    watch.screen.now(f"headrace produce --sample --part {number}/{NUM_ROUNDS}")
    arguments = ("--sample", "--part", f"{number}/{NUM_ROUNDS}", "--limit", str(ROUND_DOCUMENTS), "--json")
    log = Path(settings.root) / "logs" / "produce.log"
    child = Child(headrace(settings, "produce", *arguments), log, environment=child_environment(settings), capture_output=True)
    code = watch.until(child.poll, "publishing documents", START_TIMEOUT_S, "produce")
    output = child.output()
    child.close()
    if code != 0:
        raise StageFailed(f"{watch.screen.title}: `headrace produce` ended with exit code {code}; its log is {log}")
    published = json.loads(output)
    planted = plant(settings, Share(number, NUM_ROUNDS)) if number == 1 else 0
    extra = f", and planted {planted} bad, copied and retracted ones" if planted else ""
    watch.screen.line(f"  published {counted(published['published'], 'document')} ({published['bytes'] / 1e6:.1f} MB){extra}")
    story.planted += planted
    story.published += published["published"] + planted


def _ingest(watch: Watch, story: Story) -> None:
    """Until every published record is in a committed version; a slow round may make more than one."""

    def look() -> list[DatasetManifest] | None:
        watch.screen.now("headrace ingest: one Ray Data job per version")
        manifests = watch.datasets(after=len(story.datasets))
        return manifests if manifests and manifests[-1].totals.num_records >= story.published else None

    for manifest in watch.until(look, "committing what was published", INGEST_TIMEOUT_S, "ingest"):
        story.datasets.append(manifest)
        counts = ", ".join(f"{manifest.outcomes[outcome]:,} {outcome.value}" for outcome in Outcome if manifest.outcomes.get(outcome))
        watch.screen.line(f"  dataset {manifest.version}: {counted(manifest.num_records, 'record')}: {counts}")
        watch.screen.line(f"  {counted(manifest.num_tokens, 'token')} in {counted(len(manifest.shards), 'shard')}; languages: {_languages(manifest)}")


def _languages(manifest: DatasetManifest) -> str:
    most = sorted(manifest.languages.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{language} {count:,}" for language, count in most)


def _train(watch: Watch, story: Story) -> None:
    version = len(story.models) + 1

    def look() -> ModelManifest | None:
        losses, steps = watch.training(version)
        if losses:
            watch.screen.now(f"step {losses[-1].step + 1} of {steps}, loss {losses[0].loss:.3f} → {losses[-1].loss:.3f}")
        else:
            watch.screen.now("Ray Train starts its workers")
        watch.check_training()
        return watch.model(version)

    manifest = watch.until(look, f"training model {version}", TRAINING_TIMEOUT_S, "train")
    story.models.append(manifest)
    run = manifest.training
    watch.screen.line(
        f"  model {version}: {manifest.num_parameters:,} parameters, {run.steps} steps, loss {run.first_loss:.3f} → {run.last_loss:.3f}"
    )
    if manifest.evaluation is not None:
        watch.screen.line(f"  validation loss {manifest.evaluation.loss:.3f}, perplexity {manifest.evaluation.perplexity:.1f}")


def _serve_champion(watch: Watch, story: Story) -> None:
    api = story.addresses["api"]
    look = _showing(watch, lambda: is_healthy(api) or None, "the engine loads the model")
    watch.until(look, "the champion started to answer", START_TIMEOUT_S, "serve")
    watch.screen.line(f"  model 1 is champion and answers at {api}/v1")
    watch.screen.line(f"  “{PROMPT}” → “{one_line(_ask(watch, story))}”")


def _trial(watch: Watch, story: Story) -> None:
    """Follow the rollout log until the trial of model 2 is decided."""
    version = story.models[-1].version
    seen = 0
    with ExitStack() as stack:
        traffic = stack.enter_context(Traffic(story.addresses["api"]))

        def look() -> RolloutState | None:
            nonlocal seen
            for state in watch.rollouts()[seen:]:
                seen = state.number
                if state.decision is not Decision.BOOTSTRAP:
                    watch.screen.line(f"  {state.decision.value}: {state.reason}")
            answers = ", ".join(f"{count} by the {name}" for name, count in sorted(traffic.answers.items()))
            current = watch.rollout()
            watch.screen.now(f"{current.phase.value if current else ''}: requests answered: {answers or 'none yet'}")
            decided = current is not None and current.phase is Phase.IDLE and seen > 1
            return current if decided else None

        decided = watch.until(look, f"the trial of model {version}", TRIAL_TIMEOUT_S)
    if decided.champion == version:
        watch.screen.line(f"  model {version} is champion now")
    else:
        watch.screen.line(f"  model {version} was withdrawn; model {decided.champion} stays champion")


def _ask(watch: Watch, story: Story) -> str:
    return watch.until(lambda: complete(story.addresses["api"], PROMPT), "the champion answered", START_TIMEOUT_S, "serve")


def one_line(text: str) -> str:
    """White space squeezed, for the screen."""
    return " ".join(text.split())


def _showing(watch: Watch, look: Callable[[], ResultT | None], text: str) -> Callable[[], ResultT | None]:
    """``look``, and say meanwhile what is going on."""

    def shown() -> ResultT | None:
        watch.screen.now(text)
        return look()

    return shown
