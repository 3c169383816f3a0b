"""Twins in a batch: literal loop, properties, two real processes. Shapes: B batch, D embedding."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from longclip_lab.errors import LabError
from longclip_lab.objectives import contrastive_loss, same_identity, same_text
from tests.processes import in_each

TEXTS = ["a red cat", "a dog", "a red cat", "A red cat", "a dog", "a red cat", "sky", "a tree"]


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
def test_gradients(smoothing):
    inputs = [features(8, seed).requires_grad_() for seed in range(2)]
    same_BB = same_text(TEXTS)

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
    expected = torch.tensor([[a == b for b in TEXTS] for a in TEXTS])
    assert torch.equal(same_text(TEXTS), expected)


def loss_and_gradients(batch: list[torch.Tensor], texts: list[str]) -> list[torch.Tensor]:
    leaves = [part.clone().requires_grad_() for part in batch]
    loss = contrastive_loss(*leaves, 3.0, 0.1, same_text(texts))
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mine = slice(4 * rank, 4 * rank + 4)
    result = loss_and_gradients([features(8, seed)[mine] for seed in range(2)], TEXTS[mine])
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_twins_in_two_processes(tmp_path):
    in_each(process, 2, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    loss, *gradients = loss_and_gradients([features(8, seed) for seed in range(2)], TEXTS)
    for result in ranks:
        torch.testing.assert_close(result[0], loss)
    for index, gradient_BD in enumerate(gradients, start=1):
        mine_BD = torch.cat([result[index] for result in ranks]) / 2
        torch.testing.assert_close(mine_BD, gradient_BD)


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
