"""Which tokenizer a text tower was trained with: one of the lab's own, or one from the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from longclip_lab.errors import LabError
from longclip_lab.text import TokenBatch, get_tokenizer

if TYPE_CHECKING:
    from longclip_lab.text import Tokenizer

_OF_THE_LAB = {"bert-base-uncased": "bert"}
"""Tokenizers on the hub that the lab carries itself, and its names for them."""


class HubTokenizer:
    """A tokenizer of the transformers library, as open_clip sets it up, with the lab's interface.

    It makes token ids only, no character spans. Raises LabError if it cannot be fetched.
    """

    def __init__(self, text_cfg: dict[str, Any]):
        from open_clip.tokenizer import HFTokenizer

        self.text_cfg = text_cfg
        self.name = text_cfg["hf_tokenizer_name"]
        try:
            self._tokenize = HFTokenizer(
                self.name,
                tokenizer_mode=text_cfg.get("tokenizer_mode"),
                **text_cfg.get("tokenizer_kwargs", {}),
            )
        except (OSError, ValueError) as error:
            raise LabError(f"The tokenizer '{self.name}' could not be fetched: {error}") from error
        inner = self._tokenize.tokenizer
        self.vocab_size = len(inner)
        self.start_id = inner.cls_token_id if inner.bos_token_id is None else inner.bos_token_id
        self.end_id = inner.sep_token_id if inner.eos_token_id is None else inner.eos_token_id
        self.pad_id = inner.pad_token_id

    def encode_batch(
        self, texts: Sequence[str], context_length: int, policy: str = "head"
    ) -> TokenBatch:
        """Token ids and lengths as the lab's own tokenizers give them; "head" is the only policy.

        Raises LabError for another policy.
        """
        if policy != "head":
            raise LabError(f"The tokenizer '{self.name}' cuts texts in one way, 'head', only.")
        ids_BT = self(texts, context_length)
        # Two more for special tokens that open_clip adds by itself (its mode "clips").
        longest = 2 + max(len(ids) for ids in self._tokenize.tokenizer(list(texts)).input_ids)
        uncut_BT = self(texts, max(longest, context_length))
        full_lengths_B = (uncut_BT != self.pad_id).sum(dim=1)
        return TokenBatch(
            ids=ids_BT.numpy(),
            lengths=(ids_BT != self.pad_id).sum(dim=1).numpy(),
            full_lengths=full_lengths_B.numpy(),
            truncated=(full_lengths_B > context_length).numpy(),
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write its files as transformers writes them."""
        self._tokenize.tokenizer.save_pretrained(folder)

    def __call__(self, texts: str | Sequence[str], context_length: int = 77) -> torch.Tensor:
        """Token ids [B, context_length], as open_clip's tokenizers return them."""
        return self._tokenize(texts if isinstance(texts, str) else list(texts), context_length)


def tokenizer_for(model_name: str, model_cfg: dict[str, Any]) -> Tokenizer | HubTokenizer:
    """The tokenizer of an open_clip config: OpenAI's BPE unless the config names another.

    Raises LabError for a tokenizer that cannot be fetched and for one that the lab cannot build.
    """
    text_cfg = model_cfg["text_cfg"]
    name = text_cfg.get("hf_tokenizer_name")
    plain = not text_cfg.get("tokenizer_kwargs") and not text_cfg.get("tokenizer_mode")
    if name and plain and name in _OF_THE_LAB:
        return get_tokenizer(_OF_THE_LAB[name])
    if name:
        return HubTokenizer(text_cfg)
    if not plain:
        raise LabError(
            f"'{model_name}' cuts its texts in a way of its own ({text_cfg['tokenizer_kwargs']}), "
            "which the lab does not have."
        )
    return get_tokenizer("clip")


def tokenizer_record(tokenizer: Tokenizer | HubTokenizer) -> dict[str, Any]:
    """What a saved model says about its tokenizer; JSON-able."""
    if isinstance(tokenizer, HubTokenizer):
        return {"name": tokenizer.name, "hub": tokenizer.text_cfg}
    return {"name": tokenizer.name}


def tokenizer_from_record(record: dict[str, Any]) -> Tokenizer | HubTokenizer:
    """The tokenizer that `tokenizer_record` described."""
    return HubTokenizer(record["hub"]) if "hub" in record else get_tokenizer(record["name"])
