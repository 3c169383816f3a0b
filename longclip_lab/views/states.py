"""Views without a kernel: every state that the controls can reach stands in the page.

The same function draws a state for the widget and for the page, so both say the same. Lines that
states share are stored once, pictures are stored once, and a few lines of JavaScript put the lines
of the chosen state in place. Without JavaScript the first state shows.
"""

from __future__ import annotations

import hashlib
import html
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from longclip_lab.files import to_json
from longclip_lab.views.html import Html

STYLE = """<style>
.lc-view {--lc-paper: var(--jp-layout-color0, #fff);
  --lc-soft: var(--jp-content-font-color2, #595959); --lc-line: #8886;
  --jp-widgets-font-size: 16px; --jp-widgets-inline-height: 34px;
  font-size: 16px; line-height: 1.5; max-width: 760px}
.lc-view :is(.widget-html-content, .widget-html) {font-size: 16px; line-height: 1.5; height: auto}
.lc-view .headline {font-size: 20px; line-height: 1.35; font-weight: 600; margin: 6px 0 4px}
.lc-view .soft {color: var(--lc-soft); fill: var(--lc-soft)}
.lc-view p {margin: 4px 0}
.lc-view .lc-chart {display: block; width: 100%; height: auto; margin: 6px 0}
.lc-view .lc-chart text {font-size: 16px; font-family: inherit}
.lc-view .axis {stroke: var(--lc-soft)}
.lc-view .grid {stroke: var(--lc-line); stroke-width: .7}
.lc-view .text {font-size: 17px; line-height: 1.65; margin: 8px 0}
.lc-view .unread {opacity: .45}
.lc-view .mark {white-space: nowrap; font-size: 16px; font-weight: 600; color: #C25500;
  border-left: 3px solid #D55E00; padding: 0 .4em; margin: 0 .2em}
.lc-view .thumbs {display: flex; gap: 10px; margin: 8px 0 2px; padding: 0; list-style: none}
.lc-view .thumbs li {flex: 1 1 0; min-width: 0; margin: 0}
.lc-view .thumbs img, .lc-view img.big {width: 100%; aspect-ratio: 1; object-fit: cover;
  border-radius: 6px; display: block; margin: 0; outline: 5px solid transparent;
  outline-offset: -5px}
.lc-view .thumbs .own img {outline-color: #D55E00}
.lc-view .chosen {display: inline-block; background: #D55E00; color: #fff; border-radius: 4px;
  padding: 0 .35em; font-weight: 600}
.lc-view table {border-collapse: collapse; width: 100%; font-size: 16px; margin: 6px 0}
.lc-view :is(th, td) {text-align: left; padding: 5px 10px 5px 0; border: 0; vertical-align: middle;
  background: none}
.lc-view td.number, .lc-view th.number {text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap}
.lc-view tbody tr {border-top: 1px solid var(--lc-line)}
.lc-states .controls {display: flex; flex-wrap: wrap; gap: 8px 20px; align-items: end}
.lc-states label {display: flex; flex-direction: column; flex: 1 1 220px; font-weight: 600}
.lc-states input[type=range] {width: 100%; accent-color: #0072B2; height: 28px; margin: 0}
.lc-states :is(button, select) {font: inherit; font-weight: 400; padding: 4px 12px;
  min-height: 36px}
</style>"""

_SCRIPT = """<script>
(() => {
  const box = document.getElementById("%s");
  const data = JSON.parse(box.querySelector("script").textContent);
  const inputs = [...box.querySelectorAll("input")];
  const panel = box.querySelector(".panel");
  const show = () => {
    let at = 0;
    inputs.forEach((input, i) => {
      const names = data.controls[i];
      at = at * names.length + Number(input.value);
      input.parentElement.querySelector("output").textContent = names[input.value];
      input.setAttribute("aria-valuetext", names[input.value]);
    });
    panel.innerHTML = data.states[at].map(line => data.lines[line]).join("\\n");
    for (const image of panel.querySelectorAll("[data-picture]"))
      image.setAttribute(
        image.tagName === "image" ? "href" : "src", data.pictures[image.dataset.picture]);
  };
  inputs.forEach(input => input.addEventListener("input", show));
  show();
})();
</script>"""


_KEYS = """<script>
document.getElementById("%s").addEventListener("keydown", event => event.stopPropagation());
</script>"""


@dataclass(frozen=True)
class Control:
    """A slider of the page: its label, the text of every position, and where it starts."""

    label: str
    values: Sequence[str]
    start: int = 0


def states_html(
    controls: Sequence[Control],
    draw: Callable[..., str],
    pictures: Mapping[str, str],
    title: str = "",
) -> Html:
    """A page piece with sliders; `draw(*positions)` gives the HTML of a state.

    A drawn `<img data-picture="name">` or `<image data-picture="name">` shows the data URI
    `pictures["name"]`.
    """
    lines: dict[str, int] = {}
    states = []
    for positions in itertools.product(*(range(len(control.values)) for control in controls)):
        drawn = draw(*positions).split("\n")
        states.append([lines.setdefault(line, len(lines)) for line in drawn])
    first = with_pictures(draw(*(control.start for control in controls)), pictures)
    used = set(re.findall(r'data-picture="([^"]+)"', "\n".join(lines)))
    data = to_json(
        {
            "controls": [list(control.values) for control in controls],
            "lines": list(lines),
            "states": states,
            "pictures": {name: uri for name, uri in pictures.items() if name in used},
        },
        separators=(",", ":"),
        ensure_ascii=False,
    )
    sliders = "".join(
        f"<label><span>{html.escape(control.label)}: <output>"
        f"{html.escape(control.values[control.start])}</output></span>"
        f'<input type="range" min="0" max="{len(control.values) - 1}" value="{control.start}">'
        "</label>"
        for control in controls
    )
    return page(
        f'<div class="controls">{sliders}</div><div class="panel" aria-live="polite">{first}</div>',
        data,
        _SCRIPT,
        title,
    )


def page(body: str, data: str, script: str, title: str = "") -> Html:
    """`body` with its data and the script that brings it to life, under a name of its own.

    JupyterLab would take arrow keys for itself; they are kept from it.
    """
    identity = "lc-" + hashlib.sha256((body + data).encode()).hexdigest()[:12]
    head = f'<div class="headline">{html.escape(title)}</div>' * bool(title)
    data = data.replace("</", r"<\/")  # nothing in the data may end the script
    return Html(
        f'{STYLE}<div class="lc-view lc-states" id="{identity}">{head}{body}'
        f'<script type="application/json">{data}</script></div>'
        f"{script % identity}{_KEYS % identity}"
    )


def with_pictures(drawn: str, pictures: Mapping[str, str]) -> str:
    """The HTML of a state with its pictures in it: `src` of an img, `href` of an image of SVG."""

    def link(found: re.Match[str]) -> str:
        return f'{found[1]} {"href" if found[1] == "<image" else "src"}="{pictures[found[2]]}"'

    return re.sub(r'(<image|<img) data-picture="([^"]+)"', link, drawn)
