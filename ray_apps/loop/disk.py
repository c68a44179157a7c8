"""Reads the loop's view from the root, and keeps the one thing that only the loop knows: the order to train that it gave.

``<root>/loop/training.json`` is replaced durably before a training run starts, so that a restarted loop repeats exactly that order
and the run resumes from its checkpoints, also when newer dataset versions were committed meanwhile. ``<root>/loop/given_up.json`` is the last
order that failed for good. Manifests never change, so each is read once; a tick costs three listings of folders, none of which
grows with the dataset's log, and two small files. On an object store both are committed under the lease of `up` (pipelines/storage/leases.py), in
``<root>/loop/log``: a loop that was overtaken by one on another host gives no order.
"""

import contextlib
from datetime import datetime
from pathlib import Path

from pipelines.dataset.dataset import latest_version, read_manifest
from pipelines.drift.watch import Watch
from pipelines.storage.durable import replace_durably
from pipelines.storage.entries import parse_entry
from pipelines.storage.leases import Lease, committed
from pipelines.storage.store import is_local
from pipelines.views.store import parse_label, read_view
from ray_apps.loop.plan import GivenUp, LoopFacts, TrainingOrder
from ray_apps.models.registry import Registry
from ray_apps.rollout.log import RolloutLog
from schemas.errors import DatasetError, ManifestCorrupt
from schemas.manifest import DatasetManifest, ModelManifest
from schemas.settings_drift import DriftSettings

LEASE = "loop/log"
"""On an object store: the lease of `up`, and what the loop commits under it."""


