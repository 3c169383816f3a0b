"""A recipe: everything that decides how a training run goes, as one value.

A field and its docstring are at once the Python interface, the help of `longclip-lab train` and
what `run.json` records. The presets are in `recipes.py`. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from longclip_lab.constants import OLD_OBJECTIVES, refuse_renamed
from longclip_lab.errors import COUNT, MANY, SEED, SHARE, WORKERS, LabError, Numbers, suggest

# --- What values a recipe's fields may have ---

BATCH = Numbers(at_least=2, at_most=10**9, whole=True)
"""A contrastive loss tells a pair from the others of its batch: of one pair it is 0 and teaches
nothing."""
LARGEST = 10**6
"""Of rates and weights: their products stay within the range of float32."""
POSITIVE = Numbers(above=0, at_most=LARGEST)
NOT_NEGATIVE = Numbers(at_least=0, at_most=LARGEST)
LOGARITHM = Numbers(at_least=-20, at_most=1000)
"""Of a factor on the logits, which CLIP clamps at ln 100 = 4.6: below, it would be 0; where it
overflows, the loss says so."""
BIAS = Numbers(at_least=-1000, at_most=1000)
"""Of the logits; SigLIP starts at -10."""

NUMBERS: dict[Numbers, tuple[str, ...]] = {
    BATCH: ("batch_size",),
    COUNT: (
        "k", "num_streams", "shuffle_buffer", "log_every", "checkpoint_every", "keep_checkpoints",
    ),
    MANY: ("warmup_steps", "num_corner", "max_nan_steps"),
    WORKERS: ("workers",),
    SEED: ("seed",),
    POSITIVE: ("learning_rate", "eps"),
    NOT_NEGATIVE: ("short_weight", "long_weight", "margin", "weight_decay"),
    SHARE: ("label_smoothing", "alt_text_noise", "hallucination", "max_bad_fraction"),
}  # fmt: skip
"""Fields by the numbers that they may have."""

OPTIONAL_NUMBERS: dict[Numbers, tuple[str, ...]] = {
    COUNT: ("steps", "epochs", "length_buckets", "pairs", "token_limit", "micro_batch"),
    POSITIVE: ("max_grad_norm", "checkpoint_minutes"),
    LOGARITHM: ("start_logit_scale", "max_logit_scale"),
    BIAS: ("start_logit_bias",),
}
"""Fields that may be None as well."""


def choice(field: str, value: str, known: Sequence[str]) -> None:
    """Raise LabError, with the near ones, unless `value` is one of `known`."""
    if value not in known:
        raise LabError(f"There is no {field} {value!r}. {suggest(str(value), known)}")


# --- A recipe: everything that decides how a training run goes, as one value ---

Objective = Literal[
    "longclip",
    "mixed",
    "long",
    "clip",
    "lit",
    "siglip",
    "filip",
    "laclip",
    "lit-longclip",
    "register",
    "lotlip",
    "debias-clip",
    "hn-clip",
]
Captions = Literal["both", "short", "long"]
Reduction = Literal["sum", "mean"]
Precision = Literal["fp32", "bf16"]
Sharding = Literal["none", "full"]
PcaScope = Literal["process", "batch"]
Scale = Literal["tiny", "lab", "paper"]
Preset = Literal["repository", "paper"]


LENGTH_BUCKETS = 4
"""Length buckets where a recipe does not say."""


@dataclass(frozen=True)
class Recipe:
    """How to train. Change a copy with `dataclasses.replace(recipe, learning_rate=1e-3)`.

    Raises LabError if a value makes no sense.
    """

    name: str = "longclip"
    """What the run is called in its records."""
    objective: Objective = "longclip"
    """long: long captions only. mixed: long + short captions, both against the full image feature.
    longclip: short ones against the image feature's primary components (Long-CLIP, section 3.3).
    The others are the methods of `longclip_lab.objectives.OBJECTIVES`; debias-clip draws its short
    texts from the long ones, behind their summary."""
    captions: Captions = "both"
    """Which captions a method of the family learns from: the raw short one, the long one, or both
    (LoTLIP's Table 2, with and without long texts)."""
    subcaptions: int | Literal["all"] | None = None
    """Draw the long text anew every epoch: a captioner, and so many consecutive sub-captions of
    its caption (LoTLIP: 3), all where it has fewer; "all": always the whole caption. By default
    nothing is drawn: the data's one long text as it is."""
    captioners: tuple[str, ...] = ()
    """Captioners to draw sub-captions from; by default all that the data have."""
    rewrites: bool = False
    """Draw the short text anew every epoch: one of the image's captions, raw or rewritten
    (LaCLIP)."""
    short_weight: float = 1.0
    """Weight of the short captions' loss beside the long ones' 1."""
    long_weight: float = 1.0
    """Weight of lotlip's long part. m + 1 without corners is what m corners must beat."""
    reduction: Reduction = "sum"
    """lotlip: add the losses of all text features (the paper), or average them (its code)."""
    margin: float = 1.0
    """hn-clip: how much the texts' own similarity widens the margin."""
    k: int = 32
    """Primary components kept, of the principal components of the global batch."""
    match_official: bool = False
    """Do as the official code does: primary components by SVD with its own gradient, weight decay
    on everything, logit scale starting at ln 100."""
    pca_scope: PcaScope | None = None
    """longclip: whose principal components: those of each process's images, as the official code
    has it, or of the whole batch, so that the number of processes changes nothing. By default of
    the batch, and of the process if match_official."""
    label_smoothing: float = 0.1
    """Label smoothing of both losses."""
    mask_duplicates: bool = True
    """Do not count a caption as a negative of an image that carries the same words, as hard
    negatives and drawn sub-captions do. Off if match_official; the official code counts them."""
    image_tower: str | None = None
    """Image tower of a new model; by default the recipe trains a model that is given."""
    text_tower: str | None = None
    """Text tower of a new model: world, minilm, a hub name or a folder."""
    pretrained_towers: bool = True
    """Start a new model from the towers' weights; off: from random ones (LoTLIP's Table 8)."""
    token_limit: int | None = None
    """Tokens that a new model reads, start, end and corners included. Texts for a model that is
    given are cut there."""
    num_corner: int = 0
    """Learned tokens in a new model's text tower: corners; registers if the objective is
    register."""
    mask: bool = True
    """LoTLIP's attention mask between corners and [CLS] (Table 3)."""
    lock_image: bool = False
    """Train the text tower alone (LiT)."""
    cache_image_features: bool = True
    """Run a locked image tower once and read its cached features from then on."""
    batch_size: int = 128
    """Pairs in a global batch, over all processes together, at least 2; every pair is a negative
    for all others."""
    steps: int | None = 150
    """Optimizer steps; give either steps or epochs."""
    epochs: int | None = None
    """Passes over the data; an incomplete last batch is left out."""
    learning_rate: float = 3e-4
    """Peak learning rate, after the warm-up; falls to 0 along a cosine."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    weight_decay: float = 1e-2
    """AdamW's weight decay; spares norms, biases, positions and the logit scale, unless
    match_official."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: float | None = None
    """Cut the gradient to this norm."""
    start_logit_scale: float | None = None
    """Logarithm of the temperature's inverse to start from; by default ln 100 if match_official,
    else the model's own. It is trained."""
    max_logit_scale: float | None = None
    """Clamp that logarithm here after every step (CLIP: ln 100); by default it is free."""
    start_logit_bias: float | None = None
    """Where siglip's trained bias starts; by default the model's own."""
    freeze_kept: bool = True
    """Keep the positions that stretching kept (0 to 19) exactly as they are."""
    precision: Precision = "fp32"
    """bf16 runs the towers in bfloat16 autocast (on a GPU; on a CPU it is slower)."""
    grad_checkpointing: bool = False
    """Compute the towers' activations twice to hold larger batches."""
    micro_batch: int | None = None
    """Run the towers on so many pairs of a process at a time and take the loss of the whole batch
    all the same (gradient caching): the memory of a small batch, a third more time, and the same
    gradient but for rounding. By default the whole batch at once."""
    sharding: Sharding = "none"
    """full: every process holds only its share of weights, gradients and AdamW's moments (FSDP2)
    instead of all of them. Changes nothing but memory and time."""
    length_buckets: int | None = None
    """Encode a batch's texts sorted by length in this many parts, each padded to its own longest.
    By default 4; on a CPU end to end, without padding. Changes nothing but the time."""
    length_grouped: bool = False
    """Fill batches with texts of similar length. Saves more padding, but changes the negatives."""
    hard_negative_group: int = 1
    """Pairs that follow each other in the data and stay together in a batch. For data that are
    sorted so that neighbours are hard negatives of each other; must divide the batch size. On the
    world, long captions gain from such groups and short ones lose: compare with 1."""
    seed: int = 0
    """Decides the order of the pairs and the texts that are drawn, together with the epoch and
    nothing else; and a new model's random weights."""
    pairs: int | None = 8000
    """Pairs to draw from the world when no data set is given."""
    alt_text_noise: float = 0.2
    """Share of the world's raw short captions that belong to another image, where sub-captions
    are drawn; long captions by models are cleaner than what the web says of an image."""
    hallucination: float = 0.0
    """Share of wrong facts in the world's long captions, where sub-captions are drawn."""
    workers: int = 0
    """Processes that decode images from disk; 0 decodes in the training process."""
    num_streams: int = 8
    """Shards are read in so many places at once, and a batch takes the same number of pairs from
    each; must divide the batch size, and the number of processes must divide it."""
    shuffle_buffer: int = 1024
    """Shards: pairs that a stream shuffles together. It holds these and the next ones, as files in
    memory."""
    resample: bool = False
    """Shards: draw them with replacement for ever instead of every pair once an epoch; needs
    steps."""
    max_bad_fraction: float = 0.05
    """Shards: share of broken pairs, replaced by others, above which the run stops."""
    log_every: int = 1
    """Steps between two lines of log.jsonl."""
    checkpoint_every: int = 50
    """Steps between two checkpoints; the last step always makes one."""
    checkpoint_minutes: float | None = None
    """Minutes after which a checkpoint is made in any case, however many steps that were."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept; older ones are deleted."""
    max_nan_steps: int = 0
    """How many batches whose loss or gradient is not finite may be skipped before the run stops;
    their pairs are named in not-finite/."""
    tensorboard: bool = True
    """Write TensorBoard events beside the log."""

    def __new__(cls, *values: Any, **named: Any) -> Recipe:
        # Before Python says that there is no such argument, which helps nobody.
        refuse_renamed(named)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        # The old name is the same recipe, and is recorded by its new name.
        if isinstance(self.objective, str):
            named = OLD_OBJECTIVES.get(self.objective, self.objective)
            object.__setattr__(self, "objective", named)
        if (self.steps is None) == (self.epochs is None):
            raise LabError(
                f"A recipe needs either steps or epochs; came steps={self.steps} and "
                f"epochs={self.epochs}. Set the other to None."
            )
        for numbers, fields in NUMBERS.items():
            for field in fields:
                numbers.check(f"A run's {field}", getattr(self, field))
        for numbers, fields in OPTIONAL_NUMBERS.items():
            for field in fields:
                if getattr(self, field) is not None:
                    numbers.check(f"A run's {field}", getattr(self, field))
        for field, known in _CHOICES.items():
            if not (field == "pca_scope" and self.pca_scope is None):
                choice(field, getattr(self, field), get_args(known))
        group, size = self.hard_negative_group, self.batch_size
        for field, good, expected in (
            (
                "subcaptions",
                self.subcaptions in (None, "all") or self.subcaptions in COUNT,
                'a whole number of at least 1, or "all"',
            ),
            ("betas", isinstance(self.betas, Sequence) and len(self.betas) == 2, "two numbers"),
            (
                "hard_negative_group",
                group in COUNT and size % group == 0,
                f"a divisor of the batch size {size}",
            ),
        ):
            if not good:
                raise LabError(
                    f"A run's {field} must be {expected}; came {getattr(self, field)!r}."
                )
        for place, value in enumerate(self.betas):
            Numbers(at_least=0, below=1).check(f"A run's betas[{place}]", value)
        for fails, complaint in (
            (
                group > 1 and self.length_grouped,
                "length_grouped sorts pairs by length and tears groups of hard negatives apart. "
                "Choose one of them.",
            ),
            (
                self.resample and self.steps is None,
                "With resample there are no epochs: give steps.",
            ),
            (
                self.subcaptions is not None and self.length_grouped,
                "length_grouped sorts pairs by the length of their long text, which is drawn anew "
                "every epoch with subcaptions. Choose one of them.",
            ),
        ):
            if fails:
                raise LabError(complaint)

    def total_steps(self, pairs: int) -> int:
        """Optimizer steps on a data set of `pairs` pairs.

        Raises LabError if one batch is larger than the data.

        >>> Recipe(batch_size=8, steps=None, epochs=3).total_steps(20)
        6
        """
        if pairs < self.batch_size:
            raise LabError(
                f"A batch of {self.batch_size} is larger than the data, {pairs} pairs. "
                f"Give more data or a batch_size of at most {pairs}."
            )
        if self.steps is not None:
            return self.steps
        return self.epochs * (pairs // self.batch_size)

    def learning_rate_at(self, step: int, total: int) -> float:
        """The rate of step 0, 1, ... of `total`: linear warm-up, then a cosine that ends at 0.

        The official code's schedule (`train/scheduler.py`), to the digit.

        >>> recipe = Recipe(learning_rate=1.0, warmup_steps=4)
        >>> [round(recipe.learning_rate_at(step, 12), 3) for step in (0, 3, 4, 8, 11)]
        [0.25, 1.0, 1.0, 0.5, 0.038]
        """
        # AdamW's second moments are estimates of few gradients at first: small steps until they
        # settle.
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * share)) * self.learning_rate


_CHOICES = {
    "objective": Objective,
    "captions": Captions,
    "reduction": Reduction,
    "precision": Precision,
    "sharding": Sharding,
    "pca_scope": PcaScope,
}
