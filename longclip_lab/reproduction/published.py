"""Curves that others published, as data, each with where it stands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedCurve:
    """Scores after so many content tokens (start and end not counted), in percent.

    The last one is the score with all tokens that the model holds. `note` says what the source
    leaves open.
    """

    name: str
    source: str
    scores: dict[int, float]
    note: str

    @property
    def shares(self) -> dict[int, float]:
        """Each score as a share of the last one, from 0 to 1."""
        last = list(self.scores.values())[-1]
        return {tokens: score / last for tokens, score in self.scores.items()}

    def first_reaching(self, share: float) -> int | None:
        """The first published cut with at least this share of the last score, short of it.

        None if only the last one has it.

        >>> CLIP_ON_URBAN.first_reaching(0.5), CLIP_ON_URBAN.first_reaching(0.95)
        (29, None)
        """
        *cuts, _ = self.shares.items()
        return next((tokens for tokens, reached in cuts if reached >= share), None)


CLIP_ON_URBAN = PublishedCurve(
    name="CLIP on Urban",
    source="CLIP: github.com/beichenzbc/Long-CLIP/issues/71; all tokens: supplement, Table 1",
    scores={9: 11.7, 19: 29.3, 29: 42.2, 39: 51.3, 49: 57.0, 59: 61.6, 75: 68.1},
    note="Image to text, R@1. Tokens cut and the end token put at the cut; index n of the script "
    "keeps the start token and n - 1 content tokens. The issue names neither the model nor which "
    "Urban set; the last score is ViT-B/16 on Urban-1k (ViT-L/14: 68.7).",
)
