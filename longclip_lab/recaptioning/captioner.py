"""One model that describes pictures: loaded once, asked by the batch.

B pictures of a batch, P tokens of the prompt with the picture's, T generated tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import nn
from transformers import GenerationConfig

from longclip_lab.errors import COUNT, SEED, LabError, Numbers
from longclip_lab.images import as_rgb
from longclip_lab.recaptioning.families import FAMILIES, PROMPT
from longclip_lab.recaptioning.sampling import KeyedSampling


class Described(NamedTuple):
    """A caption, how many tokens were generated for it (the end not counted), and whether the model
    ended it itself."""

    caption: str
    tokens: int
    finished: bool


@dataclass(frozen=True)
class Asking:
    """How captions are asked for. The model's own defaults (beams, penalties) are not used.

    Raises LabError for numbers that make no sense.
    """

    prompt: str = PROMPT
    """What the model is asked."""
    max_new_tokens: int = 256
    """Where a caption is cut if it has not ended."""
    temperature: float = 0.0
    """0 takes the likeliest token every time; above, tokens are sampled."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    seed: int = 0
    """For sampling; a caption depends on it and on its picture's key."""

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise LabError("The prompt is empty; say what the model should do.")
        COUNT.check("max_new_tokens", self.max_new_tokens)
        if self.temperature != 0:  # below, probabilities leave the range of float32
            Numbers(at_least=0.001, at_most=1000).check(
                "A temperature other than 0", self.temperature
            )
        Numbers(above=0, at_most=1).check("top_p", self.top_p)
        SEED.check("seed", self.seed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Captioner:
    """A model of transformers with its processor; `load_captioner` makes one.

    `name` is what its captions are filed under, `facts` say which model it is (JSON-able), `ends`
    are the tokens that end a caption.
    """

    name: str
    family: str
    model: nn.Module
    processor: Any
    ends: tuple[int, ...]
    facts: dict[str, Any]

    @torch.inference_mode()
    def describe(
        self, images: Sequence[Image.Image], keys: Sequence[str], asking: Asking
    ) -> list[Described]:
        """A caption for each picture, read as `longclip_lab.images.as_rgb` does.

        Prompts of one length, as LLaVA 1.5 and InstructBLIP have them, need no padding; others are
        padded on the left and masked. A batch changes a caption by float noise only: where two
        tokens are equally likely to the last digit, the choice may be another.
        """
        images = [as_rgb(image) for image in images]
        inputs = self._inputs(images, asking.prompt).to(self.model.device, self.model.dtype)
        sampling = None
        if asking.temperature > 0:
            sampling = [KeyedSampling(keys, asking.seed, asking.temperature, asking.top_p)]
        ids_BT = self.model.generate(
            **inputs, max_new_tokens=asking.max_new_tokens, logits_processor=sampling
        )
        is_decoder_only = not getattr(_speaker(self.model).config, "is_encoder_decoder", False)
        start = inputs["input_ids"].shape[1] if is_decoder_only else 1
        return [self._described(ids_T) for ids_T in ids_BT[:, start:].tolist()]

    def _inputs(self, images: Sequence[Image.Image], prompt: str) -> Any:
        if self.family == "chat":
            turns = [
                [{"role": "user", "content": [_part(image), {"type": "text", "text": prompt}]}]
                for image in images
            ]
            return self.processor.apply_chat_template(
                turns,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        image_token = str(getattr(self.processor, "image_token", "<image>"))
        question = FAMILIES[self.family].question(prompt, image_token)
        return self.processor(
            images=list(images), text=[question] * len(images), return_tensors="pt", padding=True
        )

    def _described(self, ids_T: list[int]) -> Described:
        end = next((i for i, token in enumerate(ids_T) if token in self.ends), None)
        said = ids_T[:end]
        text = tokenizer_of(self.processor).decode(said, skip_special_tokens=True).strip()
        return Described(text, len(said), end is not None)


def prepare(model: nn.Module, processor: Any) -> tuple[int, ...]:
    """Set a model to plain greedy decoding and left padding; returns the tokens that end a text.

    Raises LabError for a model that names no such token.
    """
    tokenizer = tokenizer_of(processor)
    tokenizer.padding_side = "left"
    speakers = {id(module): module for module in (model, _speaker(model))}.values()
    before = [module.generation_config for module in speakers]
    named = [ends for config in before for ends in _listed(config.eos_token_id)]
    ends = tuple(dict.fromkeys([*named, *_listed(tokenizer.eos_token_id)]))
    if not ends:
        raise LabError(
            "The model names no token that ends a text (eos_token_id), so no caption would end."
        )
    pad = tokenizer.pad_token_id
    for module, config in zip(speakers, before, strict=True):
        module.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
            eos_token_id=list(ends),
            pad_token_id=ends[0] if pad is None else pad,
        )
    if pad is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ends[0])
    return ends


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer in a processor."""
    return getattr(processor, "tokenizer", processor)


def _speaker(model: nn.Module) -> nn.Module:
    """The module whose `generate` runs: BLIP's relatives hand over to their language model."""
    inner = getattr(model, "language_model", None)
    return inner if hasattr(inner, "generation_config") else model


def _listed(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _part(image: Image.Image) -> dict[str, Any]:
    return {"type": "image", "image": image}
