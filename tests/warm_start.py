"""What every process that loads compiled kernels does once, done before commands are forked (tests/commands.py): none of it starts a thread."""

from numba.core.registry import cpu_target

cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
