"""Names of what is in a run's folder, for whoever looks at a run without torch."""

FOLDER = "training"
RUN_FILE, RESULT_FILE = "run.json", "result.json"
FAILURE_FILE = "failure.json"
"""Why the run cannot succeed, if a worker has found that out."""
PARENT_FILE = "parent.json"
"""Evaluation of the model that the run started from: measured before the first step, not again after a restart."""
