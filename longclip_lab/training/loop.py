"""The training loop: the same in one process and in any number of them.

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
    encode_packed,
    encode_tokens,
    finish_image,
    image_states,
)
from longclip_lab.objectives import (
    OBJECTIVES,
    ImageSide,
    LossParts,
    Settings,
    Step,
    TextSide,
    objective_loss,
)
from longclip_lab.training.checkpoints import checkpoint_paths, load_checkpoint, save_checkpoint
from longclip_lab.training.data import Batch, Texts, TrainingPairs
from longclip_lab.training.distributed import (
    NOT_FINITE,
    NotFiniteStepError,
    agreed,
    average_scalars,
    clip_gradient,
    is_sharded,
    listening,
    local,
    note_not_finite,
    rows_here,
    shard,
    steps_not_finite,
    watching,
    whole_state,
)
from longclip_lab.training.gradient_cache import backward_in_parts
from longclip_lab.training.recipe import TEXT_PARTS, Recipe

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
    step, texts = row.get("step"), [key for key, value in row.items() if not _is_number(value)]
    if isinstance(step, bool) or not isinstance(step, int) or texts:
        what = f"no number under {texts[0]!r}" if texts else "no step"
        raise LabError(
            f"{shorten(f'{where} is no line of a training log: it has {what}', 1000)}. Repair the "
            "log, or move it away to go on without it."
        )
    return {key: math.nan if value is None else value for key, value in row.items()}


def _is_number(value: Any) -> bool:
    """Whether a log can hold `value`: null stands for NaN, and what a float cannot hold is none."""
    return value is None or (isinstance(value, int | float) and abs(value) <= sys.float_info.max)


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


class Progress:
    """A bar with the loss, the rate and the time left."""

    def __init__(self, total: int | None, done: int, name: str, shown: bool):
        self.bar = tqdm(total=total, initial=done, desc=name, unit="step", disable=not shown)

    def reach(self, row: dict[str, Any]) -> None:
        """Advance to the step of a row, from wherever the bar stands."""
        self.bar.update(row["step"] - 1 - self.bar.n)
        self.step(row)

    def step(self, row: dict[str, Any] | None) -> None:
        """Advance by one step; a skipped one has no row."""
        if row is None:
            self.bar.update(1)
            return
        rate = f"{row['samples_per_s']:.3g}/s"
        self.bar.set_postfix(loss=f"{row['loss']:.3f}", pairs=rate, refresh=False)
        self.bar.update(1)

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        self.bar.close()


# --- The towers as training runs them: what is frozen, what decays, how a batch is encoded ---

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
SPARED = {"positional_embedding", "pos_embed", "cls_token", "reg_token", "corner_embedding"}
SPARED_TABLES = ("position_embeddings.weight",)
SIGLIP_BIAS = -10.0
"""Where SigLIP starts its bias (Zhai et al. 2023, section 3.2)."""


class Towers(nn.Module):
    """Both towers behind one `forward`, which is what data parallelism needs to wrap.

    `forward` gives the batch as a loss sees it: features (not normalised), tokens where the
    objective compares them, and scale and bias as factors.
    """

    def __init__(self, model: nn.Module, recipe: Recipe):
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.token_wise = needs(recipe, "tokens")
        self.reads_corners = needs(recipe, "corners")

    def train(self, mode: bool = True) -> Towers:
        """Training mode, except for a locked image tower and BatchNorm's running statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()
        if self.recipe.lock_image:
            frozen_part(self.model.visual).eval()
        return self

    def forward(self, batch: Batch) -> Step:
        recipe = self.recipe
        device = next(self.model.parameters()).device
        lower = recipe.precision == "bf16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=lower):
            image = self.image_side(batch)
            long = None if batch.long is None else self.text_side(batch.long, self.reads_corners)
            short = None
            if batch.short is not None and recipe.objective != "long":
                short = self.text_side(batch.short)
        bias = self.model.logit_bias if needs(recipe, "logit_bias") else None
        settings = Settings(
            short_weight=recipe.short_weight,
            long_weight=recipe.long_weight,
            label_smoothing=recipe.label_smoothing,
            k=recipe.k,
            faithful=recipe.faithful,
            components_of=recipe.components_of,
            reduction=recipe.reduction,
            margin=recipe.margin,
        )
        return Step(image, short, long, self.model.logit_scale.exp(), bias, settings)

    def image_side(self, batch: Batch) -> ImageSide:
        """Features of the pictures: a locked tower's are stored, or made without a graph."""
        visual = self.model.visual
        if batch.stored_BS is not None:
            states = batch.stored_BS.float()
        elif self.recipe.lock_image:
            with torch.no_grad():
                states = image_states(visual, batch.pixels_B3HW, self.token_wise)
        elif self.token_wise:
            states = image_states(visual, batch.pixels_B3HW, tokens=True)
        elif can_end_at_class(visual) and not is_sharded(self):
            return ImageSide(encode_at_class(visual, batch.pixels_B3HW))
        else:
            return ImageSide(self.model.encode_image(batch.pixels_B3HW))
        features = finish_image(visual, states)
        return ImageSide(features.mean(dim=1), features) if self.token_wise else ImageSide(features)

    def text_side(self, texts: Texts, corners: bool = False) -> TextSide:
        """Features of texts; every corner's too where the objective matches them with pictures."""
        recipe = self.recipe
        masks = recipe.mask_duplicates and not recipe.faithful
        identity_B = texts.identity_B if masks else None
        if self.token_wise:
            tokens_BTD, mask_BT = encode_text_tokens(self.model, texts.ids_BT)
            return TextSide(tokens_BTD[:, :1], tokens_BTD, mask_BT, identity_B)
        if not corners and self.packs:
            features = encode_packed(self.model, texts.ids_BT)
        else:
            encode = encode_corner_tokens if corners else encode_tokens
            parts = recipe.text_parts or TEXT_PARTS
            features = encode_in_parts(self.model, texts, parts, encode)
        # Not a view: FSDP2 hangs hooks on what a module returns, and warns of views.
        features_BCD = features if corners else torch.stack([features], dim=1)
        return TextSide(features_BCD, identity_B=identity_B)

    @property
    def packs(self) -> bool:
        """Whether texts run end to end: on a CPU, unless something else works by blocks."""
        by_blocks = self.recipe.text_parts or self.recipe.grad_checkpointing or is_sharded(self)
        on_cpu = self.model.logit_scale.device.type == "cpu"
        return on_cpu and not by_blocks and can_pack(self.model)


