"""Cards to leaf through, with filters, for pages where no kernel runs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longclip_lab.errors import LabError
from longclip_lab.files import to_json
from longclip_lab.views.html import Html
from longclip_lab.views.states import page, with_pictures

_SCRIPT = """<script>
(() => {
  const box = document.getElementById("%s");
  const data = JSON.parse(box.querySelector("script").textContent);
  const filters = [...box.querySelectorAll("select")];
  const [back, on] = box.querySelectorAll("button");
  const panel = box.querySelector(".panel");
  let chosen = data.cards, at = 0;
  const show = () => {
    box.querySelector(".count").textContent = chosen.length
      ? `${at + 1} of ${chosen.length}` : "no question is left";
    back.disabled = at === 0;
    on.disabled = at >= chosen.length - 1;
    panel.innerHTML = chosen.length ? chosen[at].html : "";
    for (const image of panel.querySelectorAll("[data-picture]"))
      image.src = data.pictures[image.dataset.picture];
  };
  const move = step => { at += step; show(); };
  const filter = () => {
    chosen = data.cards.filter(card => filters.every(
      choice => !choice.value || card.tags[choice.name] === choice.value));
    at = 0;
    show();
  };
  back.addEventListener("click", () => move(-1));
  on.addEventListener("click", () => move(1));
  filters.forEach(choice => choice.addEventListener("change", filter));
  show();
})();
</script>"""


@dataclass(frozen=True)
class Card:
    """The HTML of a card and what filters see of it."""

    html: str
    tags: Mapping[str, str]


def cards_html(
    cards: Sequence[Card],
    pictures: Mapping[str, str],
    values: Mapping[str, Sequence[str]] | None = None,
) -> Html:
    """Cards with a list for each tag, and buttons for the previous and the next one.

    `values` gives the order of a tag's values. Raises LabError for no cards.
    """
    if not cards:
        raise LabError("expected at least one card, got none. Widen the filters.")
    values = dict(values or {})
    lists = []
    for tag in cards[0].tags:
        found = {card.tags[tag] for card in cards}
        names = [name for name in values.get(tag, sorted(found)) if name in found]
        options = "".join(f"<option>{html.escape(name)}</option>" for name in names)
        if len(names) > 1:
            lists.append(
                f'<label style="flex-basis:120px">{html.escape(tag)}'
                f'<select name="{html.escape(tag)}"><option value="">all</option>{options}'
                "</select></label>"
            )
    data = to_json(
        {
            "cards": [{"html": card.html, "tags": dict(card.tags)} for card in cards],
            "pictures": dict(pictures),
        },
        separators=(",", ":"),
        ensure_ascii=False,
    )
    body = (
        f'<div class="controls">{"".join(lists)}</div><div class="controls" '
        'style="margin-top:10px;align-items:center"><button type="button">← previous</button>'
        '<button type="button">next →</button>'
        f'<span class="count">1 of {len(cards)}</span></div>'
        f'<div class="panel" aria-live="polite">{with_pictures(cards[0].html, pictures)}</div>'
    )
    return page(body, data, _SCRIPT)
