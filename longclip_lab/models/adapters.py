"""Models that are not open_clip's: ALIGN, BLIP, PTP-BLIP, X-VLM, X2-VLM.

The unimodal heads of all but ALIGN have one form: an image tower of timm, a BERT, and a linear
layer on each. Their BERTs can also look at an image: in BLIP every layer has a second attention for
that, which the text mode skips; in X-VLM and X2-VLM the last layers have one, and the text mode
ends before them. Released files are training states, {"model": ...}, whose heads are called
`vision_proj` and `text_proj`. BLIP and PTP-BLIP share one layout and cannot be told apart.

Followed: salesforce/BLIP, models/{med,vit,blip_retrieval,blip_pretrain}.py; sail-sg/ptp,
src/blip_src/models/{vit,blip_retrieval}.py; zengyan-97/X-VLM, models/{xbert,xvlm}.py and
dataset/__init__.py; zengyan-97/X2-VLM, models/{xbert,xvlm,swin_transformer,beit2}.py and
dataset/__init__.py.

B batch, T tokens, D embedding, H W image.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
import transformers
from open_clip.transform import PreprocessCfg
from PIL import Image
from timm.models import beit, swin_transformer, vision_transformer
from torch import nn

from longclip_lab.errors import LabError
from longclip_lab.files import read_json, read_text
from longclip_lab.models.build import build_preprocess, quiet
from longclip_lab.models.checkpoint import (
    Weights,
    check_finite,
    check_floats,
    count_blocks,
    fill,
    fitting,
    leave_out,
    read_state_dict,
    renamed,
)
from longclip_lab.models.clip import Clip
from longclip_lab.models.formats.hf import read_weights
from longclip_lab.text import get_tokenizer

if TYPE_CHECKING:
    from longclip_lab.text import Tokenizer


# --- What a model that is not open_clip's needs to be encoded, evaluated and probed like one ---

BLIP_SPECIAL = 2
"""Rows that BLIP adds to BERT's word embeddings: [DEC] and [ENC]."""


class NotOpenClipError(LabError, AttributeError):
    """A part of open_clip's models was asked of a model that has none.

    Also an AttributeError, so that `hasattr` keeps answering.
    """


