"""How many replicas of an engine there are to be: what Serve's autoscaler asks between ``min_engine_replicas`` and ``max_engine_replicas``.

Serve counts requests, and one request may ask for many answers, each a sequence that takes a place in the engine. So every engine also tells Serve
how many sequences run and wait in it (``ModelReplica.record_autoscaling_stats``), and the larger of the two counts decides. Requests for which no
replica has room wait in the gateways; only Serve's own count has them. Serve applies its delays and bounds to what this returns.
It copies this module's code into its controller: nothing of ours may be imported here.
"""

from typing import Any

SEQUENCES = "sequences"
"""Name under which an engine tells how many sequences run and wait in it."""


def engine_replicas(context: Any) -> tuple[float, dict[str, Any]]:
    """The number of replicas at which each has its target, and no state to keep. ``context`` is Serve's AutoscalingContext."""
    told = (context.aggregated_metrics or {}).get(SEQUENCES, {})
    wanted = max(float(context.total_num_requests), float(sum(told.values())))
    return wanted / context.config.get_target_ongoing_requests(), {}
