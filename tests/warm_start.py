"""What every command does once, done before commands are forked (tests/commands.py): none of it starts a thread."""

from numba.core.registry import cpu_target

from ops.cli.main import build_parser

cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
build_parser()  # which imports the modules of all commands
