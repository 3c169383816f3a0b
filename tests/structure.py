"""The structure of the library, measured: modules, lines, import circles, hops, comments.

    python -m tests.structure          # a table; the hops by running a training, load, evaluation

Imports inside functions and those for type checkers count like any other. The one import by a
string is in `longclip_lab/plotting.py`, which says why.
"""

from __future__ import annotations

import ast
import io
import sys
import tempfile
import tokenize
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "longclip_lab"
TESTS = Path(__file__).parent
CORE = (
    *("models.kps", "models.corner_tokens", "objectives.pcm", "objectives.longclip"),
    *("objectives.lotlip", "training.loop", "evaluation.retrieval", "probing.effective_length"),
)
"""Where a reader of the two papers finds them."""
EXPLAINED, LEAST_COMMENTS = ("models", "objectives", "training", "evaluation"), 6
"""Rooms whose comments are counted, and how many a hundred lines of code should have."""
LIMITS = {
    "modules": 120,
    "lines": 32_000,
    "import circles": 0,
    "longest module": 800,
    "lines of tests": 20_000,
    "modules that models.load needs": 30,
    "modules from ll.train to the loss": 10,
    "modules from a file to a model": 6,
    "modules from ll.evaluate to a record": 10,
}

TO_THE_LOSS = {  # where a caption becomes tokens, the tokens a feature, and the features a loss
    "encode": "longclip_lab.text.tokenizers",
    "encode_ragged": "longclip_lab.models.towers",
    "longclip_loss": "longclip_lab.objectives.longclip",
}
TO_A_MODEL = {
    "read_container": "longclip_lab.models.checkpoint",
    "convert_openai": "longclip_lab.models.formats.openai",
    "build_model": "longclip_lab.models.build",
    "fill": "longclip_lab.models.checkpoint",
}
TO_A_RECORD = {
    "open_benchmark": "longclip_lab.data.benchmarks.load",
    "encode_ragged": "longclip_lab.models.towers",
    "rank_both_ways": "longclip_lab.evaluation.retrieval",
}


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


def comments_per_100_lines(of: dict[str, str], room: str) -> float:
    """Comments a hundred lines of code; marks for tools and docstrings are neither."""
    comments, code = 0, 0
    for name, source in of.items():
        if name.split(".")[1:2] == [room]:
            here, lines = _comments_and_code(source)
            comments, code = comments + here, code + lines
    return 100 * comments / max(code, 1)


def _comments_and_code(source: str) -> tuple[int, int]:
    comments, code = 0, set()
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    nothing = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments += not token.string.startswith(("# noqa", "# fmt", "# type", "# pragma"))
        elif token.type not in nothing:
            code.update(range(token.start[0], token.end[0] + 1))
    return comments, len(code - docstrings)


def passed(run: Callable[[], object], marks: dict[str, str]) -> set[str]:
    """The modules through which `run` comes to the functions `marks`, a name of a function to its
    module: all that are on the stack when one of them is called.

    These are what a reader opens who follows a caption, a file or a benchmark.
    """
    found: set[str] = set()
    met: set[str] = set()

    def look(frame, event, _):
        function, module = frame.f_code.co_name, frame.f_globals.get("__name__")
        if event == "call" and marks.get(function) == module:
            met.add(function)
            while frame is not None:
                found.add(frame.f_globals.get("__name__", ""))
                frame = frame.f_back

    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(None)
    if unmet := marks.keys() - met:
        raise RuntimeError(f"{sorted(unmet)} were not called: name what took their place")
    return {name for name in found if name.startswith("longclip_lab.")}


def hops() -> dict[str, set[str]]:
    """The modules of the three ways through the library, by running each on the tiny model."""
    import torch
    from open_clip import CLIP

    import longclip_lab as ll

    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 512, "width": 64, "heads": 1, "layers": 1}
    weights = CLIP(embed_dim=32, quick_gelu=True, vision_cfg=vision, text_cfg=text).state_dict()
    clip = ll.load("tiny")
    recipe = replace(ll.recipes.longclip("tiny"), steps=1, warmup_steps=0, batch_size=40)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "openai.pt"
        torch.save(weights, file)
        return {
            "modules from ll.train to the loss": passed(
                lambda: ll.train(clip, recipe, ll.world.pairs(80), progress=False), TO_THE_LOSS
            ),
            "modules from a file to a model": passed(lambda: ll.load(file), TO_A_MODEL),
            "modules from ll.evaluate to a record": passed(
                lambda: ll.evaluate(clip, "world/short-retrieval"), TO_A_RECORD
            ),
        }


def table() -> list[tuple[str, float, float | None]]:
    """What is measured without running anything: its name, the value and the limit, if any."""
    of = sources()
    graph = imports(of)
    lengths = {name: len(source.splitlines()) for name, source in of.items()}
    tests = sum(len(path.read_text("utf-8").splitlines()) for path in TESTS.rglob("*.py"))
    measured = {
        "modules": len(of),
        "lines": sum(lengths.values()),
        "import circles": len(circles(graph)),
        "longest module": max(lengths.values()),
        "lines of tests": tests,
        "modules that models.load needs": len(_reached("longclip_lab.models.load", graph)),
        **{
            f"comments per 100 lines, {room}": round(comments_per_100_lines(of, room), 1)
            for room in EXPLAINED
        },
    }
    return [(what, value, LIMITS.get(what)) for what, value in measured.items()]


def main() -> None:
    try:
        ways = [(what, len(by), LIMITS[what]) for what, by in hops().items()]
    except ImportError as error:
        ways = []
        print(f"the ways through the library need all of it installed: {error}")
    rows = [*table(), *ways]
    for what, value, limit in rows:
        wanted = "" if limit is None else f"   (at most {limit:,})"
        if what.startswith("comments"):
            wanted = f"   (at least {LEAST_COMMENTS})"
        print(f"{what:42} {value:>8,}{wanted}")


if __name__ == "__main__":
    main()