class Disk:
    """The root as the loop sees it."""

    def __init__(
        self, root: Path, drift: DriftSettings | None = None, view: str = "", training_fingerprint: str = "", lease: Lease | None = None
    ) -> None:
        """``drift`` says whether drift holds training back; without it that does not. ``view`` is ``loop.view``.

        ``training_fingerprint``: of the settings that decide a model's weights; an order that was given up under others is not held against them.
        ``lease``: under which orders are committed, where the root is on an object store.
        """
        self._root = root
        self._lease = lease
        self._view_label = view
        self._watch = Watch(root, drift) if drift is not None else None
        self.registry = Registry(root)
        self.rollouts = RolloutLog(root)
        self._order_path = root / "loop" / "training.json"
        self._given_up_path = root / "loop" / "given_up.json"
        self._training_fingerprint = training_fingerprint
        self._tried: set[int] = set()
        self._num_states = 0
        self._dataset: DatasetManifest | None = None
        self._models: dict[int, ModelManifest] = {}

    def view(self) -> LoopFacts:
        """What is there now."""
        dataset, model, state = self.dataset(), self._newest_model(), self.rollouts.latest()
        view, problem = self._chosen_view()
        given_up = self._binding()
        return LoopFacts(
            dataset_version=dataset.version if dataset else 0,
            train_tokens=dataset.totals.num_effective_train_tokens if dataset else 0,
            newest_model=model.version if model else 0,
            newest_model_tokens=model.dataset.num_train_tokens if model else 0,
            state=state,
            tried=self._tried_models(),
            order=self._open_order(model, given_up),
            view=view,
            given_up=given_up,
            held=problem or (self._watch.held(dataset.version, model.dataset.version if model else 0) if self._watch and dataset else None),
        )

    def dataset(self) -> DatasetManifest | None:
        """Manifest of the newest dataset version. Raises ManifestCorrupt."""
        version = latest_version(self._root, self._dataset.version if self._dataset else 0)
        if version and (self._dataset is None or self._dataset.version != version):
            self._dataset = read_manifest(self._root, version)
        return self._dataset

    def model(self, version: int) -> ModelManifest:
        """Manifest of a model version. Raises ModelNotFound, ManifestCorrupt."""
        if version not in self._models:
            self._models[version] = self.registry.manifest(version)
        return self._models[version]

    def _chosen_view(self) -> tuple[str | None, str | None]:
        """The view's newest version by its full name, so that an order means the same after a restart; or why there is none to train on."""
        if not self._view_label:
            return None, None
        try:
            view, _ = read_view(self._root, *parse_label(self._view_label))
        except DatasetError as error:
            return None, f"loop.view is {self._view_label!r}: {error}"
        if view.dataset_version is not None:
            bound = f"view {view.label} is bound to dataset version {view.dataset_version}, and the loop trains on the newest"
            return None, f"loop.view is {self._view_label!r}: {bound}; make one that is not (`headrace datasets view create` without --dataset)"
        return view.label, None

    def give_order(self, order: TrainingOrder) -> None:
        """Remember an order; it stands until its model is registered."""
        self._keep(self._order_path, order.model_dump_json(indent=2).encode())

    def give_up(self, order: TrainingOrder, reason: str, now: datetime, *, is_refusal: bool) -> None:
        """Remember that an order cannot be carried out as things are."""
        dataset = self.dataset()
        given_up = GivenUp(
            order=order,
            reason=reason,
            train_tokens=dataset.totals.num_effective_train_tokens if dataset else 0,
            settings_fingerprint=self._training_fingerprint,
            given_up_at=now,
            is_refusal=is_refusal,
        )
        self._keep(self._given_up_path, given_up.model_dump_json(indent=2).encode())

    def forget_refusal(self) -> None:
        """Forget an order that was refused. Called when a loop starts: settings or files that no fingerprint covers may have been corrected."""
        with contextlib.suppress(ManifestCorrupt):  # ``view`` raises it too, in a round of the loop
            given_up = self.given_up()
            if given_up is not None and given_up.is_refusal:
                self._keep(self._given_up_path, None)

    def given_up(self) -> GivenUp | None:
        """The last order that was given up, unless its model was registered since. Raises ManifestCorrupt."""
        data = self._kept(self._given_up_path)
        if data is None:
            return None
        given_up = parse_entry(GivenUp, data, self._given_up_path, "order that was given up", "remove it")
        newest = self._newest_model()
        return None if newest is not None and newest.dataset.version >= given_up.order.dataset_version else given_up

    def _binding(self) -> GivenUp | None:
        """The same, as far as it says something about the present settings."""
        given_up = self.given_up()
        return given_up if given_up is not None and given_up.settings_fingerprint == self._training_fingerprint else None

    def _open_order(self, newest: ModelManifest | None, given_up: GivenUp | None) -> TrainingOrder | None:
        data = self._kept(self._order_path)
        if data is None:
            return None
        order = parse_entry(TrainingOrder, data, self._order_path, "order to train", "remove it")
        done = newest is not None and newest.dataset.version >= order.dataset_version
        return None if done or (given_up is not None and given_up.order == order) else order

    def _keep(self, path: Path, data: bytes | None) -> None:
        """Replace the file, or remove it; on an object store, what is committed under its name. Raises LeaseLost there."""
        if not is_local(path):
            assert self._lease is not None
            self._lease.commit({**self._lease.state, path.name: None if data is None else data.decode()})
        elif data is None:
            path.unlink(missing_ok=True)
        else:
            replace_durably(path, data)

    def _kept(self, path: Path) -> bytes | None:
        """What ``_keep`` has left."""
        if is_local(path):
            return path.read_bytes() if path.is_file() else None
        text = (self._lease.state if self._lease is not None else committed(self._root / LEASE)).get(path.name)
        return None if text is None else str(text).encode()

    def _newest_model(self) -> ModelManifest | None:
        version = self.registry.log.latest()
        return self.model(version) if version else None

    def _tried_models(self) -> frozenset[int]:
        for state in self.rollouts.after(self._num_states):
            self._num_states = state.number
            self._tried |= {version for version in (state.champion, state.challenger) if version is not None}
        return frozenset(self._tried)
