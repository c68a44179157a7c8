"""From a finished run to a registered model version: Hugging Face files, manifest, registration.

A run registers exactly once: the caller holds the run's lock and has looked for the run in the registry, and the registry's log entry is
the only thing that makes a version. A crash in between leaves a staging folder, which the next attempt removes.
"""

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from transformers import LlamaForCausalLM

from pipelines.storage.store import is_local, local, local_folder, remove_folder, write_bytes
from pipelines.storage.version import code_version
from pipelines.tokenizers.tokenizer import TOKENIZER_FILE, TURN_END, load_tokenizer
from ray_apps.models.registry import Registry
from ray_apps.training.checkpoint import FOLDER as CHECKPOINT_FOLDER
from ray_apps.training.files import RESULT_FILE
from ray_apps.training.loss_curve import FILE_NAME
from ray_apps.training.run import RunResult, TrainingRun, read_result
from ray_apps.training.weights import build_model, hide_progress_bars
from schemas.errors import TrainingError
from schemas.manifest import FileEntry, ModelManifest, TokenizerRef, TrainingSummary


def summarize(run: TrainingRun, root: Path) -> TrainingSummary:
    """What the loss curve says about the run. Raises TrainingError if steps are missing from it."""
    records = run.checkpoints(root).losses(run.training.max_steps)
    if [record.step for record in records] != list(range(run.training.max_steps)):
        raise TrainingError(f"{run.folder(root) / FILE_NAME} has {len(records)} of {run.training.max_steps} steps; remove the folder to train again")
    return TrainingSummary(
        run_id=run.run_id,
        steps=len(records),
        tokens=sum(record.num_tokens for record in records),
        first_loss=records[0].loss,
        last_loss=records[-1].loss,
        duration_s=sum(record.duration_s for record in records),
        num_workers=run.training.num_workers,
        parent_model=run.parent_model,
    )


def trained_model(run: TrainingRun, root: Path) -> LlamaForCausalLM:
    """The model of the run's last checkpoint. Raises TrainingError if that is not there or damaged."""
    store = run.checkpoints(root)
    manifest = store.newest()
    if manifest is None or manifest.step != run.training.max_steps:
        raise TrainingError(f"run {run.run_id} has no whole checkpoint of its last step {run.training.max_steps}; run `headrace train` again")
    model = build_model(run.model_copy(update={"parent_model": None}), root)
    store.restore(manifest, model, None, None)
    return model


def register_run(run: TrainingRun, root: Path, now: Callable[[], datetime], traceparent: str | None = None) -> ModelManifest:
    """Export the finished run as the next model version and drop its checkpoints. ``now`` gives UTC-aware times, ``traceparent`` is the run's."""
    hide_progress_bars()
    registry = Registry(root)
    result = _result(run, root)
    summary = summarize(run, root).model_copy(update={"precision": result.precision})
    model = trained_model(run, root)
    model.generation_config.pad_token_id = run.tokenizer.pad_token_id
    ends = end_tokens(root, run.tokenizer)
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    staging = registry.new_staging(run.run_id)
    model.save_pretrained(staging)
    _copy_tokenizer(root, run.tokenizer, staging)
    created_at = now()

    def build_manifest(version: int, files: list[FileEntry]) -> ModelManifest:
        return ModelManifest(
            version=version,
            created_at=created_at,
            files=files,
            architecture=type(model).__name__,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            dataset=run.dataset,
            tokenizer=run.tokenizer,
            training=summary,
            evaluation=result.evaluation,
            parent_evaluation=result.parent_evaluation,
            settings_fingerprint=run.settings_fingerprint,
            code_version=code_version(),
            traceparent=traceparent,
        )

    manifest = registry.register(staging, build_manifest)
    if not is_local(root):  # the curve goes with the checkpoints
        write_bytes(run.folder(root) / FILE_NAME, "".join(record.line() for record in run.checkpoints(root).losses(summary.steps)).encode())
    remove_folder(run.folder(root) / CHECKPOINT_FOLDER)
    return manifest


def _result(run: TrainingRun, root: Path) -> RunResult:
    data = read_result(run.folder(root) / RESULT_FILE)
    if data is None:
        raise TrainingError(f"run {run.run_id} has no result yet; run `headrace train` again")
    return RunResult.model_validate_json(data)


def end_tokens(root: Path, tokenizer: TokenizerRef) -> list[int]:
    """Ids that end an answer: the end of a text, and the end of a turn where the tokenizer has a special token for it."""
    value = json.loads(local(root / tokenizer.path / TOKENIZER_FILE).read_bytes())
    turn_ends = [int(token["id"]) for token in value.get("added_tokens") or () if token["content"] == TURN_END and token["special"]]
    return [tokenizer.eos_token_id, *turn_ends]


def _copy_tokenizer(root: Path, tokenizer: TokenizerRef, staging: Path) -> None:
    """Raises TokenizerMismatch if the tokenizer's file is not the one that made the ids."""
    load_tokenizer(root, tokenizer)
    for path in sorted(local_folder(root / tokenizer.path).iterdir()):
        shutil.copyfile(path, staging / path.name)
