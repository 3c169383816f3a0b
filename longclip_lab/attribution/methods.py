"""Every method by name, behind two functions: scores on patches, scores on tokens.

Views, lessons and the faithfulness table go through here, so that a method added with
`@patch_method` or `@token_method` is offered, drawn and measured everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from longclip_lab.attribution.inputs import Pairs, Picture, as_pairs
from longclip_lab.attribution.values import PatchMap, TokenMap
from longclip_lab.errors import LabError, suggest
from longclip_lab.models import Clip
from longclip_lab.models.encoding import Images

Map = TypeVar("Map", PatchMap, TokenMap)


@dataclass(frozen=True)
class Method:
    """A named method: what it does in one line, its source, and the function on pairs.

    `asks_text` is False for maps of the picture alone, which are the same for every text.
    `needs_gradient` tells a reader why it takes longer. `imports` names modules that are loaded at
    the first use, for whoever would rather wait for them earlier.
    """

    name: str
    about: str
    source: str
    run: Callable[..., list[Any]]
    asks_text: bool = True
    needs_gradient: bool = False
    imports: tuple[str, ...] = ()


PATCH_METHODS: dict[str, Method] = {}
TOKEN_METHODS: dict[str, Method] = {}


def patch_method(name: str, **facts: Any) -> Callable:
    """Register `run(pairs: Pairs, **options) -> list[PatchMap]` under a name."""

    def register(run: Callable[..., list[PatchMap]]) -> Callable[..., list[PatchMap]]:
        PATCH_METHODS[name] = Method(name=name, run=run, **facts)
        return run

    return register


def token_method(name: str, **facts: Any) -> Callable:
    """Register `run(pairs: Pairs, **options) -> list[TokenMap]` under a name."""

    def register(run: Callable[..., list[TokenMap]]) -> Callable[..., list[TokenMap]]:
        TOKEN_METHODS[name] = Method(name=name, run=run, **facts)
        return run

    return register


def patch_maps(
    clip: Clip,
    images: Picture | Images,
    texts: str | Sequence[str],
    method: str = "relevance",
    **options: Any,
) -> list[PatchMap]:
    """One map on the patches for every pair of a picture and a text.

    `method` is a name of `PATCH_METHODS`; `options` are those of the method (such as `layer`).
    Raises LabError for an unknown method (near ones listed) and as `as_pairs` does.
    """
    return _run(PATCH_METHODS, method, as_pairs(clip, images, texts), options)


def token_maps(
    clip: Clip,
    images: Picture | Images,
    texts: str | Sequence[str],
    method: str = "relevance",
    **options: Any,
) -> list[TokenMap]:
    """One map on the tokens for every pair of a picture and a text; see `patch_maps`."""
    return _run(TOKEN_METHODS, method, as_pairs(clip, images, texts), options)


def _run(known: dict[str, Method], name: str, pairs: Pairs, options: dict[str, Any]) -> list[Any]:
    if name not in known:
        raise LabError(f"There is no method '{name}' here. {suggest(name, known)}")
    return known[name].run(pairs, **options)
