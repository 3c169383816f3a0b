"""Captioners: image-to-text models, loaded without their code, asked by the batch.

B rows of a batch, V the vocabulary, P tokens so far.

LoTLIP's three (its section 4.1) by name, and any other model through its own chat template. What
the paper states of its recaptioning is the three models and the prompt; which of their weights
and which settings of generation it used, it does not say.

B pictures of a batch, P tokens of the prompt with the picture's, T generated tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LogitsProcessor,
    ProcessorMixin,
    TopPLogitsWarper,
)

from longclip_lab.errors import COUNT, SEED, LabError, Numbers, suggest
from longclip_lab.images import as_rgb
from longclip_lab.models.checkpoint import sha256

# --- Sampling that depends on a picture's key and the seed, and on nothing else ---


class KeyedSampling(LogitsProcessor):
    """Makes of greedy decoding a sampling with a generator for each row.

    The largest of logits with Gumbel noise added is a sample of their softmax (Gumbel 1954; the
    "Gumbel-max trick"). The noise of a row comes from (seed, key), so which other pictures share
    its batch, or its process, does not matter; transformers' own sampling draws a batch at once.
    """

    def __init__(self, keys: Sequence[str], seed: int, temperature: float, top_p: float):
        self.generators = [_generator(seed, key) for key in keys]
        self.temperature = temperature
        self.nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] of the next token after ids [B, P], with noise."""
        scores_BV = scores.float() / self.temperature
        if self.nucleus is not None:
            scores_BV = self.nucleus(input_ids, scores_BV)
        # Drawn on the CPU: a GPU's generator gives other numbers.
        noise_BV = torch.stack([
            -torch.empty(scores_BV.shape[1]).exponential_(generator=generator).log()
            for generator in self.generators
        ])  # fmt: skip
        return scores_BV + noise_BV.to(scores_BV.device)


def _generator(seed: int, key: str) -> torch.Generator:
    digest = blake2b(f"{seed}\0{key}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


# --- Which image-to-text models describe pictures, and in which words each is asked ---

PROMPT = "Describe the image in detail."
"""LoTLIP's section 4.1, following DreamLIP."""

_VICUNA = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)


@dataclass(frozen=True)
class Family:
    """A kind of captioner.

    `label` is the name under which published sets file its captions (`data.Columns`), or "" for
    the model's own; `model_types` are those of transformers' configurations that it fits;
    `template` holds "{image}" where the picture stands and "{prompt}" where the prompt does, or is
    "" where the model's own chat template is used.
    """

    label: str
    model_types: tuple[str, ...]
    template: str
    about: str

    def question(self, prompt: str, image_token: str) -> str:
        """What the model reads.

        >>> FAMILIES["llava"].question("What is it?", "<image>")
        'USER: <image>\\nWhat is it? ASSISTANT:'
        """
        return self.template.replace("{image}", image_token).replace("{prompt}", prompt)


FAMILIES = {
    "instructblip": Family(
        "InstructBLIP",
        ("instructblip",),
        "{prompt}",
        "reads the bare prompt, in its Q-Former as well; Salesforce/instructblip-vicuna-7b",
    ),
    "llava": Family(
        "LLaVA",
        ("llava",),
        "USER: {image}\n{prompt} ASSISTANT:",
        "the format of transformers' documentation for LLaVA 1.5; llava-hf/llava-1.5-7b-hf",
    ),
    "sharegpt4v": Family(
        "ShareGPT4V",
        ("llava",),
        _VICUNA + " USER: {image}\n{prompt} ASSISTANT:",
        "LLaVA 1.5's architecture, asked in the conversation that public code around "
        "ShareGPT4V-7B uses (LLaVA's llava_v1). Its own code names share4v_v0 and share4v_v1; "
        "their text was not at hand, nor which of them LoTLIP used. The published weights are in "
        "the layout of LLaVA's first code: convert them to transformers' first",
    ),
    "chat": Family("", (), "", "any other image-text-to-text model, by its own chat template"),
}


def family_of(model_type: str, wanted: str | None = None) -> str:
    """The name of the family of a model: the wanted one, or the first that fits.

    ShareGPT4V has the architecture of LLaVA, so it has to be asked for.
    Raises LabError for an unknown family, and for one of another architecture.

    >>> family_of("llava"), family_of("llava", "sharegpt4v"), family_of("qwen3_vl")
    ('llava', 'sharegpt4v', 'chat')
    """
    if wanted is None:
        return next((name for name, f in FAMILIES.items() if model_type in f.model_types), "chat")
    if wanted not in FAMILIES:
        raise LabError(f"There is no captioner {wanted!r}. {suggest(wanted, FAMILIES)}")
    fits = FAMILIES[wanted].model_types
    if fits and model_type not in fits:
        raise LabError(
            f"The captioner {wanted} is asked as a model of the type {' or '.join(fits)}; this "
            f"one is a {model_type}. Leave --captioner out, or give chat for its own template."
        )
    return wanted


