"""Making a version of a view out of what a person asked for."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pipelines.dataset.dataset import Dataset
from pipelines.views.decontamination import EvaluationTexts, contaminated, keep_evaluations
from pipelines.views.lists import keep_list
from pipelines.views.store import check_name, publish_view, read_view, view_log
from schemas.errors import SettingsError
from schemas.settings_dedup import DedupSettings
from schemas.view import View, ViewSpec

PER_VERSION = {"version", "created_at", "code_version"}
"""What two versions of a view that choose the same do not have in common."""


def create_view(
    root: Path, name: str, spec: ViewSpec, evaluations: Sequence[EvaluationTexts], settings: DedupSettings, now: datetime
) -> tuple[View, bool]:
    """Publish the next version of the view; (it, True), or the newest one and False if that says the same already.

    Order: (1) the files that it rests on, (2) the version, (3) what its evaluation sets have in common with the dataset, which is an
    answer that can be found again at any time. Raises DatasetNotFound, SettingsError, or CommitConflict if another one was first.
    """
    check_name(name)
    dataset = Dataset(root, spec.dataset)
    _check_differ([part.name for part in evaluations], "evaluation sets")
    # Step 1: files.
    exclusions = tuple(keep_list(root, name, Path(path)) for path in spec.exclude)
    _check_differ([entry.name for entry in exclusions], "exclusion lists")
    decontamination = keep_evaluations(dataset, name, evaluations, settings, spec.min_passage_tokens) if evaluations else None
    number = view_log(root, name).latest()
    view = View(
        name=name,
        version=number + 1,
        created_at=now,
        dataset_version=spec.dataset,
        filter=spec.filter,
        groups=spec.group,
        holdouts=spec.holdout,
        exclusions=exclusions,
        decontamination=decontamination,
    )
    # Step 2: the version, unless there is nothing new in it.
    newest = read_view(root, name, number)[0] if number else None
    is_new = newest is None or newest.model_dump(exclude=PER_VERSION) != view.model_dump(exclude=PER_VERSION)
    if is_new:
        publish_view(root, view)
    made = view if is_new or newest is None else newest
    # Step 3: what is in the evaluation sets.
    if made.decontamination:
        contaminated(root, made, dataset)
    return made, is_new


def _check_differ(names: list[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(f"two {what} are called {twice[0]!r}; they are named after their files: rename one")
