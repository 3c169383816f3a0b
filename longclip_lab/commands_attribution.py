"""What `longclip-lab` can do with attribution maps; see `longclip_lab.commands`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from longclip_lab.commands import DataName, load_model, say, say_skipped
from longclip_lab.errors import COUNT, SEED, LabError
from longclip_lab.files import atomic_write

RECORD, TABLE = "faithfulness.json", "faithfulness.md"


@dataclass(kw_only=True)
class Faithfulness:
    """Do the maps mean anything? Attribution methods against boxes, curves and chance."""

    model: Positional[str] = "tiny"
    """A bundled model (tiny, tiny-notail), an open_clip name, a checkpoint file or a saved
    folder."""
    pretrained: str | None = None
    """open_clip's tag, or a file of weights, for an open_clip name."""
    stretch: bool = False
    """Stretch the model's positions (KPS) first."""
    n: Annotated[int, COUNT] = 100
    """Pictures to ask about."""
    methods: tuple[str, ...] = ()
    """Names of the methods to test; all of them when none is given."""
    seed: Annotated[int, SEED] = 0
    """Of questions, random orders, shuffled weights and bootstrap."""
    data: DataName = "world"
    """The drawn world, or photographs with boxes in COCO's layout."""
    root: Path | None = None
    """Folder with {split}/*.jpg and annotations/instances_{split}.json."""
    split: str = "val2017"
    """Part of the data set."""
    json: bool = False
    """Print one JSON object instead of tables."""
    out: Path | None = None
    """Folder for faithfulness.json and the same as Markdown tables."""
    progress: bool = True
    """Show a progress bar."""

    def run(self) -> None:
        if self.data == "coco" and self.root is None:
            raise LabError("COCO is read from disk: say where with --root DIR.")
        if self.data == "world" and self.root is not None:
            raise LabError("The world is drawn, not read: --root goes with --data coco.")
        from longclip_lab import attribution, data, models
        from longclip_lab.attribution.tables import markdown

        boxed = data.coco_boxes(self.root, self.split) if self.data == "coco" else None
        clip = load_model(self.model, self.pretrained)
        clip = models.stretch(clip) if self.stretch else clip
        result = attribution.faithfulness(
            clip, self.n, self.methods or None, self.seed, boxed, progress=self.progress
        )
        if self.json:
            say(result.to_json().rstrip())
        else:
            say(markdown(result))
            for counts in result.facts["questions"].values():
                say_skipped(counts["skipped"])
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            atomic_write(self.out / RECORD, result.to_json())
            atomic_write(self.out / TABLE, markdown(result) + "\n")
            if not self.json:
                say(f"written to {self.out / RECORD} and {self.out / TABLE}")
