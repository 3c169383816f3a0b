"""Time until a view answers, and the size that it has in a saved notebook.

    python benchmarks/views.py [--models tiny ViT-B-16] [--pictures 100] [--rounds 3]

Moves every control of every view in the kernel, as a reader would: in the token explorer each
method is asked about words, sentences and whole texts that it has not seen, in the others each
slider takes new values. Prints one JSON object: for each model, view and control the seconds of
the slowest move, and the bytes of the view's state. "ViT-B-16" is open_clip's architecture with
random weights, stretched to 248 positions, which takes the time that trained ones take. What the
browser adds is not measured here. The first reading of a pool is told apart, as "build": the busy
sign is on meanwhile.

Takes about 9 minutes on one core of a busy machine. Goals: at most 0.3 seconds a move for the tiny
model, 3 for ViT-B/16, 1 MB for each state.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from ipywidgets.embed import dependency_state, embed_data

import longclip_lab as ll
from longclip_lab.models import Clip
from longclip_lab.views.widgets.token_explorer import TokenExplorer

GOALS = {"tiny": 0.3, "ViT-B-16": 3.0}
STATE_GOAL = 1_000_000  # bytes


def model(name: str) -> Clip:
    """A model that reads 248 tokens."""
    torch.manual_seed(0)
    return ll.stretch(ll.load(name))


def seconds(run: Callable[[], Any]) -> float:
    """How long `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def state_bytes(view: Any) -> int:
    """The bytes of a view in a notebook that is saved with its widgets."""
    return len(json.dumps(embed_data([view], state=dependency_state([view]))))


def explorer_moves(view: TokenExplorer, rounds: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """A name and a move for every method, on words, sentences and texts that are new each time.

    The first use of a method, for which a library may have to be loaded, is told apart.
    """
    words = [view.text[start:end] for start, end in view.scene["words"][: view.scene["read"]]]
    new = sorted({word for word in words if word.isalpha()}, key=words.index)
    sentences = [view.text[start:end] for start, end in view.scene["sentences"][: 1 + rounds]]
    for offer in view.offers["patch"]:
        name = offer["name"]
        view.light(patch=(0, 0))
        view.method = name
        yield f"{name}: first use", lambda: view.light(sentences[0])
        for asked in new[:rounds]:
            yield f"{name}: word", lambda asked=asked: view.light(asked)
        for asked in sentences[1:]:
            yield f"{name}: sentence", lambda asked=asked: view.light(asked)
    yield "patch", lambda: view.light(patch=(1, 2))
    for offer in view.offers["word"]:
        name = offer["name"]
        view.light(patch=(0, 0))
        view.words_method = name
        yield f"{name}: first use for words", view.light
        view.light(patch=(0, 0))
        for text in view.texts[1:2]:
            view.text = text
            yield f"{name}: whole picture", view.light
            view.text = view.texts[0]
    yield "another picture", lambda: setattr(view, "picture", 2)


def slider_moves(control: Any, rounds: int) -> Iterator[Callable[[], Any]]:
    """Moves of a slider or a list to values spread over its range."""
    if hasattr(control, "options"):
        values = [value for _, value in control._options_full][: rounds + 1]
    else:
        values = np.linspace(control.min, control.max, rounds + 2)[1:-1]
        values = [type(control.value)(value) for value in values]
    before = control.value
    for value in values:
        if value != control.value:
            yield lambda value=value: setattr(control, "value", value)
    control.value = before


def panels(clip: Clip, pairs: Any) -> dict[str, tuple[Callable[[], Any], tuple[str, ...]]]:
    """The views that are made of controls and a panel: how to build them, what to move."""
    questions = ll.world.counterfactuals(len(pairs), seed=3)
    return {
        "ReadingCut": (lambda: ll.views.ReadingCut(clip, pairs), ("cut", "choice")),
        "Stretcher": (lambda: ll.views.Stretcher(clip), ("keep", "ratio")),
        "Components": (lambda: ll.views.Components(clip, pairs), ("k", "batch")),
        "CounterfactualBrowser": (
            lambda: ll.views.CounterfactualBrowser(clip, questions),
            ("answer", "attribute", "size"),
        ),
    }


def measure(name: str, count: int, rounds: int) -> dict[str, Any]:
    """The views of one model."""
    clip, pairs = model(name), ll.world.pairs(count, seed=1)
    found: dict[str, Any] = {}
    start = time.perf_counter()
    view = TokenExplorer(clip, pairs.images[:4], pairs.long[:4])
    slowest: dict[str, float] = {}
    built = time.perf_counter() - start
    for label, move in explorer_moves(view, rounds):
        slowest[label] = max(slowest.get(label, 0), seconds(move))
    found["TokenExplorer"] = {"build": built, "moves": slowest, "bytes": state_bytes(view)}
    for label, (build, controls) in panels(clip, pairs).items():
        view = build()
        built, slowest = seconds(view.refresh), {}
        for control in controls:
            for move in slider_moves(getattr(view, control), rounds):
                slowest[control] = max(slowest.get(control, 0), seconds(move))
        found[label] = {"build": built, "moves": slowest, "bytes": state_bytes(view)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--pictures", type=int, default=100, help="pictures in the pool")
    parser.add_argument("--rounds", type=int, default=3, help="moves of each control")
    arguments = parser.parse_args()
    results = {}
    for name in arguments.models:
        found = measure(name, arguments.pictures, arguments.rounds)
        moves = {
            f"{view}, {move}": taken
            for view, one in found.items()
            for move, taken in one["moves"].items()
            if "first use" not in move
        }
        results[name] = {
            "views": found,
            "slowest": max(moves, key=moves.get),
            "seconds": max(moves.values()),
            "goal_seconds": GOALS[name],
            "largest_state": max(one["bytes"] for one in found.values()),
            "goal_bytes": STATE_GOAL,
        }
    settings = {"benchmark": "views", "threads": torch.get_num_threads()}
    print(json.dumps({**settings, "results": results}, indent=2))


if __name__ == "__main__":
    main()
