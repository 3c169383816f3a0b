"""What is fuzzed: each target changes a copy of an input and says what is called with it.

A target takes the corpus, a `Random`, the folder `given` (the user's files: whatever is called must
leave them as they are) and `made` (where it may write), and returns a command line or a function.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import mutators
import numpy as np
from corpus import QUICK, Corpus
from mutators import NAMES, ODD_TEXTS

from longclip_lab import cli, data, models, recaptioning, search, text, training

Call = list[Any] | Callable[[], Any]
Target = Callable[[Corpus, Random, Path, Path], Call]
METHODS = ("longclip", "lotlip", "lit", "clip", "siglip", "filip", "laclip", "register")


def copied(source: Path, to: Path) -> Path:
    return shutil.copytree(source, to, dirs_exist_ok=True)


def finite(values: Any) -> None:
    """What is given out as numbers must be numbers."""
    assert np.isfinite(np.asarray(values)).all(), "a result that is not finite"


def inside(root: Path, paths: list[Any]) -> None:
    assert all(root in Path(path).resolve().parents for path in paths), "a path leads out"


def images(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Pictures of all kinds, in every room that reads some."""
    for _ in range(rng.choice([1, 1, 3])):
        (given / mutators.picture_name(rng)).write_bytes(mutators.picture(rng))
    shutil.copy(corpus.coco / "val2017" / "0.jpg", given / "good.jpg")
    paths = sorted(given.iterdir())

    def encode() -> None:
        finite(models.encode_images(corpus.clip, paths).numpy())

    def find() -> None:
        finite(search.index(corpus.clip, given, made / "cache").search("a boat").scores)

    def write() -> None:
        texts = ["a boat"] * len(paths)
        pairs = data.Pairs("files", paths, texts, texts, [[one] for one in texts])
        shards = data.write_shards(pairs, made / "shards", skip_bad=True, tokenizer="world")
        checked = data.check_shards(made / "shards")
        assert checked.ok, f"shards as written are broken: {checked}"
        assert len(shards) + sum(map(len, shards.skipped.values())) == len(paths), "one is lost"

    describe = lambda: corpus.describe(given, made / "captions")  # noqa: E731
    return rng.choice([encode, encode, find, find, find, write, write, describe])


