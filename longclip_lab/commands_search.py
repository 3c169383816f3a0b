"""What `longclip-lab` can do with the reader's own pictures; see `longclip_lab.commands`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from longclip_lab.commands import load_model, say, say_skipped
from longclip_lab.errors import COUNT, LabError
from longclip_lab.files import atomic_write, readable, to_json


@dataclass(kw_only=True)
class Search:
    """Find pictures in a folder of yours with a sentence, or with a paragraph."""

    folder: Positional[Path]
    """Your pictures; folders in it are searched too, and nothing is written there."""
    query: Annotated[Positional[tuple[str, ...]], arg(metavar='"QUERY" ["QUERY" ...]')]
    """What to look for; several queries are answered one after the other."""
    model: str = "tiny"
    """A bundled model (tiny, which knows the drawn world only), an open_clip name, a checkpoint
    file or a saved folder."""
    pretrained: str | None = None
    """open_clip's tag, or a file of weights, for an open_clip name."""
    stretch: bool = False
    """Stretch the model's positions (KPS) first, for queries longer than its context."""
    top: Annotated[int, COUNT] = 5
    """Pictures to find."""
    explain: bool = False
    """Say what each sentence of the query does for each picture found."""
    html: Path | None = None
    """A page with the pictures, to open in a browser."""
    json: bool = False
    """Print one JSON object instead of sentences."""
    cache: Path | None = None
    """Folder for the pictures' features; your user's cache folder unless given."""
    index: Literal["auto", "sklearn", "faiss"] = "auto"
    """What finds the nearest features: faiss if it is installed, or scikit-learn."""
    verify: bool = False
    """Compare the content of every picture with what is cached, not only size and time."""
    progress: bool = True
    """Show a progress bar."""

    def run(self) -> None:
        if not self.query:
            raise LabError('Say what to look for: longclip-lab search DIR "a red boat on a lake".')
        if not self.folder.is_dir():  # before seconds are spent on a model
            from longclip_lab.images import list_pictures

            list_pictures(self.folder)
        from longclip_lab import models, search

        clip = load_model(self.model, self.pretrained)
        clip = models.stretch(clip) if self.stretch else clip
        queries = [search.readable_query(clip, text) for text in self.query]
        index = search.index(
            clip, self.folder, self.cache, self.index, self.verify, progress=self.progress
        )
        found = index.search(queries, self.top, self.explain)
        if self.json:
            say(to_json(_facts(index) | {"queries": [one.to_dict() for one in found]}))
        else:
            head = f"{readable(self.folder)}: {len(index):,} pictures ({index.update})"
            say(f"{head}; cache: {readable(index.cache)}")
            say_skipped(index.left_out)
            for one in found:
                say(_told(one))
        if self.html is not None:
            asked = [text for text in self.query if text not in queries]
            atomic_write(self.html, _page(index, found, asked))
            if not self.json:
                say(f"\nwritten to {self.html}")


def _facts(index: Any) -> dict[str, Any]:
    update = {name: getattr(index.update, name) for name in index.update.__dataclass_fields__}
    return {
        "folder": readable(index.root),
        "model": index.clip.name,
        "pictures": len(index),
        "update": update | {"seconds": round(update["seconds"], 3)},
        "left_out": index.left_out,
        "cache": str(index.cache),
        "index": index.backend,
    }


def _told(found: Any) -> str:
    lines = [f"\n“{found.query}”"]
    if not found.reading.whole:
        lines.append(f"  read: {found.reading.read} of {found.reading.tokens} tokens")
    for hit, (path, score) in enumerate(zip(found.paths, found.scores, strict=True)):
        lines.append(f"{hit + 1:4}  {score:.4f}  {readable(path)}")
        if found.owed is not None and len(found.owed.sentences) > 1:
            most = found.owed.most(hit)
            lines.append(
                f"              owes most to “{found.owed.sentences[most]}” "
                f"({found.owed.drops[hit, most]:+.3f}; without it: {found.owed.ranks[hit, most]})"
            )
    return "\n".join(lines).encode("utf-8", "replace").decode()


def _page(index: Any, found: list[Any], asked: list[str]) -> str:
    from longclip_lab.views.found import found_page

    notes = [f"{index.clip.name} on {len(index):,} pictures of {readable(index.root.resolve())}."]
    notes += [f"{index.clip.name} does not know all words of “{text}”." for text in asked]
    notes += [f"Left out, {why}: {len(names)}." for why, names in index.left_out.items()]
    return found_page(found, notes)
