"""The training loop: the same in one process and in any number of them.

From top to bottom: the record of a run, the towers as training runs them, and `Loop`, whose `run`
and `step` are what happens to a batch. The batches come from `training.data`, the losses from
`objectives`; `training.run` puts model, data and folder together and calls `Loop.run`.

B pairs of one process, T tokens, C features of a text, D embedding, W width of the text tower.
"""

from __future__ import annotations

import copy
import math
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from textwrap import shorten
from typing import Any, TextIO

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from longclip_lab.errors import LabError, LabWarning, NotFiniteError, StoppedError
from longclip_lab.files import atomic_write, decode_text, parse_json, to_json
from longclip_lab.models import Clip, encode_corner_tokens, encode_text_tokens
from longclip_lab.models.anatomy import frozen_part, text_tower
from longclip_lab.models.towers import (
    can_end_at_class,
    can_pack,
    encode_at_class,
    encode_ragged,
    encode_tokens,
    finish_image,
    image_states,
)
from longclip_lab.objectives import (
    OBJECTIVES,
    ImageFeatures,
    LossConfig,
    LossInputs,
    LossParts,
    TextFeatures,
    objective_loss,
)
from longclip_lab.training.checkpoints import checkpoint_paths, load_checkpoint, save_checkpoint
from longclip_lab.training.data import Batch, TokenBatch, TrainingPairs
from longclip_lab.training.distributed import (
    NOT_FINITE,
    NotFiniteStepError,
    any_rank,
    average_scalars,
    clip_gradient,
    handle_sigterm,
    heartbeat,
    is_sharded,
    local,
    note_not_finite,
    rows_here,
    shard,
    steps_not_finite,
    whole_state,
)
from longclip_lab.training.gradient_cache import backward_in_parts
from longclip_lab.training.recipe import LENGTH_BUCKETS, Recipe

# --- The record of a run while it goes: JSON lines, TensorBoard events, a progress bar ---


