"""Is what was written still the same model? Its own library reads it back and is asked.

B batch, T tokens, D embedding, H W picture.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
import transformers

from longclip_lab.errors import LabError, NotFiniteError
from longclip_lab.models.anatomy import end_id
from longclip_lab.models.build import quiet
from longclip_lab.models.clip import Clip, TextTower
from longclip_lab.models.encoding import evaluating
from longclip_lab.models.formats.export import find_dtype, find_format
from longclip_lab.models.load import load_file
from longclip_lab.text.tokenizers import ClipTokenizer

TOLERANCE = 1e-5
TEXTS = {
    "a plain sentence": "A red boat lies to the left of the old house, and it's 1999.",
    "a typographic apostrophe": "It\u2019s the dog\u2019s ball.",
    "typographic quotation marks": "A sign that says \u201copen\u201d.",
    "HTML's entities (&amp;)": "Salt &amp; pepper",
    "accents": "Na\u00efve caf\u00e9 cr\u00e8me",
    "accents as characters of their own": "A cafe\u0301",
    "wide characters": "\uff21 \uff22\uff23",
    "ligatures": "A \ufb01sh",
    "text decoded by a wrong encoding": "A caf\u00c3\u00a9",
    "other scripts": "\u6f22\u5b57 \u0438 \u03b1\u03b2\u03b3",
    "emoji": "A dog \U0001f436 runs",
}
"""What captions hold beside plain words, by what it is called."""
# Around the borders: where KPS begins to stretch, where CLIP ends, where Long-CLIP does.
_LENGTHS = (3, 20, 21, 77, 78, 150, 248)
_Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Parity:
    """Differences on random pictures and texts, each relative to the largest value.

    `image`, `text` and `logits` compare what was written with its source, whose weights are
    rounded as the reader has them: to the dtype of the file, and for OpenAI's code, which rounds
    those of its linear layers whatever the file holds, to float16. `rounding` is what that cost,
    among the logits (or among the text features of a tower alone). `image` and `logits` are None
    where there are no pictures.
    """

    format: str
    reader: str
    """Whose code read it back."""
    image: float | None
    text: float
    logits: float | None
    rounding: float
    lengths: tuple[int, ...]
    """Tokens of the texts."""
    tokenizer: str | None = None
    """Whose tokenizer was written along and read `TEXTS`; None where none was."""
    read_otherwise: tuple[str, ...] = ()
    """The kinds of `TEXTS` that it reads otherwise than the source's tokenizer."""

    @property
    def difference(self) -> float:
        """The largest of the three; not a number if one of them is none."""
        values = [value for value in (self.image, self.text, self.logits) if value is not None]
        # `max` may pass NaN by, depending on where it stands in the list.
        return math.nan if any(map(math.isnan, values)) else max(values)

    @property
    def ok(self) -> bool:
        """True if float32 explains the difference; of the texts nothing is said by it."""
        return self.difference <= TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "difference": self.difference, "ok": self.ok}

    def __str__(self) -> str:
        parts = {"pictures": self.image, "texts": self.text, "logits": self.logits}
        told = ", ".join(f"{name} {v:.1e}" for name, v in parts.items() if v is not None)
        verdict = "the same model" if self.ok else "NOT the same model"
        lines = [
            f"parity: {verdict}. Largest differences, relative: {told}",
            f"  read back by {self.reader}; texts of {', '.join(map(str, self.lengths))} tokens",
        ]
        if self.rounding:
            lines.append(f"  rounding the weights moved them by {self.rounding:.1e}")
        if self.read_otherwise:
            lines.append(
                f"  the tokenizer beside it ({self.tokenizer}) reads some texts otherwise, as it "
                f"does not repair them: {', '.join(self.read_otherwise)}. Give it "
                "html.unescape(ftfy.fix_text(text))"
            )
        elif self.tokenizer:
            lines.append(f"  the tokenizer beside it ({self.tokenizer}) reads texts as ours does")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Sides:
    """One model's answers: `image` and `logits` are None where it sees nothing."""

    text: _Encode
    image: _Encode | None
    scale: float


