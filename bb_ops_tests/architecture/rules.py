"""The rules of the house as functions over source text: each returns the lines that break it."""

import ast
from collections.abc import Iterator

BROAD = {"Exception", "BaseException"}


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Yield every module that is imported, wherever in the text, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imports_of(source: str, *packages: str) -> list[int]:
    """Return the lines that import one of some packages, or a module in it."""
    return sorted(
        {
            line
            for line, module in imported(source)
            for package in packages
            if module == package or module.startswith(f"{package}.")
        }
    )


def relative_imports(source: str) -> list[int]:
    """Return the lines that import relatively to their own place."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level]


def reads_of_environment(source: str) -> list[int]:
    """Return the lines that look at the process environment."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv"}
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {alias.name for alias in node.names})
    ]


def reads_of_clock(source: str) -> list[int]:
    """Return the lines that ask the operating system for the time, or let time pass."""
    asked = {"now", "utcnow", "today"}
    return sorted(
        imports_of(source, "time")
        + [
            node.lineno
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute)
            and node.attr in asked
            and ast.unparse(node.value) in {"datetime", "date", "datetime.datetime", "datetime.date"}
        ]
    )


def broad_excepts(source: str) -> list[int]:
    """Return the lines that catch everything and do not raise it again."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not _raises_again(node)
    ]


def prints(source: str) -> list[int]:
    """Return the lines that print."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def _is_broad(caught: ast.expr | None) -> bool:
    if caught is None:
        return True
    each = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(isinstance(name, ast.Name) and name.id in BROAD for name in each)


def _raises_again(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None
