"""Offsets that were lost before any version read them, and a person's decision to go on without them."""

from enum import StrEnum

from pydantic import Field

from schemas.record import Record


class LossKind(StrEnum):
    """How records can be lost before they are read."""

    REMOVED = "removed"
    """Retention or DeleteRecords deleted them."""
    CUT = "cut"
    """The log was cut and may have grown again: an unclean leader election, or a broker restored from a copy."""
    RECREATED = "recreated"
    """The topic was deleted and created again."""


class LostOffsets(Record):
    """Where reading of one partition had to stop, and where it continues."""

    topic: str
    """Name of the topic."""
    partition: int = Field(ge=0)
    """Number of the partition."""
    kind: LossKind
    """What happened."""
    expected: int = Field(ge=0)
    """Offset at which the version before ended. If the log was cut, records from ``resumed`` to here were read; they stay in the dataset."""
    resumed: int | None = Field(None, ge=0)
    """Offset at which reading continues; None: the partition no longer exists."""
    num_unread: int | None = Field(None, ge=0)
    """Number of offsets that no version read and that can no longer be read; None: unknown."""
    epoch: int | None = Field(None, ge=0)
    """Leader epoch of the record before ``expected``, if this epoch shows that the log was cut."""
    epoch_is_known: bool = True
    """Whether the partition's leader still knows that epoch."""


class AcceptedLoss(Record):
    """A person's decision to go on after a loss."""

    by: str = Field(min_length=1)
    """Name of the user who decided."""
    reason: str = Field(min_length=1)
    """Why, in that person's words."""
    lost: list[LostOffsets] = Field(min_length=1)
    """What was lost, one entry for each partition."""
    topic_id_before: str | None = None
    """Id of the topic that was read before, if it was created again."""
