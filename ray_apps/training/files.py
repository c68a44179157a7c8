"""Names of what is in a run's folder, for whoever looks at a run without torch."""

FOLDER = "training"
RUN_FILE, RESULT_FILE = "run.json", "result.json"
FAILURE_FILE = "failure.json"
"""Why the run cannot succeed, if a worker has found that out."""
PARENT_FILE = "parent.json"
"""Evaluation of the model that the run started from: measured before the first step, not again after a restart."""
LOG_FOLDER = "log"
"""Of a run on an object store: its lease, and what is committed under it."""


def failure_file(lease_number: int) -> str:
    """Where a worker leaves why the run cannot succeed: of each lease its own file, so that workers of an earlier one end no later one."""
    return f"failure-{lease_number:08d}.json" if lease_number else FAILURE_FILE
