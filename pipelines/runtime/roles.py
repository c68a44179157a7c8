"""Which nodes of a cluster do what: tasks and actors ask for a little of a custom resource that the nodes of their role have.

So ingest does not make an autoscaler rent nodes with GPUs, and a training worker never waits behind tasks that could run elsewhere. A node
gets the resource from its type in ``cluster.yaml`` or from ``ray start --resources``.
"""

import logging
from typing import NamedTuple

_log = logging.getLogger(__name__)
SHARE = 0.001
"""How much of the resource a task takes: so little that only CPUs and GPUs limit the number of tasks."""
_missing: set[str] = set()
"""Names of which this process has warned."""


class Nodes(NamedTuple):
    """The nodes of a role that are there now."""

    number: int
    num_cpus: int


def nodes_of(name: str) -> Nodes:
    """The living nodes that have the resource ``name``; all of them for an empty one. Ray must be running."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    chosen = [resources for resources in nodes if not name or name in resources]
    return Nodes(len(chosen), int(sum(resources.get("CPU", 0) for resources in chosen)))


def node_resources(name: str, setting: str) -> dict[str, float]:
    """What a task or actor asks for so that it runs on nodes that have the resource ``name``; nothing for an empty one. Ray must be running.

    Warns, once, if no node has it: then Ray waits until one joins.
    """
    import ray

    if not name:
        return {}
    if name in ray.cluster_resources():  # type: ignore[no-untyped-call]
        _missing.discard(name)
    elif name not in _missing:
        _missing.add(name)
        _log.warning("no node of the cluster has the resource %r, which %s names: Ray waits until one joins", name, setting)
    return {name: SHARE}
