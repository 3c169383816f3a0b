"""A caption with a slider for its cut: what is read, and which pictures that finds.

The states are computed beforehand and stand in the page as JSON, so the slider works in JupyterLab
and in the book, where no kernel runs. Without JavaScript the first state shows.
"""

from __future__ import annotations

import hashlib
import html
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longclip_lab.errors import LabError
from longclip_lab.files import to_json
from longclip_lab.text import get_tokenizer
from longclip_lab.views.html import ATTRIBUTES, Html, picture, picture_uri
from longclip_lab.views.theme import COLOURS

if TYPE_CHECKING:
    from longclip_lab.probing.along import ReadAlong

_STYLE = f"""<style>
.lc-along {{max-width: 46em}}
.lc-along .text {{line-height: 1.75; font-size: 1.02em}}
.lc-along .text span {{transition: opacity .1s}}
.lc-along .fact {{border-bottom: .16em solid var(--fact)}}
.lc-along .unread {{opacity: .3}}
.lc-along .end {{white-space: nowrap; font-size: .78em; font-weight: 600; color: #D55E00;
  border-left: .18em solid #D55E00; padding: .1em .5em; margin: 0 .3em}}
.lc-along .bar {{display: flex; flex-direction: column; gap: .3em; margin: .8em 0}}
.lc-along input {{width: 100%; accent-color: {COLOURS["blue"]}}}
.lc-along output {{font-variant-numeric: tabular-nums}}
.lc-along .found {{display: flex; gap: 10px}}
.lc-along .found img {{width: calc((100% - 40px) / 5); border-radius: 6px; margin: 0;
  image-rendering: auto; outline: 4px solid transparent; outline-offset: -4px}}
.lc-along .found img.own {{outline-color: {COLOURS["vermillion"]}}}
</style>"""

_SCRIPT = """<script>
(() => {
  const box = document.getElementById("%s");
  const states = JSON.parse(box.querySelector("script").textContent);
  const slider = box.querySelector("input");
  const show = () => {
    const state = states.cuts[slider.value];
    for (const token of box.querySelectorAll("[data-token]"))
      token.classList.toggle("unread", +token.dataset.token >= state.cut);
    box.querySelector("output").textContent = state.message;
    box.querySelectorAll(".found img").forEach((image, place) => {
      const picture = states.pictures[state.found[place]];
      image.src = picture.uri;
      image.alt = picture.alt;
      image.classList.toggle("own", state.found[place] === states.own);
    });
  };
  slider.addEventListener("input", show);
  box.addEventListener("keydown", event => event.stopPropagation());  // from JupyterLab's keys
  show();
})();
</script>"""


def along_html(along: ReadAlong, start: int | None = None, pixels: int = 120) -> Html:
    """The caption with a slider: the words read, the rank of its picture, the pictures found.

    `start` is the cut that shows first, by default the smallest; the own picture has a frame.
    Raises LabError if `start` is none of the cuts.
    """
    cuts = [int(cut) for cut in along.cuts]
    start = cuts[0] if start is None else start
    if start not in cuts:
        raise LabError(f"expected a start among the cuts {cuts[0]} to {cuts[-1]}, got {start}.")
    first = cuts.index(start)
    pictures = {
        int(i): {
            "uri": picture_uri(picture(along.pairs, int(i), pixels), photo=True),
            "alt": along.pairs.short[int(i)],
        }
        for i in sorted(set(along.found.flat))
    }
    states = [
        {"cut": cut, "found": [int(i) for i in found], "message": _message(along, cut, int(rank))}
        for cut, rank, found in zip(cuts, along.ranks, along.found, strict=True)
    ]
    data = to_json({"cuts": states, "pictures": pictures, "own": along.index})
    identity = "lc-" + hashlib.sha256(data.encode()).hexdigest()[:12]
    images = "".join(
        f'<img src="{pictures[i]["uri"]}" alt="{html.escape(pictures[i]["alt"])}"'
        f"{' class=own' * (i == along.index)}>"
        for i in states[first]["found"]
    )
    return Html(
        f'{_STYLE}<div class="lc-along" id="{identity}"><div class="text">'
        f"{_tokens(along, start)}</div>"
        f'<div class="bar"><input type="range" min="0" max="{len(cuts) - 1}" value="{first}" '
        f'aria-label="tokens read"><output>{states[first]["message"]}</output></div>'
        f'<div class="found">{images}</div>'
        f'<script type="application/json">{data.replace("</", "<&#47;")}</script></div>'
        f"{_SCRIPT % identity}"
    )


def _message(along: ReadAlong, cut: int, rank: int) -> str:
    read = f"{cut} token{'s' * (cut != 1)} read"
    return f"{read}; its picture is number {rank} of {len(along.pairs):,}"


def _tokens(along: ReadAlong, cut: int) -> str:
    """Each token in a span that the slider can grey out, facts underlined."""
    text = along.pairs.long[along.index]
    captions = getattr(along.pairs, "long_captions", None)
    facts = sorted(captions[along.index].facts, key=lambda f: f.span) if captions else []
    spans = get_tokenizer(along.tokenizer).tokenize(text).spans
    starts = [fact.span[0] for fact in facts]
    pieces, at = [], 0
    for number, (start, end) in enumerate(spans):
        if number == along.context_length - 2:
            pieces.append(f'<b class="end">{along.context_length} positions end here</b>')
        start = max(start, at)
        fact = _fact_at(facts, starts, start)
        following = spans[number + 1][0] if number + 1 < len(spans) else end
        goes_on = fact is not None and following < fact.span[1]
        stop = following if goes_on else end
        pieces.append(html.escape(text[at:start]))
        pieces.append(
            f'<span data-token="{number}"{_classes(number >= cut, fact)}>'
            f"{html.escape(text[start:stop])}</span>"
        )
        at = max(at, stop)
    return "".join(pieces)


def _fact_at(facts: Sequence[Any], starts: Sequence[int], character: int) -> Any | None:
    number = bisect_right(starts, character) - 1
    return facts[number] if number >= 0 and character < facts[number].span[1] else None


def _classes(unread: bool, fact: Any | None) -> str:
    names = ["unread"] * unread + ["fact"] * (fact is not None)
    style = f' style="--fact:{ATTRIBUTES[fact.attribute][1]}"' if fact is not None else ""
    return (f' class="{" ".join(names)}"' if names else "") + style
