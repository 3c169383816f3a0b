"""Text towers of transformers, built from a config alone: nothing is fetched, nothing on disk.

open_clip takes such a tower only by a name on the hub or a folder. A model that is saved, copied
or given corner tokens must be built again without either, so our `text_cfg` may carry the
tower's config itself, under "hf_config".
"""

from __future__ import annotations

from typing import Any

import open_clip
import transformers
from open_clip.hf_configs import arch_dict
from open_clip.hf_model import HFTextEncoder
from torch import nn

from longclip_lab.errors import LabError

# BERT-like kinds that open_clip does not list; it looks up the name of their width.
for _kind in ("camembert", "electra", "distilbert"):
    arch_dict.setdefault(_kind, {**arch_dict["roberta"], "pooler": "cls_pooler"})

_STAND_IN = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}


def build_with_bert(model_cfg: dict[str, Any], hf_config: dict[str, Any]) -> nn.Module:
    """A `CustomTextCLIP` whose text tower is `HFTextEncoder` with random weights of `hf_config`.

    Raises LabError for a config that transformers or open_clip cannot build.
    """
    text_cfg = model_cfg["text_cfg"]
    model = open_clip.CustomTextCLIP(**{**model_cfg, "text_cfg": _STAND_IN})
    try:
        encoder = HFTextEncoder(
            "",
            output_dim=model_cfg["embed_dim"],
            config=transformers.AutoConfig.for_model(**hf_config),
            pooler_type=text_cfg.get("hf_pooler_type"),
            proj_type=text_cfg.get("hf_proj_type"),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise LabError(f"This is no config of a text tower: {error} ({hf_config}).") from error
    if text_cfg.get("hf_pooler_type") != "cls_pooler" and hasattr(encoder.transformer, "pooler"):
        encoder.transformer.pooler = None  # as open_clip leaves it out where nothing reads it
    model.text = encoder
    model.context_length, model.vocab_size = encoder.context_length, encoder.vocab_size
    return model


def config_dict(config: transformers.PretrainedConfig) -> dict[str, Any]:
    """The JSON-able facts from which the same tower can be built."""
    facts = config.to_diff_dict()
    facts["model_type"] = config.model_type
    return {k: v for k, v in facts.items() if k not in ("transformers_version", "_name_or_path")}
