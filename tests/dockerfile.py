"""A Dockerfile as instructions: enough for our own, which has no heredocs."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction and the stage that it belongs to."""

    stage: str
    name: str
    value: str


def instructions(path: Path) -> list[Instruction]:
    """All of them, in their order; lines that continue are joined, comments are left out."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    found: list[Instruction] = []
    stage = ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "FROM":
            stage = value.rpartition(" AS ")[2]
        if name:
            found.append(Instruction(stage, name, value))
    return found


def parents(path: Path) -> dict[str, str]:
    """Stage -> what it begins with."""
    values = [instruction.value.partition(" AS ") for instruction in instructions(path) if instruction.name == "FROM"]
    return {stage: parent for parent, _, stage in values}


def environment(path: Path, stage: str, **arguments: str) -> dict[str, str]:
    """The variables of an image that ends with the stage, with the build's arguments filled in."""
    ancestors, above = [stage], parents(path)
    while (parent := _filled(above[ancestors[0]], arguments)) in above:
        ancestors.insert(0, parent)
    pairs = [
        word.partition("=")
        for ancestor in ancestors
        for instruction in instructions(path)
        if instruction.stage == ancestor and instruction.name == "ENV"
        for word in shlex.split(instruction.value)
    ]
    return {name: _filled(value, arguments) for name, _, value in pairs}


def defaults(path: Path) -> dict[str, str]:
    """The build's arguments."""
    pairs = [instruction.value.partition("=") for instruction in instructions(path) if instruction.name == "ARG"]
    return {name: value for name, sign, value in pairs if sign}


def _filled(text: str, arguments: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: arguments.get(found[1], found[0]), text)
