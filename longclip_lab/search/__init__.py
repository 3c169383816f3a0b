"""Search in the reader's own pictures: an index over a folder, and queries as long as they like."""

from longclip_lab.images import Listing, list_pictures
from longclip_lab.search.matches import Matches, Owed, QueryRead
from longclip_lab.search.picture_index import PictureIndex, index
from longclip_lab.search.queries import readable_query
from longclip_lab.search.sentences import SentenceRanks, ranks_by_sentence
from longclip_lab.search.store import cache_folder
from longclip_lab.search.updating import Update

__all__ = [
    "Listing",
    "Matches",
    "Owed",
    "PictureIndex",
    "QueryRead",
    "SentenceRanks",
    "Update",
    "cache_folder",
    "index",
    "list_pictures",
    "ranks_by_sentence",
    "readable_query",
]
