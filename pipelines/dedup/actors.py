"""Shards of the duplicate index as Ray actors (dedup/index_shards.py): the only place where the index knows Ray."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from pipelines.dedup.index import merge_found
from pipelines.dedup.index_shards import Shard
from pipelines.dedup.tables import Found


class ActorShards:
    """As many Ray actors as there are parts. Ray must be running; an actor that dies is started again and asked again."""

    def __init__(self, base: Path, max_hamming: int, num_shards: int) -> None:
        # No CPU of their own: they work while the ingesting process waits for them, and must not wait for a slot behind its tasks.
        actor = ray.remote(num_cpus=0, scheduling_strategy="SPREAD", max_restarts=-1, max_task_retries=-1)(Shard)
        self._actors: list[Any] = [actor.remote(base, max_hamming, part, num_shards) for part in range(num_shards)]

    def __call__(self, queries: npt.NDArray[np.uint64], wanted: npt.NDArray[np.bool_]) -> Found:
        """The union of the parts."""
        shared = ray.put(queries), ray.put(wanted)
        return merge_found(ray.get([actor.find.remote(*shared) for actor in self._actors]), len(queries))

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
