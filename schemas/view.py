"""Views: named, versioned choices of the documents of a dataset, with the shares in which training reads them.

A view version is one entry of ``<root>/views/<name>/``: immutable, closed, and with the hashes of all files that it rests on. What it chooses
is a pure function of (view version, dataset version): it copies no token.
"""

import math
from datetime import datetime
from typing import Self

from pydantic import Field, model_validator

from schemas.manifest import FORMAT, FileEntry
from schemas.record import Record

VIEW_NAME = r"^[a-z][a-z0-9_-]{0,63}$"
"""Names of views, which are names of folders; a number alone means a dataset version."""
NAME = r"^\w[\w-]{0,63}$"
"""Names of groups, holdouts, exclusion lists and evaluation sets, in any script."""
LABELS = ("language", "source", "domain")
SCORES = ("quality", "perplexity", "informativeness", "num_tokens", "num_chars")
RESERVED = ("train", "validation")
"""Splits that every view has; no holdout may be called so."""
PASSAGE_TOKENS = 50
"""So many tokens of an evaluation document in a row are no accident."""
BLOCK_ROWS = 1_000
"""Rows among which every group gets exactly its share, rounded by largest remainder; so no share may be smaller than one in so many."""


class Filter(Record):
    """Which documents: those for which everything that is said here holds. A document without a value fails a condition on it."""

    language: tuple[str, ...] = ()
    """Only these; empty: any, as in the next two."""
    source: tuple[str, ...] = ()
    """Only these."""
    domain: tuple[str, ...] = ()
    """Only these."""
    not_language: tuple[str, ...] = ()
    """None of these; documents without a value pass, as in the next two."""
    not_source: tuple[str, ...] = ()
    """None of these."""
    not_domain: tuple[str, ...] = ()
    """None of these."""
    min_quality: float | None = None
    """The classifier's probability of good, 0 to 1."""
    max_quality: float | None = None
    """Its upper bound; bounds belong to the range."""
    min_perplexity: float | None = None
    """Per unit of the n-gram model."""
    max_perplexity: float | None = None
    """Its upper bound."""
    min_informativeness: float | None = None
    """Mean TF-IDF weight."""
    max_informativeness: float | None = None
    """Its upper bound."""
    min_num_tokens: int | None = None
    """Tokens, the end-of-text token included."""
    max_num_tokens: int | None = None
    """Its upper bound."""
    min_num_chars: int | None = None
    """Characters of the normalized text."""
    max_num_chars: int | None = None
    """Its upper bound."""

    @model_validator(mode="after")
    def ranges_are_not_empty(self) -> Self:
        """Refuse bounds that nothing lies between."""
        for score in SCORES:
            low, high = getattr(self, f"min_{score}"), getattr(self, f"max_{score}")
            if any(value is not None and math.isnan(value) for value in (low, high)) or (low is not None and high is not None and low > high):
                raise ValueError(f"nothing lies between min_{score} = {low} and max_{score} = {high}")
        return self


class Group(Filter):
    """Documents that training reads in a share of its own. Each document belongs to the first group that takes it."""

    name: str = Field(pattern=NAME)
    """Its name."""
    weight: float = Field(gt=0, allow_inf_nan=False)
    """Its share of the rows, relative to the sum of all groups' weights."""


class Holdout(Filter):
    """Documents that are never among the train rows; they are a split of this name."""

    name: str = Field(pattern=NAME)
    """Name of the split."""


class ViewSpec(Record):
    """What a person asks for: the TOML file of ``headrace datasets view create``."""

    dataset: int | None = Field(None, ge=1)
    """Dataset version that the view is bound to; none: the newest one at each use."""
    filter: Filter = Filter()
    """Documents that the view is about."""
    group: tuple[Group, ...] = ()
    """Groups with weights; none: all documents in the order of one group."""
    holdout: tuple[Holdout, ...] = ()
    """Documents that are kept out of training."""
    exclude: tuple[str, ...] = ()
    """Parquet files with a column doc_id (and, if they have them, duplicate_of and similarity): documents to leave out."""
    evaluation: tuple[str, ...] = ()
    """Files and folders of documents of evaluation sets: whatever is a duplicate of one, or contains a passage of one, is left out."""
    min_passage_tokens: int = Field(PASSAGE_TOKENS, ge=0)
    """Tokens in a row of an evaluation document that make a passage (shorter documents count as a whole); 0: passages are not looked for."""

    @model_validator(mode="after")
    def is_consistent(self) -> Self:
        """Names differ, and no group is too small for a row per block."""
        check_names([group.name for group in self.group], [holdout.name for holdout in self.holdout])
        check_shares(self.group)
        return self


