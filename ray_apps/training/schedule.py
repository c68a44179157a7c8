"""Learning rate by step: linear warm-up to the peak, then a cosine down to a share of it. A pure function, so a resumed run needs no state."""

import math

from schemas.settings import TrainingSettings


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """Learning rate of ``step`` (from 0): the last warm-up step has the peak, the last step of the run the floor."""
    warmup = min(settings.warmup_steps, settings.max_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    floor = settings.learning_rate * settings.min_learning_rate_ratio
    progress = (step + 1 - warmup) / max(1, settings.max_steps - warmup)
    return floor + (settings.learning_rate - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
