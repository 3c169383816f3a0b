"""What is mutated: small whole inputs of every kind, each made once, by the product itself."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from longclip_lab import data, evaluation, models, recaptioning, search, training, world
from longclip_lab.models.build import assemble, build_model, preprocess_card
from longclip_lab.models.formats.export import write_tokenizer
from longclip_lab.text import get_tokenizer

TESTS = Path(__file__).parents[1]
QUICK = {"batch_size": 4, "steps": 2, "warmup_steps": 1, "k": 2, "tensorboard": False}
SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "projection_dim": 16}
SMALL |= {"num_attention_heads": 1}
WORDS = {**SMALL, "vocab_size": 520, "bos_token_id": 518, "eos_token_id": 519}
PATCHES = {**SMALL, "image_size": 32, "patch_size": 16}
CAPTIONERS = ("IB", "SV", "LLA")


def builders(name: str) -> ModuleType:
    """The builders in another room's conftest, or in a file of it."""
    place = TESTS / name if name.endswith(".py") else TESTS / name / "conftest.py"
    spec = importlib.util.spec_from_file_location(
        f"builders_{name.replace('/', '_').removesuffix('.py')}", place
    )
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Corpus:
    """Folders below `home`, made when they are first asked for; nobody may change them."""

    def __init__(self, home: Path):
        self.home = home
        self.pairs = world.pairs(8, seed=5)
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()

    def write(self, name: str, content: Any) -> Path:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
        return path

    def lines(self, name: str, rows: list[Any]) -> Path:
        return self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def draw(self, name: str, number: int) -> str:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.pairs.images[number][:48, :64]).save(path)
        return path.name

    @cached_property
    def clip(self) -> models.Clip:
        """A CLIP with random weights and the world's words that takes a millisecond to run."""
        tokenizer = get_tokenizer("world")
        text = {"vocab_size": tokenizer.vocab_size, "width": 32, "heads": 2, "layers": 1}
        image = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}
        config = {"embed_dim": 16, "vision_cfg": image, "text_cfg": text}
        torch.manual_seed(1)
        model = build_model(config)
        card = preprocess_card(model)
        return assemble(model, config, tokenizer, card, "small", provenance="random")

    @cached_property
    def model(self) -> Path:
        return models.save(self.clip, self.home / "small")

    @cached_property
    def texts(self) -> Path:
        said = self.pairs.long[:4]
        self.write("texts/captions.txt", "\n".join(said) + "\n")
        self.lines("texts/lines.jsonl", [{"caption": one} for one in said])
        self.write("texts/list.json", [{"text": one, "id": i} for i, one in enumerate(said)])
        self.write("texts/coco.json", {"annotations": [{"caption": one} for one in said]})
        for part in ("IIW-400", "DCI_Test"):
            self.lines(f"texts/{part}/data.jsonl", [{"image/key": "a", "IIW": one} for one in said])
        return self.home / "texts"

    @cached_property
    def coco(self) -> Path:
        size, box = {"width": 64, "height": 48}, {"bbox": [4, 4, 20.5, 30], "area": 600.0}
        kinds = [{"id": 0, "name": "boat"}, {"id": 1, "name": "house"}]
        for split in ("val2017", "train2017"):
            names = [self.draw(f"coco/{split}/{i}.jpg", i) for i in range(4)]
            whole = {"images": [{"id": i, "file_name": n, **size} for i, n in enumerate(names)]}
            numbered = [{"id": i, "image_id": i % 4} for i in range(8)]
            texts = [{**one, "caption": self.pairs.short[one["id"]]} for one in numbered]
            things = [one | box | {"category_id": one["id"] % 2, "iscrowd": 0} for one in numbered]
            captions, boxes = {"annotations": texts}, {"annotations": things, "categories": kinds}
            self.write(f"coco/annotations/captions_{split}.json", whole | captions)
            self.write(f"coco/annotations/instances_{split}.json", whole | boxes)
        return self.home / "coco"

    @cached_property
    def tables(self) -> dict[str, Path]:
        """Folders of published layouts by the layout and the table's form: dreamlip.csv, .."""
        short, long = self.pairs.short, self.pairs.long
        rows = [
            {"Image Path": f"{i}.png", "raw_caption": short[i]}
            | {f"long{one}_captions": long[i] for one in CAPTIONERS}
            | {f"short{one}_captions": short[i] for one in CAPTIONERS}
            for i in range(4)
        ]
        turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": long[0]}]
        frame = pd.DataFrame(rows)
        self.write("dreamlip.json/captions.json", rows)
        self.lines("dreamlip.jsonl/captions.jsonl", rows)
        self.write("dreamlip.csv/captions.csv", frame.to_csv(index=False))
        self.write("dreamlip.tsv/captions.tsv", frame.to_csv(index=False, sep="\t"))
        frame.to_parquet(self.write("dreamlip.parquet/captions.parquet", ""))
        self.write("lotlip.csv/captions.csv", frame.iloc[:, :5].to_csv(index=False))
        told = [{"id": i, "image": f"{i}.png", "conversations": turns} for i in range(4)]
        self.write("sharegpt4v.json/captions.json", told)
        found = {path.parent.name: path.parent for path in self.home.glob("*.*/captions.*")}
        for name in found:
            for i in range(4):
                self.draw(f"{name}/{i}.png", i)
        return found

    @cached_property
    def benchmarks(self) -> dict[str, tuple[Any, Path]]:
        """By name: the protocol with small numbers, and its folder."""
        layouts = builders("data/benchmarks").LAYOUTS
        for layout in layouts:
            layout.write(self.home / "benchmarks" / layout.name, layout.entries)
        return {one.name: (one.protocol, self.home / "benchmarks" / one.name) for one in layouts}

    @cached_property
    def shards(self) -> Path:
        """Two shards of two pairs."""
        files = data.open_data("dreamlip", self.tables["dreamlip.csv"])
        data.write_shards(files, self.home / "shards", per_shard=2, tokenizer="world")
        return self.home / "shards"

    @cached_property
    def records(self) -> Path:
        """What `eval --out` leaves: records and stored features."""
        scorer = evaluation.Scorer(self.clip, features=self.home / "records" / "features")
        for task in evaluation.tasks(data.coco(self.coco)):
            evaluation.run(scorer, task, 77, self.home / "records")
        return self.home / "records"

    recipe = training.Recipe(checkpoint_every=1, **QUICK)
    locked = training.Recipe(objective="lit", lock_image=True, **QUICK)

    @cached_property
    def run(self) -> Path:
        """A run of two steps with both its checkpoints."""
        clip, pairs = models.stretch(self.clip), data.coco(self.coco)
        training.train(clip, self.recipe, pairs, self.home / "run", progress=False)
        shutil.rmtree(self.home / "run" / "model")
        return self.home / "run"

    @cached_property
    def features(self) -> Path:
        """What a locked tower has stored."""
        clip, where = models.add_corner_tokens(self.clip, 1), {"features": self.home / "features"}
        training.train(clip, self.locked, data.coco(self.coco), progress=False, **where)
        return self.home / "features"

    @cached_property
    def searched(self) -> Path:
        search.index(self.clip, self.coco / "val2017", self.home / "searched")
        return self.home / "searched"

    @cached_property
    def llava(self) -> Path:
        return builders("recaptioning").save_llava(self.home / "llava")

    @cached_property
    def pipeline(self) -> Path:
        """A tiny Stable Diffusion."""
        pipelines = builders("generation/pipelines.py")
        tokenizer = self.home / "clip-tokenizer"
        write_tokenizer(tokenizer, get_tokenizer("clip"), 77)
        made = pipelines.stable_diffusion(transformers.CLIPTokenizer.from_pretrained(tokenizer))
        made.save_pretrained(self.home / "pipeline")
        return self.home / "pipeline"

    @cached_property
    def captioner(self) -> recaptioning.Captioner:
        return recaptioning.load_captioner(self.llava)

    def describe(self, root: Path, to: Path) -> None:
        """Captions of a few words for the pictures of a folder, two to a file."""
        asking, pictures = recaptioning.Asking(max_new_tokens=4), recaptioning.open_folder(root)
        recaptioning.recaption(self.captioner, pictures, to, asking, root=root, per_file=2)

    @cached_property
    def recaptions(self) -> Path:
        self.describe(self.coco / "val2017", self.home / "recaptions")
        return self.home / "recaptions"

    @cached_property
    def weights(self) -> list[dict[str, torch.Tensor]]:
        """State dicts of OpenAI's, Long-CLIP's, LoTLIP's, transformers' and the lab's names."""
        text = {"vocab_size": 512, "width": 64, "heads": 1, "layers": 1}
        image = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
        config = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": image, "text_cfg": text}
        openai = dict(build_model(config).state_dict())
        tables = ("positional_embedding", "positional_embedding_res")
        long = openai | {name: torch.randn(248, 64) for name in tables}
        theirs = load_file(self.transformers / "model.safetensors")
        lotlip = load_file(TESTS / "golden" / "lotlip-text-tiny.safetensors")
        return [openai, long, lotlip, theirs, dict(self.clip.model.state_dict())]

    @cached_property
    def transformers(self) -> Path:
        folder = self.home / "transformers"
        parts = {"text_config": WORDS, "vision_config": PATCHES, "projection_dim": 16}
        transformers.CLIPModel(transformers.CLIPConfig(**parts)).save_pretrained(folder)
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        transformers.CLIPImageProcessor(**size).save_pretrained(folder)
        return folder

    @cached_property
    def folders(self) -> list[Path]:
        """Model folders: the lab's, transformers' (also a text tower alone), open_clip's."""
        config = transformers.CLIPTextConfig(**WORDS)
        transformers.CLIPTextModel(config).save_pretrained(self.home / "alone")
        clip = models.add_corner_tokens(models.stretch(self.clip), 1)
        corners = models.save(clip, self.home / "corners")
        card = self.clip.card
        facts = {"model_cfg": card["model_cfg"], "preprocess_cfg": card["preprocess"]}
        place = self.write("open_clip/open_clip_config.json", facts)
        weights = self.model / "model.safetensors"
        shutil.copy(weights, place.with_name("open_clip_model.safetensors"))
        return [self.model, corners, self.transformers, self.home / "alone", place.parent]
