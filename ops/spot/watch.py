"""Tells Ray in time that this node is about to be taken away: ``python -m ops.spot.watch``, beside `ray start` on a spot instance.

It waits for the notice that AWS gives two minutes before it takes an instance back (IMDSv2, asked every POLL_S, as AWS recommends), or for SIGTERM
from whatever else stops the machine. Then it drains the node: Ray starts nothing more there, Serve starts the engines elsewhere before it stops them
here, and training saves (ray_apps/training/grace.py). `ray start --block` needs none of this for SIGTERM: it drains by itself, for
RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S seconds.

Invariant: a metadata service that does not answer, or not in the way of AWS, is no notice.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus

import httpx

_log = logging.getLogger(__name__)
METADATA_URL = "http://169.254.169.254"
POLL_S = 5.0
TIMEOUT_S = 2.0
MARGIN_S = 5.0
"""Ray is told that it has so much less, so that what is done at the last moment is done."""
ATTEMPTS = 3
DRAIN_TIMEOUT_S = 30.0
_RAY = (sys.executable, "-P", "-m", "ray.scripts.scripts")


def aws_notice(url: str) -> datetime | None:
    """When AWS takes this instance back; None if it has not said so."""
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
        try:
            token = client.put("/latest/api/token", headers={"x-aws-ec2-metadata-token-ttl-seconds": "60"}).raise_for_status().text
            answer = client.get("/latest/meta-data/spot/instance-action", headers={"x-aws-ec2-metadata-token": token})
            if answer.status_code == HTTPStatus.NOT_FOUND:
                return None
            return datetime.fromisoformat(answer.raise_for_status().json()["time"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            _log.debug("no notice could be read at %s: %s", url, error)
            return None


def wait_for_notice(url: str, stopping: threading.Event, grace_s: float) -> float:
    """Return the seconds that are left, once AWS or SIGTERM (``stopping``) says that the node is taken away."""
    while not stopping.wait(POLL_S):
        taken_at = aws_notice(url)
        if taken_at is not None:
            _log.warning("AWS takes this instance back at %s", taken_at.isoformat())
            return max(0.0, taken_at.timestamp() - time.time())
    _log.warning("this node was told to stop; it has %g s", grace_s)
    return grace_s


def drain(address: str, node_id: str | None, left_s: float) -> int:
    """Tell Ray; returns the exit code of its command. A head that is too busy is asked again."""
    options = {
        "address": address,
        "reason": "DRAIN_NODE_REASON_PREEMPTION",
        "reason-message": "the machine of this node is about to be taken away",
        "deadline-remaining-seconds": str(max(1, int(left_s - MARGIN_S))),
    } | ({} if node_id is None else {"node-id": node_id})
    command = [*_RAY, "drain-node", *(f"--{name}={value}" for name, value in options.items())]
    code = 1
    for _ in range(ATTEMPTS):
        try:
            code = subprocess.run(command, env=os.environ | {"RAY_ADDRESS": address}, timeout=DRAIN_TIMEOUT_S, check=False).returncode
        except subprocess.TimeoutExpired:
            _log.warning("`ray drain-node` took longer than %g s", DRAIN_TIMEOUT_S)
        if code == 0:
            _log.warning("Ray was told that this node goes")
            break
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Wait, drain, exit with the code of `ray drain-node`."""
    parser = argparse.ArgumentParser(prog="python -m ops.spot.watch", description="Drain this node of Ray when it is about to be taken away.")
    parser.add_argument("--address", default="auto", help="address of the cluster (default: the one that this machine belongs to)")
    parser.add_argument("--node-id", help="the node to drain (default: the one of this machine)")
    parser.add_argument("--grace-s", type=float, default=30.0, help="seconds between SIGTERM and the end of the machine (default: 30)")
    parser.add_argument("--metadata", default=METADATA_URL, metavar="URL", help="the instance's metadata service")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    left_s = wait_for_notice(options.metadata, stopping, options.grace_s)
    return drain(options.address, options.node_id, left_s)


if __name__ == "__main__":
    sys.exit(main())
