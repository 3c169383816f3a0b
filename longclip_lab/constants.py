"""Constants that several rooms share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from longclip_lab.errors import LabError

OLD_OBJECTIVES: Mapping[str, str] = {"pcm": "longclip"}
"""Objectives by a name that they had before, still understood wherever one is named."""

CONTEXTS = (77, 128, 248)
"""Tokens that CLIP, LoTLIP and Long-CLIP read of a text, start and end included."""

RENAMED: Mapping[str, str] = {
    "siblings": "hard_negative_group",
    "lanes": "num_streams",
    "shuffle_window": "shuffle_buffer",
    "skip_broken": "max_bad_fraction",
    "skip_not_finite": "max_nan_steps",
    "text_parts": "length_buckets",
    "components_of": "pca_scope",
    "faithful": "match_official",
    "store_features": "cache_image_features",
    "arriving": "data_throughput",
    "utilisation": "mfu",
    "data_scale": "dataset_size",
}
"""Recipe fields and flags by the name that they had before. They are refused with the new name;
records and hashes that were made with an old one are read through this table."""


def refuse_renamed(names: Iterable[str], flags: bool = False) -> None:
    """Raise LabError for a field (or flag) that has another name now, saying which.

    >>> refuse_renamed(["--no-store-features"], flags=True)
    Traceback (most recent call last):
    longclip_lab.errors.LabError: --no-store-features is now called --no-cache-image-features.
    """
    for name in names:
        bare = name.partition("=")[0]
        start = next((s for s in ("--no-", "--") if bare.startswith(s)), "") if flags else ""
        new = RENAMED.get(bare.removeprefix(start).replace("-", "_"))
        if new is not None and bool(start) == flags:
            new = new.replace("_", "-") if flags else new
            raise LabError(f"{bare} is now called {start}{new}.")


def current_names(fields: Mapping[str, object]) -> dict[str, object]:
    """A recipe that was written down, with the names that its fields have now."""
    return {RENAMED.get(name, name): value for name, value in fields.items()}
