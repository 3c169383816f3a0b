"""An image tower of timm and a BERT, each with a linear layer into the shared space.

The unimodal heads of BLIP, X-VLM and X2-VLM all have this form. Their text encoders are BERTs that
can also look at a picture: in BLIP every layer has a second attention for that, which the text
mode skips; in X-VLM and X2-VLM the last layers have one, and the text mode ends before them.

Followed: salesforce/BLIP, models/med.py and models/blip_retrieval.py; zengyan-97/X-VLM,
models/xbert.py and models/xvlm.py; zengyan-97/X2-VLM, models/xbert.py and models/xvlm.py.

B batch, T tokens, D embedding, H W picture.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import transformers
from torch import nn

from longclip_lab.models.adapters.adapter import EmbeddingModel
from longclip_lab.models.adapters.layers import layer_numbers
from longclip_lab.models.filling import fill

HEAD_WIDTH = 64
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
        return self.text_proj(states_BTW[:, 0])


def text_layers(names: Mapping[str, torch.Tensor]) -> int:
    """How many layers of a text encoder the text mode runs: see this module's first lines."""
    fusing = layer_numbers(names, _LAYERS + "crossattention")
    everything = layer_numbers(names, _LAYERS)
    return min(fusing) if fusing and min(fusing) else len(everything)


def bert(
    weights: Mapping[str, torch.Tensor],
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
    fusing = {
        name
        for name in weights
        if "crossattention" in name or layer_numbers([name], _LAYERS) - set(range(layers))
    }
    tower = transformers.BertModel(config, add_pooling_layer=False)
    fill(tower, {k: v for k, v in weights.items() if k not in fusing})
    return tower, {"text_encoder, fusion with pictures": len(fusing)} if fusing else {}


def linear(weights: Mapping[str, torch.Tensor], name: str) -> nn.Linear:
    """The linear layer `name` with its weights and bias."""
    out_features, in_features = weights[f"{name}.weight"].shape
    layer = nn.Linear(in_features, out_features)
    fill(layer, {part: weights[f"{name}.{part}"] for part in ("weight", "bias")})
    return layer
