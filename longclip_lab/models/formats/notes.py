"""What `export` notes beside weights, for formats that have no name for it, and `load` reads."""

from __future__ import annotations

from typing import Any

OURS = "longclip_lab"
"""The entry of config.json and open_clip_config.json that other libraries pass over."""
PLAIN_LENGTH = 77


def note(name: str, card: dict[str, Any]) -> dict[str, Any]:
    """The entry for a model of that name and card."""
    return {OURS: {"name": name, "positions": card["positions"]}}


def positions_card(stored: dict[str, Any], length: int) -> dict[str, Any]:
    """How a table of positions came about: as `stored` notes it; else unknown where not 77 long."""
    ours = stored.get(OURS)
    told = ours.get("positions") if isinstance(ours, dict) else None
    if isinstance(told, dict) and told.get("length") == length:
        return told
    method = "none" if length == PLAIN_LENGTH else "unknown"
    return {"method": method, "keep": 0, "ratio": length / PLAIN_LENGTH, "length": length}