def read_log(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The lines of a log up to `last_step`; a last line that a kill cut short is left out.

    What was not a number when it was written (null) is NaN again. Raises LabError, naming the
    line, for a file that is anything else.
    """
    if not path.exists():
        return []
    try:
        whole, _, rest = path.read_bytes().rpartition(b"\n")
    except OSError as error:
        raise LabError(f"Cannot read {path}: {error.strerror}.") from None
    lines = decode_text(whole, str(path)).split("\n") if whole else []
    rows = [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    # What follows the last line end, a kill may have cut short.
    with suppress(LabError):
        rows += [_row(rest, str(path))] if rest else []
    return [row for row in rows if row["step"] <= last_step]


def _row(line: str | bytes, where: str) -> dict[str, Any]:
    """One line of a log. Raises LabError for anything else, as the log would be written anew."""
    try:
        row = parse_json(line, where, allow_nan=True)  # earlier logs have NaN
    except LabError as error:
        raise LabError(f"{error} Repair the log, or move it away to go on without it.") from None
    row = row if isinstance(row, dict) else {}
    largest = sys.float_info.max  # an integer of JSON may be larger than any float
    texts = [
        key
        for key, value in row.items()
        if value is not None and not (isinstance(value, int | float) and abs(value) <= largest)
    ]
    step = row.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or texts:
        what = f"no number under {texts[0]!r}" if texts else "no step"
        raise LabError(
            f"{shorten(f'{where} is no line of a training log: it has {what}', 1000)}. Repair the "
            "log, or move it away to go on without it."
        )
    return {key: math.nan if value is None else value for key, value in row.items()}


def _line(row: dict[str, Any]) -> str:
    """A row as a line of JSON, which has no NaN: null stands for what is not finite."""
    return to_json({k: value if math.isfinite(value) else None for k, value in row.items()}) + "\n"


class RunLog:
    """Keeps `history` and writes it to FOLDER/log.jsonl; without a folder it only keeps it.

    Continuing after step `done` drops the later lines: their steps will be done again.
    """

    def __init__(self, folder: Path | None, done: int, tensorboard: bool):
        self.history: list[dict[str, Any]] = []
        self.file: TextIO | None = None
        self.events: Any = None
        if folder is None:
            return
        path = folder / "log.jsonl"
        self.history = read_log(path, done)
        atomic_write(path, "".join(map(_line, self.history)))
        self.file = path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def add(self, row: dict[str, Any]) -> None:
        """Record one step; `row["step"]` counts from 1."""
        self.history.append(row)
        if self.file is not None:
            self.file.write(_line(row))
            self.file.flush()
        if self.events is not None:
            for name, value in row.items():
                if name != "step":
                    self.events.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Close the files; the history stays."""
        if self.file is not None:
            self.file.close()
        if self.events is not None:
            self.events.close()


def progress_bar(total: int | None, done: int, name: str, shown: bool) -> tqdm:
    """A bar of steps with the loss, the rate and the time left."""
    return tqdm(total=total, initial=done, desc=name, unit="step", disable=not shown)


def advance(bar: tqdm, row: dict[str, Any] | None) -> None:
    """Advance to the step of a row of the log; by one for a skipped step, which has none."""
    if row is not None:
        rate = f"{row['samples_per_s']:.3g}/s"
        bar.set_postfix(loss=f"{row['loss']:.3f}", pairs=rate, refresh=False)
    bar.update(1 if row is None else row["step"] - bar.n)


# --- The towers as training runs them: what is frozen, what decays, how a batch is encoded ---

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
SPARED = {"positional_embedding", "pos_embed", "cls_token", "reg_token", "corner_embedding"}
SPARED_TABLES = ("position_embeddings.weight",)
SIGLIP_BIAS = -10.0
"""Where SigLIP starts its bias (Zhai et al. 2023, section 3.2)."""


class Towers(nn.Module):
    """Both towers behind one `forward`, which is what data parallelism needs to wrap.

    `forward` gives the batch as a loss sees it: features (not normalised), tokens where the
    objective compares them, and scale and bias as factors. `pad_id` fills texts up where a tower
    wants a rectangle.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, pad_id: int = 0):
        super().__init__()
        self.model, self.recipe, self.pad_id = model, recipe, pad_id
        self.token_wise = needs(recipe, "tokens")
        self.reads_corners = needs(recipe, "corners")
        self.config = LossConfig(**{f.name: getattr(recipe, f.name) for f in fields(LossConfig)})

    def train(self, mode: bool = True) -> Towers:
        """Training mode, except for a locked image tower and BatchNorm's running statistics."""
        super().train(mode)
        for module in self.modules():
            # They would differ between processes, and with gradient caching count twice.
            if isinstance(module, BATCH_NORMS):
                module.eval()
        if self.recipe.lock_image:
            frozen_part(self.model.visual).eval()
        return self

    def forward(self, batch: Batch) -> LossInputs:
        device = self.model.logit_scale.device
        lower = self.recipe.precision == "bf16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=lower):
            image = self.image_features(batch)
            # Corners stand for parts of the long text; the raw caption is matched by CLS alone
            # (LoTLIP, section 4.3).
            long = batch.long and self.text_features(batch.long, self.reads_corners)
            reads_short = self.recipe.objective != "long"
            short = self.text_features(batch.short) if batch.short and reads_short else None
        bias = self.model.logit_bias if needs(self.recipe, "logit_bias") else None
        return LossInputs(image, short, long, self.model.logit_scale.exp(), bias, self.config)

    def image_features(self, batch: Batch) -> ImageFeatures:
        """Features of the images: a locked tower's are cached, or made without a graph."""
        visual = self.model.visual
        if batch.stored_BS is not None:
            states = batch.stored_BS.float()
        elif self.recipe.lock_image:
            with torch.no_grad():
                states = image_states(visual, batch.pixels_B3HW, self.token_wise)
        elif self.token_wise:
            states = image_states(visual, batch.pixels_B3HW, tokens=True)
        elif can_end_at_class(visual) and not is_sharded(self):
            # Of the last block only CLS is read, so only CLS is computed.
            return ImageFeatures(encode_at_class(visual, batch.pixels_B3HW))
        else:
            return ImageFeatures(self.model.encode_image(batch.pixels_B3HW))
        features = finish_image(visual, states)
        if self.token_wise:
            return ImageFeatures(features.mean(dim=1), features)
        return ImageFeatures(features)

    def text_features(self, texts: TokenBatch, corners: bool = False) -> TextFeatures:
        """Features of texts; every corner's too where the objective matches them with images."""
        recipe, model = self.recipe, self.model
        device = model.logit_scale.device
        # A caption is no negative of an image that carries the same words; the official code
        # takes it for one.
        masks = recipe.mask_duplicates and not recipe.match_official
        identity_B = texts.identity_B.to(device) if masks else None
        if self.token_wise:
            tokens_BTD, mask_BT = encode_text_tokens(model, texts.padded(self.pad_id).to(device))
            return TextFeatures(tokens_BTD[:, :1], tokens_BTD, mask_BT, identity_B)
        if not corners and self.packs:
            features = encode_ragged(model, texts.ids_P, texts.lengths_B)
        else:
            encode = encode_corner_tokens if corners else encode_tokens
            buckets = recipe.length_buckets or LENGTH_BUCKETS
            features = encode_in_buckets(model, texts, buckets, encode, self.pad_id)
        # Not a view: FSDP2 hangs hooks on what a module returns, and warns of views.
        features_BCD = features if corners else torch.stack([features], dim=1)
        return TextFeatures(features_BCD, identity_B=identity_B)

    @property
    def packs(self) -> bool:
        """Whether texts run end to end: on a CPU, unless something else works by blocks."""
        recipe = self.recipe
        by_blocks = recipe.length_buckets or recipe.grad_checkpointing or is_sharded(self)
        on_cpu = self.model.logit_scale.device.type == "cpu"
        return on_cpu and not by_blocks and can_pack(self.model)


def needs(recipe: Recipe, what: str) -> bool:
    """Whether the recipe's objective needs this (`objectives.ObjectiveEntry`)."""
    return what in OBJECTIVES[recipe.objective].needs


def encode_in_buckets(
    model: nn.Module,
    texts: TokenBatch,
    buckets: int,
    encode: Callable[..., torch.Tensor] = encode_tokens,
    pad_id: int = 0,
) -> torch.Tensor:
    """Text features [B, D] of a batch, sorted by length and run in `buckets` parts.

    Each is padded to its own longest text, so that a few long texts do not pad all the others.
    The features are the same. `encode_corner_tokens` gives [B, C, D].
    """
    order_B = texts.lengths_B.argsort(stable=True)
    device = next(model.parameters()).device
    in_order = torch.cat([
        encode(model, texts.select(rows).padded(pad_id).to(device), pad_id)
        for rows in order_B.split(math.ceil(len(order_B) / buckets))
    ])  # fmt: skip
    return in_order[order_B.argsort().to(device)]


def prepare(clip: Clip, recipe: Recipe) -> Towers:
    """Set the model of `clip` up for `recipe`, in place, and wrap it for training."""
    model = clip.model
    if recipe.lock_image:
        model.lock_image_tower()
    _set_scale_and_bias(clip, recipe)
    tower = text_tower(model)
    corner = getattr(tower, "corner", None)
    if corner is not None:
        # Behind the mask a corner moves nothing but its own feature: without a loss on that it
        # has no gradient, which data parallelism would wait for.
        read = needs(recipe, "corners") and recipe.captions != "short"
        tower.corner_embedding.requires_grad_(read or not corner.mask)
    if recipe.grad_checkpointing:
        model.set_grad_checkpointing(True)
    return Towers(model, recipe, int(clip.tokenizer.pad_id)).train()


def _set_scale_and_bias(clip: Clip, recipe: Recipe) -> None:
    model = clip.model
    start = recipe.start_logit_scale
    if start is None and recipe.match_official:
        start = math.log(100)
    if start is not None:
        with torch.no_grad():
            model.logit_scale.fill_(start)
    bias = getattr(model, "logit_bias", None)
    if not needs(recipe, "logit_bias"):
        if bias is not None:
            bias.requires_grad_(False)
        return
    if recipe.start_logit_bias is not None or bias is None:
        begin = SIGLIP_BIAS if recipe.start_logit_bias is None else recipe.start_logit_bias
        model.logit_bias = nn.Parameter(torch.full_like(model.logit_scale.detach(), begin))
    model.logit_bias.requires_grad_(True)
    clip.card["model_cfg"]["init_logit_bias"] = model.logit_bias.item()


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """Trained parameters for AdamW, with and without weight decay.

    `match_official` decays everything, as the official code does. The default spares what has no
    scale to be kept small: norms, biases, the logit scale, positions, class and corner tokens.
    """
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_spared = (
            parameter.ndim < 2 or name.rpartition(".")[2] in SPARED or name.endswith(SPARED_TABLES)
        )
        (spared if is_spared and not recipe.match_official else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]


class KeptPositions:
    """Holds the positions that knowledge-preserved stretching kept exactly where they were.

    Long-CLIP (section 3.2) keeps positions 0 to 19, which CLIP has trained well, and freezes them:
    its `positional_embedding` is not trained, `positional_embedding_res` is. Here both are rows of
    one table, so their gradient is cleared, that it counts neither in the norm nor in AdamW's
    moments, and `restore` after a step undoes weight decay.
    """

    def __init__(self, clip: Clip, recipe: Recipe):
        keep = clip.card.get("positions", {}).get("keep", 0) if recipe.freeze_kept else 0
        self.positions_TW = text_tower(clip.model).positional_embedding if keep else None
        if keep:
            # Of a sharded table each process holds some rows.
            self.mine_T = rows_here(self.positions_TW) < keep
            self.kept_KW = local(self.positions_TW.detach())[self.mine_T].clone()

    def clear_gradient(self) -> None:
        if self.positions_TW is not None and self.positions_TW.grad is not None:
            local(self.positions_TW.grad)[self.mine_T] = 0

    def restore(self) -> None:
        if self.positions_TW is not None:
            local(self.positions_TW.detach())[self.mine_T] = self.kept_KW


# --- The training loop: the same in one process and in any number of them ---


class Loop:
    """The state that changes from step to step, and the steps.

    Everything else a step depends on (batch, learning rate, random numbers) is a function of
    (recipe, step): so weights, AdamW's moments and the number `done` are a whole checkpoint.
    """

    def __init__(
        self, accelerator: Accelerator, clip: Clip, recipe: Recipe, total: int, folder: Path | None
    ):
        self.accelerator, self.recipe, self.total, self.folder = accelerator, recipe, total, folder
        towers = prepare(clip, recipe).to(accelerator.device)
        self.plain: nn.Module | None = None
        if recipe.sharding == "full" and accelerator.num_processes > 1:
            # FSDP2 changes modules in place; this copy takes the trained weights at the end.
            self.plain = copy.deepcopy(clip.model).cpu()
            shard(towers, accelerator)
        optimizer = torch.optim.AdamW(
            parameter_groups(towers, recipe),
            lr=recipe.learning_rate,
            betas=recipe.betas,
            eps=recipe.eps,
        )
        self.kept = KeptPositions(clip, recipe)
        self.model: nn.Module = clip.model
        self.done, self.clock, self.saved = 0, 0.0, time.monotonic()
        if folder is not None and (paths := checkpoint_paths(folder)):
            self.done = load_checkpoint(paths[-1], self.model, optimizer)
        self.towers, self.optimizer = towers, optimizer
        if self.plain is None:
            self.towers, self.optimizer = accelerator.prepare(towers, optimizer)
        writes = folder if accelerator.is_main_process else None
        self.log = RunLog(writes, self.done, recipe.tensorboard)
        self.skipped = steps_not_finite(folder, self.done)

    def run(
        self,
        pairs: TrainingPairs,
        progress: bool,
        on_step: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        """All steps that are left: batch, update, log, checkpoint.

        Raises StoppedError after a SIGTERM, when the state is saved, and LabError for a batch that
        cannot be read or a loss that is not finite.
        """
        accelerator, recipe = self.accelerator, self.recipe
        rank, processes = accelerator.process_index, accelerator.num_processes
        bar = progress_bar(self.total, self.done, recipe.name, progress)
        devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        try:
            self.clock = time.perf_counter()
            # The caller's random numbers stay as they are; a process that hangs or a machine that
            # is taken away ends the run in an orderly way.
            with (
                torch.random.fork_rng(devices),
                heartbeat(accelerator),
                handle_sigterm() as stop,
            ):
                for batch in pairs.batches(self.done, self.total, rank, processes):
                    if isinstance(batch, LabError):
                        raise batch
                    row = self.step_or_skip(batch, pairs)
                    advance(bar, row)
                    at_end = self.done == self.total
                    logged = row is not None and (self.done % recipe.log_every == 0 or at_end)
                    if logged:
                        self.log.add(row)
                    # A checkpoint is made by all processes together: one that was told to stop, or
                    # whose clock says so, takes the others along.
                    asked, overdue = any_rank(accelerator, stop.asked, self.overdue)
                    stopping = asked and not at_end
                    self.checkpoint(stopping or overdue)
                    if logged and on_step is not None:
                        on_step(row)
                    if stopping:
                        raise StoppedError(self.stopped())
        finally:
            bar.close()

    def step_or_skip(self, batch: Batch, pairs: TrainingPairs) -> dict[str, Any] | None:
        """One update; None if its loss was not finite and the recipe lets it be skipped."""
        try:
            return self.step(batch)
        except NotFiniteStepError as error:
            where = ""
            if self.folder is not None:
                path = self.folder / NOT_FINITE / f"step-{error.step:06d}.json"
                if self.accelerator.is_main_process:
                    note_not_finite(self.folder, error, pairs.members(self.done))
                where = f" Its pairs are named in {path}."
            if len(self.skipped) >= self.recipe.max_nan_steps:
                raise LabError(f"{error}{where}") from None
            self.skipped.append(error.step)
            warnings.warn(f"Skipped. {error}{where}", LabWarning, stacklevel=2)
            self.optimizer.zero_grad()
            # It counts as done: the next batch and the learning rate are those of the next step.
            self.done += 1
            return None

    def stopped(self) -> str:
        """The message of a run that stops because it was asked to."""
        if self.folder is None:
            return f"Asked to stop after step {self.done}; there is no folder, so nothing is kept."
        return (
            f"Asked to stop: the state after step {self.done} is saved; the same call with "
            "resume=True (--resume) goes on."
        )

    def step(self, batch: Batch) -> dict[str, Any]:
        """One update; returns its row of the log."""
        recipe = self.recipe
        # Dropout and the like draw from (seed, step, process), not from what was drawn before: so
        # a resumed run draws what a run that was never stopped does.
        state = (recipe.seed, self.done, self.accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(state).generate_state(1)[0]))
        # Linear warm-up, then a cosine to 0 (the official scheduler).
        lr = recipe.learning_rate_at(self.done, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        # Both towers, the loss of the global batch, and the gradient of every trained weight.
        parts, logit_scale = self.backward(batch.to(self.accelerator.device))
        # KPS: the first 20 positions are kept, so their gradient must not count in the norm.
        self.kept.clear_gradient()
        # Without a limit this only measures the norm, which the log shows.
        limit = recipe.max_grad_norm or float("inf")
        grad_norm = clip_gradient(self.towers.parameters(), limit)
        # Before the update: a gradient that is not finite would spoil weights and moments.
        self.check_finite("gradient", grad_norm)
        self.optimizer.step()
        self.kept.restore()
        if recipe.max_logit_scale is not None:
            # CLIP clamps the temperature at 1/100, lest the logits grow without bound
            # (Radford et al. 2021, section 2.5). Long-CLIP's code does not.
            with torch.no_grad():
                self.model.logit_scale.clamp_(max=recipe.max_logit_scale)
        self.done += 1
        return {
            "step": self.done,
            "loss": parts.total.item(),
            "loss_long": parts.long.item(),
            "loss_short": parts.short.item(),
            "variance_kept": parts.variance_kept.item(),
            "lr": lr,
            "grad_norm": float(grad_norm),
            "logit_scale": logit_scale.item(),
            "samples_per_s": recipe.batch_size / self.lap(),
        }

    def lap(self) -> float:
        """Seconds since the step before, waiting for data and writing included."""
        before, self.clock = self.clock, time.perf_counter()
        return self.clock - before

    def backward(self, batch: Batch) -> tuple[LossParts, torch.Tensor]:
        """Gradients of the loss on the global batch; returns it and the logit scale."""
        if self.recipe.micro_batch is not None:
            # A contrastive loss needs all pairs at once, the towers do not (GradCache).
            parts, inputs = backward_in_parts(
                self.accelerator, self.towers, batch, self.recipe.micro_batch, self.loss
            )
        else:
            inputs = self.towers(batch)
            parts = self.loss(inputs)
            self.accelerator.backward(parts.total)
        if self.plain is not None:
            # FSDP2 averages what it shards; scale and bias are whole in every process.
            average_scalars(self.towers, self.accelerator)
        return parts, inputs.logit_scale.detach().log()

    def loss(self, inputs: LossInputs) -> LossParts:
        """The loss of the global batch: the objectives gather the features of all processes."""
        try:
            parts = objective_loss(self.recipe.objective, inputs)
        except NotFiniteError as error:
            raise NotFiniteStepError(self.done + 1, f"{error} {self.last_good()}") from None
        except LabError as error:
            raise LabError(f"Step {self.done + 1}: {error} {self.last_good()}") from None
        self.check_finite("loss", parts.total)
        return parts

    def check_finite(self, what: str, value: torch.Tensor) -> None:
        """Stop before a bad gradient reaches the weights."""
        finite = torch.isfinite(value.detach()).float().reshape(1)
        # If a step may be skipped, all processes must skip it.
        if self.recipe.max_nan_steps and self.accelerator.num_processes > 1:
            finite = self.accelerator.reduce(finite, reduction="mean")
        if finite.item() < 1:
            raise NotFiniteStepError(
                self.done + 1,
                f"the {what} is {value.item()}. Lower the learning rate, lengthen the warm-up or "
                f"set max_grad_norm. {self.last_good()}",
            )

    def last_good(self) -> str:
        """Where to go on from."""
        paths = checkpoint_paths(self.folder) if self.folder is not None else []
        return f"The last good checkpoint is {paths[-1]}." if paths else "There is no checkpoint."

    @property
    def overdue(self) -> bool:
        """Whether the clock asks for a checkpoint; the main process's clock counts."""
        minutes = self.recipe.checkpoint_minutes
        late = minutes is not None and time.monotonic() - self.saved >= 60 * minutes
        return late and self.accelerator.is_main_process

    def checkpoint(self, asked: bool = False) -> None:
        """Write a checkpoint if one is due: by steps, at the end, or because it is asked for."""
        due = asked or self.done % self.recipe.checkpoint_every == 0 or self.done == self.total
        if not due or self.folder is None:
            return
        self.saved = time.monotonic()
        # Whole in any case, so that any number of processes can go on: sharded or not.
        weights = whole_state(self.model.state_dict())
        moments = whole_state(self.optimizer.state_dict())
        if self.accelerator.is_main_process:
            keep = self.recipe.keep_checkpoints
            save_checkpoint(self.folder, self.done, weights, moments, keep)

    def trained(self) -> nn.Module:
        """The model, whole in every process."""
        if self.plain is None:
            return self.model
        self.plain.load_state_dict(whole_state(self.model.state_dict()))
        return self.plain
