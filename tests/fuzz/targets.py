"""What is fuzzed: each target changes a copy of an input and says what is called with it.

A target takes the corpus, a `Random`, the folder `given` (the user's files: whatever is called must
leave them as they are) and `made` (where it may write), and returns a command line or a function.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import typing
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import mutators
import numpy as np
from corpus import QUICK, Corpus
from tyro.conf import Positional

from longclip_lab import (
    commands,
    commands_attribution,
    commands_data,
    commands_data_shards,
    commands_evaluation,
    commands_models,
    commands_plan,
    commands_recaption,
    commands_reproduction,
    commands_search,
    commands_training,
    data,
    models,
    recaptioning,
    search,
    text,
    training,
)  # fmt: skip

Call = list[Any] | Callable[[], Any]
Target = Callable[[Corpus, Random, Path, Path], Call]


def copied(source: Path, to: Path) -> Path:
    shutil.copytree(source, to, dirs_exist_ok=True)
    return to


def finite(values: Any) -> None:
    """What is given out as numbers must be numbers."""
    assert np.isfinite(np.asarray(values)).all(), "a result that is not finite"


def images(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Pictures of all kinds, in every room that reads some."""
    names = {mutators.picture_name(rng) for _ in range(rng.choice([1, 1, 3]))}
    for name in sorted(names):
        (given / name).write_bytes(mutators.picture(rng))
    corpus.draw("plain/good.png", 0)
    shutil.copy(corpus.home / "plain/good.png", given / "good.png")
    paths = sorted(given.iterdir())

    def encode() -> None:
        finite(models.encode_images(corpus.clip, paths).numpy())

    def find() -> None:
        found = search.index(corpus.clip, given, made / "cache")
        finite(found.search("a boat").scores)

    def describe() -> None:
        where = {"root": given, "per_file": 2}
        asking = recaptioning.Asking(max_new_tokens=1)
        pictures = recaptioning.open_folder(given)
        recaptioning.recaption(corpus.captioner, pictures, made / "captions", asking, **where)

    def write() -> None:
        texts = ["a boat"] * len(paths)
        pairs = data.Pairs("files", paths, texts, texts, [[one] for one in texts])
        shards = data.write_shards(pairs, made / "shards", skip_bad=True, tokenizer="world")
        checked = data.check_shards(made / "shards")
        assert checked.ok, f"shards as written are broken: {checked}"
        assert len(shards) + sum(map(len, shards.skipped.values())) == len(paths)

    return rng.choice([encode, encode, find, find, find, describe, write, write])


