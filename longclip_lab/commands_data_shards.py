"""`longclip-lab data shard` and `longclip-lab data check`; see `longclip_lab.commands`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from longclip_lab.commands import say, say_skipped
from longclip_lab.errors import COUNT, WORKERS, LabError
from longclip_lab.files import to_json

if TYPE_CHECKING:
    from longclip_lab.data import ShardSet

_DRAWN = ("world", "world-web")


@dataclass(kw_only=True)
class WriteShards:
    """Write a data set as webdataset tars that training streams, from a folder or a bucket.

    The same command goes on where it was interrupted. SRC is a data set's folder, or shards' folder
    or address; the drawn world needs none."""

    places: Annotated[Positional[tuple[str, ...]], arg(metavar="[SRC] DST")]
    """Where the data are, and an empty folder for the shards."""
    data: Literal["world", "world-web", "coco", "dreamlip", "lotlip", "sharegpt4v", "shards"]
    """What SRC holds. world: the drawn training set; world-web: the same with noisy alt-texts and
    long captions by three writers, as lotlip trains on. shards are written anew."""
    split: str | None = None
    """Part of the data set; of coco train2017 by default."""
    per_shard: Annotated[int, COUNT, arg(metavar="N")] = 2000
    """Pairs in a shard."""
    pairs: Annotated[int, COUNT, arg(metavar="N")] = 8000
    """Pairs to draw (world, world-web)."""
    captions: tuple[Path, ...] = ()
    """Folders of captions that `longclip-lab recaption` wrote of these pictures: more captioners,
    of whom the first one's becomes the long text."""
    tokenizer: Literal["clip", "bert", "lotlip", "world"] = "clip"
    """Whose tokens the manifest counts, and batches of similar length go by."""
    workers: Annotated[int, WORKERS] = 0
    """Processes that write a shard each; 0 writes them in this one."""
    skip_bad: bool = False
    """Leave out broken or missing pictures and empty texts, counted and named, instead of
    stopping."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        source, folder = self._places()
        from longclip_lab.data import write_shards

        data = self._open(source)
        if self.captions:
            from longclip_lab.recaptioning import with_captions

            data = with_captions(data, *self.captions)
        shards = write_shards(
            data,
            folder,
            self.per_shard,
            self.skip_bad,
            self.tokenizer,
            self.workers,
            self.progress,
        )
        say(told(shards))
        say_skipped(shards.skipped)
        say(f"written to {folder}; train with --data shards --root {folder}")

    def _places(self) -> tuple[str | None, Path]:
        wanted = 1 if self.data in _DRAWN else 2
        if len(self.places) != wanted:
            named = "DST alone: the world is drawn" if wanted == 1 else "SRC and DST"
            raise LabError(
                f"--data {self.data} takes {named}; came {' '.join(self.places) or 'none'}."
            )
        return (None if wanted == 1 else self.places[0]), Path(self.places[-1])

    def _open(self, source: str | None) -> Any:
        from longclip_lab import world
        from longclip_lab.data import open_data

        if self.data in _DRAWN and self.split is not None:
            raise LabError("The world is drawn, not read: it takes no --split.")
        if self.data == "world":
            return world.pairs(self.pairs, world.TRAIN_SEED)
        if self.data == "world-web":
            return world.web_pairs(self.pairs, world.TRAIN_SEED)
        split = self.split or ("train2017" if self.data == "coco" else None)
        # Every picture is decoded when it is written; once is enough.
        return open_data(
            self.data,
            source,
            split,
            skip_bad=self.skip_bad,
            verify=False,
            progress=self.progress,
        )


@dataclass(kw_only=True)
class CheckShards:
    """Read every shard against its checksum and decode every pair; name what is broken.

    Exits with 2 if anything is."""

    url: Annotated[Positional[str], arg(metavar="DST")]
    """The folder or address of shards."""
    json: bool = False
    """Print JSON instead of sentences."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        from longclip_lab.data import check_shards

        found = check_shards(self.url, self.progress)
        say(to_json(asdict(found), indent=1) if self.json else str(found))
        if not found.ok:
            raise LabError(
                f"{len(found.shards)} shards and {len(found.pairs)} pairs in {self.url} are "
                "broken. The command that wrote them writes those shards anew."
            )


def told(shards: ShardSet) -> str:
    """What a folder of shards holds, for a terminal."""
    size = sum(shard.bytes for shard in shards.shards)
    long, short = shards.tokens["long"], shards.tokens["short"]
    over = ", ".join(
        f"{100 * long[f'share_longer_than_{context}']:.1f}% over {context}"
        for context in (77, 128, 248)
    )
    lines = [
        f"{shards.name}: {len(shards)} pairs in {len(shards.shards)} shards, {size / 1e6:.1f} MB",
        f"  {long['tokens_per_text']:8.2f} tokens a long text by the tokenizer "
        f"{shards.tokens['tokenizer']}, without start and end; with them {over}",
        f"  {short['tokens_per_text']:8.2f} tokens a short text",
    ]
    if shards.captioners:
        named = ", ".join(f"{who} {count}" for who, count in shards.captioners.items())
        lines.append(f"  long captions by captioner: {named}")
    return "\n".join(lines)
