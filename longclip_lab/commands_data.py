"""Commands on data: list, verify and count benchmarks; write and check shards; recaption."""

from __future__ import annotations

import math
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg, subcommand

from longclip_lab.commands import say, say_skipped
from longclip_lab.errors import COUNT, NOT_NEGATIVE, SEED, SHARE, WORKERS, LabError
from longclip_lab.files import atomic_write, to_json

if TYPE_CHECKING:
    import pandas as pd

    from longclip_lab.data import Protocol, ShardSet
    from longclip_lab.recaptioning import Asking, Captioner, Hallucinated, Recaptioned


# --- `longclip-lab data shard` and `longclip-lab data check`; see `longclip_lab.commands` ---

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
        say(describe_shards(shards))
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


def describe_shards(shards: ShardSet) -> str:
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


# --- What `longclip-lab data` can do; see `longclip_lab.commands` ---

_WIDTH = 98
_TABLE_1, _TABLE_6 = "lotlip/table1", "lotlip/table6"
PUBLISHED = {
    "dci-full": (_TABLE_1, "DCI"),
    "iiw": (_TABLE_1, "IIW"),
    "sharegpt4v-1k": (_TABLE_1, "ShareGPT4V-1k"),
    "sharegpt4v-10k": (_TABLE_1, "ShareGPT4V-10k"),
    "coco-val2017-first5": (_TABLE_1, "MSCOCO"),
    "coco-karpathy-5k": (_TABLE_1, "MSCOCO"),
    "flickr30k-1k": (_TABLE_1, "Flickr30k"),
    "sharegpt4v": (_TABLE_6, "ShareGPT4V"),
    **{
        prefix: (_TABLE_6, name)
        for prefix, name in (
            *(("cc3m", "CC3M"), ("cc12m", "CC12M"), ("yfcc15m", "YFCC15M")),
            *(("laion", "LAION47M"), ("coyo", "COYO24M")),
        )
    },
}
"""Where LoTLIP's paper counts the same set; tables of raw captions go by their name's beginning."""


@dataclass(kw_only=True)
class List:
    """Every benchmark: what it scores, how many pictures and texts, who reports on it."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME ...]")] = ()
    """Benchmarks to tell all about; without any, a table of them all."""
    json: bool = False
    """Print JSON instead."""

    def run(self) -> None:
        from longclip_lab.data import PROTOCOLS, get_protocol

        chosen = [get_protocol(name) for name in self.names] or list(PROTOCOLS.values())
        if self.json:
            say(to_json([protocol.facts() for protocol in chosen], indent=1))
        elif self.names:
            say("\n\n".join(map(told, chosen)))
        else:
            say(overview(chosen).to_string(index=False))
            say("All about one of them: longclip-lab data list NAME")


@dataclass(kw_only=True)
class Verify:
    """Say what of a benchmark is there, missing, extra and broken, and how to get it.

    Exits with 2 if it is not whole."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """A benchmark; `longclip-lab data list` names them."""
    root: Path | None = None
    """Its folder, or a folder that holds it under one of its usual names."""
    decode: bool = True
    """Read and decode every picture, instead of looking whether it is there."""
    json: bool = False
    """Print everything as JSON instead of the first few names."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        from longclip_lab.data import verify

        result = verify(self.name, self.root, self.decode, self.progress)
        say(to_json(result.to_dict(), indent=1) if self.json else str(result))
        if not result.ok:
            raise LabError(f"{self.name} is not whole in {result.home}.")


@dataclass(kw_only=True)
class Stats:
    """Count the texts on disk as LoTLIP's Tables 1 and 6 do, and what contexts would cut."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME ...]")] = ()
    """Benchmarks, or training sets: sharegpt4v, dreamlip, lotlip. Without any, every benchmark
    whose texts are found."""
    root: Path | None = None
    """Folder of one of them, or of all of them. The pictures need not be there."""
    json: bool = False
    """Print JSON instead."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        from longclip_lab.data import statistics

        world_only = bool(self.names) and all(name.startswith("world/") for name in self.names)
        if self.root is None and not world_only:
            raise LabError("Say where the texts are: longclip-lab data stats --root DIR.")
        counted = statistics(self.root, self.names, self.progress)
        if self.json:
            say(to_json([row.to_dict() for row in counted.rows], indent=1))
            return
        say(beside_paper(counted.table()).to_string(index=False, na_rep=""))
        say(
            "sub-captions and tokens are a text's, tokens by BERT without its two special ones; "
            "> is the\nshare of texts longer than a context by CLIP's tokens, start and end "
            "included; paper: LoTLIP."
        )
        for row in counted.rows:
            for reason, names in row.skipped.items():
                say(f"{row.name}: {len(names)} x {reason}: {', '.join(names[:5])}")