def parity(
    clip: Clip | TextTower,
    path: str | os.PathLike[str],
    format: str = "transformers",
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
) -> Parity:
    """Compare `clip` with what `export` wrote to `path`, read back by the format's own library.

    transformers' `CLIPModel`, or `CLIPTextModelWithProjection` (`CLIPTextModel` without a
    projection) for text encoders; open_clip for its folders and, as it carries OpenAI's code, for
    "openai". Long-CLIP's code is no package: "longclip" is read by this lab's reader, which tests
    hold against numbers of the official code. `dtype` as it was given to `export`.

    The tokenizer that was written along reads `TEXTS`, odd ones that people really write.

    Raises LabError for an unknown format, and if the library cannot read what is there;
    NotFiniteError if either side's features or logits are not finite, as nothing can be compared.
    """
    find_format(format)
    texts_BT = _texts(clip, seed)
    with torch.no_grad(), evaluating(clip.model), quiet():
        try:
            reader, back = _READERS[format](Path(path), isinstance(clip, TextTower))
        except Exception as error:  # another library's, for a file of whatever is there
            raise LabError(f"{path} cannot be read back: {error}") from error
        rounded = _rounded(clip, find_dtype(dtype), format == "openai")
        own, exact = _sides(rounded), _sides(clip)
        theirs_BD, text_BD = back.text(texts_BT).float(), own.text(texts_BT)
        text, rounding = _distance(text_BD, theirs_BD), _distance(exact.text(texts_BT), text_BD)
        image = logits = None
        if back.image is not None:
            pixels_B3HW = _pictures(clip, seed)
            seen_BD, image_BD = back.image(pixels_B3HW).float(), own.image(pixels_B3HW)
            image = _distance(image_BD, seen_BD)
            logits_BB = _logits(image_BD, text_BD, own.scale)
            logits = _distance(logits_BB, _logits(seen_BD, theirs_BD, back.scale))
            exact_BB = _logits(exact.image(pixels_B3HW), exact.text(texts_BT), exact.scale)
            rounding = _distance(exact_BB, logits_BB)
    lengths = tuple((texts_BT.argmax(dim=1) + 1).tolist())
    tokenizer, otherwise = _read_texts(clip, Path(path), format)
    return Parity(format, reader, image, text, logits, rounding, lengths, tokenizer, otherwise)


def _read_texts(
    clip: Clip | TextTower, path: Path, format: str
) -> tuple[str | None, tuple[str, ...]]:
    """Which of `TEXTS` the tokenizer beside the weights reads otherwise, and whose it is."""
    folder = {"transformers": path, "diffusers": path / "tokenizer"}.get(format)
    if folder is None or not isinstance(clip.tokenizer, ClipTokenizer):
        return None, ()  # the others' codes carry OpenAI's tokenizer, which ours is
    theirs = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    otherwise = [
        kind
        for kind, text in TEXTS.items()
        if theirs(text).input_ids[1:-1] != clip.tokenizer.encode(text)
    ]
    return f"transformers {transformers.__version__}, CLIPTokenizer", tuple(otherwise)


def _texts(clip: Clip | TextTower, seed: int) -> torch.Tensor:
    """Random token ids [B, T], each text ended by the end token and padded by 0."""
    generator = torch.Generator().manual_seed(seed)
    length, end = clip.context_length, end_id(clip.model)
    lengths = sorted({min(n, length) for n in (*_LENGTHS, length)})
    texts_BT = torch.zeros(len(lengths), length, dtype=torch.long)
    for row_T, count in zip(texts_BT, lengths, strict=True):
        # Any id below start and end: the weights have to agree on words that make no sense, too.
        row_T[:count] = torch.randint(1, end - 1, (count,), generator=generator)
        row_T[count - 1] = end
    return texts_BT


def _pictures(clip: Clip, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 3, clip.image_size, clip.image_size, generator=generator)


