"""What a search finds: pictures with scores, how much of the query was read, whose doing it was.

K pictures found, n sentences of the query that are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab.files import readable, to_json
from longclip_lab.plotting import Gallery


@dataclass(frozen=True)
class QueryRead:
    """How much of a query the model reads: `read` of its `tokens`, start and end not counted.

    `unread` is the end of the query that the model does not read (it stands behind its context, or
    behind an end token), as text; None where
    the tokenizer does not tell characters.
    """

    tokens: int
    read: int
    context_length: int
    unread: str | None = ""

    @property
    def whole(self) -> bool:
        return self.read == self.tokens


@dataclass(frozen=True)
class Owed:
    """What each sentence of the query does for each picture found: leave one out.

    `sentences` [n] are those that the model reads, `spans` [n] their characters in the query.
    `drops` [K, n] is the score with all of them less that without one (of an only sentence: less
    that of the empty text). `ranks` [K, n] is the picture's place among all without it.
    """

    sentences: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    drops: np.ndarray
    ranks: np.ndarray

    def most(self, hit: int) -> int:
        """The sentence that picture number `hit` (from 0) owes most of its score to."""
        return int(self.drops[hit].argmax())


@dataclass(frozen=True)
class Matches(Gallery):
    """The pictures nearest to a query, best first.

    `names` are relative to `root`; `scores` [K] are cosine similarities; `pictures` counts those
    that were searched. `owed` is there if it was asked for (`explain=True`).
    """

    query: str
    model: str
    root: Path
    names: tuple[str, ...]
    scores: np.ndarray
    pictures: int
    reading: QueryRead
    owed: Owed | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[Path]:
        return [self.root / name for name in self.names]

    def table(self):
        """A DataFrame, a row a picture: score, name and, if known, the sentence it owes most."""
        import pandas as pd

        rows = pd.DataFrame(
            {"score": self.scores.round(4), "picture": [*map(readable, self.names)]}
        )
        if self.owed is not None:
            best = [self.owed.most(hit) for hit in range(len(self))]
            rows["owes most to"] = [self.owed.sentences[one] for one in best]
            rows["rank without it"] = [self.owed.ranks[hit, one] for hit, one in enumerate(best)]
        return rows.set_axis(pd.RangeIndex(1, len(rows) + 1, name="rank"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        hits = [
            {"rank": rank, "score": round(float(score), 6), "picture": readable(name)}
            for rank, (name, score) in enumerate(zip(self.names, self.scores, strict=True), 1)
        ]
        if self.owed is not None:
            for hit, drops, ranks in zip(hits, self.owed.drops, self.owed.ranks, strict=True):
                hit["without each sentence"] = [
                    {"drop": round(float(drop), 6), "rank": int(rank)}
                    for drop, rank in zip(drops, ranks, strict=True)
                ]
        facts = {
            "query": self.query,
            "tokens": self.reading.tokens,
            "tokens read": self.reading.read,
            "unread": self.reading.unread,
            "hits": hits,
        }
        return facts | ({"sentences": list(self.owed.sentences)} if self.owed is not None else {})

    def to_json(self) -> str:
        return to_json(self.to_dict(), indent=2, ensure_ascii=False)
