"""Which nodes of a cluster do what: tasks and actors ask for a little of a custom resource that the nodes of their role have.

So ingest does not make an autoscaler rent nodes with GPUs, and a training worker never waits behind tasks that could run elsewhere. A node
gets the resource from its type in ``cluster.yaml`` or from ``ray start --resources``.
"""

import logging

_log = logging.getLogger(__name__)
SHARE = 0.001
"""Of the resource, for each task: its CPUs and GPUs are the limit, not this."""


def node_resources(name: str, setting: str) -> dict[str, float]:
    """What a task or actor asks for so that it runs on nodes that have the resource ``name``; nothing for an empty one. Ray must be running.

    Warns if no node has it: then Ray waits until one joins.
    """
    import ray

    if not name:
        return {}
    if name not in ray.cluster_resources():  # type: ignore[no-untyped-call]
        _log.warning("no node of the cluster has the resource %r, which %s names: Ray waits until one joins", name, setting)
    return {name: SHARE}
