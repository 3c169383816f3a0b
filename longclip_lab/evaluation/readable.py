"""Real captions for the tiny models, which know the drawn world's words only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from longclip_lab.data.known_words import KnownWords
from longclip_lab.evaluation.protocols import RetrievalTask, Task


def readable_task(task: Task, tokenizer: Any) -> Task:
    """Leave out the words of a task's texts that a word-level tokenizer does not have.

    As `data.keep_known_words` does for pairs: the whole path runs, scores mean nothing, and
    `source["words"]` counts what is missing. A task of the drawn world, or for any other tokenizer,
    comes back as it is.
    """
    if not hasattr(tokenizer, "words"):
        return task
    filtered = KnownWords(tokenizer.words)
    if isinstance(task, RetrievalTask):
        changed = {"texts": [filtered(text) for text in task.texts]}
    else:
        changed = {
            "class_names": tuple(filtered(name) for name in task.class_names),
            "templates": tuple(_template(template, filtered) for template in task.templates),
        }
    if not filtered.counts["left_out"]:
        return task
    return replace(task, **changed, source={**task.source, "words": filtered.counts.copy()})


def _template(template: str, filtered: KnownWords) -> str:
    parts = (filtered(part) if part.strip() else "" for part in template.split("{}"))
    return " {} ".join(parts).strip()