@dataclass(kw_only=True)
class Data:
    """Data on disk: list, verify and stats of benchmarks and texts; shard and check for shards."""

    action: Annotated[
        Annotated[List, subcommand("list", prefix_name=False)]
        | Annotated[Verify, subcommand("verify", prefix_name=False)]
        | Annotated[Stats, subcommand("stats", prefix_name=False)]
        | Annotated[WriteShards, subcommand("shard", prefix_name=False)]
        | Annotated[CheckShards, subcommand("check", prefix_name=False)],
        arg(name=""),
    ]

    def run(self) -> None:
        self.action.run()


def overview(protocols: list[Protocol]) -> pd.DataFrame:
    """One row a benchmark."""
    import pandas as pd

    rows = [
        {
            "name": protocol.name,
            "task": protocol.task,
            "images": f"{protocol.num_images:,}",
            "texts": f"{protocol.num_texts:,}",
            "split": protocol.split,
            "who uses it": ", ".join(protocol.users[:3]) + (", ..." * (len(protocol.users) > 3)),
        }
        for protocol in protocols
    ]
    return pd.DataFrame(rows)


def told(protocol: Protocol) -> str:
    """All facts of a protocol, for a terminal."""
    facts = {
        "task": protocol.task,
        "images": protocol.images,
        "texts": protocol.texts,
        "how many": f"{protocol.num_images:,} images, {protocol.num_texts:,} texts",
        "split": protocol.split,
        "text field": protocol.text_field,
        "text processing": protocol.text_processing,
        "preprocessing": protocol.preprocess,
        "ties": protocol.tie,
        "about": protocol.about,
        "who uses it": ", ".join(protocol.users),
        "layout": protocol.layout,
        "contaminated by": ", ".join(protocol.contaminated_by) or "no training set known here",
        "licence": protocol.licence,
        "sources": "; ".join(protocol.sources),
    }
    lines = [protocol.name]
    for name, text in facts.items():
        head = f"  {name:<16}"
        lines += textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=" " * 18)
    head = f"  {'how to get it':<16}"
    for number, step in enumerate(protocol.get, 1):
        told_step = f"{number}. {step}"
        lines += textwrap.wrap(
            told_step,
            _WIDTH,
            initial_indent=head if number == 1 else " " * 18,
            subsequent_indent=" " * 21,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def beside_paper(table: pd.DataFrame) -> pd.DataFrame:
    """The counts with LoTLIP's own beside them, where its Tables 1 and 6 have the same set."""
    from longclip_lab.reproduction.experiment import published_table

    columns = {"sub-captions": "sub-captions per text", "tokens": "tokens per text"}
    for ours, theirs in columns.items():
        printed = []
        for name in table["set"]:
            key = _published_key(name)
            table_name, dataset = PUBLISHED.get(key, (None, None))
            known = table_name is not None
            printed.append(
                published_table(table_name).value(theirs, dataset=dataset) if known else math.nan
            )
        table.insert(list(table.columns).index(ours) + 1, f"paper's {ours}", printed)
    return table


def _published_key(name: str) -> str:
    """ "cc3m_3long_captions: raw" -> "cc3m"; a benchmark's name stays."""
    name = name.removesuffix(" (partial)")
    if name.endswith(": raw"):
        return next((key for key in PUBLISHED if name.lower().startswith(key)), name)
    return name


# --- What `longclip-lab recaption` can do; see `longclip_lab.commands` ---

_NAMED = 5


@dataclass(kw_only=True)
class Recaption:
    """Describe pictures at length with an image-to-text model of transformers, as LoTLIP did.

    Started by torchrun, each process writes its share of the files. The same command goes on where
    it was interrupted."""

    model: Positional[str]
    """A folder with the model (safetensors) and its processor, or an id on the hub."""
    dst: Positional[Path]
    """Folder for the captions, one file of lines for every shard or run of pictures."""
    data: Literal["world", "folder", "shards", "coco", "sharegpt4v", "dreamlip", "lotlip"] = (
        "folder"
    )
    """Whose pictures to describe: every picture of a folder, shards, a data set, or the world's."""
    root: str | None = None
    """The folder of the pictures or of the data set; of shards also their address (s3://, ..)."""
    split: str | None = None
    """Part of the data set."""
    pairs: Annotated[int, COUNT] = 1000
    """Pictures to draw (world)."""
    captioner: Literal["instructblip", "llava", "sharegpt4v", "chat"] | None = None
    """How the model is asked; by default what fits its architecture, any other by its own chat
    template."""
    name: str | None = None
    """What the captions are filed under; by default InstructBLIP, LLaVA, ShareGPT4V or the model's
    name."""
    prompt: str = "Describe the image in detail."
    """What the model is asked."""
    batch_size: Annotated[int, COUNT, arg(metavar="N")] = 8
    """Pictures at a time."""
    max_new_tokens: Annotated[int, COUNT] = 256
    """Where a caption is cut if it has not ended; the share of cut ones is printed."""
    temperature: Annotated[float, NOT_NEGATIVE] = 0.0
    """0 takes the likeliest token every time; above 0 tokens are sampled."""
    top_p: Annotated[float, SHARE] = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    seed: Annotated[int, SEED] = 0
    """For sampling. A caption depends on it and on the picture's key, not on batch or process."""
    per_file: Annotated[int, COUNT] = 1000
    """Pictures to a file; shards keep their own."""
    revision: str | None = None
    """Of a model on the hub."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """bfloat16 on a GPU and float32 on a CPU unless given."""
    check: bool = False
    """Compare the captions with what the drawn world's pictures show (world)."""
    sharegpt4v: Path | None = None
    """Also write the captions as one JSON file in ShareGPT4V's layout."""
    json: bool = False
    """Print the record as JSON instead of sentences."""
    progress: bool = True
    """Show progress bars."""

    def run(self) -> None:
        if self.check and self.data != "world":
            raise LabError("--check compares with the drawn world; give --data world.")
        if self.sharegpt4v is not None:
            from longclip_lab.recaptioning.run import check_files

            check_files(self.data)
        asking = self._asking()
        data = self._open()
        captioner = self._load()
        from longclip_lab import recaptioning
        from longclip_lab.threads import rank_and_size

        done = recaptioning.recaption(
            captioner,
            data,
            self.dst,
            asking,
            root=self.root,
            batch_size=self.batch_size,
            per_file=self.per_file,
            progress=self.progress,
        )
        found = self._checked(data) if self.check and done.finished else None
        if self.sharegpt4v is not None and done.finished:
            recaptioning.to_sharegpt4v(self.dst, self.sharegpt4v)
        # Whichever process found the last file written has something to say, first or not.
        if done.counted or rank_and_size()[0] == 0:
            facts = {} if found is None else {"check": found.to_dict()}
            print(
                to_json(done.record | facts) if self.json else describe_recaptions(done, found),
                flush=True,
            )

    def _asking(self) -> Asking:
        from longclip_lab.recaptioning import Asking

        return Asking(self.prompt, self.max_new_tokens, self.temperature, self.top_p, self.seed)

    def _open(self) -> Any:
        if self.data == "folder":
            from longclip_lab.recaptioning import open_folder

            if self.root is None:
                raise LabError("Say where the pictures are with --root DIR, or give --data world.")
            return open_folder(self.root)
        from longclip_lab.data import open_data

        # What is missing is left out, counted and named; what is broken shows when it is read.
        return open_data(
            self.data,
            self.root,
            self.split,
            self.pairs,
            skip_bad=True,
            verify=False,
            progress=self.progress,
        )

    def _load(self) -> Captioner:
        from transformers.utils import logging

        from longclip_lab.recaptioning import load_captioner
        from longclip_lab.recaptioning.run import current_device

        if not self.progress:
            logging.disable_progress_bar()
        return load_captioner(
            self.model, self.captioner, self.name, self.revision, self.dtype, current_device()
        )

    def _checked(self, data: Any) -> Any:
        from longclip_lab.recaptioning import hallucinated, read_lines

        lines = read_lines(self.dst)
        scenes = [data.scenes[int(line.key)] for line in lines]
        found = hallucinated([line.caption for line in lines], scenes)
        atomic_write(self.dst / "hallucinated.json", to_json(found.to_dict(), indent=1) + "\n")
        return found


def describe_recaptions(done: Recaptioned, found: Hallucinated | None = None) -> str:
    """What a call has done, and what a check has found, for a terminal."""
    there = done.files - done.written
    head = f"{done.folder}: {done.written} files written, {there} were there"
    if not done.finished:
        return f"{head}; other processes still have to write theirs"
    record, counts = done.record, done.record["statistics"]
    settings = record["settings"]
    lines = [
        head,
        f"{settings['captioner']} ({settings['model']}, {settings['dtype']}) on "
        f"{settings['data']['name']}: {record['captions']:,} captions of "
        f"{record['pictures']:,} pictures",
    ]
    for reason, names in record["skipped"].items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        lines.append(f"  left out, {reason}: {len(names)} ({', '.join(names[:_NAMED])}{more})")
    lines += _told_counts(counts, settings["asking"]["max_new_tokens"]) if counts else []
    lines += _told_check(found) if found else []
    return "\n".join(lines)


def _told_counts(counts: dict[str, Any], limit: int) -> list[str]:
    over = ", ".join(f"{100 * share:.1f}% over {n}" for n, share in counts["longer_than"].items())
    return [
        f"  {counts['subcaptions_per_text']:8.2f} sub-captions a text",
        f"  {counts['tokens_per_text']:8.2f} tokens a text by BERT's tokenizer (LoTLIP's long "
        "captions: around 136)",
        f"  {counts['generated_per_text']:8.2f} tokens a text by the captioner's own",
        f"  of CLIP's tokens, start and end included: {over}",
        f"  {100 * counts['unfinished']:7.1f}% cut at {limit} tokens, "
        f"{100 * counts['empty']:.1f}% empty, {100 * counts['repeated']:.1f}% the same as "
        "another picture's of the same file",
    ]


def _told_check(found: Hallucinated) -> list[str]:
    lines = ["Compared with what the pictures show:", found.table().to_string(na_rep="")]
    most = ", ".join(list(found.unknown)[:_NAMED])
    return [*lines, f"The most frequent words that were not read: {most}"] if most else lines
