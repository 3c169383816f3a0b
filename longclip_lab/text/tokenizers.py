"""The lab's tokenizers by name."""

from __future__ import annotations

import importlib
from functools import cache

from longclip_lab.errors import LabError, suggest
from longclip_lab.text.base import Tokenizer

TOKENIZERS = {
    "clip": ("bpe", "ClipTokenizer"),
    "bert": ("wordpiece", "BertTokenizer"),
    "lotlip": ("lotlip", "LotlipTokenizer"),
    "world": ("words", "WorldTokenizer"),
}
"""Names, and the module and class behind each; a vocabulary is read when it is first asked for."""


@cache
def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name; the same object every time.

    "clip" is OpenAI's BPE as open_clip runs it, "bert" is bert-base-uncased's WordPiece, "lotlip"
    the same with [SEP] between sub-captions, "world" has one token for every word of the drawn
    world. Raises LabError for another name.

    >>> get_tokenizer("clip").tokenize("Two boats.").tokens
    ['two</w>', 'boats</w>', '.</w>']
    """
    if name not in TOKENIZERS:
        raise LabError(f"Unknown tokenizer '{name}'. {suggest(str(name), TOKENIZERS)}")
    module, cls = TOKENIZERS[name]
    return getattr(importlib.import_module(f"longclip_lab.text.{module}"), cls)()
