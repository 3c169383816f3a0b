"""What `longclip-lab` can do with model files; see `longclip_lab.commands`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from longclip_lab.commands import load_model, say
from longclip_lab.errors import SEED, LabError
from longclip_lab.files import to_json

FormatName = Literal["transformers", "diffusers", "openai", "longclip", "open_clip"]
Precision = Literal["float32", "float16", "bfloat16"]


@dataclass(kw_only=True)
class Convert:
    """Write a model in another library's format, and check that it is still the same model."""

    source: Positional[str]
    """What to convert: a checkpoint file, a folder, a hub id, an open_clip name, a bundled
    model."""
    out: Positional[Path]
    """Where to: a file for openai and longclip, otherwise a folder."""
    format: FormatName = "transformers"
    """transformers: CLIPModel with tokenizer and processor. diffusers: text_encoder/ and
    tokenizer/. openai, longclip: a file of tensors for the official codes. open_clip: a folder for
    local-dir:."""
    pretrained: str | None = None
    """open_clip's tag, or a file of weights, for an open_clip name."""
    subfolder: str | None = None
    """Take a text tower alone, from here in a pipeline of diffusers: text_encoder (the default for
    pipelines) or text_encoder_2."""
    dtype: Precision = "float32"
    """Round the weights to this."""
    overwrite: bool = False
    """Replace files that are there."""
    check: bool = True
    """Have the format's own library read it back, and compare features and logits."""
    seed: Annotated[int, SEED] = 0
    """Of the random pictures and texts, and of weights where none are given."""
    json: bool = False
    """Print one JSON object instead of sentences."""

    def run(self) -> None:
        from longclip_lab import models

        source = self._open()
        models.export(source, self.out, self.format, self.dtype, self.overwrite)
        facts = {"source": source.name, "out": str(self.out), "format": self.format}
        if not self.json:
            say(f"{source.name}: {source.context_length} positions, written to {self.out}")
        if self.check:
            try:
                parity = models.parity(source, self.out, self.format, self.dtype, self.seed)
            except LabError as error:
                raise LabError(f"{self.out} was written, but do not use it: {error}") from error
            facts["parity"] = parity.to_dict()
            if not self.json:
                say(str(parity))
        if self.json:
            say(to_json(facts))
        if self.check and not parity.ok:
            raise LabError(
                f"{self.out} was written, but is not the same model: features or logits differ by "
                f"{parity.difference:.1e}. Do not use it."
            )

    def _open(self) -> Any:
        from longclip_lab import models
        from longclip_lab.models.formats.folders import clip_kind

        folder = Path(self.source)
        alone = folder.is_dir() and clip_kind(folder) in ("clip_text_model", "diffusers")
        if self.subfolder or alone:
            if self.pretrained:
                raise LabError("--pretrained goes with an open_clip name, not with a text tower.")
            return models.load_text_tower(self.source, self.subfolder)
        return load_model(self.source, self.pretrained, self.seed)


@dataclass(kw_only=True)
class Inspect:
    """Explain a checkpoint: format, architecture, positions, types, sizes, what is missing."""

    path: Positional[Path]
    """A file of weights, or a folder of the lab, open_clip, transformers or diffusers."""
    original: Path | None = None
    """The CLIP that a longer one was made from: its positions are compared."""
    digest: bool = True
    """Compute the sha256 of the files and look for values that are not finite, for which they are
    read."""
    json: bool = False
    """Print one JSON object instead of the table."""

    def run(self) -> None:
        from longclip_lab import models

        found = models.inspect(self.path, self.original, self.digest)
        say(to_json(found.to_dict(), indent=1) if self.json else str(found))
