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
from longclip_lab.models.assembly import assemble, build_model, preprocess_card
from longclip_lab.text import get_tokenizer

TESTS = Path(__file__).parents[1]
QUICK = {
    "batch_size": 4,
    "steps": 2,
    "warmup_steps": 1,
    "k": 2,
    "checkpoint_every": 1,
    "tensorboard": False,
}
CLIP_TEXT = {"vocab_size": 520, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
CLIP_TEXT |= {
    "num_attention_heads": 1,
    "bos_token_id": 518,
    "eos_token_id": 519,
    "projection_dim": 16,
}
CLIP_IMAGE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
CLIP_IMAGE |= {"image_size": 32, "patch_size": 16, "projection_dim": 16}


def builders(name: str) -> ModuleType:
    """The builders in another room's conftest."""
    place = TESTS / name / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"builders_of_{name.replace('/', '_')}", place)
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
        path.write_text(
            content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
        )
        return path

    def draw(self, name: str, number: int) -> str:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.pairs.images[number][:48, :64]).save(path)
        return path.name

    @cached_property
    def clip(self) -> models.Clip:
        """A CLIP with random weights and the world's words that takes a millisecond to run."""
        tokenizer = get_tokenizer("world")
        text = {
            "context_length": 77,
            "vocab_size": tokenizer.vocab_size,
            "width": 32,
            "heads": 2,
            "layers": 1,
        }
        image = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}
        config = {"embed_dim": 16, "vision_cfg": image, "text_cfg": text}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = build_model(config)
        return assemble(
            model, config, tokenizer, preprocess_card(model), "small", provenance="random"
        )

    @cached_property
    def model(self) -> Path:
        return models.save(self.clip, self.home / "small")

    @cached_property
    def texts(self) -> Path:
        lines = self.pairs.long[:4]
        self.write("texts/captions.txt", "\n".join(lines) + "\n")
        self.write(
            "texts/lines.jsonl", "".join(json.dumps({"caption": one}) + "\n" for one in lines)
        )
        self.write("texts/list.json", [{"text": one, "id": i} for i, one in enumerate(lines)])
        self.write("texts/coco.json", {"annotations": [{"caption": one} for one in lines]})
        for part in ("IIW-400", "DCI_Test"):
            rows = "".join(json.dumps({"image/key": "a", "IIW": one}) + "\n" for one in lines)
            self.write(f"texts/{part}/data.jsonl", rows)
        return self.home / "texts"

    @cached_property
    def coco(self) -> Path:
        for split in ("val2017", "train2017"):
            names = [self.draw(f"coco/{split}/{i}.jpg", i) for i in range(4)]
            images = [
                {"id": i, "file_name": name, "width": 64, "height": 48}
                for i, name in enumerate(names)
            ]
            texts = [{"id": i, "image_id": i % 4, "caption": self.pairs.short[i]} for i in range(8)]
            boxes = [
                {"id": i, "image_id": i % 4, "category_id": i % 2, "bbox": [4, 4, 20.5, 30], "area": 600.0, "iscrowd": i // 7}
                for i in range(8)
            ]  # fmt: skip
            kinds = [{"id": 0, "name": "boat"}, {"id": 1, "name": "house"}]
            self.write(
                f"coco/annotations/captions_{split}.json", {"images": images, "annotations": texts}
            )
            about = {"images": images, "annotations": boxes, "categories": kinds}
            self.write(f"coco/annotations/instances_{split}.json", about)
        return self.home / "coco"

    @cached_property
    def tables(self) -> dict[str, Path]:
        """Folders of published layouts by the layout and the table's form: dreamlip.csv, .."""
        who = ("IB", "SV", "LLA")
        rows = [
            {"Image Path": f"{i}.png", "raw_caption": self.pairs.short[i]}
            | {f"short{one}_captions": self.pairs.short[i] for one in who}
            | {f"long{one}_captions": self.pairs.long[i] for one in who}
            for i in range(4)
        ]
        frame = pd.DataFrame(rows)
        found = {f"dreamlip{suffix}": self.home / f"dreamlip{suffix}" for suffix in
                 (".csv", ".tsv", ".json", ".jsonl", ".parquet")} | {"lotlip.csv": self.home / "lotlip.csv"}  # fmt: skip
        found["sharegpt4v.json"] = self.home / "sharegpt4v.json"
        for name, folder in found.items():
            for i in range(4):
                self.draw(f"{folder.name}/{i}.png", i)
            path = folder / f"captions{Path(name).suffix}"
            if name == "sharegpt4v.json":
                said = [("human", "<image>\nWhat is it?"), ("gpt", self.pairs.long[0])]
                turns = [{"from": one, "value": value} for one, value in said]
                self.write(
                    f"{name}/{path.name}",
                    [{"id": i, "image": f"{i}.png", "conversations": turns} for i in range(4)],
                )
            elif path.suffix == ".parquet":
                frame.to_parquet(path)
            elif path.suffix == ".json":
                self.write(f"{name}/{path.name}", rows)
            elif path.suffix == ".jsonl":
                self.write(f"{name}/{path.name}", "".join(json.dumps(row) + "\n" for row in rows))
            else:
                some = (
                    frame.drop(columns=[c for c in frame if c.startswith("short")])
                    if "lotlip" in name
                    else frame
                )
                some.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
        return found

    @cached_property
    def benchmarks(self) -> dict[str, tuple[Any, Path]]:
        """By name: the protocol with small numbers, and its folder."""
        found = {}
        for layout in builders("data/benchmarks").LAYOUTS:
            layout.write(self.home / "benchmarks" / layout.name, layout.entries)
            found[layout.name] = (layout.protocol, self.home / "benchmarks" / layout.name)
        return found

    @cached_property
    def shards(self) -> Path:
        """Two shards of three pairs, of files; and what they were made of is `coco`."""
        files = data.open_data("dreamlip", self.tables["dreamlip.csv"])
        data.write_shards(files, self.home / "shards", per_shard=2, tokenizer="world")
        return self.home / "shards"

    @cached_property
    def records(self) -> Path:
        """What `eval --out` leaves: records and stored features."""
        pairs = data.coco(self.coco)
        folder = self.home / "records"
        scorer = evaluation.Scorer(self.clip, features=folder / "features")
        for task in evaluation.protocols.tasks(pairs):
            evaluation.run(scorer, task, 77, folder)
        return folder

    @cached_property
    def recipe(self) -> training.Recipe:
        return training.recipe_for("longclip").__class__(name="longclip", **QUICK)

    @cached_property
    def run(self) -> Path:
        """A run of two steps that keeps both its checkpoints, and the features of a locked tower."""
        long = models.stretch(self.clip)
        training.train(long, self.recipe, data.coco(self.coco), self.home / "run", progress=False)
        return self.home / "run"

    @cached_property
    def features(self) -> Path:
        clip = models.add_corner_tokens(self.clip, 1)
        training.train(
            clip, self.locked, data.coco(self.coco), features=self.home / "features", progress=False
        )
        return self.home / "features"

    @cached_property
    def locked(self) -> training.Recipe:
        return training.recipe_for("lit").__class__(
            objective="lit", lock_image=True, pairs=4, **QUICK
        )

    @cached_property
    def searched(self) -> Path:
        search.index(self.clip, self.coco / "val2017", self.home / "searched")
        return self.home / "searched"

    @cached_property
    def captioner(self) -> recaptioning.Captioner:
        return recaptioning.load_captioner(self.llava)

    @cached_property
    def llava(self) -> Path:
        return builders("recaptioning").save_llava(self.home / "llava")

    @cached_property
    def recaptions(self) -> Path:
        asking = recaptioning.Asking(max_new_tokens=4)
        pictures = recaptioning.open_folder(self.coco / "val2017")
        where = {"root": self.coco / "val2017", "per_file": 2}
        recaptioning.recaption(self.captioner, pictures, self.home / "recaptions", asking, **where)
        return self.home / "recaptions"

    @cached_property
    def weights(self) -> list[dict[str, torch.Tensor]]:
        """State dicts of OpenAI's, Long-CLIP's, LoTLIP's and transformers' names."""
        golden = TESTS / "golden"
        text = {"context_length": 77, "vocab_size": 512, "width": 64, "heads": 1, "layers": 1}
        image = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
        made = build_model(
            {"embed_dim": 16, "quick_gelu": True, "vision_cfg": image, "text_cfg": text}
        )
        long = dict(made.state_dict())
        long["positional_embedding"] = torch.randn(248, 64)
        long["positional_embedding_res"] = torch.randn(248, 64)
        theirs = load_file(self.transformers / "model.safetensors")
        lotlip = load_file(golden / "lotlip-text-tiny.safetensors")
        return [dict(made.state_dict()), long, lotlip, theirs, dict(self.clip.model.state_dict())]

    @cached_property
    def transformers(self) -> Path:
        folder = self.home / "transformers"
        config = transformers.CLIPConfig(
            text_config=CLIP_TEXT, vision_config=CLIP_IMAGE, projection_dim=16
        )
        with torch.random.fork_rng(devices=[]):
            transformers.CLIPModel(config).save_pretrained(folder)
        facts = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        transformers.CLIPImageProcessor(**facts).save_pretrained(folder)
        return folder

    @cached_property
    def folders(self) -> list[Path]:
        """Model folders: the lab's, transformers' (also a text tower alone), open_clip's."""
        alone = self.home / "alone"
        with torch.random.fork_rng(devices=[]):
            transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_TEXT)).save_pretrained(
                alone
            )
        corners = models.save(
            models.add_corner_tokens(models.stretch(self.clip), 1), self.home / "corners"
        )
        config = {
            "model_cfg": self.clip.card["model_cfg"],
            "preprocess_cfg": self.clip.card["preprocess"],
        }
        place = self.write("open_clip/open_clip_config.json", config)
        shutil.copy(
            self.model / "model.safetensors", place.with_name("open_clip_model.safetensors")
        )
        return [self.model, corners, self.transformers, alone, place.parent]