# --- One model that describes pictures: loaded once, asked by the batch ---


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


# --- Captioners from a folder or the hub: safetensors only, and none of the model's own code ---

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_PARTS = {".safetensors", ".json", ".model", ".jinja", ".txt"}


def load_captioner(
    model: str | Path,
    family: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    device: str | torch.device | None = None,
) -> Captioner:
    """Load a captioner.

    Args:
        model: a folder that transformers' `save_pretrained` wrote (model and processor), or an id
            on the hub.
        family: one of `FAMILIES`; by default what fits the model's type.
        name: what captions are filed under; by default the family's label, or the model's name.
        revision: of a model on the hub.
        dtype: "float32", "float16" or "bfloat16"; by default bfloat16 on a GPU, else float32.
        device: by default the first GPU, or the CPU.

    Raises LabError for what is not there, has no safetensors, lacks weights, or needs code of its
    own.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or ("bfloat16" if device.type == "cuda" else "float32")
    if dtype not in DTYPES:
        raise LabError(f"There is no dtype {dtype!r} here. {suggest(dtype, DTYPES)}")
    config = _asked(AutoConfig, model, revision)
    family = family_of(config.model_type, family)
    processor = _asked(AutoProcessor, model, revision)
    if not isinstance(processor, ProcessorMixin):
        raise LabError(f"{model} (a {config.model_type}) brings no processor for pictures.")
    network = _network(model, revision, DTYPES[dtype])
    _complete(processor, config, family, model)
    ends = prepare(network, processor)
    own = Path(model).resolve().name if Path(model).is_dir() else str(model)
    return Captioner(
        name=name or FAMILIES[family].label or own,
        family=family,
        model=network.to(device).eval(),
        processor=processor,
        ends=ends,
        facts={
            "model": own,
            "model_type": config.model_type,
            "weights": _identity(Path(model), config),
            "dtype": dtype,
            "transformers": transformers.__version__,
        },
    )


def _asked(auto: Any, model: str | Path, revision: str | None, **options: Any) -> Any:
    """`auto.from_pretrained`, whose complaints fill a page, with a complaint of one line."""
    try:
        return auto.from_pretrained(
            str(model), revision=revision, trust_remote_code=False, **options
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LabError(
            f"{model} cannot be loaded as a captioner: {first} Expected a folder or a hub id with "
            "the model (safetensors) and its processor, of an architecture that transformers knows."
        ) from error


def _network(model: str | Path, revision: str | None, dtype: torch.dtype) -> nn.Module:
    network, told = _asked(
        AutoModelForImageTextToText,
        model,
        revision,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
    )
    # transformers would draw missing weights at random and go on.
    missing = sorted(told["missing_keys"])
    if missing:
        raise LabError(
            f"{model} lacks {len(missing)} of the model's weights, such as {missing[0]}. Weights "
            "in the layout of another code have to be converted to transformers' first."
        )
    return network


def _complete(processor: Any, config: Any, family: str, model: str | Path) -> None:
    """What old files do not say of a processor and the model's configuration does."""
    if family == "chat":
        if getattr(processor, "chat_template", None) is None:
            raise LabError(
                f"{model} (a {config.model_type}) brings no chat template, so it is not known how "
                "to ask it. Give a model that has one, or add chat_template.jinja to its folder."
            )
    elif family == "instructblip":
        if processor.num_query_tokens is None:
            processor.num_query_tokens = config.num_query_tokens
    elif processor.patch_size is None or processor.vision_feature_select_strategy is None:
        processor.patch_size = config.vision_config.patch_size
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy
        processor.num_additional_image_tokens = 1  # CLIP's class token


def _identity(folder: Path, config: Any) -> str:
    """The hub's commit, or the SHA-256 of a folder's files."""
    if not folder.is_dir():
        return f"commit:{getattr(config, '_commit_hash', None)}"
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _PARTS):
        name = path.relative_to(folder).as_posix()
        whole.update(f"{name}\0{sha256(path)}\n".encode())
    return f"sha256:{whole.hexdigest()}"