class ExclusionList(FileEntry):
    """Documents to leave out by their ids; a copy of the file that was given."""

    name: str = Field(pattern=NAME)
    """Name of the list; its rule is ``list/<name>``."""


class EvaluationSet(Record):
    """An evaluation set that the view is kept clean of."""

    name: str = Field(pattern=NAME)
    """Name of the set; its rule is ``contaminated/<name>``."""
    documents: int = Field(ge=0)
    """Texts in it."""


class Decontamination(Record):
    """Evaluation documents as the duplicate index and the tokenizer see them, and when a document has too much in common with one."""

    sets: tuple[EvaluationSet, ...]
    """In the order of the rows of the file."""
    file: FileEntry
    """Fingerprints of their documents (SEGMENT)."""
    near: bool
    """Whether near duplicates count, or exact ones only."""
    max_hamming: int = Field(ge=0, le=6)
    """As ``dedup.max_hamming``."""
    min_similarity: float = Field(ge=0, le=1)
    """As ``dedup.min_similarity``."""
    feature_cap: int = Field(ge=1, le=255)
    """As ``dedup.feature_cap``, which the dataset's fingerprints were made with."""
    min_passage_tokens: int = Field(0, ge=0)
    """Tokens in a row that make a passage; 0: passages are not looked for."""
    passages: FileEntry | None = None
    """Token ids of the evaluation documents, if passages are looked for."""
    tokenizer_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """The tokenizer that made them."""


class View(Record):
    """One version of a view."""

    format: int = Field(FORMAT, ge=1, le=FORMAT)
    """Version of this file format."""
    name: str = Field(pattern=VIEW_NAME)
    """Name of the view."""
    version: int = Field(ge=1)
    """This version; the file is named after it."""
    created_at: datetime
    """When it was made, UTC."""
    dataset_version: int | None = Field(None, ge=1)
    """Dataset version that it is bound to; none: the newest one at each use."""
    filter: Filter = Filter()
    """Documents that the view is about."""
    groups: tuple[Group, ...] = ()
    """Groups with weights."""
    holdouts: tuple[Holdout, ...] = ()
    """Documents that are kept out of training."""
    exclusions: tuple[ExclusionList, ...] = ()
    """Lists of documents to leave out."""
    decontamination: Decontamination | None = None
    """Evaluation sets that it is kept clean of."""
    code_version: str | None = None
    """Version of Headrace that wrote it; none: one that did not say so yet."""

    @model_validator(mode="after")
    def is_consistent(self) -> Self:
        """Names differ, and no group is too small for a row per block."""
        check_names([group.name for group in self.groups], [holdout.name for holdout in self.holdouts])
        check_shares(self.groups)
        return self

    @property
    def label(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def files(self) -> list[FileEntry]:
        """Every file that it rests on."""
        found = self.decontamination
        return [*self.exclusions, *([found.file] if found else []), *([found.passages] if found and found.passages else [])]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of its splits: train, validation, and the holdouts."""
        return ("train", "validation", *(holdout.name for holdout in self.holdouts))

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of its groups; one called ``all`` where none were asked for."""
        return tuple(group.name for group in self.groups) or ("all",)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the train rows that each group gets; they sum to 1."""
        return shares_of(self.groups) or (1.0,)


def shares_of(groups: tuple[Group, ...]) -> tuple[float, ...]:
    """Weights divided by their sum."""
    total = math.fsum(group.weight for group in groups)
    return tuple(group.weight / total for group in groups)


def check_names(groups: list[str], holdouts: list[str]) -> None:
    """Raise ValueError for a name that stands twice, or for a holdout with the name of another split."""
    for kind, names in (("group", groups), ("holdout", holdouts)):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two {kind}s are called {twice[0]!r}; give each a name of its own")
    taken = sorted(set(holdouts) & set(RESERVED))
    if taken:
        raise ValueError(f"a holdout cannot be called {taken[0]!r}; that split exists already")


def check_shares(groups: tuple[Group, ...]) -> None:
    """Raise ValueError for a share too small to get a row in every block."""
    for group, share in zip(groups, shares_of(groups), strict=True):
        if share * BLOCK_ROWS < 1:
            raise ValueError(f"group {group.name!r} has a share of {share:.4%}; the smallest is one row in {BLOCK_ROWS:,}")
