"""What a source file imports when it runs, read from its text: nothing is loaded for it."""

import ast
from collections.abc import Iterator
from pathlib import Path


def imported_modules(path: Path, *, in_functions: bool) -> Iterator[str]:
    """Dotted names of what the file imports, but for type checking only; ``in_functions``: also later than the file itself is imported.

    Of ``from a import b`` also ``a.b``, which may be a module.
    """
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not in_functions:
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes.extend(node.orelse)
            continue
        nodes.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            assert node.module
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