def texts(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Files of texts, and odd texts themselves."""
    odd = [rng.choice([*mutators.ODD_TEXTS, rng.choice(corpus.pairs.long)]) for _ in range(3)]
    if rng.random() < 0.5:
        where = copied(corpus.texts, given)
        mutators.folder(rng, where)
        path = rng.choice([where, *sorted(where.glob("*.*"))])
        options = rng.choice([[], ["--json"], ["--key", rng.choice(["text", "", "id"])]])
        which = rng.choice(["clip", "bert", "world"])
        return ["tokens", path, "--tokenizer", which, *options]

    def say() -> None:
        joined = rng.choice([" ", ". ", "\n"]).join(odd)
        text.split_subcaptions(joined)
        for name in ("clip", "bert", "lotlip", "world"):
            text.get_tokenizer(name).encode(joined)
        text.text_statistics([joined, *odd], rng.choice(["clip", "bert", "world"]))

    def encode() -> None:
        finite(models.encode_texts(corpus.clip, odd).features_ND.numpy())

    def find() -> None:
        index = search.index(corpus.clip, corpus.coco / "val2017", corpus.searched)
        finite(index.search(" ".join(odd), explain=True).scores)

    return rng.choice([say, say, encode, find])


def tables(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Published layouts of long captions: CSV, TSV, JSON, JSON lines, Parquet."""
    name = rng.choice(sorted(corpus.tables))
    copied(corpus.tables[name], given)
    mutators.any_file(rng, given / f"captions{Path(name).suffix}")
    layout = Path(name).stem
    skip = rng.random() < 0.5
    if rng.random() < 0.1:
        return ["data", "stats", layout, "--root", given, "--no-progress", "--json"]
    if rng.random() < 0.1:
        more = ["--skip-bad"] if skip else []
        return ["data", "shard", given, made / "shards", "--data", layout, "--no-progress", *more]

    def read() -> None:
        pairs = data.open_data(layout, given, skip_bad=skip, verify=rng.random() < 0.3)
        assert len(pairs) == len(pairs.long) == len(pairs.short) == len(pairs.captioners)
        for path, long in zip(pairs.images, pairs.long, strict=True):
            assert given in Path(path).resolve().parents, f"{path} is outside"
            assert long.strip() and "What is it?" not in long, f"{long!r} is no caption"

    return read


def captions(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """COCO's captions and boxes."""
    copied(corpus.coco, given)
    kind = rng.choice(["captions", "instances"])
    mutators.any_file(rng, given / "annotations" / f"{kind}_val2017.json")
    if kind == "captions":
        skip = rng.random() < 0.5

        def read() -> None:
            pairs = data.coco(given, skip_bad=skip)
            assert all(given in Path(path).resolve().parents for path in pairs.images)

    else:

        def read() -> None:
            boxed = data.coco_boxes(given)
            assert all(given in Path(path).resolve().parents for path in boxed.images)
            finite([box for things in boxed.things for thing in things for box in thing.boxes])

    return read


def benchmarks(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Benchmarks on disk, in their published layouts."""
    name = rng.choice(sorted(corpus.benchmarks))
    protocol, folder = corpus.benchmarks[name]
    copied(folder, given)
    lists = [path for path in sorted(given.rglob("*")) if path.is_file() and path.suffix != ".jpg"]
    if rng.random() < 0.8:
        mutators.any_file(rng, rng.choice(lists))
    else:
        mutators.folder(rng, given)
    partial = rng.random() < 0.6
    return rng.choice([
        lambda: data.open_benchmark(protocol, given, partial), lambda: data.verify(protocol, given),
        lambda: data.open_benchmark(protocol, given, partial),
        ["data", "verify", name, "--root", given, "--no-progress", "--json"],
        ["data", "stats", name, "--root", given, "--no-progress"],
    ])  # fmt: skip


def records(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Records of evaluations, read as a table or gone on with."""
    if rng.random() < 0.6:
        copied(corpus.records, given)
        mutators.folder(rng, given, "*.json")
        form = rng.choice(["markdown", "csv", "html"])
        return [
            "table",
            given,
            "--format",
            form,
            *rng.choice([[], ["--no-published"], ["--out", made / "t"]]),
        ]
    copied(corpus.records, made)
    mutators.folder(rng, made, rng.choice(["*.json", "*"]))
    model = [corpus.model, "--data", "coco", "--root", corpus.coco, "--no-progress"]
    return ["eval", *model, "--out", made, *rng.choice([[], ["--skip-existing"]])]


def weights(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Files of weights."""
    suffix, content = mutators.checkpoint(rng, rng.choice(corpus.weights))
    path = given / f"model{suffix}"
    path.write_bytes(content)
    return rng.choice([lambda: _run(models.load(path)), lambda: _run(models.load(path)), ["inspect", path, "--json"],
                       lambda: str(models.inspect(path)), ["inspect", path, "--original", path],
                       ["convert", path, made / "out", "--format", "longclip", "--no-check"]])  # fmt: skip


def _run(clip: Any) -> None:
    """A model that was loaded must be one that runs; what is not finite is said then."""
    size = clip.image_size
    finite(models.encode_images(clip, np.full((1, size, size, 3), 7, np.uint8)).numpy())


def folders(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Folders of models: their configurations, tokenizers and weights."""
    folder = copied(rng.choice(corpus.folders), given)
    mutators.folder(rng, folder, rng.choice(["*.json", "*.json", "*.json", "*"]))
    target = rng.choice(["transformers", "openai", "open_clip", "longclip"])
    return rng.choice([lambda: _run(models.load(given)), lambda: _run(models.load(given)),
                       ["inspect", given], ["inspect", given, "--json"],
                       ["convert", given, made / "out", "--format", target, "--no-check"]])  # fmt: skip


def shards(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Shards: tars, sidecars, the manifest; read, checked, trained on, gone on with."""
    copied(corpus.shards, given)
    mutators.folder(rng, given)

    def read() -> None:
        found = data.open_shards(given)
        for number in range(len(found.shards)):
            list(found.samples(number))

    model = ["--model", corpus.model, "--data", "shards", "--root", given, "--no-tensorboard"]
    train = [
        "train",
        "longclip",
        *model,
        *_options(QUICK | {"batch_size": 2, "lanes": 1, "steps": 1}),
    ]
    again = ["data", "shard", given, made / "again", "--data", "shards", "--no-progress"]
    return rng.choice(
        [read, read, ["data", "check", given, "--no-progress", "--json"], again, train]
    )


def _options(values: dict[str, Any]) -> list[str]:
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in values.items()]
    flags = [f"--no-{name[2:]}" for name, value in pairs if value is False]
    return [
        *(str(part) for pair in pairs if pair[1] is not False for part in pair),
        *flags,
        "--no-progress",
    ]


def stores(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Features that were stored by search and by a locked tower."""
    if rng.random() < 0.7:
        copied(corpus.searched, made / "cache")
        mutators.folder(rng, made / "cache")

        def find() -> None:
            found = search.index(corpus.clip, corpus.coco / "val2017", made / "cache")
            finite(found.search("a boat").scores)
            known = search.index(corpus.clip, corpus.coco / "val2017", corpus.searched)
            assert np.allclose(found.features_ND, known.features_ND), "features of other pictures"

        return find
    copied(corpus.features, made / "features")
    mutators.folder(rng, made / "features")
    clip = models.add_corner_tokens(corpus.clip, 1)
    where = {"features": made / "features", "progress": False}
    return lambda: training.train(clip, corpus.locked, data.coco(corpus.coco), **where)


def runs(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Folders of training runs, gone on with."""
    copied(corpus.run, made / "run")
    shutil.rmtree(made / "run" / "model")
    kept = rng.choice(["*.json", "*.jsonl", "*", "*"])
    mutators.folder(rng, made / "run", kept)
    clip, resume = models.stretch(corpus.clip), rng.random() < 0.9
    coco = data.coco(corpus.coco)
    return lambda: training.train(clip, corpus.recipe, coco, made / "run", resume, progress=False)


def recaptions(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Folders of captions that `recaption` wrote: joined, exported, gone on with."""
    asking = recaptioning.Asking(max_new_tokens=4)
    if rng.random() < 0.3:
        copied(corpus.recaptions, made / "captions")
        mutators.folder(rng, made / "captions")
        pictures = recaptioning.open_folder(corpus.coco / "val2017")
        where = {"root": corpus.coco / "val2017", "per_file": 2}
        return lambda: recaptioning.recaption(
            corpus.captioner, pictures, made / "captions", asking, **where
        )
    copied(corpus.recaptions, given)
    mutators.folder(rng, given)
    coco = data.coco(corpus.coco)
    return rng.choice([
        lambda: recaptioning.with_captions(coco, given), lambda: recaptioning.read_lines(given),
        lambda: recaptioning.to_sharegpt4v(given, made / "captions.json"),
        lambda: recaptioning.read_record(given),
    ])  # fmt: skip


def recipes(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Recipes and plans of senseless numbers."""
    method = rng.choice(
        ["longclip", "lotlip", "lit", "clip", "siglip", "filip", "laclip", "register"]
    )
    recipe = training.recipe_for(method, rng.choice(["tiny", "lab", "paper"]))
    names = [field.name for field in dataclasses.fields(recipe)]
    odd = [
        None,
        True,
        0,
        -1,
        1,
        2,
        0.5,
        1.5,
        math.nan,
        math.inf,
        10**30,
        "",
        "3",
        "kps",
        (),
        (1,),
        [2, 3],
        {},
    ]
    changes = {name: rng.choice(odd) for name in rng.sample(names, rng.choice([1, 1, 2]))}

    def make() -> None:
        changed = dataclasses.replace(recipe, **changes)
        total = changed.total_steps(rng.choice([1_000_000, 8, 0, -1]))
        finite([changed.learning_rate_at(step, total) for step in (0, 1, total - 1)])

    return make


OFFERED = {
    "tokens": commands.Tokens, "version": commands.Version, "probe": commands.Probe,
    "train": commands_training.Train, "eval": commands_evaluation.Eval, "table": commands_evaluation.Table,
    "data list": commands_data.List, "data verify": commands_data.Verify, "data stats": commands_data.Stats,
    "data shard": commands_data_shards.WriteShards, "data check": commands_data_shards.CheckShards,
    "convert": commands_models.Convert, "inspect": commands_models.Inspect,
    "faithfulness": commands_attribution.Faithfulness, "reproduce": commands_reproduction.Reproduce,
    "search": commands_search.Search, "plan": commands_plan.PlanRun, "recaption": commands_recaption.Recaption,
}  # fmt: skip
"""All commands but the quickstart, which takes minutes."""
COSTLY = {"dry_run", "workers", "processes", "image_tower", "text_tower"}
"""Options that start processes or large models: given nonsense only."""
SIZES = {
    "pairs",
    "n",
    "steps",
    "epochs",
    "batch_size",
    "max_new_tokens",
    "seeds",
    "top",
    "num_corner",
    "ratio",
}
ODD = ["0", "-1", "1", "2", "3", "0.5", "-0.0", "nan", "inf", "-inf", "", "x", "1e3", "1_0", "٣", "None", "[]", "1 2", "--json", "-"]  # fmt: skip
HUGE = ["1e308", "10" * 20, str(2**31), str(2**63), "9" * 5000, "1e-320"]


def command_lines(corpus: Corpus, rng: Random, given: Path, made: Path) -> Call:
    """Every command with one to three odd options."""
    name = rng.choice(sorted(OFFERED))
    hints = typing.get_type_hints(OFFERED[name], include_extras=True)
    marker = Positional[int].__metadata__[0]
    options = {
        key: hint for key, hint in hints.items() if marker not in getattr(hint, "__metadata__", ())
    }
    if options.pop("recipe", None):
        options |= typing.get_type_hints(training.Recipe)
    chosen = rng.sample(sorted(options), min(len(options), rng.choice([0, 1, 1, 1, 2, 3])))
    line = [*name.split(), *_usual(name, corpus, rng, given, made)]
    for option in chosen:
        line += _odd_option(option, options[option], rng, given, made)
    if rng.random() < 0.1:
        line[rng.randrange(len(line))] = rng.choice([*ODD, *mutators.NAMES, given, made / "none"])
    return line


def _odd_option(option: str, hint: Any, rng: Random, given: Path, made: Path) -> list[str]:
    flag = f"--{option.replace('_', '-')}"
    if hint is bool and option not in COSTLY:
        return rng.choice([[flag], [f"--no-{flag[2:]}"], [flag, "maybe"]])
    known = [
        str(one)
        for part in (hint, *typing.get_args(hint))
        for one in typing.get_args(part)
        if isinstance(one, str)
    ]
    paths = [
        given,
        made,
        given / "0.jpg",
        made / "none",
        made / "a\nb",
        made / ("a" * 300),
        "~",
        "/dev/null/x",
        made / "o.json",
    ]
    values = [*ODD, *mutators.NAMES]
    if option not in COSTLY | SIZES:
        values += [*HUGE, *map(str, paths), *map(str, paths)]
        values += 4 * [one for one in known if one not in ("paper", "lab")]
    elif option in COSTLY:
        values = ["0", "-1", "nan", "", "x", "1.5"]
    return [flag, rng.choice(values)] if rng.random() < 0.95 else [flag]


def _usual(name: str, corpus: Corpus, rng: Random, given: Path, made: Path) -> list[Any]:
    """Arguments with which a command ends well, and soon."""
    quiet, small = ["--no-progress"], corpus.model
    from_coco = ["--data", "coco", "--root", corpus.coco, *quiet]
    method = rng.choice(
        ["longclip", "longclip", "lotlip", "lit", "clip", "siglip", "filip", "laclip", "register"]
    )
    trained = {"batch_size": 4, "steps": 1, "warmup_steps": 0, "pairs": 4}
    match name:
        case "tokens":
            return [copied(corpus.texts, given) / "captions.txt"]
        case "probe":
            return [small, *rng.choice([["--pairs", 2, *quiet], from_coco])]
        case "train":
            model = ["--model", small, *rng.choice([[], from_coco])]
            return [method, *model, *_options(trained), "--k", 2, "--no-tensorboard"]
        case "eval":
            return [small, *from_coco]
        case "table":
            return [copied(corpus.records, given)]
        case "data verify" | "data stats":
            which = rng.choice(sorted(corpus.benchmarks))
            return [which, "--root", copied(corpus.benchmarks[which][1], given), *quiet]
        case "data shard":
            return [
                copied(corpus.coco, given),
                made / "shards",
                "--data",
                "coco",
                "--tokenizer",
                "world",
                *quiet,
            ]
        case "data check":
            return [copied(corpus.shards, given), *quiet]
        case "convert":
            return [copied(rng.choice(corpus.folders), given), made / "out", "--no-check"]
        case "inspect":
            return [copied(rng.choice(corpus.folders), given)]
        case "faithfulness":
            methods = rng.choice([["attention"], ["gradcam"], ["occlusion"]])
            return [small, "--n", 1, "--methods", *methods, *quiet]
        case "reproduce":
            return ["--list", "--out", made, "--arms", made]
        case "search":
            cache = ["--cache", made / "cache", "--model", small, *quiet]
            return [copied(corpus.coco / "val2017", given), "a red boat. a house", *cache]
        case "plan":
            return [method]
        case "recaption":
            root = copied(corpus.coco / "val2017", given)
            return [corpus.llava, made / "captions", "--root", root, "--max-new-tokens", 1, *quiet]
    return []


TARGETS: dict[str, tuple[Target, float]] = {
    "images": (images, 4), "texts": (texts, 1.5), "tables": (tables, 2.5), "captions": (captions, 2),
    "benchmarks": (benchmarks, 2.5), "records": (records, 1.5), "weights": (weights, 3), "folders": (folders, 2.5),
    "shards": (shards, 2), "stores": (stores, 1), "runs": (runs, 1.5), "recaptions": (recaptions, 1),
    "recipes": (recipes, 0.5), "commands": (command_lines, 4),
}  # fmt: skip
"""By name, with the share of the time that each gets."""
