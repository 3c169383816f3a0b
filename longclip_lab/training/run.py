"""A training run from its start to its end: model, data, folder, record, processes.

For notebooks, scripts and the command line. Each process is a new one (torch.multiprocessing,
"spawn"): forking a notebook's kernel deadlocks as soon as it has used CUDA or threads. Across
machines start the command with torchrun instead:
`torchrun --nnodes N --nproc-per-node 8 ... -m longclip_lab.cli train ...`.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator, DistributedDataParallelKwargs
from tqdm import tqdm

from longclip_lab.data import ShardSet
from longclip_lab.errors import PROCESSES, LabError, LabWarning, PeerLostError, StoppedError
from longclip_lab.images import READING
from longclip_lab.models import Clip, build_lotlip, load, save
from longclip_lab.models.corner_tokens import Kind
from longclip_lab.threads import rank_and_size
from longclip_lab.training.checkpoints import claim, describe
from longclip_lab.training.data import CaptionCounts, TrainingPairs, stored_features
from longclip_lab.training.distributed import LOST, exit_with_parent, handle_sigterm, lost
from longclip_lab.training.loop import Loop, advance, needs, progress_bar
from longclip_lab.training.recipe import Recipe
from longclip_lab.training.streaming import StreamedPairs, all_broken

# --- A new model for a recipe: towers that have not met yet, with the tokens it asks for ---


def new_model(recipe: Recipe, seed: int | None = None) -> Clip:
    """The model that `recipe` starts from; two of one `seed` (the recipe's) are the same.

    Whatever the number of corners, towers and projection of one seed are the same too, and two and
    four corners share the first two.
    Raises LabError for a recipe without towers, and as `build_lotlip` does.
    """
    if recipe.image_tower is None or recipe.text_tower is None:
        raise LabError(
            f"The recipe {recipe.name!r} starts from a model that is given; to start a new one set "
            "image_tower and text_tower."
        )
    kind, mask = extra_tokens(recipe)
    return build_lotlip(
        recipe.image_tower,
        recipe.text_tower,
        recipe.num_corner,
        context_length=recipe.token_limit or 128,
        mask=mask,
        kind=kind,
        pretrained_image=recipe.pretrained_towers,
        pretrained_text=recipe.pretrained_towers,
        lock_image=recipe.lock_image,
        seed=recipe.seed if seed is None else seed,
    )


def extra_tokens(recipe: Recipe) -> tuple[Kind, bool]:
    """The kind of the recipe's learned tokens, and whether LoTLIP's mask is between them and CLS.

    >>> extra_tokens(Recipe(objective="register"))
    ('register', False)
    """
    is_register = recipe.objective == "register"
    return ("register", False) if is_register else ("corner", recipe.mask)


# --- A training run from its start to its end: model, data, cached features, folder, record ---


@dataclass
class Run:
    """What a training run gave: the trained model and how it got there."""

    model: Clip
    """A trained copy, in eval mode; the model that was given is as it was."""
    history: list[dict[str, Any]]
    """A row for every logged step: step, loss, loss_long, loss_short, variance_kept, lr,
    grad_norm, logit_scale, samples_per_s."""
    folder: Path | None
    """Where the run was written, or None."""
    seconds: float
    """Time spent in this call."""
    recipe: Recipe
    """What was done."""
    num_truncated: dict[str, int | None]
    """How many "long" and "short" texts did not fit the model's context; of shards whose tokens
    were counted otherwise, of those that were read."""
    drawn: CaptionCounts | None = None
    """What the first epoch's draw of sub-captions gave; None where none are drawn."""
    skipped_steps: list[int] = field(default_factory=list)
    """Steps whose loss or gradient was not finite, left out as `Recipe.max_nan_steps` allows."""
    broken: dict[str, str] = field(default_factory=dict)
    """Pairs of shards that could not be used, by name, and why; others stood in for them."""


@exit_with_parent()
def train(
    clip: Clip | None,
    recipe: Recipe,
    data: Any = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    features: str | Path | None = None,
    processes: int = 1,
) -> Run:
    """Train a copy of `clip` by `recipe`; without one, the recipe's own new model.

    `data` has `.images`, `.short`, `.long` and `.source`, and for sub-captions `.captioners`, or
    are shards (`data.open_shards`); by default the world's training set. With `out`, the folder
    gets the log, checkpoints and at the end `model/`, which `ll.load` reads. `resume=True` goes on
    from the last checkpoint in `out` and ends, on a CPU, at bit-identical weights; if there is none
    yet it starts. `on_step` is called with each logged row. `features` is the folder where a locked
    tower's features of these images are kept for all runs that share them; by default they are
    `out`'s own or, without `out`, in memory.

    With `processes` above 1 as many new processes of this machine share the work, a GPU each where
    there are any, from a notebook too; the result is the same but for rounding. In a script, call
    it under `if __name__ == "__main__":`, as always where Python starts processes.

    Raises LabError if `out` holds anything that is not this run or `features` those of another
    tower or other images, if the data do not fit the recipe, or if the loss stops being finite;
    the checkpoints before that stay. Raises StoppedError after a SIGTERM, when the state is saved.
    """
    PROCESSES.check("The number of processes", processes)
    if processes > 1:
        arguments = {"recipe": recipe, "data": data, "out": out, "resume": resume,
                     "features": features}  # fmt: skip
        return train_in_processes(processes, clip, arguments, progress, on_step)
    began = time.perf_counter()
    accelerator = _accelerator(recipe)
    # LoTLIP and its baselines start from two towers, Long-CLIP from a model that is given.
    clip = new_model(recipe) if clip is None else clip
    data = _training_data(recipe) if data is None else data
    # A copy: the given model is the baseline that the trained one is compared with.
    trained = replace(clip, model=copy.deepcopy(clip.model), card=copy.deepcopy(clip.card))

    # All that can be wrong with the data and the schedule is said before any step is taken.
    pairs = source_of(trained, data, recipe)
    total = recipe.total_steps(len(pairs))
    _check_schedule(recipe, total, accelerator.num_processes)
    streamed = isinstance(pairs, StreamedPairs)

    folder = None if out is None else Path(out)
    if folder is not None:
        _settle(accelerator, folder, pairs, data, recipe, clip, resume, total)
    if recipe.lock_image and recipe.cache_image_features:
        # A locked image tower gives the same features every epoch: it runs once (LiT, LoTLIP).
        home = features if features is not None or folder is None else folder / "features"
        pairs.stored = _cached_features(accelerator, trained, data, recipe, home, progress)

    # Goes on from the folder's last checkpoint, if there is one.
    loop = Loop(accelerator, trained, recipe, total, folder)
    try:
        loop.run(pairs, progress and accelerator.is_main_process, on_step)
    finally:
        loop.log.close()

    # Whole in every process, sharded or not.
    trained.model = loop.trained().eval()
    _record_training(trained, recipe, data, total)
    if folder is not None and accelerator.is_main_process:
        save(trained, folder / "model")
    accelerator.wait_for_everyone()
    return Run(
        trained,
        loop.log.history,
        folder,
        time.perf_counter() - began,
        recipe,
        pairs.num_truncated,
        pairs.drawn if recipe.subcaptions else None,
        loop.skipped,
        all_broken(accelerator, pairs.broken, folder) if streamed else {},
    )


def _accelerator(recipe: Recipe) -> Accelerator:
    # FILIP reads no pooled feature: what only leads there has no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=needs(recipe, "tokens"))
    return Accelerator(kwargs_handlers=[unused])


def source_of(clip: Clip, data: Any, recipe: Recipe) -> TrainingPairs | StreamedPairs:
    """What hands out the batches of `data`."""
    if isinstance(data, ShardSet):
        return StreamedPairs(clip, data, recipe)
    if recipe.resample:
        raise LabError(
            "resample draws whole shards, and these data are none: write them with `longclip-lab "
            "data shard`, or leave it off."
        )
    return TrainingPairs(clip, data, recipe)


def _training_data(recipe: Recipe) -> Any:
    if recipe.pairs is None:
        raise LabError(
            f"The recipe {recipe.name!r} has no data of its own: give some (--data coco --root "
            "DIR), or set pairs to draw as many from the world."
        )
    from longclip_lab import world

    group = recipe.hard_negative_group
    if recipe.subcaptions is None:
        return world.pairs(recipe.pairs, seed=world.TRAIN_SEED, siblings=group)
    return world.web_pairs(
        recipe.pairs,
        world.TRAIN_SEED,
        recipe.captioners or tuple(world.CAPTIONERS),
        recipe.hallucination,
        recipe.alt_text_noise,
        siblings=group,
    )


def _source(data: Any) -> dict[str, Any]:
    """Which data a run is of: where they come from and, of image files, how those are read."""
    # Values of a drawn world are read in one way only; files are decoded by rules that have
    # changed.
    drawn = isinstance(getattr(data, "images", None), np.ndarray)
    values = drawn or getattr(data, "pictures", "files") == "values"
    return {**getattr(data, "source", {}), **({} if values else {"images": READING})}


def _settle(
    accelerator: Accelerator,
    folder: Path,
    pairs: TrainingPairs | StreamedPairs,
    data: Any,
    recipe: Recipe,
    clip: Clip,
    resume: bool,
    total: int,
) -> None:
    """Make the folder this run's, or find that it is already; the same for all processes."""
    if accelerator.is_main_process:
        facts = {
            "total_steps": total,
            "num_truncated": pairs.num_truncated,
            "skipped": dict(getattr(data, "skipped", {})),
            "model": clip.name,
        }
        if pairs.drawn is not None and pairs.drawn.by_captioner:
            facts["drawn"] = pairs.drawn.to_dict()
        claim(folder, describe(recipe, _source(data), clip.model), facts, resume)
    accelerator.wait_for_everyone()
    if isinstance(pairs, StreamedPairs):
        pairs.note_in(folder, accelerator.process_index)


def _cached_features(
    accelerator: Accelerator,
    clip: Clip,
    data: Any,
    recipe: Recipe,
    home: str | Path | None,
    progress: bool,
) -> np.ndarray:
    clip.model.to(accelerator.device)
    return stored_features(
        clip,
        data.images,
        home,
        tokens=needs(recipe, "tokens"),
        half=recipe.precision == "bf16",
        workers=recipe.workers,
        progress=progress,
        accelerator=accelerator,
    )


def _record_training(clip: Clip, recipe: Recipe, data: Any, total: int) -> None:
    """Put down in the model's card how it was trained."""
    if recipe.grad_checkpointing:
        clip.model.set_grad_checkpointing(False)
    record = {"recipe": asdict(recipe), "steps": total, "data": getattr(data, "source", {})}
    # Through JSON, as after a round trip through a file.
    clip.card.setdefault("fine_tuned", []).append(json.loads(json.dumps(record)))
    clip.name = f"{clip.name}+{recipe.name}"


def _check_schedule(recipe: Recipe, total: int, processes: int) -> None:
    if recipe.batch_size % processes:
        raise LabError(
            f"A batch of {recipe.batch_size} cannot be shared out evenly to {processes} "
            "processes; choose a multiple."
        )
    # The learning rate would never reach its peak: nearly always a mistake in --steps.
    if total <= recipe.warmup_steps:
        warnings.warn(
            f"The run of {total} steps ends within its warm-up of {recipe.warmup_steps}.",
            LabWarning,
            stacklevel=3,
        )


# --- `train(..., processes=N)`: the same training in N processes of this machine ---

GRACE = 10.0
"""Seconds that the other processes have to end by themselves when one has died."""
_BAD = 2


def train_in_processes(
    processes: int,
    clip: Clip | None,
    arguments: dict[str, Any],
    progress: bool,
    on_step: Callable[[dict[str, Any]], None] | None,
) -> Run:
    """`train(clip, **arguments)` in `processes` processes; returns the first one's run.

    Rows of the log, warnings and errors come back as they arise. If a process dies the others are
    ended. Raises PeerLostError for that, and whatever `train` raises.
    """
    recipe, data = arguments["recipe"], arguments["data"]
    check_can_launch(processes, data)
    pairs = recipe.pairs if data is None else len(getattr(data, "images", data))
    bar = progress_bar(pairs and recipe.total_steps(pairs), 0, recipe.name, progress)
    messages = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="longclip-lab-") as home, handle_sigterm() as stop:
        if clip is not None:
            save(clip, Path(home) / "start")
        # Weights travel by file: through a queue they would be pickled once a process.
        given = (processes, free_port(), home, clip is not None, arguments, messages)
        context = mp.start_processes(
            _work, given, nprocs=processes, join=False, start_method="spawn"
        )
        listener = _Listener(messages, bar, on_step)
        told = False

        def send(number: signal.Signals) -> None:
            for process in context.processes:
                if process.is_alive():
                    os.kill(process.pid, number)

        try:
            while not _joined(context, listener):
                listener.hear()
                if stop.asked and not told:
                    told = True
                    send(signal.SIGTERM)
        except BaseException:
            send(signal.SIGKILL)
            raise
        finally:
            bar.close()
        listener.hear()
        if listener.error is not None:
            raise listener.error
        return replace(listener.run, model=load(Path(home) / "model"))


