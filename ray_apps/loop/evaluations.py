"""Losses of two models on the same validation rows, for the rollout's loss guard.

A model's own evaluation stands in its manifest, and so does that of its parent, which is the champion as a rule. Any other champion's loss
on the challenger's dataset version has to be computed: by a child process (``headrace models evaluate``), once, and then it is kept in
``<root>/evaluations/<model>-on-<dataset>-<rows>.json``. Both numbers count only if they are over equally many tokens.
"""

from pathlib import Path

from pydantic import ValidationError

from pipelines.storage.durable import replace_durably
from pipelines.storage.store import is_there, read_bytes
from ray_apps.models.registry import Registry
from ray_apps.rollout.evidence import LossComparison
from schemas.errors import ManifestCorrupt
from schemas.manifest import Evaluation, ModelManifest
from schemas.rollout import RolloutState


class Evaluations:
    """Evaluations by (model version, dataset version). ``max_rows`` is ``training.evaluate_rows``."""

    def __init__(self, root: Path, max_rows: int) -> None:
        self._folder = root / "evaluations"
        self._registry = Registry(root)
        self._max_rows = max_rows

    def validation(self, state: RolloutState) -> LossComparison:
        """What is known about the state's two models; pending while something has to be computed."""
        if state.champion is None or state.challenger is None:
            return LossComparison()
        challenger = self._registry.manifest(state.challenger)
        if challenger.evaluation is None:
            return LossComparison(status="unavailable", dataset_version=challenger.dataset.version)
        dataset_version = challenger.evaluation.dataset_version
        if self.wanted(state):
            return LossComparison(dataset_version=dataset_version)
        champion_loss, challenger_loss = self._found(state.champion, challenger)
        assert champion_loss is not None and challenger_loss is not None
        return LossComparison(
            status="measured", dataset_version=dataset_version, champion_loss=champion_loss.loss, challenger_loss=challenger_loss.loss
        )

    def wanted(self, state: RolloutState) -> tuple[int, int] | None:
        """(model version, dataset version) of the next evaluation to compute; None if there is none."""
        if state.champion is None or state.challenger is None:
            return None
        challenger = self._registry.manifest(state.challenger)
        evaluation = challenger.evaluation
        if evaluation is None:
            return None
        pair = (state.champion, state.challenger)
        found = self._found(state.champion, challenger)
        comparable = all(found) and len({entry.num_tokens for entry in found if entry}) == 1
        if comparable:
            return None
        absent = [version for version, entry in zip(pair, found, strict=True) if entry is None]
        outdated = [version for version in pair if not is_there(self._path(version, evaluation.dataset_version))]
        missing = absent or outdated
        return (missing[0], evaluation.dataset_version) if missing else None

    def add(self, model_version: int, evaluation: Evaluation) -> None:
        """Keep a computed evaluation."""
        replace_durably(self._path(model_version, evaluation.dataset_version), evaluation.model_dump_json(indent=2).encode())

    def _path(self, model_version: int, dataset_version: int) -> Path:
        return self._folder / f"{model_version:08d}-on-{dataset_version:08d}-{self._max_rows}.json"

    def _found(self, champion: int, challenger: ModelManifest) -> tuple[Evaluation | None, Evaluation | None]:
        """What is known of both on the challenger's dataset version."""
        version = challenger.dataset.version
        measured = challenger.parent_evaluation if challenger.training.parent_model == champion else None
        return self._find(champion, version) or measured, self._find(challenger.version, version)

    def _find(self, model_version: int, dataset_version: int) -> Evaluation | None:
        """The computed one, else the model's own."""
        path = self._path(model_version, dataset_version)
        try:
            return Evaluation.model_validate_json(read_bytes(path))
        except FileNotFoundError:
            own = self._registry.manifest(model_version).evaluation
            return own if own and own.dataset_version == dataset_version else None
        except ValidationError as error:
            raise ManifestCorrupt(f"{path} is not an evaluation: {error}; remove it to have it computed again") from error
