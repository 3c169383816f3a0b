"""View 1: a text and a picture side by side; pointing at one lights up the other.

W words, P patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets as tl

from longclip_lab.attribution import PATCH_METHODS, TOKEN_METHODS, PatchMap, TokenMap, TokenPatches
from longclip_lab.attribution.maps import Picture
from longclip_lab.errors import LabError
from longclip_lab.models import Clip
from longclip_lab.text.sentences import Span
from longclip_lab.views import explorer
from longclip_lab.views.explorer import MATRICES, Lighting, Strip, known, matrix_of, options_of
from longclip_lab.views.html import image_uri

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from longclip_lab.models.encoding import Images

_STATIC = Path(__file__).parent / "static"
_DRAWING = 100  # pixels; smaller pictures are stored without loss
_LEVELS = 255


class TokenExplorer(anywidget.AnyWidget):
    """A text beside its picture: point at a word, a sentence or a patch, the other side lights up.

    Hovering or moving with the arrow keys lights up, a click or Enter keeps it lit, Escape lets
    go. What lies behind the model's cut is grey. Maps are computed when they are asked for.

    Args:
        clip: the model.
        images: one picture or several (PIL pictures, paths, uint8 [N, H, W, 3]).
        texts: one text or several. With as many texts as pictures, choosing a picture chooses its
            text; any text can then be put beside it.
        method: what lights up the picture for a word or a sentence: a name of
            `longclip_lab.attribution.PATCH_METHODS`, asked about those words alone, or a matrix
            of tokens and patches: "words alone" or "words in context". For a patch it is always a
            matrix that lights up the words: the one chosen, else that of the words alone.
        words_method: what lights up the words for the whole picture: a name of
            `longclip_lab.attribution.TOKEN_METHODS`.
        typing: offer a box in which the reader can type a text.

    The traits `picture`, `text`, `method`, `layer`, `head`, `words_method`, `words_layer`,
    `words_head` and `lit` can be set from Python too; `answer` is what is lit. Raises LabError for
    bad input; what a reader does wrong in the view is told there, and stands in `error`.
    """

    _esm = _STATIC / "token_explorer.js"
    _css = _STATIC / "token_explorer.css"

    picture = tl.Int(0).tag(sync=True)
    text = tl.Unicode().tag(sync=True)
    method = tl.Unicode().tag(sync=True)
    layer = tl.Int(None, allow_none=True).tag(sync=True)
    head = tl.Int(None, allow_none=True).tag(sync=True)
    words_method = tl.Unicode().tag(sync=True)
    words_layer = tl.Int(None, allow_none=True).tag(sync=True)
    words_head = tl.Int(None, allow_none=True).tag(sync=True)
    lit = tl.Dict().tag(sync=True)

    texts = tl.List(tl.Unicode()).tag(sync=True)
    offers = tl.Dict().tag(sync=True)
    scene = tl.Dict().tag(sync=True)
    matrix = tl.Bytes().tag(sync=True)
    answer = tl.Dict().tag(sync=True)
    error = tl.Unicode().tag(sync=True)
    revision = tl.Int(0).tag(sync=True)

    def __init__(
        self,
        clip: Clip,
        images: Picture | Images,
        texts: str | Sequence[str],
        method: str = "similarity-gain",
        *,
        words_method: str = "relevance",
        typing: bool = True,
    ):
        images, texts = _listed(images), [texts] if isinstance(texts, str) else list(texts)
        if not images or not texts:
            raise LabError(f"expected pictures and texts, got {len(images)} and {len(texts)}.")
        known(method, [*MATRICES, *PATCH_METHODS])
        known(words_method, TOKEN_METHODS)
        explorer.load_methods()
        self._lighting = Lighting(clip, images)
        self._strip: Strip | None = None
        super().__init__(
            texts=texts, text=texts[0], method=method, words_method=words_method,
            lit={"kind": "words", "start": 0, "end": len(texts[0])},
        )  # fmt: skip
        self.offers = self._offered(typing)
        self._show_scene()
        self._show_answer()
        self.observe(self._on_scene, ["picture", "text", "method"])
        self.observe(self._on_choice, [
            "layer", "head", "words_method", "words_layer", "words_head", "lit",
        ])  # fmt: skip
        self.on_msg(self._on_question)

    def light(
        self, words: str | None = None, patch: tuple[int, int] | None = None
    ) -> PatchMap | TokenMap:
        """Light up the patches for `words`, or the words for a patch (row, column), and keep it.

        With neither, the words for the whole picture. Returns the map.
        Raises LabError for words that are not in the text or not read, and for a patch outside.
        """
        if words is not None:
            start = self._strip.text.find(words)
            if start < 0 or not words:
                raise LabError(f"“{words}” is not in the text: {self._strip.text}")
            unit = {"kind": "words", "start": start, "end": start + len(words)}
        elif patch is not None:
            unit = {"kind": "patch", "row": int(patch[0]), "column": int(patch[1])}
        else:
            unit = {"kind": "picture"}
        found = self._map(unit)
        self.lit = unit
        return found

    def figure(self, limit: int = 24) -> go.Figure:
        """The same for a page without a kernel; see `longclip_lab.views.explorer`."""
        from longclip_lab.views.explorer import explorer_figure

        return explorer_figure(
            self._lighting.clip, self._lighting.images[self.picture], self._strip.text,
            method=self.method, limit=limit, **self._options("", self.method, PATCH_METHODS),
        )  # fmt: skip

    static = figure

    def _offered(self, typing: bool) -> dict[str, Any]:
        """What the reader can choose from."""
        patch = [{"name": n, "about": about, "options": []} for n, about in MATRICES.items()]
        patch += [_offer(name, PATCH_METHODS) for name in PATCH_METHODS]
        word = [_offer(name, TOKEN_METHODS) for name in TOKEN_METHODS]
        sizes = {}
        for side, offers, example in (
            ("image", patch, self._lighting.images[0]),
            ("text", word, self.texts[0]),
        ):
            if any(offer["options"] for offer in offers):
                sizes[side] = list(self._lighting.tower(side, example))
        pictures = len(self._lighting.images)
        return {
            "patch": patch, "word": word, "sizes": sizes, "pictures": pictures, "typing": typing,
            "paired": pictures == len(self.texts), "model": self._lighting.clip.name,
        }  # fmt: skip

    def _on_scene(self, change: dict[str, Any]) -> None:
        chosen = change["name"] == "picture" and self.offers["paired"]
        if chosen and 0 <= self.picture < len(self.texts):
            self.text = self.texts[self.picture]  # comes back here unless it is the same
        self._told(self._show_scene, self._show_answer)

    def _on_choice(self, change: dict[str, Any]) -> None:
        self._told(self._show_answer)

    def _on_question(self, _widget: Any, content: dict[str, Any], _buffers: list[Any]) -> None:
        """The browser asks what lights up for a unit that it has no answer for."""
        try:
            self.send({"answer": self._answer(content["ask"])})
        except (LabError, RuntimeError) as error:
            self.send({"error": str(error), "unit": content["ask"]})

    def _told(self, *steps: Any) -> None:
        """Run the steps; tell the reader what went wrong, and that it is done."""
        try:
            for step in steps:
                step()
            self.error = ""
        except (LabError, RuntimeError) as error:
            self.error = str(error)
        finally:
            self.revision += 1

    def _show_scene(self) -> None:
        if not 0 <= self.picture < len(self._lighting.images):
            raise LabError(
                f"expected a picture from 0 to {len(self._lighting.images) - 1}, "
                f"got {self.picture}."
            )
        strip = self._lighting.strip(self.text)
        if not strip.words_read:
            raise LabError("expected a text with words, got none.")
        found = self._lighting.matrix(self.picture, self.text, self.method)
        per_word = [found.scores[inside].mean(0) for inside in strip.tokens_of_words]
        levels, low, high = quantised(np.array(per_word))
        other_text = self._strip is not None and self._strip.text != self.text
        self._strip = strip
        with self.hold_sync():
            if other_text:
                self.lit = {"kind": "words", "start": 0, "end": len(self.text)}
            self.matrix = levels.tobytes()
            self.scene = {
                "text": self.text, "image": _uri(found.image), "grid": list(found.scores.shape[1:]),
                "words": strip.words, "sentences": strip.sentences, "read": strip.words_read,
                "tokens": [len(strip.tokens), len(strip.tokens) + strip.unread],
                "similarity": round(found.similarity, 3), "low": low, "high": high,
                "matrix": matrix_of(self.method), "shift": _shift(found),
            }  # fmt: skip

    def _show_answer(self) -> None:
        self.answer = self._answer(self.lit) if self.lit else {}

    def _answer(self, unit: dict[str, Any]) -> dict[str, Any]:
        """What lights up for a unit, small enough to send: 8 bits a score."""
        found, method = self._map(unit), self.method
        if isinstance(found, PatchMap):
            side, scores = "patches", found.scores.reshape(-1)
        else:
            method = matrix_of(method) if unit["kind"] == "patch" else self.words_method
            words = self._strip.tokens_of_words.astype(float)
            if unit["kind"] == "patch":  # a cosine has a mean; shares of a whole have a sum
                words /= np.maximum(words.sum(1, keepdims=True), 1)
            side, scores = "words", words @ found.scores
        levels, low, high = quantised(scores)
        return {
            "unit": unit, "side": side, "scores": levels.tolist(), "low": low, "high": high,
            "method": method, "shift": _shift(found) if side == "patches" else None,
        }  # fmt: skip

    def _map(self, unit: dict[str, Any]) -> PatchMap | TokenMap:
        text, kind = self._strip.text, unit.get("kind")
        if kind == "patch":
            matrix = self._lighting.matrix(self.picture, text, self.method)
            rows, columns = matrix.scores.shape[1:]
            if not (0 <= unit["row"] < rows and 0 <= unit["column"] < columns):
                raise LabError(
                    f"expected a patch within {rows} rows and {columns} columns, "
                    f"got row {unit['row']}, column {unit['column']}."
                )
            return matrix.tokens(unit["row"], unit["column"])
        if kind == "picture":
            options = self._options("words_", self.words_method, TOKEN_METHODS)
            return self._lighting.tokens(self.picture, text, self.words_method, options)
        if kind != "words":
            raise LabError(f"expected words, a patch or the picture, got {unit!r}.")
        span = self._strip.cut_off(Span(unit["start"], unit["end"]))
        options = self._options("", self.method, PATCH_METHODS)
        return self._lighting.patches(self.picture, text, span, self.method, options)

    def _options(self, prefix: str, method: str, methods: dict[str, Any]) -> dict[str, Any]:
        chosen = {name: getattr(self, prefix + name) for name in options_of(method, methods)}
        return {name: value for name, value in chosen.items() if value is not None}


def _shift(found: PatchMap | TokenPatches) -> list[float]:
    """How far the patches look to the side, as shares of the picture's width and height."""
    height, width = found.image.shape[:2]
    return [found.shift[0] / width, found.shift[1] / height]


def quantised(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Values as uint8 between the least and the largest, and these two.

    >>> quantised(np.array([-1.0, 0.0, 1.0]))
    (array([  0, 128, 255], dtype=uint8), -1.0, 1.0)
    """
    if not values.size:
        return values.astype(np.uint8), 0.0, 0.0
    low, high = float(values.min()), float(values.max())
    levels = (values - low) / (high - low) * _LEVELS if high > low else values * 0
    return levels.round().astype(np.uint8), low, high


def _listed(images: Picture | Images) -> list[Any]:
    """One picture or several as a list of single pictures."""
    if isinstance(images, np.ndarray) or hasattr(images, "numpy"):
        return list(images if images.ndim == 4 else images[None])
    return (
        list(images) if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    )


def _offer(name: str, methods: dict[str, Any]) -> dict[str, Any]:
    about = methods[name].about
    return {"name": name, "about": about, "options": options_of(name, methods)}


def _uri(image_SS3: np.ndarray) -> str:
    from PIL import Image

    return image_uri(Image.fromarray(image_SS3), photo=len(image_SS3) > _DRAWING)
