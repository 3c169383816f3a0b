"""The structure of the library, measured: modules, lines, import circles, imports upward.

    python -m tests.structure

Imports inside functions and those for type checkers count like any other. The one import by a
string is in `longclip_lab/plotting.py`, which says why.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "longclip_lab"
CORE = (
    *("models.kps", "models.corner_tokens", "objectives.pcm", "objectives.longclip"),
    *("objectives.lotlip", "training.loop", "evaluation.retrieval", "probing.effective_length"),
)
"""Where a reader of the two papers finds them."""


def sources() -> dict[str, str]:
    """The source of every module, by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        found[name] = path.read_text(encoding="utf-8")
    return found


def imports(of: dict[str, str]) -> dict[str, set[str]]:
    """Which modules each module imports, wherever in it."""
    return {name: _imported(ast.parse(source), of) - {name} for name, source in of.items()}


def _imported(tree: ast.Module, known: dict[str, str]) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found & known.keys()


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that all reach each other."""
    reach = {name: _reached(name, graph) for name in graph}
    groups = {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in graph
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


def _reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(graph[name])
    return found


def main() -> None:
    of = sources()
    graph = imports(of)
    lengths = {name: len(source.splitlines()) for name, source in of.items()}
    print(f"modules: {len(of)}")
    print(f"lines: {sum(lengths.values()):,}")
    print(f"import circles: {circles(graph) or 0}")
    longest = max(lengths, key=lengths.__getitem__)
    print(f"longest module: {longest}, {lengths[longest]} lines")
    for name in ("models.load", "evaluation.scoring", "training.run", "attribution", "views"):
        print(f"closure of {name}: {len(_reached(f'longclip_lab.{name}', graph))} modules")


if __name__ == "__main__":
    main()
