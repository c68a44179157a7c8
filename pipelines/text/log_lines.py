"""Log lines of commands and of Ray's workers: when, how severe, from which module, what it is about, what happened.

Ray keeps what a worker prints in a file of its own, which its dashboard shows beside the task or the actor, and sends it to the command for which
the worker works. Lines quote what comes from outside, so none reaches a terminal as it is: it could move the cursor or hide other lines.
"""

import logging
import re
import sys

from pipelines.storage.mirror import shown

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
STEERING = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff\\ud800-\\udfff]")
"""Controls but for tab and line feed, marks that reorder what is beside them, and halves of surrogate pairs, which have no UTF-8 form."""
PACKAGES = ("pipelines", "ray_apps")
"""Our modules that run in workers."""
LIBRARIES = {
    "kafka": logging.WARNING,
    # What it logs of its sockets, event loop, metadata and retries: what matters of it raises.
    "kafka.net": logging.CRITICAL,
    "kafka.cluster": logging.CRITICAL,
    "kafka.coordinator": logging.CRITICAL,
    # Each request to an OpenLineage receiver, and what faiss tries.
    "httpx": logging.WARNING,
    "faiss": logging.WARNING,
}
"""Levels of libraries that say much, unless DEBUG was asked for."""


def escaped(text: str) -> str:
    """The text with what would steer a terminal as backslash escapes, and roots on an object store under their URLs."""
    return STEERING.sub(lambda found: repr(found[0])[1:-1], shown(text))


def quieten_libraries(level: str) -> None:
    """Leave out what libraries say of every single request."""
    if level != "DEBUG":
        for name, least in LIBRARIES.items():
            logging.getLogger(name).setLevel(least)


class EscapingFormatter(logging.Formatter):
    """Escapes whole lines, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, escaped."""
        return escaped(super().format(record))


class WorkerHandler(logging.StreamHandler):  # type: ignore[type-arg]  # it is generic for type checkers only
    """Standard error of a worker of Ray: what our modules say, and of libraries what is worse than INFO."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        return record.levelno > logging.INFO or record.name.partition(".")[0] in PACKAGES


def log_about(subject: str, level: str = "INFO") -> None:
    """In a worker of Ray: its log lines go to standard error from now on, and each says that it is about ``subject``.

    A worker goes from task to task, so it is called in each. Other handlers that write to the worker's output are removed: Ray Train's gives the
    bare message.
    """
    root = logging.getLogger()
    handler = next((known for known in root.handlers if isinstance(known, WorkerHandler)), None)
    if handler is None:
        for printing in [known for known in root.handlers if isinstance(known, logging.StreamHandler) and not isinstance(known, logging.FileHandler)]:
            root.removeHandler(printing)
        handler = WorkerHandler(sys.stderr)
        root.addHandler(handler)
    handler.setFormatter(EscapingFormatter(FORMAT.replace("%(name)s", f"%(name)s [{subject.replace('%', '%%')}]")))
    for package in PACKAGES:
        logging.getLogger(package).setLevel(level)
    quieten_libraries(level)
