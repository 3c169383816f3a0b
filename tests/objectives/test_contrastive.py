"""Contrastive losses against literal loops; duplicate captions; pulls and pushes.

Shapes: B batch, P image tokens, T text tokens, C text features, D embedding.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import SigLipLoss
from torch.utils._python_dispatch import TorchDispatchMode

from longclip_lab.errors import LabError
from longclip_lab.objectives import (
    OBJECTIVES,
    ImageFeatures,
    LossConfig,
    LossInputs,
    TextFeatures,
    contrastive_loss,
    filip_loss,
    hard_negative_loss,
    longclip_loss,
    lotlip_loss,
    objective_loss,
    pulls,
    same_identity,
    same_text,
    sigmoid_loss,
)
from longclip_lab.objectives import contrastive as filip
from longclip_lab.objectives import contrastive as siglip

# --- Duplicate captions: literal loop, properties ---

DUPLICATES = ["a red cat", "a dog", "a red cat", "A red cat", "a dog", "a red cat", "sky", "a tree"]


def features(batch: int, seed: int, dim: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, dim, generator=generator, dtype=torch.float64)


def literal(image_BD, text_BD, scale: float, smoothing: float, texts: list[str]) -> float:
    """The definition, one pair and one answer at a time."""
    image_BD, text_BD = F.normalize(image_BD), F.normalize(text_BD)
    total = 0.0
    for asked_BD, answers_BD in ((image_BD, text_BD), (text_BD, image_BD)):
        for i, text in enumerate(texts):
            answers = [j for j, other in enumerate(texts) if j == i or other != text]
            logits = {j: scale * float(asked_BD[i] @ answers_BD[j]) for j in answers}
            log_sum = math.log(sum(math.exp(logit) for logit in logits.values()))
            total += (1 - smoothing) * (log_sum - logits[i])
            total += smoothing * sum(log_sum - logit for logit in logits.values()) / len(answers)
    return total / (2 * len(texts))


@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(st.sampled_from("abcde"), min_size=1, max_size=8),
    scale=st.floats(0.1, 50),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_literal_loop(texts, scale, smoothing):
    image_BD, text_BD = features(len(texts), 0), features(len(texts), 1)
    loss = contrastive_loss(image_BD, text_BD, scale, smoothing, same_text(texts))
    assert loss.item() == pytest.approx(literal(image_BD, text_BD, scale, smoothing, texts))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_twins_nothing_changes(smoothing):
    image_BD, text_BD = features(6, 0), features(6, 1)
    plain = contrastive_loss(image_BD, text_BD, 10.0, smoothing)
    for same_BB in (torch.eye(6, dtype=torch.bool), torch.zeros(6, 6, dtype=torch.bool)):
        masked = contrastive_loss(image_BD, text_BD, 10.0, smoothing, same_BB)
        torch.testing.assert_close(masked, plain)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_without_duplicates(smoothing):
    inputs = [features(8, seed).requires_grad_() for seed in range(2)]
    same_BB = same_text(DUPLICATES)

    def loss(image_BD, text_BD):
        return contrastive_loss(image_BD, text_BD, 3.0, smoothing, same_BB)

    assert torch.autograd.gradcheck(loss, inputs)


def test_a_batch_of_one_text_has_nothing_to_learn():
    inputs = [features(4, seed).requires_grad_() for seed in range(2)]
    loss = contrastive_loss(*inputs, 10.0, 0.1, same_text(["sky"] * 4))
    loss.backward()
    assert loss == 0
    assert all(torch.equal(leaf.grad, torch.zeros(4, 5).double()) for leaf in inputs)


def test_same_text_compares_characters():
    expected = torch.tensor([[a == b for b in DUPLICATES] for a in DUPLICATES])
    assert torch.equal(same_text(DUPLICATES), expected)


@pytest.mark.parametrize("mask", [torch.eye(3), torch.zeros(2, 2, dtype=torch.bool)])
def test_refuses_a_mask_that_does_not_fit(mask):
    with pytest.raises(LabError, match=r"same_GG: expected a bool mask \[3, 3\]"):
        contrastive_loss(features(3, 0), features(3, 1), 1.0, same_GG=mask)


@pytest.mark.parametrize("texts", ["sky", []])
def test_refuses_no_texts(texts):
    with pytest.raises(LabError, match="one text a pair"):
        same_text(texts)


@pytest.mark.parametrize(
    "identity_B", [torch.ones(3), torch.ones(2, 2).long(), torch.ones(0).int()]
)
def test_refuses_what_is_no_identity(identity_B):
    with pytest.raises(LabError, match="one whole number a pair"):
        same_identity(identity_B)


# --- SigLIP, FILIP and HN-CLIP against literal loops, and the registry ---

QUICK = settings(deadline=None, max_examples=25)
TEXTS = ["sky", "sea", "sky", "a cat", "sea", "a dog"]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def literal_cross_entropy(logit, size: int, same) -> float:
    """Mean over rows of -log softmax at the diagonal; `logit(i, j)`, twins left out."""
    total = 0.0
    for i in range(size):
        answers = [j for j in range(size) if j == i or not same(i, j)]
        total -= logit(i, i) - math.log(sum(math.exp(logit(i, j)) for j in answers))
    return total / size


@QUICK
@given(
    size=st.integers(1, 6), scale=st.floats(0.5, 20), bias=st.floats(-12, 2), twins=st.booleans()
)
def test_sigmoid_loss_pair_by_pair(size, scale, bias, twins):
    image_BD, text_BD = draw(size, 5), draw(size, 5, seed=1)
    total = 0.0
    for i in range(size):
        for j in range(size):
            if twins and i != j and TEXTS[i] == TEXTS[j]:
                continue
            sign = 1 if i == j else -1
            cosine = float(F.cosine_similarity(image_BD[i], text_BD[j], dim=0))
            total += math.log(1 + math.exp(-sign * (scale * cosine + bias)))
    same_BB = same_text(TEXTS[:size]) if twins else None
    loss = sigmoid_loss(image_BD, text_BD, scale, bias, same_BB)
    assert loss.item() == pytest.approx(total / size)


def test_sigmoid_loss_in_chunks_is_the_loss_at_once(monkeypatch):
    """Loss and gradients, and no table of all pairs at any time."""
    size = 12
    same_BB = torch.arange(size)[:, None] % 5 == torch.arange(size) % 5

    class Widest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.is_floating_point():
                self.elements = max(self.elements, result.numel())
            return result

    def run():
        leaves = [draw(size, 5), draw(size, 5, seed=1), torch.tensor(9.0), torch.tensor(-3.0)]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        with Widest() as widest:
            loss = sigmoid_loss(*leaves, same_BB)
            loss.backward()
        return widest.elements, [loss, *(leaf.grad for leaf in leaves)]

    whole, at_once = run()
    monkeypatch.setattr(siglip, "JUDGED_AT_ONCE", 5 * size)
    largest, chunked = run()
    assert (whole, largest) == (size**2, 5 * size)
    for found, expected in zip(chunked, at_once, strict=True):
        torch.testing.assert_close(found, expected)


def test_sigmoid_loss_equals_open_clip():
    image_BD, text_BD = F.normalize(draw(7, 5)), F.normalize(draw(7, 5, seed=1))
    expected = SigLipLoss()(image_BD, text_BD, logit_scale=10.0, logit_bias=-10.0)
    torch.testing.assert_close(sigmoid_loss(image_BD, text_BD, 10.0, -10.0), expected)


@QUICK
@given(
    size=st.integers(1, 5),
    patches=st.integers(1, 4),
    lengths=st.lists(st.integers(1, 4), min_size=5, max_size=5),
    scale=st.floats(0.5, 20),
    twins=st.booleans(),
)
def test_filip_token_by_token(size, patches, lengths, scale, twins):
    image_BPD, text_BTD = F.normalize(draw(size, patches, 3), dim=-1), draw(size, 4, 3, seed=1)
    lengths = lengths[:size]
    mask_BT = torch.arange(4) < torch.tensor(lengths)[:, None]
    unit_BTD = F.normalize(text_BTD, dim=-1)

    def cosine(i, p, j, t):
        return float(image_BPD[i, p] @ unit_BTD[j, t])

    def to_text(i, j):
        best = [max(cosine(i, p, j, t) for t in range(lengths[j])) for p in range(patches)]
        return scale * sum(best) / patches

    def to_image(j, i):
        best = [max(cosine(i, p, j, t) for p in range(patches)) for t in range(lengths[j])]
        return scale * sum(best) / lengths[j]

    def same(i, j):
        return twins and TEXTS[i] == TEXTS[j]

    both = [literal_cross_entropy(logit, size, same) for logit in (to_text, to_image)]
    same_BB = same_text(TEXTS[:size]) if twins else None
    loss = filip_loss(image_BPD, text_BTD, mask_BT, scale, same_GG=same_BB)
    assert loss.item() == pytest.approx(sum(both) / 2)


def test_filip_in_rows_is_filip_at_once(monkeypatch):
    mask_BT = torch.arange(4) < torch.tensor([4, 1, 2, 3, 4])[:, None]

    def run():
        inputs = [draw(5, 3, 6).requires_grad_(), draw(5, 4, 6, seed=1).requires_grad_()]
        loss = filip_loss(*inputs, mask_BT, 5.0, label_smoothing=0.1)
        loss.backward()
        return loss, *(leaf.grad for leaf in inputs)

    at_once = run()
    monkeypatch.setattr(filip, "ROWS_AT_ONCE", 2)
    for in_rows, expected in zip(run(), at_once, strict=True):
        torch.testing.assert_close(in_rows, expected)


def test_filip_ignores_what_the_mask_hides():
    image_BPD, text_BTD = draw(3, 2, 4), draw(3, 5, 4, seed=1)
    mask_BT = torch.arange(5) < torch.tensor([2, 5, 3])[:, None]
    louder_BTD = text_BTD.masked_fill(~mask_BT[..., None], 1e3)
    torch.testing.assert_close(
        filip_loss(image_BPD, louder_BTD, mask_BT, 5.0),
        filip_loss(image_BPD, text_BTD, mask_BT, 5.0),
    )


def test_filip_of_one_token_each_is_clip():
    image_BD, text_BD = draw(6, 5), draw(6, 5, seed=1)
    every_B1 = torch.ones(6, 1, dtype=torch.bool)
    loss = filip_loss(image_BD[:, None], text_BD[:, None], every_B1, 8.0, 0.1)
    torch.testing.assert_close(loss, contrastive_loss(image_BD, text_BD, 8.0, 0.1))


@QUICK
@given(
    size=st.integers(1, 6), scale=st.floats(0.5, 10), margin=st.floats(0, 2), twins=st.booleans()
)
def test_hard_negatives_pair_by_pair(size, scale, margin, twins):
    image_BD, text_BD = F.normalize(draw(size, 5)), F.normalize(draw(size, 5, seed=1))

    def to_text(i, j):
        added = margin * float(text_BD[i] @ text_BD[j]) if i != j else 0.0
        return scale * (float(image_BD[i] @ text_BD[j]) + added)

    def same(i, j):
        return twins and TEXTS[i] == TEXTS[j]

    both = [
        literal_cross_entropy(to_text, size, same),
        literal_cross_entropy(lambda i, j: to_text(j, i), size, same),
    ]
    same_BB = same_text(TEXTS[:size]) if twins else None
    loss = hard_negative_loss(image_BD, text_BD, scale, margin, same_GG=same_BB)
    assert loss.item() == pytest.approx(sum(both) / 2)


def test_the_margin_has_no_gradient_of_its_own():
    image_BD, text_BD = F.normalize(draw(5, 4)), F.normalize(draw(5, 4, seed=1)).requires_grad_()
    hard_negative_loss(image_BD, text_BD, 5.0).backward()
    fixed_BB = (text_BD @ text_BD.T).detach().fill_diagonal_(0)
    other_BD = text_BD.detach().clone().requires_grad_()
    logits = 5.0 * (image_BD @ F.normalize(other_BD).T + fixed_BB)
    target = torch.arange(5)
    ((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2).backward()
    torch.testing.assert_close(text_BD.grad, other_BD.grad)


def test_without_margin_hard_negatives_are_clip():
    image_BD, text_BD = draw(6, 5), draw(6, 5, seed=1)
    loss = hard_negative_loss(image_BD, text_BD, 8.0, margin=0.0, label_smoothing=0.1)
    torch.testing.assert_close(loss, contrastive_loss(image_BD, text_BD, 8.0, 0.1))


@pytest.mark.parametrize(
    "loss",
    [
        lambda image, text: sigmoid_loss(image, text, 3.0, -2.0, same_text(TEXTS)),
        lambda image, text: filip_loss(
            image.unflatten(1, (2, 3)), text.unflatten(1, (2, 3)), torch.ones(6, 2).bool(), 3.0
        ),
    ],
    ids=["sigmoid", "filip"],
)
def test_gradients(loss):
    inputs = [draw(6, 6, seed=seed).requires_grad_() for seed in range(2)]
    assert torch.autograd.gradcheck(loss, inputs)


def text_side(seed: int, identity: bool = False) -> TextFeatures:
    lengths_B = torch.tensor([4, 1, 2, 3, 4, 2])
    return TextFeatures(
        draw(6, 3, 5, seed=seed),
        draw(6, 4, 5, seed=seed + 10),
        torch.arange(4) < lengths_B[:, None],
        torch.tensor([TEXTS.index(text) for text in TEXTS]) if identity else None,
    )


def whole_step(identity: bool = False) -> LossInputs:
    return LossInputs(
        ImageFeatures(draw(6, 5), draw(6, 4, 5, seed=7)),
        text_side(1, identity),
        text_side(2),
        logit_scale=6.0,
        logit_bias=-3.0,
        config=LossConfig(short_weight=0.5, label_smoothing=0.1, k=2, margin=0.7),
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_gives_the_same_kind_of_result(name):
    parts = objective_loss(name, whole_step(identity=True))
    assert parts.total.isfinite()
    weight = 1.0 if name == "lotlip" else 0.5
    torch.testing.assert_close(parts.total, parts.long + weight * parts.short)
    assert OBJECTIVES[name].name == name
    assert OBJECTIVES[name].source


def test_the_registry_calls_the_functions():
    step = whole_step(identity=True)
    image_BD, short, long = step.image.features_BD, step.short, step.long
    same_BB = same_text(TEXTS)
    clip = objective_loss("clip", step)
    torch.testing.assert_close(clip.long, contrastive_loss(image_BD, long.pooled_BD, 6.0, 0.1))
    torch.testing.assert_close(
        clip.short, contrastive_loss(image_BD, short.pooled_BD, 6.0, 0.1, same_BB)
    )
    for same_loss in ("lit", "laclip", "register"):
        torch.testing.assert_close(objective_loss(same_loss, step).total, clip.total)
    torch.testing.assert_close(
        objective_loss("siglip", step).short,
        sigmoid_loss(image_BD, short.pooled_BD, 6.0, -3.0, same_BB),
    )
    torch.testing.assert_close(
        objective_loss("filip", step).long,
        filip_loss(step.image.tokens_BPD, long.tokens_BTD, long.mask_BT, 6.0, 0.1),
    )
    torch.testing.assert_close(
        objective_loss("hn-clip", step).long,
        hard_negative_loss(image_BD, long.pooled_BD, 6.0, 0.7, 0.1),
    )
    torch.testing.assert_close(
        objective_loss("lotlip", step).total,
        lotlip_loss(
            image_BD, long.features_BCD, short.pooled_BD, 6.0, short_weight=0.5,
            label_smoothing=0.1, same_short_GG=same_BB,
        ).total,
    )  # fmt: skip
    torch.testing.assert_close(
        objective_loss("lit-longclip", step).total,
        longclip_loss(
            image_BD, long.pooled_BD, short.pooled_BD, 6.0, short_weight=0.5, k=2,
            same_short_GG=same_BB,
        ).total,
    )  # fmt: skip


def test_short_captions_alone():
    step = replace(whole_step(), long=None)
    parts = objective_loss("clip", step)
    assert parts.long == 0
    torch.testing.assert_close(parts.total, 0.5 * parts.short)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("lotlp", {}, "no objective 'lotlp'. Did you mean lotlip?"),
        ("lotlip", {"long": None}, "'lotlip' needs long"),
        ("siglip", {"logit_bias": None}, "'siglip' needs logit_bias"),
        ("filip", {"image": ImageFeatures(draw(6, 5))}, "'filip' needs tokens"),
        ("clip", {"short": None, "long": None}, "needs short or long texts"),
    ],
)
def test_what_is_missing_is_named(name, change, words):
    with pytest.raises(LabError, match=words):
        objective_loss(name, replace(whole_step(), **change))


@pytest.mark.parametrize(
    ("text_BTD", "mask_BT", "words"),
    [
        (torch.randn(3, 4, 2), torch.ones(3, 4), "bool mask"),
        (torch.randn(3, 4, 2), torch.ones(3, 5).bool(), "bool mask"),
        (torch.randn(2, 4, 2), torch.ones(2, 4).bool(), "compares image tokens"),
        (torch.randn(3, 4, 5), torch.ones(3, 4).bool(), "compares image tokens"),
        (
            torch.randn(3, 4, 2),
            torch.tensor([[1], [0], [1]]).expand(3, 4).bool(),
            "Text 1 .* no tok",
        ),
        (torch.full((3, 4, 2), math.nan), torch.ones(3, 4).bool(), "text_tokens: .* 24 NaN"),
    ],
)
def test_filip_refuses(text_BTD, mask_BT, words):
    with pytest.raises(LabError, match=words):
        filip_loss(torch.randn(3, 5, 2), text_BTD, mask_BT, 1.0)


# --- Pulls and pushes against the derivatives on paper ---

sizes, scales, seeds = st.integers(2, 6), st.floats(1, 30), st.integers(0, 100)


def cosines(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.6 / size**0.5) * torch.rand(size, size, generator=generator, dtype=torch.float64)


def softmax_pulls(logits_BB: torch.Tensor, scale: float) -> torch.Tensor:
    """Of the mean of both cross-entropies."""
    own = torch.eye(len(logits_BB), dtype=logits_BB.dtype)
    return scale / len(own) * (own - (logits_BB.softmax(0) + logits_BB.softmax(1)) / 2)


@QUICK
@given(size=sizes, scale=scales, seed=seeds)
def test_softmax(size, scale, seed):
    table = cosines(size, seed)
    for name in ("clip", "lit", "laclip", "register"):
        torch.testing.assert_close(pulls(name, table, scale), softmax_pulls(scale * table, scale))


@QUICK
@given(size=sizes, scale=scales, seed=seeds, bias=st.floats(-12, 2))
def test_sigmoid(size, scale, seed, bias):
    table = cosines(size, seed)
    own = torch.eye(size, dtype=table.dtype)
    expected = scale / size * (own - torch.sigmoid(scale * table + bias))
    torch.testing.assert_close(pulls("siglip", table, scale, bias), expected)


@QUICK
@given(size=sizes, scale=scales, seed=seeds, margin=st.floats(0, 2))
def test_hard_negatives(size, scale, seed, margin):
    table = cosines(size, seed)
    alike = 0.95 * torch.eye(size, dtype=table.dtype) + 0.05 + 0 * table
    shifted = scale * (table + margin * alike.clone().fill_diagonal_(0))
    # the loss reads both directions off one table and its transpose
    found = pulls("hn-clip", table, scale, text_cosines_BB=alike, config=LossConfig(margin=margin))
    torch.testing.assert_close(found, softmax_pulls(shifted, scale))


def test_what_has_no_such_pull_is_refused():
    table = cosines(3, 0)
    with pytest.raises(LabError, match="one feature"):
        pulls("filip", table, 10.0)
    with pytest.raises(LabError, match="clip"):
        pulls("clipp", table, 10.0)
    with pytest.raises(LabError, match="unit vectors"):
        pulls("clip", torch.full((3, 3), 0.9), 10.0)
    with pytest.raises(LabError, match="as many"):
        pulls("clip", table[:2], 10.0)
