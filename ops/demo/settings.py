"""The demo's settings: small enough for two cores and five minutes. What a person has set differently stays as they set it."""

import secrets
from pathlib import Path
from typing import Any

from pipelines.runtime.ports import free_ports, is_free
from schemas.settings import Settings

ROUND_DOCUMENTS = 1_500
"""Documents of one round: some 4 MB, about 600,000 tokens."""
DEMO_VALUES: dict[str, dict[str, Any]] = {
    # one version per round, once it is complete
    "ingest": {"min_batch_records": ROUND_DOCUMENTS, "max_wait_s": 20.0, "follow_interval_s": 0.5, "min_commit_interval_s": 0.0},
    # a small vocabulary and short rows: more steps, and readable words, in the same minute; the first round is all that it is trained on
    "tokenizer": {"vocab_size": 2_048, "min_training_bytes": 0},
    "packing": {"sequence_length": 128},
    "training": {"max_steps": 240, "checkpoint_every_steps": 50, "evaluate_rows": 128},
    "loop": {"min_new_tokens": 300_000},
    "rollout": {"canary_fraction": 0.5},
    "ray": {"object_store_bytes": 256 * 2**20},
}


def demo_settings(settings: Settings) -> Settings:
    """The given settings with the demo's values wherever they are still at their defaults, under ``<root>/demo``."""
    defaults, changes = Settings(), {}
    for section, values in DEMO_VALUES.items():
        given, default = getattr(settings, section), getattr(defaults, section)
        untouched = {name: value for name, value in values.items() if getattr(given, name) == getattr(default, name)}
        changes[section] = given.model_copy(update=untouched)
    return settings.model_copy(update={**changes, "root": str((Path(settings.root) / "demo").resolve()), **_places(settings)})


def taken_ports(settings: Settings) -> list[int]:
    """Those of the chosen ports that a program has now. While the demo runs, that is the demo itself."""
    broker = [] if settings.kafka.bootstrap_servers else [int(settings.broker.listen.rpartition(":")[2])]
    return [port for port in (*broker, settings.serving.port) if not is_free(port)]


def _places(settings: Settings) -> dict[str, Any]:
    """Where things listen: the usual ports, or free ones where somebody else has them; on a given Kafka, topics of our own."""
    kafka, broker, serving = settings.kafka, settings.broker, settings.serving
    if kafka.bootstrap_servers:
        kafka = kafka.model_copy(update={"topic_prefix": f"{kafka.topic_prefix}-demo-{secrets.token_hex(3)}"})
    host, _, port = broker.listen.rpartition(":")
    if not is_free(int(port)):
        broker = broker.model_copy(update={"listen": f"{host}:{free_ports(1)[0]}"})
    if not is_free(serving.port):
        serving = serving.model_copy(update={"port": free_ports(1)[0]})
    return {"kafka": kafka, "broker": broker, "serving": serving}
