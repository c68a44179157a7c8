"""Names of what is in a run's folder, for whoever looks at a run without torch."""

FOLDER = "training"
RUN_FILE, RESULT_FILE = "run.json", "result.json"