def needs(recipe: Recipe, what: str) -> bool:
    """Whether the recipe's objective needs this (`objectives.ObjectiveEntry`)."""
    return what in OBJECTIVES[recipe.objective].needs


def encode_in_parts(
    model: nn.Module,
    texts: Texts,
    parts: int,
    encode: Callable[[nn.Module, torch.Tensor], torch.Tensor] = encode_tokens,
) -> torch.Tensor:
    """Text features [B, D] of a batch, sorted by length and run in `parts` parts.

    Each part is trimmed to its own longest text (`encode_tokens`), so that a few long texts do not
    pad all the others. The features are the same. `encode_corner_tokens` gives [B, C, D].
    """
    order_B = texts.lengths_B.argsort(stable=True)
    size = math.ceil(len(order_B) / parts)
    in_order = torch.cat([encode(model, texts.ids_BT[rows]) for rows in order_B.split(size)])
    return in_order[order_B.argsort()]


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
    return Towers(model, recipe).train()


def _set_scale_and_bias(clip: Clip, recipe: Recipe) -> None:
    model = clip.model
    start = recipe.start_logit_scale
    if start is None and recipe.faithful:
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

    `faithful` decays everything, as the official code does. The default spares what has no
    scale to be kept small: norms, biases, the logit scale, positions, class and corner tokens.
    """
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_spared = (
            parameter.ndim < 2 or name.rpartition(".")[2] in SPARED or name.endswith(SPARED_TABLES)
        )
        (spared if is_spared and not recipe.faithful else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]


class KeptPositions:
    """Holds the positions that stretching kept exactly where they were.

    Their gradient is cleared, so that it counts neither in the norm nor in AdamW's moments, and
    `restore` after a step undoes weight decay. Long-CLIP freezes them in the same way: its
    `positional_embedding` (positions 0 to 19) is not trained, `positional_embedding_res` is.
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
    """The state that changes from step to step."""

    def __init__(
        self, accelerator: Accelerator, clip: Clip, recipe: Recipe, total: int, folder: Path | None
    ):
        self.accelerator, self.recipe, self.total, self.folder = accelerator, recipe, total, folder
        towers = prepare(clip, recipe).to(accelerator.device)
        self.plain: nn.Module | None = None
        if recipe.sharding == "full" and accelerator.num_processes > 1:
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
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        bar = Progress(self.total, self.done, self.recipe.name, progress)
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        try:
            self.clock = time.perf_counter()
            with torch.random.fork_rng(devices), watching(self.accelerator), listening() as stop:
                for batch in pairs.batches(self.done, self.total, rank, processes):
                    if isinstance(batch, LabError):
                        raise batch
                    row = self.step_or_skip(batch, pairs)
                    bar.step(row)
                    logged = self.done % self.recipe.log_every == 0 or self.done == self.total
                    logged = logged and row is not None
                    if logged:
                        self.log.add(row)
                    asked, overdue = agreed(self.accelerator, stop.asked, self.overdue)
                    stopping = asked and self.done < self.total
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
            if len(self.skipped) >= self.recipe.skip_not_finite:
                raise LabError(f"{error}{where}") from None
            self.skipped.append(error.step)
            warnings.warn(f"Skipped. {error}{where}", LabWarning, stacklevel=2)
            self.optimizer.zero_grad()
            self.done += 1
            return None

    def stopped(self) -> str:
        """What to say when a run stops because it was asked to."""
        if self.folder is None:
            return f"Asked to stop after step {self.done}; there is no folder, so nothing is kept."
        return (
            f"Asked to stop: the state after step {self.done} is saved; the same call with "
            "resume=True (--resume) goes on."
        )

    def step(self, batch: Batch) -> dict[str, Any]:
        """One update; returns its row of the log."""
        recipe = self.recipe
        # Dropout and the like draw from (seed, step, process), not from what was drawn before.
        state = (recipe.seed, self.done, self.accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(state).generate_state(1)[0]))
        lr = recipe.learning_rate_at(self.done, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        parts, logit_scale = self.backward(batch.to(self.accelerator.device))
        self.kept.clear_gradient()
        limit = recipe.max_grad_norm or float("inf")
        grad_norm = clip_gradient(self.towers.parameters(), limit)
        self.check_finite("gradient", grad_norm)
        self.optimizer.step()
        self.kept.restore()
        if recipe.max_logit_scale is not None:
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
            parts, step = backward_in_parts(
                self.accelerator, self.towers, batch, self.recipe.micro_batch, self.loss
            )
        else:
            step = self.towers(batch)
            parts = self.loss(step)
            self.accelerator.backward(parts.total)
        if self.plain is not None:
            average_scalars(self.towers, self.accelerator)
        return parts, step.logit_scale.detach().log()

    def loss(self, step: Step) -> LossParts:
        """The loss of the global batch: the objectives gather the features."""
        try:
            parts = objective_loss(self.recipe.objective, step)
        except NotFiniteError as error:
            raise NotFiniteStepError(self.done + 1, f"{error} {self.last_good()}") from None
        except LabError as error:
            raise LabError(f"Step {self.done + 1}: {error} {self.last_good()}") from None
        self.check_finite("loss", parts.total)
        return parts

    def check_finite(self, what: str, value: torch.Tensor) -> None:
        """Stop before a bad gradient reaches the weights."""
        finite = torch.isfinite(value.detach()).float().reshape(1)
        if self.recipe.skip_not_finite and self.accelerator.num_processes > 1:
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