class EmbeddingModel(nn.Module):
    """Two towers that give one feature each for a picture and for a text.

    It has the names that the lab reads from every model; whatever else of open_clip's insides is
    asked for, as stretching, exporting and attributing do, is refused with a LabError.
    """

    kind = "model"
    """What the system is called."""
    text_pool_type = "adapter"

    def __init__(self, embed_dim: int, positions: int, vocab_size: int, pad_id: int):
        super().__init__()
        self.embed_dim, self.positions = embed_dim, positions
        self.context_length, self.vocab_size, self.pad_id = positions, vocab_size, pad_id

    def encode_image(self, pixels_B3HW: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Preprocessed pictures to features [B, D]."""
        return _scaled(self.image_features(pixels_B3HW), normalize)

    def encode_text(self, ids_BT: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Token ids to features [B, D]; padding is masked."""
        return _scaled(self.text_features(ids_BT, ids_BT != self.pad_id), normalize)

    def image_features(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        """What `encode_image` gives, not normalised."""
        raise NotImplementedError

    def text_features(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """What `encode_text` gives, not normalised; `mask_BT` is False for padding."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise NotOpenClipError(
                f"{self.kind} is not an open_clip model and has no '{name}': it can be encoded, "
                "evaluated and probed, but not stretched, exported, trained or attributed."
            ) from error


def _scaled(features_BD: torch.Tensor, normalize: bool) -> torch.Tensor:
    return nn.functional.normalize(features_BD, dim=-1) if normalize else features_BD


@dataclass
class Adapter(Clip):
    """A model of another kind, with the interface of `Clip`.

    `model` is an `EmbeddingModel`. Everything that only encodes takes it: `encode_texts`,
    `encode_images`, `evaluate`, the probes.
    """

    def encode_text(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Token ids to features [B, D], not normalised; any T up to the context length.

        Raises LabError for another shape than [B, T], no texts, and too many tokens.
        """
        if tokens_BT.ndim != 2 or tokens_BT.numel() == 0:
            raise LabError(f"Expected token ids [B, T], got a tensor of {tuple(tokens_BT.shape)}.")
        # Columns of padding only cost time: BERT masks them, so cutting them changes nothing.
        used_T = (tokens_BT != self.model.pad_id).any(dim=0).nonzero()
        length = int(used_T.max()) + 1 if len(used_T) else 1
        if length > self.context_length:
            raise LabError(
                f"The texts have {length} tokens, but '{self.name}' reads at most "
                f"{self.context_length}."
            )
        return self.model.encode_text(tokens_BT[:, :length].to(self.device))


def adapt(
    model: EmbeddingModel,
    preprocess: dict[str, Any],
    name: str,
    *,
    context_length: int | None = None,
    transform: Callable[..., torch.Tensor] | None = None,
    **facts: Any,
) -> Adapter:
    """An `Adapter` in evaluation mode, float32, with a card of `facts` about its origin.

    `preprocess` is a card as open_clip writes them; `transform` replaces what it would build.
    `context_length` limits the texts: by default the text tower reads all of its positions.

    Raises LabError for a context that the tower has no positions for, NotFiniteError for weights
    that are not finite.
    """
    # Half precision on a CPU is slow and rounds cosines at the third digit.
    check_finite(model.float().state_dict(), name)
    length = model.positions if context_length is None else context_length
    if not 2 < length <= model.positions:
        raise LabError(
            f"'{name}' has {model.positions} text positions: expected a context length of 3 to "
            f"{model.positions}, got {context_length}."
        )
    # Encoding, evaluation and probes read it from the module, as of open_clip's.
    model.context_length = length
    card = {
        "architecture": model.kind,
        "model_cfg": {"embed_dim": model.embed_dim, "text_cfg": {"context_length": length}},
        "preprocess": preprocess,
        "positions": {"method": "none", "keep": 0, "ratio": 1, "length": length},
        **facts,
    }
    card = json.loads(json.dumps(card))
    return Adapter(
        model=model.eval(),
        tokenizer=bert_tokenizer(model.vocab_size, name),
        preprocess=transform or build_preprocess(card["preprocess"]),
        name=name,
        card=card,
    )


def bert_tokenizer(vocab_size: int, name: str) -> Tokenizer:
    """The lab's tokenizer for a BERT of so many word embeddings.

    Raises LabError for another vocabulary than bert-base-uncased's and the world's.
    """
    bert, world = get_tokenizer("bert"), get_tokenizer("world")
    # BLIP's two extra tokens start its captioner and its matching head; the contrastive text mode
    # begins with [CLS], as BERT does.
    if vocab_size in (bert.vocab_size, bert.vocab_size + BLIP_SPECIAL):
        return bert
    if vocab_size == world.vocab_size:
        return world
    raise LabError(
        f"The text tower of '{name}' has {vocab_size} word embeddings; the lab has tokenizers for "
        f"{bert.vocab_size} (bert-base-uncased), the same with {BLIP_SPECIAL} more (BLIP) and "
        f"{world.vocab_size} (the drawn world)."
    )


# --- Image towers of released checkpoints, rebuilt on timm from the shapes of their weights ---

HEAD_WIDTH = 64
_EPS_6 = partial(nn.LayerNorm, eps=1e-6)
_BUFFERS = re.compile(r".*(relative_position_index|attn_mask)$")
_PATCH_OF_SWIN, _STAGE = 4, "layers.0.blocks"


def vit(weights: Weights) -> tuple[nn.Module, int]:
    """BLIP's ViT, read off at its class token after the last layer norm."""
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    size = patch * round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    tower = vision_transformer.VisionTransformer(
        img_size=size,
        patch_size=patch,
        embed_dim=width,
        depth=count_blocks(weights, r"blocks\.(\d+)\."),
        # A state dict does not say how many heads there are; every released tower has 64 columns a
        # head.
        num_heads=max(width // HEAD_WIDTH, 1),
        num_classes=0,
        global_pool="token",
        norm_layer=_EPS_6,
    )
    fill(tower, weights)
    return tower, size


def swin(weights: Weights) -> tuple[nn.Module, int]:
    """X-VLM's Swin, read off as the mean of its last patches.

    The size of the pictures is seen in the stored masks of the shifted windows; without these it
    is 32 windows' sides, as in all Swins that were released (7 for 224, 12 for 384).
    """
    # Swin's stages are numbered from 0; the first number without blocks ends the list.
    depths = []
    while count_blocks(weights, rf"layers\.{len(depths)}\.blocks\.(\d+)\."):
        depths.append(count_blocks(weights, rf"layers\.{len(depths)}\.blocks\.(\d+)\."))
    tables = [
        weights[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"]
        for stage in range(len(depths))
    ]
    # A window of w has (2 w - 1)^2 relative places.
    window = (round(len(tables[0]) ** 0.5) + 1) // 2
    mask = weights.get(f"{_STAGE}.1.attn_mask")
    side = 8 if mask is None else round(len(mask) ** 0.5)
    size = side * window * _PATCH_OF_SWIN
    tower = swin_transformer.SwinTransformer(
        img_size=size,
        patch_size=_PATCH_OF_SWIN,
        embed_dim=len(weights["patch_embed.proj.weight"]),
        depths=tuple(depths),
        num_heads=tuple(table.shape[1] for table in tables),
        window_size=window,
        num_classes=0,
    )
    # Masks and index tables follow from the sizes: timm makes its own, in its own layout.
    parameters = {name: value for name, value in weights.items() if not _BUFFERS.match(name)}
    fill(tower, swin_transformer.checkpoint_filter_fn(parameters, tower))
    return tower, size


def beit2(weights: Weights) -> tuple[nn.Module, int]:
    """X2-VLM's BEiT-2, read off as the mean of its patches, each of them normalised first.

    timm's own order is mean, then norm; with its norm in the place of the last blocks' it is
    X2-VLM's.
    """
    table = weights["blocks.0.attn.relative_position_bias_table"]
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    # (2 g - 1)^2 places of a grid of g, and three for the class token.
    size = patch * ((round((len(table) - 3) ** 0.5) + 1) // 2)
    tower = beit.Beit(
        img_size=size,
        patch_size=patch,
        embed_dim=width,
        depth=count_blocks(weights, r"blocks\.(\d+)\."),
        num_heads=table.shape[1],
        num_classes=0,
        global_pool="avg",
        # The released model normalises every patch before the mean.
        use_fc_norm=False,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        init_values=0.1,
        norm_layer=_EPS_6,
    )
    parameters = {
        re.sub("^fc_norm", "norm", name): value
        for name, value in weights.items()
        if not _BUFFERS.match(name)
    }
    fill(tower, leave_out(parameters, {"mask_token"})[0])
    return tower, size


# --- An image tower of timm and a BERT, each with a linear layer into the shared space ---

_TYPES = "embeddings.token_type_embeddings.weight"
_LAYERS = r"encoder\.layer\.(\d+)\."


class TwoTowers(EmbeddingModel):
    """Features as the released code computes them before it normalises them."""

    def __init__(
        self,
        kind: str,
        image: nn.Module,
        text: transformers.BertModel,
        vision_proj: nn.Linear,
        text_proj: nn.Linear,
    ):
        config = text.config
        positions, words = config.max_position_embeddings, config.vocab_size
        super().__init__(vision_proj.out_features, positions, words, config.pad_token_id)
        self.kind = kind
        self.image, self.text_encoder = image, text
        self.vision_proj, self.text_proj = vision_proj, text_proj

    def image_features(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        return self.vision_proj(self.image(pixels_B3HW))

    @property
    def position_table(self) -> torch.Tensor:
        """The learned positions of the BERT."""
        return self.text_encoder.embeddings.position_embeddings.weight

    def text_features(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        states_BTW = self.text_encoder(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        # [CLS] alone, without BERT's pooler: the released heads were trained on the raw state.
        return self.text_proj(states_BTW[:, 0])


def text_layers(names: Weights) -> int:
    """How many layers of a text encoder the text mode runs: see this module's first lines."""
    fusing = [int(m[1]) for name in names if (m := re.match(_LAYERS + "crossattention", name))]
    # BLIP's layers all have one, from 0 on: there the text mode runs every layer.
    return min(fusing) if fusing and min(fusing) else count_blocks(names, _LAYERS)


def bert(
    weights: Weights,
) -> tuple[transformers.BertModel, dict[str, int]]:
    """The text mode of a text encoder, and how many weights of its fusion were left out.

    `weights` are named as in transformers' BertModel, without the encoder's prefix.

    Raises KeyError or RuntimeError for weights of another architecture.
    """
    words, width = weights["embeddings.word_embeddings.weight"].shape
    if _TYPES not in weights:  # BLIP adds no type to its tokens
        weights = {**weights, _TYPES: torch.zeros(1, width)}
    layers = text_layers(weights)
    config = transformers.BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(width // HEAD_WIDTH, 1),
        intermediate_size=len(weights["encoder.layer.0.intermediate.dense.weight"]),
        max_position_embeddings=len(weights["embeddings.position_embeddings.weight"]),
        type_vocab_size=len(weights[_TYPES]),
        pad_token_id=0,
    )
    # Layers that look at a picture belong to the matching head (ITM), which no cosine uses.
    fusing = {
        name
        for name in weights
        if "crossattention" in name
        or ((layer := re.match(_LAYERS, name)) and int(layer[1]) >= layers)
    }
    # Without the pooler, which the files do not have and the text mode does not read.
    tower = transformers.BertModel(config, add_pooling_layer=False)
    fill(tower, {k: v for k, v in weights.items() if k not in fusing})
    return tower, {"text_encoder, fusion with pictures": len(fusing)} if fusing else {}


def linear(weights: Weights, name: str) -> nn.Linear:
    """The linear layer `name` with its weights and bias."""
    out_features, in_features = weights[f"{name}.weight"].shape
    layer = nn.Linear(in_features, out_features)
    fill(layer, {part: weights[f"{name}.{part}"] for part in ("weight", "bias")})
    return layer


# --- ALIGN and BLIP from folders of the transformers library ---

ALIGN_TOKENS, BLIP_TOKENS = 64, 35
"""To how many tokens the released evaluations cut a text: ALIGN's processor, BLIP's retrieval."""


class Align(EmbeddingModel):
    """transformers' `AlignModel`: EfficientNet and BERT."""

    kind = "ALIGN"

    def __init__(self, model: transformers.AlignModel):
        text = model.config.text_config
        positions, words = text.max_position_embeddings, text.vocab_size
        super().__init__(model.config.projection_dim, positions, words, text.pad_token_id)
        self.align = model

    def image_features(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        return self.align.get_image_features(pixel_values=pixels_B3HW).pooler_output

    @property
    def position_table(self) -> torch.Tensor:
        """The learned positions of the BERT."""
        return self.align.text_model.embeddings.position_embeddings.weight

    def text_features(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        features = self.align.get_text_features(input_ids=ids_BT, attention_mask=mask_BT.long())
        return features.pooler_output


class Blip(EmbeddingModel):
    """transformers' `BlipForImageTextRetrieval`, its head for contrast (ITC)."""

    kind = "BLIP"

    def __init__(self, model: transformers.BlipForImageTextRetrieval):
        text = model.config.text_config
        positions, words = text.max_position_embeddings, text.vocab_size
        super().__init__(model.vision_proj.out_features, positions, words, text.pad_token_id)
        self.blip = model

    def image_features(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        states = self.blip.vision_model(pixel_values=pixels_B3HW).last_hidden_state
        return self.blip.vision_proj(states[:, 0])

    @property
    def position_table(self) -> torch.Tensor:
        """The learned positions of the BERT."""
        return self.blip.text_encoder.embeddings.position_embeddings.weight

    def text_features(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        encode = self.blip.text_encoder
        states = encode(input_ids=ids_BT, attention_mask=mask_BT.long()).last_hidden_state
        return self.blip.text_proj(states[:, 0])


def load_align(folder: str | os.PathLike[str], context_length: int | None = None) -> Adapter:
    """A folder of transformers' ALIGN (config, weights, preprocessor_config.json).

    Texts may be as long as the BERT has positions (512); the released processor cuts at
    `card["released_tokens"]`.

    Raises LabError for a missing or damaged file, missing weights and another vocabulary.
    """
    model = _from_pretrained(transformers.AlignModel, Path(folder))
    return _adapted(Align(model), Path(folder), context_length, ALIGN_TOKENS)


def load_blip_folder(folder: str | os.PathLike[str], context_length: int | None = None) -> Adapter:
    """A folder of transformers' BLIP for retrieval, as `load_align` loads one of ALIGN.

    Raises LabError as `load_align` does, also for a BLIP without the two heads (for captions).
    """
    model = _from_pretrained(transformers.BlipForImageTextRetrieval, Path(folder))
    return _adapted(Blip(model), Path(folder), context_length, BLIP_TOKENS)


FOLDERS: dict[str, Callable[[str | os.PathLike[str]], Adapter]] = {
    "align": load_align,
    "blip": load_blip_folder,
}
"""By the `model_type` of a folder's config.json."""


def model_type(folder: Path) -> str | None:
    """What the config.json of a folder calls its model; None without one that can be read."""
    try:
        config = read_json(folder / "config.json")
    except LabError:
        return None
    kind = config.get("model_type") if isinstance(config, dict) else None
    return kind if isinstance(kind, str) else None


def _from_pretrained(cls: type[transformers.PreTrainedModel], folder: Path) -> Any:
    with quiet(), fitting(folder, f"could not be read as transformers' {cls.__name__}"):
        model, report = cls.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        own = model.state_dict()  # transformers takes whatever numbers it finds
        stored = read_weights(folder).items()
        check_floats({n: t for n, t in stored if n in own and own[n].is_floating_point()})
    missing = sorted(report["missing_keys"])
    if missing:
        raise LabError(
            f"{folder} has no weights for {len(missing)} parts of {cls.__name__}, such as "
            f"{missing[0]}: it was saved from another model."
        )
    return model


def _adapted(
    model: EmbeddingModel, folder: Path, context_length: int | None, released_tokens: int
) -> Adapter:
    _check_vocabulary(folder)
    transform, card = _preprocess(folder)
    return adapt(
        model,
        card,
        folder.name,
        context_length=context_length,
        transform=transform,
        provenance=f"transformers folder {folder.name} ({model.kind})",
        trained_on="see its page",
        released_tokens=released_tokens,
    )


def _preprocess(folder: Path) -> tuple[Callable[[Image.Image], torch.Tensor], dict[str, Any]]:
    """The folder's own image processor, and a card of what it does.

    Mean and deviation are read off from a black and a white picture, as processors have several
    ways to say them (ALIGN's rescales to -1 .. 1 and normalises nothing). "crops_own_size" says
    that even pictures of the model's size are resized and cropped.
    """
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # its checks raise whatever they like
        raise LabError(
            f"{folder} has no preprocessor_config.json that can be read: save the model's "
            f"processor there too. ({shorten(str(error), 200)})"
        ) from error

    def transform(image: Image.Image) -> torch.Tensor:
        return processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]

    black_3HW, white_3HW = (transform(Image.new("RGB", (64, 64), c)) for c in ("black", "white"))
    # White is 1 and black 0: (1 - m) / s - (0 - m) / s = 1 / s.
    std_3 = 1 / (white_3HW - black_3HW).mean(dim=(1, 2))
    mean_3 = -black_3HW.mean(dim=(1, 2)) * std_3
    size = list(black_3HW.shape[1:])
    # A ramp of the model's own size shows whether even that is resized or cropped.
    ramp_HW = torch.linspace(0, 255, size[1]).round().to(torch.uint8).expand(size)
    seen_3HW = transform(Image.fromarray(ramp_HW.numpy()))
    as_it_is_3HW = (ramp_HW / 255 - mean_3.view(3, 1, 1)) / std_3.view(3, 1, 1)
    return transform, {
        "crops_own_size": not torch.allclose(seen_3HW, as_it_is_3HW, atol=1e-3),
        "size": size[0] if size[0] == size[1] else size,
        "mean": mean_3.tolist(),
        "std": std_3.tolist(),
        "resize_mode": "squash",
    }


def _check_vocabulary(folder: Path) -> None:
    """The lab reads with its own bert-base-uncased: a folder that has another one is refused."""
    source = files("longclip_lab.text") / "vocabularies" / "bert-base-uncased.txt"
    ours = source.read_text(encoding="utf-8").splitlines()
    theirs = _words(folder)
    if theirs is not None and theirs[: len(ours)] != ours:
        raise LabError(
            f"The tokenizer in {folder} has not the words of bert-base-uncased, which the lab "
            "would read its texts with."
        )


def _words(folder: Path) -> list[str] | None:
    """The vocabulary of the folder's tokenizer in order; None if there is no tokenizer in it."""
    if (folder / "vocab.txt").is_file():
        return read_text(folder / "vocab.txt").split("\n")
    if not (folder / "tokenizer.json").is_file():
        return None
    try:
        vocabulary = read_json(folder / "tokenizer.json")["model"]["vocab"]
        return sorted(vocabulary, key=vocabulary.__getitem__)
    except (KeyError, TypeError, AttributeError) as error:
        raise LabError(f"{folder / 'tokenizer.json'} is no tokenizer that can be read.") from error


# --- Checkpoint files of BLIP, PTP-BLIP, X-VLM and X2-VLM in the form of their releases ---

_MOMENTUM = ("visual_encoder_m", "text_encoder_m", "vision_proj_m", "text_proj_m")
_QUEUES = ("image_queue", "text_queue", "idx_queue", "ptr_queue", "queue_ptr")
_TRAINING = (
    *_MOMENTUM,
    *_QUEUES,
    *("temp", "itm_head", "bbox_head", "mlm_head", "text_decoder", "cross_encoder"),
    *("text_encoder.cls", "text_encoder.pooler", "text_encoder.embeddings.position_ids"),
    "absolute_frame_pos_embed",
)
"""What a feature of one picture or one text does not need: matching, boxes, captions, momentum."""


@dataclass(frozen=True)
class Release:
    """One layout: its names for the image tower, and who rebuilds that."""

    kind: str
    image: str
    """The image tower's prefix."""
    sign: str
    """A weight of the image tower that only this layout has."""
    tower: Callable[[Weights], tuple[nn.Module, int]]
    tokens: int
    """To how many tokens the released evaluation of retrieval cuts a text."""


RELEASES = {
    "blip": Release("BLIP", "visual_encoder", "pos_embed", vit, 35),
    "xvlm": Release(
        "X-VLM", "vision_encoder", "layers.0.blocks.0.attn.qkv.weight", swin, 40
    ),
    "x2vlm": Release(
        "X2-VLM", "vision_encoder", "blocks.0.attn.q_bias", beit2, 40
    ),
}  # fmt: skip


def which_release(state_dict: Weights) -> str | None:
    """The key of `RELEASES` whose layout `state_dict` has; None for any other."""
    if "vision_proj.weight" not in state_dict or "text_proj.weight" not in state_dict:
        return None
    if not any(name.startswith("text_encoder.") for name in state_dict):
        return None
    for name, release in RELEASES.items():
        if f"{release.image}.{release.sign}" in state_dict:
            return name
    return None


def load_release(
    path: str | os.PathLike[str],
    weights: Weights | None = None,
    context_length: int | None = None,
) -> Adapter:
    """A checkpoint file of BLIP, PTP-BLIP, X-VLM or X2-VLM as an `Adapter`.

    Only what one picture's and one text's feature need is kept; `card["left_out"]` counts the
    rest by name. Texts may be as long as the BERT has positions (512); `card["released_tokens"]`
    says where the released evaluation cuts, `context_length` cuts there or elsewhere.

    `weights` spares reading the file again. Raises LabError as `read_state_dict` does, for other
    layouts and weights that do not fit.
    """
    path = Path(path)
    weights = read_state_dict(path) if weights is None else weights
    name = which_release(weights)
    if name is None:
        raise LabError(
            f"{path} has not the layout of BLIP, X-VLM (with a Swin) or X2-VLM (with a BEiT-2): "
            "expected vision_proj, text_proj, text_encoder and one of these image towers. "
            "longclip-lab inspect shows what it has."
        )
    release = RELEASES[name]
    with fitting(path, f"looks like {release.kind}, but does not fit it"):
        model, size, left_out = rebuild(release, weights)
    return adapt(
        model,
        {**asdict(PreprocessCfg(size=size)), "resize_mode": "squash"},
        path.name.split(".")[0],
        context_length=context_length,
        provenance=f"{release.kind} checkpoint file {path.name}",
        trained_on="not stated in the file",
        released_tokens=release.tokens,
        left_out=left_out,
    )


def load_blip(path: str | os.PathLike[str], context_length: int | None = None) -> Adapter:
    """A BLIP or PTP-BLIP file in the form of their releases, or a folder of transformers' BLIP.

    Raises LabError as `load_release` and `load_blip_folder` do.
    """

    if Path(path).is_dir():
        return load_blip_folder(path, context_length)
    return _load_only("blip", path, context_length)


def load_xvlm(path: str | os.PathLike[str], context_length: int | None = None) -> Adapter:
    """An X-VLM file in the form of its release. Raises LabError as `load_release` does."""
    return _load_only("xvlm", path, context_length)


def load_x2vlm(path: str | os.PathLike[str], context_length: int | None = None) -> Adapter:
    """An X2-VLM file in the form of its release. Raises LabError as `load_release` does."""
    return _load_only("x2vlm", path, context_length)


def _load_only(name: str, path: str | os.PathLike[str], context_length: int | None) -> Adapter:
    weights = read_state_dict(path)
    found = which_release(weights)
    if found is not None and found != name:
        raise LabError(
            f"{path} is a checkpoint of {RELEASES[found].kind}, not of {RELEASES[name].kind}."
        )
    return load_release(path, weights, context_length)


def rebuild(release: Release, weights: Weights) -> tuple[TwoTowers, int, dict[str, int]]:
    """The two towers, the size of the pictures and how many tensors were left out, by name.

    On the meta device it takes no memory and no time, and says as well what does not fit.

    Raises KeyError or RuntimeError for a weight that is missing, unexpected or of another shape,
    LabError for one that is no floating point numbers.
    """
    # Only the unimodal heads: fusion, momentum copies and queues are counted and left out.
    plain = renamed(weights, _without_bert)
    needed, left_out = leave_out(plain, _TRAINING)
    towers: dict[str, dict[str, torch.Tensor]] = {release.image: {}, "text_encoder": {}}
    for name, tensor in needed.items():
        part, _, rest = name.partition(".")
        if part in towers:
            towers[part][rest] = tensor
        elif part not in ("vision_proj", "text_proj"):
            raise RuntimeError(f"unexpected weight {name}")
    image, size = release.tower(towers[release.image])
    text, fusion = bert(towers["text_encoder"])
    heads = linear(needed, "vision_proj"), linear(needed, "text_proj")
    return TwoTowers(release.kind, image, text, *heads), size, left_out | fusion


def _without_bert(name: str) -> str:
    """Pretraining states have `bert.` after `text_encoder.`, fine-tuned ones have not."""
    return name.replace("text_encoder.bert.", "text_encoder.", 1)
