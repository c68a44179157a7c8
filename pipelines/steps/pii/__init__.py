"""Personal data and secrets: ``redact`` a batch."""

from pipelines.steps.pii.redact import Redacted, redact

__all__ = ["Redacted", "redact"]
