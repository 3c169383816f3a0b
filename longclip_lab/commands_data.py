"""What `longclip-lab data` can do; see `longclip_lab.commands`."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg, subcommand

from longclip_lab.commands import say
from longclip_lab.commands_data_shards import CheckShards, WriteShards
from longclip_lab.errors import LabError
from longclip_lab.files import to_json

if TYPE_CHECKING:
    import pandas as pd

    from longclip_lab.data import Protocol

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
    from longclip_lab.reproduction.paper_tables import published_table

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
