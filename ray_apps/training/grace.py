"""When to save because a node of the run is about to be taken away: a spot instance, a node that is drained.

Ray tells every worker of the run that one of their nodes is to go, and until when. The first process, which writes the checkpoints, then saves twice,
without asking the others: (1) as soon as it hears of it, whatever may come; (2) once more shortly before the time is up, so that few steps are
computed again. All processes train on meanwhile. At the end of the time Ray starts them anew on other nodes, where they go on from that checkpoint.
A checkpoint says nothing of when it was made, so the loss curve is that of an undisturbed run.
"""

import math
from dataclasses import dataclass

MARGIN_S = 3.0
"""Added to twice the time of a step and a checkpoint: the clocks of two hosts differ, and a disk may be slower the second time."""
UNKNOWN_GRACE_S = 120.0
"""Ray Train waits so long where nobody has said how much time there is."""


@dataclass
class GraceSaves:
    """What was saved for the node that goes first."""

    _told_s: float | None = None
    _ends_s: float = 0.0
    _num_saves: int = 0

    def is_due(self, leaves_at_s: float | None, now_s: float, work_s: float) -> bool:
        """Whether to save after this step. Times are UNIX times.

        ``leaves_at_s``: when the node is taken away; None: none is, infinity: nobody has said. ``work_s``: what a step and a checkpoint take.
        """
        if leaves_at_s is None:
            return False
        if leaves_at_s != self._told_s:
            self._told_s, self._num_saves = leaves_at_s, 0
            self._ends_s = now_s + UNKNOWN_GRACE_S if math.isinf(leaves_at_s) else leaves_at_s
        is_last = self._ends_s - now_s < MARGIN_S + 2 * work_s
        if self._num_saves == 2 or (self._num_saves == 1 and not is_last):
            return False
        self._num_saves = 2 if is_last else 1
        return True
