"""The rollout's state: which model versions answer, and why. One immutable entry of ``<root>/rollout`` per transition."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from pydantic import Field, model_validator

from schemas.manifest import FORMAT
from schemas.record import Record


class Phase(StrEnum):
    """Where the challenger is on its way."""

    IDLE = "idle"
    """No challenger."""
    SHADOW = "shadow"
    """The challenger gets copies of requests; nobody sees its answers."""
    CANARY = "canary"
    """The challenger answers a share of sticky keys."""


class Decision(StrEnum):
    """What led to this state."""

    START = "start"
    """A new challenger was set."""
    ADVANCE = "advance"
    """Shadow evidence was good: the challenger gets traffic."""
    PROMOTE = "promote"
    """The challenger became champion."""
    ABORT = "abort"
    """The challenger was withdrawn: a guard tripped or a person said so."""
    SET = "set"
    """A person set versions and shares by hand."""
    HOLD = "hold"
    """A person took the decisions over; what is served stays."""
    RELEASE = "release"
    """A person gave the decisions back to the loop; what is served stays."""
    BOOTSTRAP = "bootstrap"
    """The first model became champion: there was nothing to compare it with."""


class RolloutState(Record):
    """Who answers what share. The router is a pure function of this and the sticky key."""

    format: int = Field(FORMAT, ge=1, le=FORMAT)
    """Version of this file format."""
    number: int = Field(ge=1)
    """Number of this entry in the log."""
    created_at: datetime
    """When the transition was made, UTC."""
    phase: Phase
    """Where the challenger is."""
    champion: int | None
    """Model version that answers by default."""
    challenger: int | None
    """Model version on trial."""
    canary_fraction: float = Field(0.0, ge=0, le=1)
    """Share of sticky keys that the challenger answers; the champion answers the rest."""
    shadow_fraction: float = Field(0.0, ge=0, le=1)
    """Share of requests copied to the challenger without anyone seeing its answers."""
    salt: str = Field(pattern=r"^[0-9a-f]{8}$")
    """Mixed into the sticky hash: each trial draws its own groups, and a group does not change while a trial runs."""
    decision: Decision
    """What led here."""
    reason: str
    """One sentence with the values that decided."""
    evidence: dict[str, Any] = Field(default_factory=dict)
    """The numbers that the decision rests on."""
    automatic: bool = True
    """Whether the loop's policy decided, or a person."""
    held: bool = False
    """Whether a person's word holds: the loop starts no trial and promotes nothing until a person releases it."""

    @property
    def person_decides(self) -> bool:
        """Whether the loop only guards. Earlier versions said so by the decision alone."""
        return self.held or self.decision is Decision.SET

    @model_validator(mode="after")
    def is_consistent(self) -> Self:
        """A challenger is on trial exactly when the phase says so, and is not the champion."""
        if (self.challenger is None) != (self.phase is Phase.IDLE):
            raise ValueError(f"phase {self.phase.value} does not go with challenger {self.challenger}")
        if self.challenger is not None and (self.champion is None or self.challenger == self.champion):
            raise ValueError(f"challenger {self.challenger} needs another champion, not {self.champion}")
        if self.phase is not Phase.CANARY and self.canary_fraction:
            raise ValueError(f"only a canary takes traffic, but phase {self.phase.value} has canary_fraction {self.canary_fraction}")
        return self