def texts(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Files of texts, and odd texts themselves."""
    odd = [rng.choice([*ODD_TEXTS, *corpus.pairs.long]) for _ in range(3)]
    tokenizer = rng.choice(["clip", "bert", "world"])
    if rng.random() < 0.5:
        mutators.folder(rng, copied(corpus.texts, given))
        path = rng.choice([given, *sorted(given.glob("*.*"))])
        options = rng.choice([[], ["--json"], ["--key", rng.choice(["text", "", "id"])]])
        return ["tokens", path, "--tokenizer", tokenizer, *options]

    def count() -> None:
        joined = rng.choice([" ", ". ", "\n"]).join(odd)
        text.split_subcaptions(joined)
        text.get_tokenizer(rng.choice(["clip", "bert", "lotlip", "world"])).encode(joined)
        text.text_statistics([joined, *odd], tokenizer)

    def encode() -> None:
        finite(models.encode_texts(corpus.clip, odd).features_ND.numpy())

    def find() -> None:
        index = search.index(corpus.clip, corpus.coco / "val2017", corpus.searched)
        finite(index.search(" ".join(odd), explain=True).scores)

    return rng.choice([count, count, encode, find])


def tables(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Published layouts of long captions: CSV, TSV, JSON, JSON lines, Parquet."""
    name = rng.choice(sorted(corpus.tables))
    mutators.any_file(rng, copied(corpus.tables[name], given) / f"captions{Path(name).suffix}")
    layout, skip = Path(name).stem, rng.random() < 0.5

    def read() -> None:
        pairs = data.open_data(layout, given, skip_bad=skip)
        assert len(pairs) == len(pairs.long) == len(pairs.short) == len(pairs.captioners)
        inside(given, pairs.images)
        assert all(one.strip() for one in pairs.long), "no captions"

    shard = ["data", "shard", given, made / "shards", "--data", layout, "--no-progress"]
    stats = ["data", "stats", layout, "--root", given, "--no-progress", "--json"]
    return rng.choice([read] * 8 + [stats, shard + ["--skip-bad"] * skip])


def captions(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """COCO's captions and boxes."""
    kind, skip = rng.choice(["captions", "instances"]), rng.random() < 0.5
    path = copied(corpus.coco, given) / "annotations" / f"{kind}_val2017.json"
    mutators.any_file(rng, path)

    def boxes() -> None:
        boxed = data.coco_boxes(given)
        inside(given, boxed.images)
        finite([box for things in boxed.things for thing in things for box in thing.boxes])

    return (
        boxes
        if kind == "instances"
        else lambda: inside(given, data.coco(given, "val2017", skip).images)
    )


def benchmarks(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Benchmarks on disk, in their published layouts."""
    name = rng.choice(sorted(corpus.benchmarks))
    protocol, folder = corpus.benchmarks[name]
    files = [path for path in sorted(copied(folder, given).rglob("*")) if path.is_file()]
    lists = [path for path in files if path.suffix != ".jpg"]
    mutators.any_file(rng, rng.choice(lists if rng.random() < 0.9 else files))
    partial, options = rng.random() < 0.6, ["--root", given, "--no-progress", "--json"]
    opened = lambda: data.open_benchmark(protocol, given, partial)  # noqa: E731
    verified = lambda: str(data.verify(protocol, given))  # noqa: E731
    lines = [["data", "verify", name, *options], ["data", "stats", name, *options]]
    return rng.choice([opened, opened, opened, verified, *lines])


def records(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Records of evaluations, read as a table or gone on with."""
    if rng.random() < 0.6:
        mutators.folder(rng, copied(corpus.records, given), "*.json")
        options = rng.choice([[], ["--no-published"], ["--out", made / "t"]])
        return ["table", given, "--format", rng.choice(["markdown", "csv", "html"]), *options]
    mutators.folder(rng, copied(corpus.records, made), rng.choice(["*.json", "*"]))
    line = ["eval", corpus.model, "--data", "coco", "--root", corpus.coco, "--no-progress"]
    return [*line, "--out", made, *rng.choice([[], ["--skip-existing"]])]


def weights(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Files of weights."""
    suffix, content = mutators.checkpoint(rng, rng.choice(corpus.weights))
    path = given / f"model{suffix}"
    path.write_bytes(content)
    return _opened(rng, path, made)


def folders(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Folders of models: their configurations, tokenizers and weights."""
    mutators.folder(
        rng, copied(rng.choice(corpus.folders), given), rng.choice(["*.json"] * 3 + ["*"])
    )
    return _opened(rng, given, made)


def _opened(rng: Random, path: Path, made: Path) -> Call:
    def load() -> None:
        clip = models.load(path)
        grey_1HW3 = np.full((1, clip.image_size, clip.image_size, 3), 7, np.uint8)
        finite(models.encode_images(clip, grey_1HW3).numpy())

    form = rng.choice(["transformers", "openai", "open_clip", "longclip", "diffusers"])
    convert = ["convert", path, made / "out", "--format", form, "--no-check"]
    look = ["inspect", path, *rng.choice([[], ["--json"], ["--original", path]])]
    return rng.choice([load, load, look, convert])


def shards(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Shards: tars, sidecars, the manifest; read, checked, trained on, gone on with."""
    mutators.folder(rng, copied(corpus.shards, given))

    def read() -> None:
        found = data.open_shards(given)
        for number in range(len(found.shards)):
            list(found.samples(number))

    quick = QUICK | {"batch_size": 2, "num_streams": 1, "steps": 1, "warmup_steps": 0}
    model = ["--model", corpus.model, "--data", "shards", "--root", given]
    train = ["train", "longclip", *model, *_options(quick)]
    again = ["data", "shard", given, made / "again", "--data", "shards", "--no-progress"]
    check = ["data", "check", given, "--no-progress", "--json"]
    return rng.choice([read, read, check, check, again, train])


def _options(values: dict[str, Any]) -> list[str]:
    parts = ["--no-progress"]
    for name, value in values.items():
        option = name.replace("_", "-")
        parts += [f"--no-{option}"] if value is False else [f"--{option}", str(value)]
    return parts


def stores(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Features that were stored by search and by a locked tower."""
    if rng.random() < 0.3:
        mutators.folder(rng, copied(corpus.features, made / "features"))
        clip, where = models.add_corner_tokens(corpus.clip, 1), {"features": made / "features"}
        coco = data.coco(corpus.coco)
        return lambda: training.train(clip, corpus.locked, coco, progress=False, **where)
    mutators.folder(rng, copied(corpus.searched, made / "cache"))

    def find() -> None:
        pictures = corpus.coco / "val2017"
        found = search.index(corpus.clip, pictures, made / "cache").features_ND
        known = search.index(corpus.clip, pictures, corpus.searched).features_ND
        assert np.allclose(found, known), "features of other pictures"

    return find


def runs(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Folders of training runs, gone on with."""
    run = copied(corpus.run, made / "run")
    mutators.folder(rng, run, rng.choice(["*.json", "*.jsonl", "*", "*"]))
    clip, coco, resume = models.stretch(corpus.clip), data.coco(corpus.coco), rng.random() < 0.9
    return lambda: training.train(clip, corpus.recipe, coco, run, resume, progress=False)


def recaptions(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Folders of captions that `recaption` wrote: joined, exported, gone on with."""
    if rng.random() < 0.3:
        mutators.folder(rng, copied(corpus.recaptions, made / "captions"))
        return lambda: corpus.describe(corpus.coco / "val2017", made / "captions")
    mutators.folder(rng, copied(corpus.recaptions, given))
    coco = data.coco(corpus.coco)
    join = lambda: recaptioning.with_captions(coco, given)  # noqa: E731
    export = lambda: recaptioning.to_sharegpt4v(given, made / "captions.json")  # noqa: E731
    return rng.choice([join, export])


def recipes(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Recipes of senseless numbers."""
    scale = rng.choice(["tiny", "lab", "paper"])
    recipe = training.recipe_for(rng.choice(METHODS), scale)
    names = [field.name for field in dataclasses.fields(recipe)]
    odd = [None, True, 0, -1, 1, 2, 0.5, 1.5, math.nan, math.inf, 10**30, "", "3", (), [2, 3], {}]
    changes = {name: rng.choice(odd) for name in rng.sample(names, rng.choice([1, 1, 2]))}
    pairs = rng.choice([1_000_000, 8, 0, -1])

    def make() -> None:
        changed = dataclasses.replace(recipe, **changes)
        total = changed.total_steps(pairs)
        finite([changed.learning_rate_at(step, total) for step in (0, 1, total - 1)])

    return make


COSTLY = ("dry-run", "workers", "processes", "image-tower", "text-tower", "scale")
"""Options that start processes or large models: given nonsense only."""
OUTPUTS = ("out", "arms", "features", "html", "cache", "sharegpt4v")
"""Options that say where to write: never into what is given."""
SIZES = ("pairs", "n", "steps", "epochs", "batch-size", "max-new-tokens", "seeds", "top", "ratio")
"""What so much of is done or held: no huge numbers."""
NUMBERS = ["0", "-1", "1", "2", "0.5", "-0.0", "nan", "inf", "", "x", "1e3", "1_0", "٣", "1 2", "-"]
HUGE = ["1e308", "-inf", str(2**31), str(2**63), "9" * 5000, "1e-320"]
_OPTION = re.compile(r"^ *--([a-z][\w-]*)(?:, --no-[\w-]+| +(\S+))", re.MULTILINE)


def command_lines(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Every command with up to three odd options."""
    lines = usual(corpus, rng, given, made)
    name = rng.choice(sorted(lines))
    line, options = [*name.split(), *lines[name]()], offered(name)
    for option in rng.sample(sorted(options), min(len(options), rng.choice([0, 1, 1, 1, 2, 3]))):
        if option in COSTLY:
            line += [f"--{option}", rng.choice(["0", "-1", "nan", "", "x", "1.5"])]
        elif not options[option]:
            line += rng.choice([[f"--{option}"], [f"--no-{option}"], [f"--{option}", "maybe"]])
        else:
            known = re.findall(r"[\w-]+", "".join(re.findall(r"{.*?}", options[option])))
            out = made / ("o.md" if name == "table" else "o.json")
            own = [] if option in OUTPUTS else [given, given / "0.jpg"]
            paths = [*own, made, made / "a\nb", made / ("a" * 300), "/dev/null/x"]
            others = [] if option in SIZES else [*HUGE, *paths, out, *known, *known]
            line += [f"--{option}", rng.choice([*NUMBERS, *NAMES, *others])]
    if rng.random() < 0.1:
        line[rng.randrange(len(line))] = rng.choice([*NUMBERS, *NAMES, given, made / "none"])
    return line


@functools.cache
def offered(name: str) -> dict[str, str]:
    """The options of a command with the type that its help shows; "" for yes or no."""
    said, width = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "400"
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        cli.main([*name.split(), "--help"])
    os.environ.pop("COLUMNS")
    if width is not None:
        os.environ["COLUMNS"] = width
    return dict(_OPTION.findall(said.getvalue()))


def usual(corpus: Corpus, rng: Random, given: Path, made: Path) -> dict[str, Callable[[], Call]]:
    """Every command but the quickstart, which takes minutes: arguments that end well, and soon."""
    quiet, method = ["--no-progress"], rng.choice(METHODS)
    coco = ["--data", "coco", "--root", corpus.coco, *quiet]
    which, folder = rng.choice(sorted(corpus.benchmarks)), rng.choice(corpus.folders)
    quick = _options(QUICK | {"steps": 1, "warmup_steps": 0, "pairs": 4})
    attributed = ["--methods", rng.choice(["attention", "gradcam", "occlusion"])]
    bench = lambda: [which, "--root", copied(corpus.benchmarks[which][1], given)]  # noqa: E731
    pictures = lambda: copied(corpus.coco / "val2017", given)  # noqa: E731
    return {
        "tokens": lambda: [copied(corpus.texts, given) / "captions.txt"],
        "probe": lambda: [corpus.model, "--pairs", 2, *rng.choice([quiet, coco])],
        "train": lambda: [method, "--model", corpus.model, *quick, *rng.choice([[], coco])],
        "eval": lambda: [corpus.model, *coco],
        "table": lambda: [copied(corpus.records, given)],
        "data list": lambda: rng.choice([[], [which]]),
        "data verify": lambda: bench() + quiet,
        "data stats": lambda: bench() + quiet,
        "data shard": lambda: [copied(corpus.coco, given), made / "to", *coco[:2], "--pairs", 4],
        "data check": lambda: [copied(corpus.shards, given), *quiet],
        "convert": lambda: [copied(folder, given), made / "out", "--no-check"],
        "inspect": lambda: [copied(folder, given)],
        "faithfulness": lambda: [corpus.model, "--n", 1, *attributed, *quiet],
        "reproduce": lambda: ["--list", "--out", made, "--arms", made],
        "search": lambda: [pictures(), "a red boat", "--model", corpus.model, *quiet],
        "generate": lambda: ["a red boat, " * 40, "--pipeline", corpus.pipeline, "--steps", 1,
                             *quiet],
        "plan": lambda: [method],
        "recaption": lambda: [corpus.llava, made / "to", "--root", pictures(), "--pairs", 2,
                              "--max-new-tokens", 1, *quiet],
        "version": list,
    }  # fmt: skip


TARGETS: dict[str, tuple[Target, float]] = {
    "images": (images, 4), "texts": (texts, 1.5), "tables": (tables, 2.5),
    "captions": (captions, 2), "benchmarks": (benchmarks, 2.5), "records": (records, 1.5),
    "weights": (weights, 3), "folders": (folders, 2.5), "shards": (shards, 2),
    "stores": (stores, 1), "runs": (runs, 1.5), "recaptions": (recaptions, 1),
    "recipes": (recipes, 0.5), "commands": (command_lines, 4),
}  # fmt: skip
"""By name, with the share of the time that each gets."""
