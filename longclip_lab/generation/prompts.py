"""What a long prompt becomes: cut, in pieces, or read whole by a longer text encoder.

Five ways are in use, and `encode_prompt` gives the conditioning of each, so that they can be
compared. Weights in brackets and BREAK, which some programs read in prompts, are read as text.

T tokens of a piece, P pieces, W width of the states, D of the pooled vector.
"""

from __future__ import annotations

import itertools
import os
import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from longclip_lab.errors import COUNT, SEED, LabError, LabWarning, suggest
from longclip_lab.generation.text_encoders import ENCODERS, KPS, clip_encoders, use_long_clip
from longclip_lab.models import Clip, TextTower
from longclip_lab.search import QueryRead
from longclip_lab.text import split_sentences

STRATEGIES = {
    "truncate": "the first 77 tokens; what diffusers does",
    "chunk": "pieces of at most 77 tokens, each read alone, their states one after the other",
    "average": "the same pieces, their states averaged",
    "kps": "248 tokens by stretched positions, untrained",
    "tuned": "248 tokens by a Long-CLIP in place of CLIP-L",
}
CUTS = {"token": r"(?<=\s)", "comma": r"(?<=,)\s*|(?<=[.!?;])\s+", "sentence": None}
"""Where a piece may end, by the empty place in front of the next one; sentences by `text`."""
NAMES = (
    *("prompt_embeds", "negative_prompt_embeds"),
    *("pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
)
"""What diffusers' `encode_prompt` returns and its pipelines take, in this order; SD 1.5 has two."""


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt's conditioning: `pipe(**encoded.arguments)` draws it.

    `arguments` are the states [images, T or P x T, W] of prompt and negative prompt and, for SDXL,
    the pooled vectors [images, D]. `pieces` are the parts of the prompt that were read on their
    own, `reading` says how many of its tokens were read, and which words were not. `pipe` is the
    pipeline that made them: the one given, or one with longer encoders.
    """

    strategy: str
    pieces: tuple[str, ...]
    reading: QueryRead
    arguments: dict[str, torch.Tensor]
    pipe: Any


def encode_prompt(
    pipe: Any,
    prompt: str,
    strategy: str = "truncate",
    *,
    clip_l: Clip | TextTower | str | os.PathLike[str] | None = None,
    cut: str = "token",
    negative_prompt: str | None = None,
    num_images_per_prompt: int = 1,
    clip_skip: int | None = None,
) -> EncodedPrompt:
    """What a Stable Diffusion pipeline (1.5, 2 or XL) is conditioned on by a long prompt.

    Args:
        pipe: a pipeline of diffusers.
        strategy: one of `STRATEGIES`. Pieces are padded, begun and ended as prompts are; a shorter
            negative prompt gets empty pieces. The pooled vector of SDXL is the first piece's under
            "chunk" (as in the programs that do so), the mean under "average".
        clip_l: for "tuned": see `use_long_clip`.
        cut: for pieces: as many whole words as fit ("token"), or where a clause ("comma") or a
            "sentence" ends; what does not fit is cut at a word.
        negative_prompt, num_images_per_prompt, clip_skip: as in the pipeline's own `encode_prompt`.

    What is not read of the prompt is told by a LabWarning and in `reading`.

    Raises LabError for a prompt that says nothing, an unknown strategy or cut, a pipeline that has
    other text encoders beside CLIP's (use `use_long_clip`), and as `use_long_clip` does.
    """
    for value, known, what in ((strategy, STRATEGIES, "strategy"), (cut, CUTS, "cut")):
        if value not in known:
            raise LabError(f"There is no {what} {value!r}. {suggest(str(value), known)}")
    if (strategy == "tuned") != (clip_l is not None):
        raise LabError(
            'Expected clip_l, the Long-CLIP that replaces CLIP-L, with the strategy "tuned" and '
            f"with no other, got {strategy!r} and {clip_l!r}."
        )
    _check_words(prompt)
    encoders = clip_encoders(pipe)
    others = {name for name in ("text_encoder_2", "text_encoder_3") if getattr(pipe, name, None)}
    if others - set(encoders):
        raise LabError(
            f"A {type(pipe).__name__} has other text encoders beside CLIP's, which read long "
            "prompts already. `use_long_clip(pipe)(prompt)` gives it the longer CLIP."
        )
    if strategy in (KPS, "tuned"):
        pipe = use_long_clip(pipe, KPS if clip_l is None else clip_l)
    of_15 = not hasattr(pipe, "text_encoder_2")  # SD 1.5 and 2 look for the last norm themselves
    if clip_skip and of_15 and not hasattr(pipe.text_encoder, "text_model"):
        raise LabError(
            "This diffusers cannot skip layers of this transformers' CLIPTextModel: leave "
            "clip_skip out, or install transformers 4."
        )
    reading = read_prompt(pipe, prompt)
    pieces, negative = (prompt,), (negative_prompt,)
    if strategy in ("chunk", "average"):
        reading = QueryRead(reading.tokens, reading.tokens, reading.context_length)
        pieces = split_prompt(pipe, prompt, cut)
        if negative_prompt:
            negative = split_prompt(pipe, negative_prompt, cut)
    else:
        _warn_unread("prompt", reading)
        if negative_prompt:
            _warn_unread("negative prompt", read_prompt(pipe, negative_prompt))
    arguments = _conditioning(
        pipe, pieces, negative, strategy == "average",
        num_images_per_prompt=num_images_per_prompt, clip_skip=clip_skip,
    )  # fmt: skip
    return EncodedPrompt(strategy, pieces, reading, arguments, pipe)


def _warn_unread(what: str, reading: QueryRead) -> None:
    if not reading.whole:
        warnings.warn(
            f"{reading.read} of the {what}'s {reading.tokens} tokens are read, start and end not "
            f"counted. The rest changes nothing in the picture: “{reading.unread}”.",
            LabWarning,
            stacklevel=3,
        )


def _conditioning(
    pipe: Any,
    pieces: tuple[str, ...],
    negative: tuple[str | None, ...],
    average: bool,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """The states of pieces as one, by the pipeline's own `encode_prompt`."""
    # An absent negative prompt stays None: SDXL then takes zeros.
    rest = None if negative == (None,) else ""
    parts = [
        pipe.encode_prompt(
            prompt=one or "",
            device=pipe._execution_device,
            do_classifier_free_guidance=True,
            negative_prompt=rest if against is None else against,
            **options,
        )
        for one, against in itertools.zip_longest(pieces, negative)
    ]
    columns = dict(zip(NAMES, zip(*parts, strict=True), strict=False))
    if average:
        return {name: torch.stack(values).mean(dim=0) for name, values in columns.items()}
    return {
        name: values[0] if "pooled" in name else torch.cat(values, dim=1)
        for name, values in columns.items()
    }


@dataclass(frozen=True, eq=False)
class Drawn:
    """A picture, and what it was drawn from."""

    image: Image.Image
    encoded: EncodedPrompt


def draw(
    pipe: Any,
    prompt: str,
    strategy: str = "truncate",
    *,
    steps: int = 25,
    guidance_scale: float = 5.0,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Drawn:
    """A picture of a prompt by one of `STRATEGIES`; `options` are those of `encode_prompt`.

    The noise is drawn on the CPU, so a seed is the same picture everywhere but for rounding. The
    picture has the pipeline's own size. Raises LabError as `encode_prompt` does, and for a number
    of steps below one.
    """
    COUNT.check("steps", steps)
    SEED.check("seed", seed)
    encoded = encode_prompt(pipe, prompt, strategy, **options)
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    encoded.pipe.set_progress_bar_config(**(before | {"disable": not progress}))
    try:
        (image,) = encoded.pipe(
            **encoded.arguments,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(seed),
        ).images
    finally:
        pipe.set_progress_bar_config(**before)
    return Drawn(image, encoded)


def read_prompt(pipe: Any, prompt: str) -> QueryRead:
    """How much of a prompt a pipeline's CLIP encoders read, and which words they do not.

    Raises LabError for a prompt that says nothing, and a pipeline without CLIP.
    """
    _check_words(prompt)
    tokenizer = _tokenizer(pipe)
    limit = tokenizer.model_max_length
    ends = [end for _, end in _spans(tokenizer, prompt)]
    read = min(len(ends), limit - 2)  # start and end
    return QueryRead(len(ends), read, limit, prompt[ends[read - 1] :].strip() if ends else "")


def split_prompt(pipe: Any, prompt: str, cut: str = "token") -> tuple[str, ...]:
    """A prompt in pieces that the pipeline's CLIP encoders read whole; see `encode_prompt`."""
    tokenizer = _tokenizer(pipe)
    room = tokenizer.model_max_length - 2
    if cut == "sentence":
        starts = [one.start for one in split_sentences(prompt)]
    else:
        starts = [match.end() for match in re.finditer(CUTS[cut], prompt)]
    words = [match.end() for match in re.finditer(CUTS["token"], prompt)]
    spans = _spans(tokenizer, prompt)
    pieces, at = [], 0
    while at < len(spans):
        begin = spans[at][0]
        # A piece that begins within a word may have other tokens than the whole had there.
        if len(_spans(tokenizer, prompt[begin:])) <= room:
            pieces.append(prompt[begin:])
            break
        most = spans[min(at + room, len(spans) - 1)][0]
        # The last place of the kind that was asked for, else the last word, else within a word.
        ends = ([end for end in kind if begin < end <= most] for kind in (starts, words))
        fitting = next((few[-1] for few in ends if few), most)
        while len(_spans(tokenizer, prompt[begin:fitting])) > room:
            fitting -= 1
        pieces.append(prompt[begin:fitting])
        at = next((i for i, span in enumerate(spans) if span[0] >= fitting), len(spans))
    return tuple(piece.strip() for piece in pieces)


def _check_words(prompt: str) -> None:
    if not isinstance(prompt, str) or not prompt.strip():
        raise LabError(f"Expected a prompt in words, got {prompt!r}.")


def _tokenizer(pipe: Any) -> Any:
    return getattr(pipe, ENCODERS[next(iter(clip_encoders(pipe)))])


def _spans(tokenizer: Any, prompt: str) -> list[tuple[int, int]]:
    """The characters of each token."""
    return tokenizer(
        prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    ).offset_mapping
