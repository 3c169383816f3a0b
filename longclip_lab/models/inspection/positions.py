"""What a table of text positions shows of how it came to be.

T old positions, L positions of the table, W width.
"""

from __future__ import annotations

from typing import Any

import torch

from longclip_lab.models.positions import stretch_positions, stretched_length

ROUNDING = 2e-3
"""Half precision rounds the rows of CLIP's tables by up to about a thousandth of their largest."""
_SHORT, _RATIOS, _USUAL = 77, range(2, 9), (20, 4)


def candidates(length: int) -> list[tuple[int, int]]:
    """Keep and ratio that stretch OpenAI's 77 positions to `length`, Long-CLIP's own first.

    >>> candidates(248)[:2]
    [(20, 4), (58, 10)]
    """
    found = [
        (keep, ratio)
        for ratio in (*_RATIOS, 10)
        for keep in range(_SHORT - 1)
        if stretched_length(_SHORT, keep, ratio) == length
    ]
    return sorted(found, key=lambda pair: pair != _USUAL)


def off_the_line(table_LW: torch.Tensor, keep: int, ratio: int) -> float:
    """How far a table is from being stretched: the largest error, relative to the largest value.

    The old table is read off at every `ratio`-th row after `keep` and stretched again.
    """
    table_LW = table_LW.float()
    old_TW = torch.cat([table_LW[:keep], table_LW[keep::ratio]])
    again_LW = stretch_positions(old_TW, keep, ratio)[: len(table_LW)]
    return float((table_LW - again_LW).abs().max() / table_LW.abs().max().clamp_min(1e-12))


def how_stretched(table_LW: torch.Tensor) -> tuple[int, int] | None:
    """Keep and ratio if the table is still exactly the stretching of a shorter one."""
    for keep, ratio in candidates(len(table_LW)):
        if off_the_line(table_LW, keep, ratio) < ROUNDING:
            return keep, ratio
    return None


def explain_table(table_LW: torch.Tensor) -> dict[str, Any]:
    """What can be seen of one table: length, kept, stretched, method and sentences on why."""
    length = len(table_LW)
    facts: dict[str, Any] = {"length": length, "kept": length, "stretched": 0}
    found = how_stretched(table_LW) if length > _SHORT else None
    if found:
        keep, ratio = found
        return facts | {
            "kept": keep,
            "stretched": length - keep,
            "method": "kps",
            "ratio": ratio,
            "seen": [
                f"rows {keep} to {length - 1} lie on straight lines between every {ratio}th of "
                "them: knowledge-preserved stretching, not trained since"
            ],
        }
    if length > _SHORT and candidates(length):
        return facts | {
            "method": "trained, or not stretched",
            "seen": [
                f"{length} positions are what Long-CLIP's stretching of {_SHORT} gives, but the "
                "rows do not lie on straight lines: trained since, or made otherwise"
            ],
        }
    return facts | {"method": "none seen", "seen": []}


def explain_longclip(
    used_first_LW: torch.Tensor, used_later_LW: torch.Tensor, keep: int = _USUAL[0]
) -> dict[str, Any]:
    """What can be seen of Long-CLIP's two tables.

    The first `keep` rows of one and the later rows of the other are read.
    """
    if used_first_LW.shape != used_later_LW.shape or len(used_first_LW) <= keep:
        return {
            **{"length": len(used_first_LW), "kept": len(used_first_LW), "stretched": 0},
            "method": "two tables that are not Long-CLIP's",
            "seen": [
                f"positional_embedding has {list(used_first_LW.shape)}, positional_embedding_res "
                f"{list(used_later_LW.shape)}: expected two of one size, more than {keep} rows"
            ],
        }
    first_LW, later_LW = used_first_LW.float(), used_later_LW.float()
    found = how_stretched(first_LW)
    seen = [
        f"positional_embedding: {len(first_LW)} rows, 0 to {keep - 1} are read",
        "they are "
        + (
            f"still the stretching of {_SHORT} positions (keep {found[0]}, ratio {found[1]})"
            if found
            else "not the stretching of a shorter table, or were trained"
        ),
    ]
    moved_L = (later_LW - first_LW).norm(dim=1)
    step = float((first_LW[1:] - first_LW[:-1]).norm(dim=1).median())
    share = float(moved_L[keep:].median()) / max(step, 1e-12)
    seen += [
        f"positional_embedding_res: rows {keep} to {len(later_LW) - 1} are read",
        "they equal the other table's: stretched, not trained"
        if share < ROUNDING
        else f"they differ from the other table's by {share:.2g} steps between neighbours (median):"
        " trained",
    ]
    return {
        "length": len(first_LW),
        "kept": keep,
        "stretched": len(first_LW) - keep,
        "method": "kps" if found else "two tables",
        **({"ratio": found[1]} if found else {}),
        "seen": seen,
    }


def compare_with(table_LW: torch.Tensor, original_TW: torch.Tensor, keep: int, ratio: int) -> str:
    """Whether the kept rows, and the knots of the others, are those of an original table."""
    if table_LW.ndim != 2 or original_TW.ndim != 2:
        return f"tables of {list(table_LW.shape)} and {list(original_TW.shape)} are no positions"
    table_LW, original_TW = table_LW.float(), original_TW.float()
    if table_LW.shape[1] != original_TW.shape[1]:
        return f"the original's rows are {original_TW.shape[1]} wide, these {table_LW.shape[1]}"
    expected_LW = stretch_positions(original_TW, keep, ratio)
    rows = min(len(expected_LW), len(table_LW))
    largest = original_TW.abs().max()
    errors_L = (table_LW[:rows] - expected_LW[:rows]).abs().amax(dim=1) / largest
    words = []
    if len(errors_L[:keep]):
        kept = float(errors_L[:keep].max())
        off = f"off the original's by {kept:.2g}"
        words.append(f"the first {keep} rows are " + ("the original's" if kept < ROUNDING else off))
    if len(errors_L[keep:]):
        later = float(errors_L[keep:].max())
        off = f"off its stretching by {ratio} by up to {later:.2g}"
        words.append(
            "the others are " + (f"its stretching by {ratio}" if later < ROUNDING else off)
        )
    return "; ".join(words) + " (of the largest value)"
