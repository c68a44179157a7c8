"""What happens to the soak's processes, and when: a pure function of the seed. Only how far they have come by then is chance."""

import random
from collections.abc import Iterator
from typing import NamedTuple

MEAN_PAUSE_S = 18.0
SHORTEST_PAUSE_S = 3.0
DOUBLE = 0.15
"""Share of events in which a second process is struck within the same second."""


class Strike(NamedTuple):
    """Something that happens to a process."""

    at_s: float
    action: str
    """``kill`` (SIGKILL), ``hang`` (SIGSTOP, later SIGCONT), or ``rival`` (a second ingester of the same dataset, of which one must give way)."""
    victim: str
    lasts_s: float
    """Until it is started again or goes on."""


_KINDS = (
    ("kill", "ingester", 42.0, 4.0),
    ("kill", "broker", 20.0, 5.0),
    ("kill", "producer", 12.0, 3.0),
    ("hang", "ingester", 8.0, 15.0),
    ("hang", "broker", 9.0, 12.0),
    ("hang", "producer", 4.0, 10.0),
    ("rival", "ingester", 5.0, 0.0),
)
"""Action, victim, weight, and longest duration in seconds."""


def strikes(seed: int, first_s: float, duration_s: float, calm_s: float) -> Iterator[Strike]:
    """In order of time. Over the last ``calm_s`` the ingester is left alone, so that its memory is seen over a longer time."""
    rng, at_s = random.Random(seed), first_s
    while True:
        at_s += SHORTEST_PAUSE_S + rng.expovariate(1 / (MEAN_PAUSE_S - SHORTEST_PAUSE_S))
        for _ in range(1 + (rng.random() < DOUBLE)):
            action, victim, _, longest_s = rng.choices(_KINDS, [kind[2] for kind in _KINDS])[0]
            lasts_s = rng.uniform(0, longest_s)
            if at_s < duration_s and not (victim == "ingester" and at_s > duration_s - calm_s):
                yield Strike(at_s, action, victim, lasts_s)
            at_s += rng.random()
        if at_s >= duration_s:
            return