def check_can_launch(processes: int, data: Any) -> None:
    """Raise LabError unless so many processes can be started here."""
    _, size = rank_and_size()
    if size > 1:
        raise LabError(
            f"This is already one of {size} processes of a launcher; leave processes=1 there."
        )
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        raise LabError(f"There are {gpus} GPUs for {processes} processes; give at most {gpus}.")
    # A new process imports the class by its module; what a notebook defines is in none.
    home = type(data).__module__
    if home == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        raise LabError(
            f"The data are of the class {type(data).__name__}, which only this notebook knows. "
            "Other processes need it in a module; or use longclip_lab.data.Pairs."
        )


def _joined(context: mp.ProcessContext, listener: _Listener) -> bool:
    """Whether all processes have ended well. Raises what one of them has died of."""
    raised: Exception | None = None
    try:
        # A short wait, so that rows and warnings are shown as they come.
        return context.join(timeout=0.1, grace_period=GRACE)
    except mp.ProcessExitedException:
        pass
    except mp.ProcessRaisedException as error:
        raised = error
    listener.hear()
    codes = [process.exitcode for process in context.processes]
    failed = [(number, code) for number, code in enumerate(codes) if code]
    # By a signal from outside; a SIGTERM is what the others get when one has died.
    killed = [(number, code) for number, code in failed if code < 0 and code != -signal.SIGTERM]
    heard = listener.error
    if raised is not None and heard is None and not killed:
        raise raised
    # A process that only noticed that another one is gone is not the one to be heard.
    if heard is not None and not (killed and isinstance(heard, PeerLostError)):
        raise heard
    if any(code == LOST for _, code in failed):
        raise PeerLostError(lost("A process"))
    number, code = (killed or failed)[0]
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
    raise PeerLostError(
        f"Process {number} of {len(codes)} was ended {how}, so the others were ended too. A run "
        "with a folder goes on from its last checkpoint with resume=True (--resume)."
    )


