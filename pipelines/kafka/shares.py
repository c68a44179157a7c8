"""Sharing what one version may read among the partitions that have something to read."""

from collections.abc import Mapping


def fair_shares(available: Mapping[int, int], budget: int) -> dict[int, int]:
    """Split ``budget`` over the partitions: none gets more than it has, and no partition waits while another gets more than it.

    What one cannot use goes to the others; a remainder goes to the lower partition numbers. Pure, so a repeated plan is the same plan.
    """
    shares: dict[int, int] = {}
    waiting = sorted(available, key=lambda partition: (available[partition], -partition))
    for position, partition in enumerate(waiting):
        fair = budget // (len(waiting) - position)
        shares[partition] = min(available[partition], fair)
        budget -= shares[partition]
    return shares
