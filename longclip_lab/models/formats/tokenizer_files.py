"""CLIP's tokenizer as files that `transformers.CLIPTokenizer` reads, in old versions and new."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.files import atomic_write, to_json
from longclip_lab.models.formats.folders import read_json
from longclip_lab.models.tokenizers import HubTokenizer
from longclip_lab.text import get_tokenizer
from longclip_lab.text.bpe import ClipTokenizer

_START, _END = "<|startoftext|>", "<|endoftext|>"


def check_tokenizer(tokenizer: Any, vocab_size: int) -> None:
    """Raise LabError for a tokenizer that is not CLIP's, and for a tower that lacks its ids."""
    if not isinstance(tokenizer, ClipTokenizer) or type(tokenizer) is not ClipTokenizer:
        raise LabError(f"its tokenizer '{tokenizer.name}' is not CLIP's")
    if tokenizer.vocab_size > vocab_size:
        raise LabError(
            f"its tower knows {vocab_size} tokens, but the tokenizer makes {tokenizer.vocab_size}"
        )


def warn_of_vocabulary(folder: Path) -> None:
    """A LabWarning if the tokenizer in `folder` numbers other pieces than CLIP's; none is fine."""
    if (folder / "vocab.json").is_file():
        vocabulary = read_json(folder / "vocab.json")
    elif (folder / "tokenizer.json").is_file():
        vocabulary = read_json(folder / "tokenizer.json").get("model", {}).get("vocab", {})
    else:
        return
    pieces = get_tokenizer("clip").entries[:-2]  # start and end have other names in transformers
    if any(vocabulary.get(piece) != number for number, piece in enumerate(pieces)):
        warnings.warn(
            f"The tokenizer in {folder} is not CLIP's, which is the one that is used here: texts "
            "will be misread. Give token ids of its own to encode_text.",
            LabWarning,
            stacklevel=4,
        )


def write_tokenizer(folder: Path, tokenizer: ClipTokenizer, context_length: int) -> None:
    """vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json.

    Texts longer than `context_length` are cut by `truncation=True`. The file of merges is
    open_clip's; start and end have the names that transformers gives them. Padding is the end
    token, as in OpenAI's own folders.
    """
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context_length,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        **special,
    }
    entries = [*tokenizer.entries[:-2], _START, _END]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    atomic_write(folder / "vocab.json", to_json(vocabulary, ensure_ascii=False))
    atomic_write(folder / "merges.txt", "\n".join(["#version: 0.2", *tokenizer.merges, ""]))
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)


def write_any_tokenizer(folder: Path, tokenizer: Any, context_length: int) -> None:
    """As `write_tokenizer`; a tokenizer of the hub writes its own files."""
    if isinstance(tokenizer, HubTokenizer):
        tokenizer.save(folder)
    else:
        write_tokenizer(folder, tokenizer, context_length)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """As transformers writes its configs: two blanks, sorted."""
    atomic_write(path, to_json(content, indent=2, sort_keys=True) + "\n")
