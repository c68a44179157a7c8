"""What commands print: results on standard output, everything else on standard error.

Much of it comes from outside: ids, URLs, reasons, names of files, what a parser says of bad bytes. Nothing of that reaches a terminal as it is
(it could move the cursor, change the title, or hide lines), and nothing of it is markup: ``tell``, ``say`` and ``print_table`` escape. JSON does too.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pipelines.storage.mirror import shown
from pipelines.text.log_lines import STEERING, escaped


def print_json(value: Any) -> None:
    """One JSON document on standard output, Chinese as Chinese."""
    text = shown(json.dumps(value, ensure_ascii=False, indent=2))
    sys.stdout.write(STEERING.sub(lambda found: json.dumps(found[0])[1:-1], text) + "\n")


def print_json_list(name: str, values: Iterable[Any]) -> None:
    """One JSON document, an object with one list, that is written value by value: none of them stays in memory."""
    sys.stdout.write(f'{{"{name}": [')
    for number, value in enumerate(values):
        sys.stdout.write(",\n" if number else "\n")
        json.dump(value, sys.stdout, ensure_ascii=False, indent=2)
    sys.stdout.write("\n]}\n")


FILE_COLUMNS = 1_000
"""Width of a table that goes into a file or a pipe: one line for each row, so that grep and cut work."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None, *, unbroken: Sequence[str] = ()) -> None:
    """A table on standard output; numbers are aligned to the right. Columns that are ``unbroken`` can be copied from a narrow terminal too."""
    table = Table(title=None if title is None else Text(escaped(title), style="table.title"), title_justify="left")
    listed = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in listed) and bool(listed)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=column in unbroken)
    for row in listed:
        table.add_row(*[f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else Text(escaped(str(cell))) for cell in row])
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=FILE_COLUMNS)
    console.print(table)


def progress_bar() -> Progress:
    """A progress bar on standard error; silent where standard error is not a terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=False, disable=not console.is_terminal)


def tell(message: str) -> None:
    """A line of the result, on standard output."""
    print(escaped(message), flush=True)


def say(message: str) -> None:
    """One line for the person, on standard error."""
    print(escaped(message).replace("\n", "\\n"), file=sys.stderr, flush=True)
