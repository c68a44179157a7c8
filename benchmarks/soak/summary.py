"""What a soak comes to: the accounts, how fresh the stream was and how soon again, and the ingester's memory."""

import json
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from benchmarks.soak import accounts
from benchmarks.soak.children import Memory
from ops.cli.output import say
from pipelines.dataset.dataset import Dataset
from schemas.arrow import Outcome

if TYPE_CHECKING:
    from benchmarks.soak.run import Soak


def settled(soak: "Soak") -> dict[str, Any]:
    """The accounts: problems are added to the findings."""
    say("verifying every byte")
    verified = subprocess.run(soak.command("datasets", "verify", "--json"), stdout=subprocess.PIPE, check=False)
    report = json.loads(verified.stdout) if verified.stdout else {}
    if verified.returncode or report.get("problems"):
        soak.findings.append(f"datasets verify ended with {verified.returncode}: {report.get('problems')}")
    say("holding the dataset against the log")
    dataset = Dataset(soak.root)
    log, audit, ledger = accounts.read_log(soak.settings), accounts.read_audit(dataset), accounts.read_ledger(soak.ledgers())
    soak.findings += accounts.problems(soak.settings, dataset, log, audit, ledger)
    totals = dataset.manifest.totals
    return {
        "versions": dataset.version,
        "compactions": sum(1 for manifest in dataset.manifests() if manifest.dedup_base),
        "records": len(log),
        "acknowledged": len(ledger),
        "outcomes": {str(outcome): totals.outcomes.get(outcome, 0) for outcome in Outcome},
        "masked_documents": totals.num_masked_documents,
        "freshness_s": _freshness(audit),
        "files_verified": report.get("files"),
        "bytes_verified": report.get("size_bytes"),
    }


def _freshness(audit: pl.DataFrame) -> dict[str, float]:
    """From a record's timestamp to the commit of its version, over all records and over those of the last minute."""
    ages_s = audit.select("timestamp_ms", age_s=(pl.col("committed_ms") - pl.col("timestamp_ms")) / 1000)
    last = ages_s.filter(pl.col("timestamp_ms") > pl.col("timestamp_ms").max() - 60_000)["age_s"].to_numpy()
    found = {f"p{percent}": float(np.percentile(ages_s["age_s"].to_numpy(), percent)) for percent in (50, 95, 99, 100)}
    return {**found, "last_minute_p50": float(np.median(last)), "last_minute_p100": float(np.max(last))}


def memory_told(memory: list[Memory], duration_s: float) -> dict[str, float]:
    """Of the ingester, where its process had run for half a minute: about minute 5 (or half-time), and at the end; and over its longest life."""
    early_s = min(300.0, duration_s / 2)
    late = [item.anonymous_mb for item in memory if item.at_s > duration_s - 60 and item.age_s > 30]
    early = [item.anonymous_mb for item in memory if abs(item.at_s - early_s) <= 45 and item.age_s > 20]
    longest = max(memory, key=lambda item: item.age_s, default=None)
    life = [item for item in memory if longest and item.start_number == longest.start_number and item.age_s > 30]
    found = {
        "early_s": early_s,
        "early_anonymous_mb": _median(early),
        "end_anonymous_mb": _median(late),
        "peak_pss_mb": max(m.pss_mb for m in memory),
    }
    if longest is not None and life:
        found |= {"longest_life_s": longest.age_s, "its_first_minute_mb": _median([m.anonymous_mb for m in life if m.age_s < 90])}
        found |= {"its_last_minute_mb": _median([m.anonymous_mb for m in life if m.age_s > longest.age_s - 60])}
    return found


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else float("nan")


def catching_up(soak: "Soak") -> dict[str, dict[str, float]]:
    """Seconds from a strike until everything acknowledged before it was committed."""
    kinds = sorted({kind for kind, _ in soak.caught_up})
    by_kind = {kind: [seconds for found, seconds in soak.caught_up if found == kind] for kind in kinds}
    return {kind: {"strikes": len(found), "median": float(np.median(found)), "max": max(found)} for kind, found in by_kind.items()}


def show(summary: dict[str, Any]) -> None:
    """For people."""
    print(f"soak of {summary['minutes']:g} minutes, seed {summary['seed']}, runner {summary['runner']}, {summary['rate']:g} times the usual rate")
    print(f"  strikes: {', '.join(f'{number} x {kind}' for kind, number in summary['strikes'].items())}")
    print(f"  {summary['records']:,} records in the log ({summary['acknowledged']:,} of them acknowledged)")
    print(f"  {summary['versions']:,} versions, {summary['compactions']} of them compactions")
    print(f"  outcomes: {', '.join(f'{name} {number:,}' for name, number in summary['outcomes'].items())}; {summary['masked_documents']:,} masked")
    print(f"  verified: {summary['files_verified']:,} files, {summary['bytes_verified'] / 1e6:,.0f} MB")
    print("  produce to committed, s: " + ", ".join(f"{name} {value:,.1f}" for name, value in summary["freshness_s"].items()))
    for kind, found in summary["caught_up_s"].items():
        print(
            f"  after {kind}: all that was acknowledged before was committed within {found['median']:.1f} s (median), {found['max']:.1f} s (longest)"
        )
    print("  ingester's memory: " + ", ".join(f"{name} {value:,.0f}" for name, value in summary["memory"].items()))
    print(f"  findings: {len(summary['findings'])}")
    for finding in summary["findings"]:
        print(f"  - {finding}")