@dataclass
class _Listener:
    """Takes what the processes say."""

    messages: Any
    bar: tqdm
    on_step: Callable[[dict[str, Any]], None] | None
    run: Run | None = None
    error: LabError | None = None

    def hear(self) -> None:
        """Everything that has been said so far."""
        while not self.messages.empty():
            what, content = self.messages.get()
            if what == "row":
                advance(self.bar, content)
                if self.on_step is not None:
                    self.on_step(content)
            elif what == "warning":
                warnings.warn(content, LabWarning, stacklevel=4)
            elif what == "error":
                self.error = self.error or content
            else:
                self.run = content


def _work(
    rank: int,
    processes: int,
    port: int,
    home: str,
    has_model: bool,
    arguments: dict[str, Any],
    messages: Any,
) -> None:
    """One of the processes."""
    # What torch and accelerate want to know: which of how many this process is.
    ranks, sizes = dict.fromkeys(("RANK", "LOCAL_RANK"), rank), ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
    place = {**ranks, **dict.fromkeys(sizes, processes), "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
        # Processes on one CPU would otherwise fight for the same cores.
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    with _warnings_to(messages if rank == 0 else None):
        try:
            clip = load(Path(home) / "start") if has_model else None
            on_step = (lambda row: messages.put(("row", row))) if rank == 0 else None
            run = train(clip, **arguments, progress=False, on_step=on_step)
        # All processes have stopped for the same reason: one message is enough.
        except StoppedError as error:
            if rank == 0:
                messages.put(("error", error))
            return
        except LabError as error:
            messages.put(("error", error))
            sys.exit(_BAD)
        if rank == 0:
            # The trained weights come back by file as well.
            save(run.model, Path(home) / "model")
            messages.put(("run", replace(run, model=None)))


@contextmanager
def _warnings_to(messages: Any) -> Iterator[None]:
    """Warnings of the library become messages; of all processes the first one's are enough."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if not issubclass(category, LabWarning):
                shown(message, category, *place)
            elif messages is not None:
                messages.put(("warning", str(message)))

        warnings.showwarning = show
        yield


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
