"""The truncation curve: how much of the score is there after the first n tokens, and why.

N texts, T tokens, C cuts, D embedding, W width.

In a causal tower the states of a prefix do not depend on what follows, so all cuts of a text share
them: one end token for each cut is put behind the text, with the position it has at its cut, and a
mask lets it see only its prefix and itself. The result is that of running every cut alone (test:
`tests/probing/test_cuts.py`), for the price of T + C tokens instead of the sum of all cuts.

N pictures (and texts), C cuts, T tokens, D embedding.

Cutting strings misleads, so tokens are cut and the end token is put at the cut. The curve alone
misleads too: it flattens as soon as what is left of the caption adds little, whether or not the
model could read it. Hence the controls, each a change to the text or to the model:

- `as written`: the caption as it is;
- `details only`: without its first sentence (the summary);
- `summary last`: the first sentence moved to the end;
- `positions re-randomised`: as written, read by a copy of the model whose position embeddings
  from `keep` on are random with the spread of the old ones.

C cuts, K pictures shown, N pictures in the pool.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Interval, bootstrap_mean, retrieval
from longclip_lab.models import Clip, Tokens, encode_images
from longclip_lab.models.anatomy import pool_type, position_table, text_tower
from longclip_lab.models.encoding import check_finite
from longclip_lab.models.towers import can_trim
from longclip_lab.plotting import Plottable
from longclip_lab.text import cut_tokens, drop_sentence, move_sentence

# --- Features of every prefix of a text, in one pass ---


def encode_cuts(
    clip: Clip, tokens: Tokens, cuts: Sequence[int], batch_size: int = 64
) -> torch.Tensor:
    """Features [C, N, D], not normalised: each text's first `cut` content tokens, then its end.

    A text that is no longer than a cut is read whole. Towers that are not causal run cut by cut.
    Raises NotFiniteError for features that are not finite.
    """
    encode = _encode_together if cuts_share_states(clip) else _encode_one_by_one
    order = torch.argsort(tokens.lengths_B, stable=True)
    features_CND = torch.empty(len(cuts), len(order), clip.embed_dim)
    with torch.inference_mode():
        for rows in order.split(batch_size):
            features_CND[:, rows] = (
                encode(clip, tokens.ids_BT[rows], tokens.lengths_B[rows], cuts).float().cpu()
            )
    check_finite(features_CND.transpose(0, 1), "texts", clip.name)
    return features_CND


def cuts_share_states(clip: Clip) -> bool:
    """Whether all cuts of a text are one pass: the tower is causal and reads the end token."""
    return can_trim(clip.model) and pool_type(clip.model) in ("argmax", "eos")


def _encode_together(
    clip: Clip, ids_NT: torch.Tensor, lengths_N: torch.Tensor, cuts: Sequence[int]
) -> torch.Tensor:
    tower, device = text_tower(clip.model), clip.device
    length = int(lengths_N.max())
    dtype = tower.transformer.get_cast_dtype()
    cut_C = torch.tensor(cuts, device=device).clamp(max=length - 1)
    ids_NT = ids_NT[:, :length].to(device)
    ends_NC = torch.full((len(ids_NT), len(cuts)), clip.tokenizer.end_id, device=device)
    positions = torch.cat([torch.arange(length, device=device), cut_C + 1]).clamp(max=length - 1)
    states = tower.token_embedding(torch.cat([ids_NT, ends_NC], 1)).to(dtype)
    states = states + tower.positional_embedding[positions].to(dtype)
    mask = torch.full((length + len(cuts),) * 2, float("-inf"), device=device)
    mask[:length, :length] = tower.attn_mask[:length, :length]
    seen_CT = torch.arange(length, device=device) <= cut_C[:, None]
    mask[length:, :length].masked_fill_(seen_CT, 0.0)
    mask[length:, length:].fill_diagonal_(0.0)
    states = tower.transformer(states, attn_mask=mask.to(dtype))
    whole_N = lengths_N.to(device) - 1  # the text's own end token
    column_CN = torch.where(
        cut_C[:, None] < whole_N - 1,
        torch.arange(length, length + len(cuts), device=device)[:, None],
        whole_N,
    )
    rows_N = torch.arange(len(ids_NT), device=device)
    pooled_CNW = tower.ln_final(states[rows_N, column_CN])
    projection = tower.text_projection
    if projection is None:
        return pooled_CNW
    linear = isinstance(projection, torch.nn.Linear)
    return projection(pooled_CNW) if linear else pooled_CNW @ projection


def _encode_one_by_one(
    clip: Clip, ids_NT: torch.Tensor, lengths_N: torch.Tensor, cuts: Sequence[int]
) -> torch.Tensor:
    tokenizer, rows = clip.tokenizer, []
    for cut in cuts:
        ids = cut_tokens(ids_NT.numpy(), lengths_N.numpy(), cut, tokenizer.end_id, tokenizer.pad_id)
        rows.append(clip.encode_text(torch.from_numpy(np.ascontiguousarray(ids))))
    return torch.stack(rows)


# --- The truncation curve: how much of the score is there after the first n tokens, and why ---

CONTROLS = ("as written", "details only", "summary last", "positions re-randomised")


@dataclass(frozen=True)
class TruncationCurve(Plottable):
    """R@1 (mean of both directions) after each cut, for the caption and its controls.

    `hits[variant]` is [C, N]: for every cut and pair, the mean of the two hits (0, 0.5 or 1);
    `cuts` counts content tokens, without start and end. `truncated[variant]` counts the texts that
    are longer than the model's context, which no cut can show; `unchanged[variant]` those of one
    sentence, which the control leaves as they are.
    """

    model: str
    cuts: tuple[int, ...]
    hits: dict[str, np.ndarray]
    truncated: dict[str, int]
    unchanged: dict[str, int]
    source: dict
    bootstrap: int = 1000
    seed: int = 0

    @property
    def num_pairs(self) -> int:
        return next(iter(self.hits.values())).shape[1]

    def resampled(self, variant: str) -> np.ndarray:
        """Bootstrap means [bootstrap, C]; the same pairs are drawn for every cut and variant."""
        rng = np.random.default_rng(self.seed)
        drawn = rng.integers(self.num_pairs, size=(self.bootstrap, self.num_pairs))
        counts = np.apply_along_axis(np.bincount, 1, drawn, minlength=self.num_pairs)
        return counts @ self.hits[variant].T / self.num_pairs

    def scores(self, variant: str) -> list[Interval]:
        """One 95% bootstrap interval for each cut."""
        low, high = np.quantile(self.resampled(variant), [0.025, 0.975], axis=0)
        means = self.hits[variant].mean(1)
        return [
            Interval(float(m), float(lo), float(hi), self.num_pairs)
            for m, lo, hi in zip(means, low, high, strict=True)
        ]

    def gain(self, variant: str, first: int, last: int) -> Interval:
        """Change of R@1 from the cut `first` to the cut `last`, with a 95% bootstrap interval.

        The same pictures are compared, so it is narrower than the two scores' intervals suggest.
        Raises LabError for a cut that the curve does not have.
        """
        missing = [cut for cut in (first, last) if cut not in self.cuts]
        if missing:
            raise LabError(f"expected cuts of the curve, {list(self.cuts)}, got {missing[0]}.")
        rows = [self.cuts.index(cut) for cut in (first, last)]
        before_N, after_N = self.hits[variant][rows]
        return bootstrap_mean(after_N - before_N, rounds=self.bootstrap, seed=self.seed)

    def table(self):
        """A DataFrame: variant, tokens, R@1, low, high (percent)."""
        import pandas as pd

        rows = [
            (variant, cut, 100 * s.value, 100 * s.low, 100 * s.high)
            for variant in self.hits
            for cut, s in zip(self.cuts, self.scores(variant), strict=True)
        ]
        return pd.DataFrame(rows, columns=["variant", "tokens", "R@1", "low", "high"])

    def to_dict(self) -> dict:
        """JSON-able: protocol, counts and every interval."""
        return {
            "protocol": "truncation curve: R@1, mean of both directions, end token at the cut",
            "model": self.model,
            "pairs": self.num_pairs,
            "truncated": self.truncated,
            "unchanged": self.unchanged,
            "source": self.source,
            "seed": self.seed,
            "rows": self.table().round(2).to_dict("records"),
        }


def default_cuts(context_length: int) -> tuple[int, ...]:
    """Denser where the papers look, up to all content tokens that the model reads."""
    most = context_length - 2
    marks = [3, 6, 9, 12, 15, 20, 25, 30, 40, 50, 60, 75, 100, 125, 150, 175, 200, 225, 246]
    return (*(n for n in marks if n < most), most)


def randomise_positions(clip: Clip, keep: int = 20, seed: int = 0) -> Clip:
    """A copy of the model whose position embeddings from `keep` on are random.

    They have mean and deviation (per dimension) of those they replace.
    Errors: LabError if `keep` is not in 0..context_length - 1.
    """
    if not 0 <= keep < clip.context_length:
        raise LabError(
            f"expected keep from 0 to {clip.context_length - 1} for '{clip.name}', got {keep}."
        )
    model = copy.deepcopy(clip.model)
    positions_TD = position_table(model)[: clip.context_length]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        tail = positions_TD[keep:]
        noise = torch.randn(tail.shape, generator=generator).to(tail)
        positions_TD[keep:] = tail.mean(0) + noise * tail.std(0, unbiased=False)
    return replace(clip, model=model, name=f"{clip.name}, random from {keep}")


def _variants(
    clip: Clip, texts: list[str], controls: Sequence[str], keep: int, seed: int
) -> dict[str, tuple[Clip, list[str]]]:
    unknown = [name for name in controls if name not in CONTROLS]
    if unknown:
        raise LabError(
            f"expected controls of the truncation curve, got {unknown[0]!r}. "
            + suggest(unknown[0], CONTROLS)
        )
    made = {
        "as written": lambda: (clip, texts),
        "details only": lambda: (clip, [drop_sentence(text) for text in texts]),
        "summary last": lambda: (clip, [move_sentence(text) for text in texts]),
        "positions re-randomised": lambda: (randomise_positions(clip, keep, seed), texts),
    }
    return {name: made[name]() for name in controls}


def truncation_curve(
    clip: Clip,
    pairs,
    cuts: Sequence[int] | None = None,
    controls: Sequence[str] = CONTROLS,
    keep: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> TruncationCurve:
    """Retrieve with the first n tokens of each long caption (Long-CLIP, Fig. 2, with controls).

    Args:
        clip: the model.
        pairs: pictures and their `long` captions, one each.
        cuts: numbers of content tokens; default up to the model's context.
        controls: which of CONTROLS.
        keep: first re-randomised position.

    Errors: LabError for cuts the model cannot read, an unknown control, or captions of one sentence
    each, which no control can change.
    """
    cuts = tuple(cuts) if cuts is not None else default_cuts(clip.context_length)
    if not cuts or min(cuts) < 1 or max(cuts) > clip.context_length - 2:
        raise LabError(
            f"expected cuts from 1 to {clip.context_length - 2} content tokens for "
            f"'{clip.name}', got {list(cuts)}."
        )
    written = list(pairs.long)
    variants = _variants(clip, written, controls, keep, seed)
    images_ND = encode_images(clip, pairs.images, progress=progress)
    hits: dict[str, list[np.ndarray]] = {}
    truncated, unchanged = {}, {}
    for name, (reader, texts) in tqdm(variants.items(), desc="cuts", disable=not progress):
        if texts is not written:
            unchanged[name] = sum(a == b for a, b in zip(texts, written, strict=True))
            if unchanged[name] == len(texts):
                raise LabError(
                    f"the control '{name}' changes none of the {len(texts)} captions: each has one "
                    'sentence. Ask for controls=("as written",).'
                )
        tokens = reader.tokenize(texts)
        truncated[name] = tokens.num_truncated
        hits[name] = [_hits(images_ND, texts_ND) for texts_ND in encode_cuts(reader, tokens, cuts)]
    arrays = {name: np.stack(rows) for name, rows in hits.items()}
    return TruncationCurve(
        clip.name, cuts, arrays, truncated, unchanged, dict(pairs.source), seed=seed
    )


def _hits(images_ND: torch.Tensor, texts_ND: torch.Tensor) -> np.ndarray:
    """For each pair the mean of its image-to-text and text-to-image hit at rank 1."""
    scores = retrieval(images_ND, texts_ND, bootstrap=0)
    return ((scores.i2t_ranks <= 1).astype(float) + (scores.t2i_ranks <= 1)) / 2


# --- Reading along: which pictures does a model find after each token of one caption? ---
