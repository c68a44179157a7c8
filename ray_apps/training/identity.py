"""Which settings make a run that run: the fingerprint of what decides the weights.

Only what differs from the baseline is hashed, so a new setting, at the value that changes nothing, renames no run: its checkpoints are found, and
what was registered is not trained again. Runs of versions that hashed every field are recognized by ``former_fingerprint``. Which arithmetic ``auto``
stands for is known on the device only: it is recorded in checkpoints and manifests (``precision``), and a run goes on in the one it began in.
"""

from collections.abc import Mapping
from typing import Any

from schemas.settings import MODEL_SECTIONS, Settings, digest

_FIRST: Mapping[str, Mapping[str, Any]] = {
    "model": {"preset": "nano"},
    "training": {
        "max_steps": 120,
        "global_batch_rows": 16,
        "learning_rate": 3e-3,
        "min_learning_rate_ratio": 0.1,
        "warmup_steps": 10,
        "weight_decay": 0.1,
        "beta1": 0.9,
        "beta2": 0.95,
        "clip_norm": 1.0,
        "precision": "auto",
        "seed": 0,
        "evaluate_rows": 256,
    },
}
BASELINE: Mapping[str, Mapping[str, Any]] = {"model": {**_FIRST["model"]}, "training": {**_FIRST["training"]}}
"""Section -> setting -> the value that is not hashed. An entry is never changed, also when the setting's default is: runs would take each other's
names. A new setting gets an entry here, with the value that means what was done before there was the setting."""
OPERATIONAL = frozenset(
    {"num_workers", "use_gpu", "threads_per_worker", "accumulation_steps", "checkpoint_every_steps", "keep_checkpoints", "max_failures"}
)
"""Training settings that say how a run is done, not what comes out of it."""
_FORMER_OPERATIONAL: Mapping[str, Any] = {
    "num_workers": 2,
    "use_gpu": False,
    "threads_per_worker": 1,
    "accumulation_steps": 1,
    "checkpoint_every_steps": 20,
    "keep_checkpoints": 2,
    "max_failures": 8,
}
"""The values under which the first versions hashed them."""


def model_fingerprint(settings: Settings) -> str:
    """Fingerprint of the model and training settings that decide the weights."""
    return digest({section: {name: value for name, value, usual in _decisive(settings, section) if value != usual} for section in MODEL_SECTIONS})


def former_fingerprint(settings: Settings) -> str | None:
    """The fingerprint under which the first versions knew this run; None if it uses a setting that they did not have."""
    former: dict[str, dict[str, Any]] = {section: {} for section in MODEL_SECTIONS}
    for section in MODEL_SECTIONS:
        for name, value, usual in _decisive(settings, section):
            if name in _FIRST[section]:
                former[section][name] = value
            elif value != usual:
                return None
    former["training"] |= _FORMER_OPERATIONAL
    return digest(former)


def run_name(dataset_version: int, dataset_sha256: str, parent_model: int | None, settings_fingerprint: str) -> str:
    """Name of the run of these settings on this data."""
    name = digest({"dataset": dataset_sha256, "parent": parent_model, "settings": settings_fingerprint})
    return f"d{dataset_version:08d}-{name[:12]}"


def _decisive(settings: Settings, section: str) -> list[tuple[str, Any, Any]]:
    """(name, value, baseline) of each setting of a section that decides the weights."""
    values = getattr(settings, section).model_dump(mode="json")
    skipped = OPERATIONAL if section == "training" else frozenset()
    return [(name, value, BASELINE[section][name]) for name, value in values.items() if name not in skipped]
