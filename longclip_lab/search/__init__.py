"""Search in the reader's own pictures: an index over a folder, and queries as long as they like."""

from longclip_lab.images import Listing, list_images
from longclip_lab.search.index import (
    ImageIndex,
    Matches,
    Owed,
    QueryRead,
    SentenceRanks,
    index,
    ranks_by_sentence,
    readable_query,
)
from longclip_lab.search.store import Update, cache_folder

__all__ = [
    "ImageIndex",
    "Listing",
    "Matches",
    "Owed",
    "QueryRead",
    "SentenceRanks",
    "Update",
    "cache_folder",
    "index",
    "list_images",
    "ranks_by_sentence",
    "readable_query",
]
