"""A container's health check: exit code 0 while the API of ``headrace up`` or ``headrace serve`` answers, or waits for its first model.

The same question as the supervisor's (ops/supervisor/services.py), asked with the standard library alone: a check every 30 s is to cost little.
"""

import json
import os
import sys
import urllib.error
import urllib.request

PORT = "8000"
"""Where the API is unless HEADRACE_SERVING__PORT says otherwise."""
TIMEOUT_S = 4.0


def answers(url: str) -> bool:
    """Whether /health says that a champion answers, or that there is none because no model was registered yet."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S):  # noqa: S310  always http, to this container
            return True
    except urllib.error.HTTPError as refusal:
        return _waits_for_its_first_model(refusal.read())
    except OSError:
        return False


def _waits_for_its_first_model(body: bytes) -> bool:
    try:
        told = json.loads(body)
    except ValueError:
        return False
    return isinstance(told, dict) and "champion" in told and told["champion"] is None


if __name__ == "__main__":
    sys.exit(0 if answers(f"http://127.0.0.1:{os.environ.get('HEADRACE_SERVING__PORT', PORT)}/health") else 1)
