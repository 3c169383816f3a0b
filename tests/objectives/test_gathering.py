"""Two real processes: the loss and its gradients are those of one process with all images.

Shapes: B batch of one process, G global batch, D embedding, C text features, T tokens.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from longclip_lab.objectives import (
    OBJECTIVES,
    ImageFeatures,
    LossConfig,
    LossInputs,
    TextFeatures,
    gather,
    longclip_loss,
    objective_loss,
    same_text,
)
from longclip_lab.objectives import contrastive as siglip
from tests.processes import in_each

PROCESSES, BATCH, DIM, K = 2, 9, 12, 4
TEXTS = [f"text {i % 7}" for i in range(PROCESSES * BATCH)]


def global_batch() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(PROCESSES * BATCH, DIM, generator=generator, dtype=torch.float64)
        for _ in range(3)
    ]


def loss_and_gradients(batch: list[torch.Tensor], match_official: bool) -> list[torch.Tensor]:
    leaves = [part.clone().requires_grad_() for part in batch]
    log_scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    parts = longclip_loss(*leaves, log_scale.exp(), k=K, match_official=match_official)
    parts.total.backward()
    return [parts.total.detach(), log_scale.grad, *(leaf.grad for leaf in leaves)]


def family(mine: slice) -> dict[str, list[torch.Tensor]]:
    """Every method's loss and its gradient to the pictures."""
    generator = torch.Generator().manual_seed(1)
    size = PROCESSES * BATCH

    def draw(*shape: int) -> torch.Tensor:
        whole = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
        return whole[mine].clone().requires_grad_()

    image = ImageFeatures(draw(DIM), draw(3, DIM))
    mask_BT = (torch.arange(4) <= torch.arange(size)[:, None] % 4)[mine]
    identity_B = (torch.arange(size) % 5)[mine]
    short, long = (TextFeatures(draw(2, DIM), draw(4, DIM), mask_BT, identity_B) for _ in range(2))
    results = {}
    for name in OBJECTIVES:
        loss = objective_loss(
            name, LossInputs(image, short, long, 3.0, -2.0, LossConfig(k=K))
        ).total
        leaf = image.tokens_BPD if name == "filip" else image.features_BD
        results[name] = [loss.detach(), *torch.autograd.grad(loss, leaf)]
    return results


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES
    )
    mine = [part[rank * BATCH : (rank + 1) * BATCH] for part in global_batch()]
    result = {
        "gathered": gather(mine[0]),
        "same text": same_text(TEXTS[rank * BATCH : (rank + 1) * BATCH]),
        "default": loss_and_gradients(mine, match_official=False),
        "match_official": loss_and_gradients(mine, match_official=True),
        "family": family(slice(rank * BATCH, (rank + 1) * BATCH)),
    }
    siglip.JUDGED_AT_ONCE = 4 * PROCESSES * BATCH
    result["chunks"] = family(slice(rank * BATCH, (rank + 1) * BATCH))
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    in_each(process, PROCESSES, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def whole_family() -> dict[str, list[torch.Tensor]]:
    return family(slice(None))


def test_two_processes_equal_one(ranks):
    total, scale_grad, *grads = loss_and_gradients(global_batch(), match_official=False)
    for result in ranks:
        assert torch.equal(result["gathered"], global_batch()[0])
        assert torch.equal(result["same text"], same_text(TEXTS))
        torch.testing.assert_close(result["default"][0], total)
    # Averaged over processes, as data-parallel training does with what these give rise to.
    mean = sum(result["default"][1] for result in ranks) / PROCESSES
    torch.testing.assert_close(mean, scale_grad)
    for index, expected_GD in enumerate(grads):
        mine_GD = torch.cat([result["default"][2 + index] for result in ranks]) / PROCESSES
        torch.testing.assert_close(mine_GD, expected_GD)


def test_match_official_takes_the_components_of_each_process(ranks):
    whole = loss_and_gradients(global_batch(), match_official=True)[0]
    assert ranks[0]["match_official"][0] == ranks[1]["match_official"][0]
    assert abs(ranks[0]["match_official"][0] - whole) > 1e-3


@pytest.mark.parametrize(
    ("name", "how"), [*((name, "family") for name in OBJECTIVES), ("siglip", "chunks")]
)
def test_every_objective_in_two_processes_equals_one(ranks, whole_family, name, how):
    loss, gradient_GD = whole_family[name]
    for result in ranks:
        torch.testing.assert_close(result[how][name][0], loss)
    mine_GD = torch.cat([result[how][name][1] for result in ranks]) / PROCESSES
    torch.testing.assert_close(mine_GD, gradient_GD)


def test_one_process_gathers_nothing():
    features_BD = torch.ones(2, 3)
    assert gather(features_BD) is features_BD
