"""What `longclip-lab recaption` can do; see `longclip_lab.commands`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from longclip_lab.errors import COUNT, NOT_NEGATIVE, SEED, SHARE, LabError
from longclip_lab.files import atomic_write, to_json

if TYPE_CHECKING:
    from longclip_lab.recaptioning import Asking, Captioner, Hallucinated, Recaptioned

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
            from longclip_lab.recaptioning.joining import check_files

            check_files(self.data)
        asking = self._asking()
        data = self._open()
        captioner = self._load()
        from longclip_lab import recaptioning
        from longclip_lab.recaptioning.running import current_place

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
        if done.counted or current_place()[0] == 0:
            facts = {} if found is None else {"check": found.to_dict()}
            print(to_json(done.record | facts) if self.json else told(done, found), flush=True)

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
        from longclip_lab.recaptioning.running import current_device

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


def told(done: Recaptioned, found: Hallucinated | None = None) -> str:
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