def _rounded(clip: Clip | TextTower, dtype: torch.dtype, by_openai: bool) -> Clip | TextTower:
    # The reader has rounded weights: compared are two models of the same numbers.
    rounded = copy.copy(clip)
    rounded.model = copy.deepcopy(clip.model).to(dtype).float()
    if by_openai:
        # OpenAI's code rounds its linear layers whatever the file holds.
        open_clip.model.convert_weights_to_lp(rounded.model, torch.float16)
        rounded.model.float()
    return rounded


def _sides(clip: Clip | TextTower) -> _Sides:
    if isinstance(clip, TextTower):
        return _Sides(clip.encode_text, None, 1.0)
    return _Sides(clip.encode_text, clip.encode_image, float(clip.model.logit_scale.exp()))


def _logits(image_BD: torch.Tensor, text_BD: torch.Tensor, scale: float) -> torch.Tensor:
    return scale * F.normalize(image_BD, dim=-1) @ F.normalize(text_BD, dim=-1).T


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    if not (ours.isfinite().all() and theirs.isfinite().all()):
        raise NotFiniteError(
            "The features or logits of random pictures and texts are not finite: nothing can be "
            "compared, and such a model can answer nothing."
        )
    # Relative to the largest value: features have no scale of their own.
    largest = ours.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((ours - theirs).abs().max() / largest)


def _pooled(output: Any) -> torch.Tensor:
    """Features of `get_text_features`, which were a tensor before transformers 5."""
    return output if torch.is_tensor(output) else output.pooler_output


def _read_transformers(path: Path, text_only: bool) -> tuple[str, _Sides]:
    if text_only:
        return _read_text(path)
    model = _opened(transformers.CLIPModel, path)
    sides = _Sides(
        lambda ids_BT: _pooled(model.get_text_features(ids_BT)),
        lambda pixels: _pooled(model.get_image_features(pixels)),
        float(model.logit_scale.exp()),
    )
    return f"transformers {transformers.__version__}, CLIPModel", sides


def _read_text(folder: Path) -> tuple[str, _Sides]:
    config = transformers.CLIPTextConfig.from_pretrained(folder, local_files_only=True)
    kind = (config.architectures or ["CLIPTextModel"])[0]
    model = _opened(getattr(transformers, kind), folder)
    answer = "text_embeds" if kind.endswith("WithProjection") else "pooler_output"
    sides = _Sides(lambda ids_BT: getattr(model(ids_BT), answer), None, 1.0)
    return f"transformers {transformers.__version__}, {kind}", sides


def _opened(kind: type, folder: Path) -> torch.nn.Module:
    """All weights must be there; transformers itself would make up what is missing."""
    model, told = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    if told["missing_keys"] or told["mismatched_keys"]:
        raise LabError(f"{folder} lacks weights: {sorted(told['missing_keys'])[:3]}.")
    return model.float().eval()


def _read_openai(path: Path, text_only: bool) -> tuple[str, _Sides]:
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model = open_clip.model.build_model_from_openai_state_dict(weights, cast_dtype=torch.float32)
    return f"open_clip {open_clip.__version__}'s copy of OpenAI's code", _of_module(model.float())


def _read_longclip(path: Path, text_only: bool) -> tuple[str, _Sides]:
    return "longclip_lab's reader of Long-CLIP's files", _of_module(load_file(path).model)


def _read_open_clip(path: Path, text_only: bool) -> tuple[str, _Sides]:
    model = open_clip.create_model(f"local-dir:{path}", pretrained_text=False)
    return f"open_clip {open_clip.__version__}", _of_module(model.eval())


def _of_module(model: torch.nn.Module) -> _Sides:
    return _Sides(model.encode_text, model.encode_image, float(model.logit_scale.exp()))


_READERS: dict[str, Callable[[Path, bool], tuple[str, _Sides]]] = {
    "transformers": _read_transformers,
    "diffusers": lambda path, text_only: _read_text(path / "text_encoder"),
    "openai": _read_openai,
    "longclip": _read_longclip,
    "open_clip": _read_open_clip,
}
