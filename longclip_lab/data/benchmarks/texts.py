"""What is done to a published text before a tokenizer gets it."""

from __future__ import annotations

from collections.abc import Callable

from longclip_lab.text import split_subcaptions

AS_WRITTEN, FIRST_LINE = "as written", "first line"
ON_ONE_LINE, SUBCAPTIONS = "line breaks as blanks", "sub-captions joined by '. '"

PROCESSING: dict[str, Callable[[str], str]] = {
    AS_WRITTEN: str.strip,
    FIRST_LINE: lambda text: text.split("\n")[0].strip(),
    ON_ONE_LINE: lambda text: text.replace("\n", " ").strip(),
    SUBCAPTIONS: lambda text: ". ".join(split_subcaptions(text)),
}
"""By name, as protocols call it. Ends are stripped always, as every tokenizer would.

first line: Long-CLIP's and LoTLIP's evaluation of Urban-1k reads one line of a caption file.
line breaks as blanks: Long-CLIP's code on ShareGPT4V.
sub-captions joined: LoTLIP's evaluation code, for every model it scores: the text is split at
    line breaks, "</s>" and full stops and joined by ". ", so the last full stop is gone and "3.5"
    becomes "3. 5".
"""
