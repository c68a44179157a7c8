"""Shards of the duplicate index as Ray actors (dedup/index_shards.py): the only place where the index knows Ray."""

import secrets
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

    def __init__(self, base: Path, max_hamming: int, num_shards: int, root_name: str) -> None:
        """``root_name``: whose index it is, for people. Two actors cannot have one name, not even while the first one ends: hence the token."""
        # No CPU of their own: they work while the ingesting process waits for them, and must not wait for a slot behind its tasks.
        actor = ray.remote(num_cpus=0, scheduling_strategy="SPREAD", max_restarts=-1, max_task_retries=-1)(Shard)
        token = secrets.token_hex(3)
        self._actors: list[Any] = [
            actor.options(name=f"duplicates index of {root_name}, part {part + 1} of {num_shards} ({token})").remote(
                base, max_hamming, part, num_shards
            )
            for part in range(num_shards)
        ]

    def __call__(self, queries: npt.NDArray[np.uint64], wanted: npt.NDArray[np.bool_]) -> Found:
        """The union of the parts."""
        shared = ray.put(queries), ray.put(wanted)
        return merge_found(ray.get([actor.find.options(name="duplicates index: look up").remote(*shared) for actor in self._actors]), len(queries))

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
