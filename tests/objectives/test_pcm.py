"""Primary components: values, the projector's gradient, the rank meter.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from longclip_lab.errors import LabError
from longclip_lab.objectives import pcm as components
from longclip_lab.objectives import primary_components, primary_components_svd, rank_meter

# --- Primary components: the values, and above all the gradient of the projector ---

GOLDEN = Path(__file__).parents[1] / "golden" / "objectives.safetensors"


def random_batch(batch: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, dim, generator=generator, dtype=dtype)


def with_spectrum(batch: int, dim: int, singular: list[float], seed: int = 0) -> torch.Tensor:
    """A centred batch with exactly these singular values, the others zero."""
    rows = random_batch(batch, len(singular), seed)
    left, _ = torch.linalg.qr(rows - rows.mean(dim=0))
    right, _ = torch.linalg.qr(random_batch(dim, len(singular), seed + 1))
    return left * torch.tensor(singular, dtype=torch.float64) @ right.mT


def gradient(function, features_BD: torch.Tensor, weights_BD: torch.Tensor, k: int):
    leaf = features_BD.clone().requires_grad_()
    (function(leaf, k) * weights_BD).sum().backward()
    return leaf.grad


def directional(features_BD, weights_BD, step_BD, k, size=1e-5) -> float:
    """Central difference of sum(weights * components) along `step`."""

    def value(scale: float) -> torch.Tensor:
        return (primary_components(features_BD + scale * step_BD, k) * weights_BD).sum()

    return ((value(size) - value(-size)) / (2 * size)).item()


@pytest.mark.parametrize("k", [8, 32])
def test_matches_the_official_code(k):
    golden = load_file(GOLDEN)
    expected_BD = golden[f"pca.pca_{k}"]
    for function in (primary_components, primary_components_svd):
        error = (function(golden["pca.features"], k) - expected_BD).norm() / expected_BD.norm()
        assert error < 1e-5


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 9), dim=st.integers(1, 9), k=st.integers(1, 10), seed=st.integers(0, 99)
)
def test_gradcheck_for_all_shapes(batch, dim, k, seed):
    features_BD = random_batch(batch, dim, seed).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: primary_components(x, k), features_BD)
    if k >= min(batch - 1, dim):
        assert torch.equal(primary_components(features_BD, k), features_BD)
        weights_BD = random_batch(batch, dim, seed + 1)
        assert torch.equal(
            gradient(primary_components, features_BD.detach(), weights_BD, k), weights_BD
        )


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(3, 40), dim=st.integers(2, 40), k=st.integers(1, 12), seed=st.integers(0, 99)
)
def test_values_and_projector_laws(batch, dim, k, seed):
    features_BD = random_batch(batch, dim, seed)
    coarse_BD = primary_components(features_BD, k)
    torch.testing.assert_close(coarse_BD, primary_components_svd(features_BD, k))
    torch.testing.assert_close(coarse_BD.mean(dim=0), features_BD.mean(dim=0))
    torch.testing.assert_close(primary_components(coarse_BD, k), coarse_BD)
    rank = torch.linalg.matrix_rank(coarse_BD - coarse_BD.mean(dim=0), atol=1e-8)
    assert rank <= k


@pytest.mark.parametrize(("batch", "dim"), [(64, 24), (24, 64), (40, 40)])
def test_gradient_equals_the_svd_where_that_is_well_conditioned(batch, dim):
    features_BD = with_spectrum(batch, dim, [float(n) for n in range(20, 0, -1)])
    # Full rank on the shorter side, so that the SVD meets no coinciding zeros.
    features_BD = features_BD + 0.01 * random_batch(batch, dim, 5)
    weights_BD = random_batch(batch, dim, 6)
    ours = gradient(primary_components, features_BD, weights_BD, 7)
    if batch > dim:
        svd = gradient(primary_components_svd, features_BD, weights_BD, 7)
        torch.testing.assert_close(ours, svd, rtol=1e-8, atol=1e-8)
    step_BD = random_batch(batch, dim, 7)
    expected = directional(features_BD, weights_BD, step_BD, 7)
    assert (ours * step_BD).sum().item() == pytest.approx(expected, rel=1e-6)


def test_float32_gradient_is_close_to_float64_on_a_steep_spectrum():
    """Variances over six decades, as tiny models have them: float32 Gram would fail."""
    features_BD = with_spectrum(128, 48, [10 ** (-n / 10) for n in range(32)])
    weights_BD = random_batch(128, 48, 3)
    exact = gradient(primary_components, features_BD, weights_BD, 24)
    single = gradient(primary_components, features_BD.float(), weights_BD.float(), 24)
    assert ((single - exact).norm() / exact.norm()).item() < 1e-3


@pytest.mark.parametrize("transpose", [False, True])
def test_repeated_eigenvalues_have_a_finite_exact_gradient(transpose):
    """Kept values coincide, dropped values coincide; only the gap between them matters."""
    batch, dim = (12, 30) if transpose else (30, 12)
    features_BD = with_spectrum(batch, dim, [3.0, 3.0, 3.0, 1.0, 1.0, 1.0])
    weights_BD = random_batch(batch, dim, 2)
    ours = gradient(primary_components, features_BD, weights_BD, 3)
    for seed in range(3, 8):
        step_BD = random_batch(batch, dim, seed)
        expected = directional(features_BD, weights_BD, step_BD, 3)
        assert (ours * step_BD).sum().item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_plain_svd_breaks_where_ours_does_not():
    """Exact coincidences: orthogonal blocks whose singular values are equal bit by bit."""
    block = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    features_BD = torch.block_diag(2 * block, block)
    weights_BD = random_batch(8, 4, dtype=torch.float32)
    assert not gradient(primary_components_svd, features_BD, weights_BD, 2).isfinite().all()
    ours = gradient(primary_components, features_BD, weights_BD, 2)
    assert ours.isfinite().all()
    step_BD = random_batch(8, 4, 3)
    expected = directional(features_BD.double(), weights_BD.double(), step_BD, 2)
    assert (ours * step_BD).sum().item() == pytest.approx(expected, rel=1e-5)


def test_small_batch_gradient_survives_the_null_direction():
    """B <= D: centring makes one singular value 0; with duplicates there are several."""
    images_BD = random_batch(10, 32, dtype=torch.float32)
    features_BD = torch.cat([images_BD, images_BD[:6]])
    weights_BD = random_batch(16, 32, 4, torch.float32)
    ours = gradient(primary_components, features_BD, weights_BD, 4)
    exact = gradient(primary_components, features_BD.double(), weights_BD.double(), 4)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-5)


def test_lower_rank_than_k_is_the_identity():
    features_BD = with_spectrum(20, 16, [2.0, 1.0, 0.5])
    weights_BD = random_batch(20, 16)
    assert torch.equal(primary_components(features_BD, 5), features_BD)
    assert torch.equal(gradient(primary_components, features_BD, weights_BD, 5), weights_BD)


def test_coinciding_kept_and_dropped_values_give_a_finite_gradient():
    features_BD = with_spectrum(20, 12, [2.0, 1.0, 1.0, 0.5])
    ours = gradient(primary_components, features_BD, random_batch(20, 12), 2)
    assert ours.isfinite().all()
    assert ours.abs().max() < 100


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype):
    features_BD = random_batch(40, 16, dtype=dtype)
    exact_BD = primary_components(features_BD.double(), 4)
    coarse_BD = primary_components(features_BD, 4)
    assert coarse_BD.dtype == dtype
    torch.testing.assert_close(coarse_BD, exact_BD.to(dtype), rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single_BD = primary_components(features_BD.float(), 4)
    torch.testing.assert_close(single_BD, exact_BD.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("features", "k", "words"),
    [
        (torch.randn(4, 3), 0, "k: expected a whole number"),
        (torch.randn(4, 3), 2.0, "k: expected a whole number"),
        (torch.randn(4), 2, "non-empty matrix"),
        (torch.randn(0, 3), 2, "non-empty matrix"),
        (torch.ones(4, 3, dtype=torch.long), 2, "floating-point"),
        (torch.tensor([[float("nan"), 1.0], [0.0, 1.0]]), 1, "1 NaN or infinite of 4"),
    ],
)
def test_bad_input(features, k, words):
    for function in (primary_components, primary_components_svd):
        with pytest.raises(LabError, match=words):
            function(features, k)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(3, 40), dim=st.integers(2, 40), k=st.integers(1, 12), seed=st.integers(0, 99)
)
def test_solving_and_all_eigenvectors_agree(batch, dim, k, seed):
    """The CPU's way, by tridiagonal systems, and the one of every other device."""
    if k >= min(batch - 1, dim):
        return
    centred = components._Centred(random_batch(batch, dim, seed))
    solving, all_vectors = (
        components._Tridiagonal.of(centred, k),
        components._Eigenvectors(centred, k),
    )
    assert solving is not None
    projector_CC = all_vectors.kept_CK @ all_vectors.kept_CK.mT
    torch.testing.assert_close(solving.kept_CK @ solving.kept_CK.mT, projector_CC)
    # The rotation goes with its own directions: turned back, it is the same map.
    symmetric_CK = random_batch(len(projector_CC), k, seed + 1)
    in_basis = [way.rotation(symmetric_CK @ symmetric_CK.mT @ way.kept_CK) @ way.kept_CK.mT
                for way in (solving, all_vectors)]  # fmt: skip
    torch.testing.assert_close(*in_basis, rtol=1e-6, atol=1e-6 * in_basis[1].abs().max().item())


def test_values_too_near_to_be_told_apart_take_all_eigenvectors():
    near = components._Centred(with_spectrum(20, 12, [2.0, 1.0, 1.0 - 1e-9, 0.5]))
    assert components._Tridiagonal.of(near, 2) is None
    assert components._Tridiagonal.of(near, 1) is not None


# --- The rank meter against numbers that can be known ---


def features(batch: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed))


def test_official_batch_of_32_is_a_no_op():
    meter = rank_meter(features(32, 512), k=32)
    assert (meter.rank, meter.is_identity, meter.variance_kept) == (31, True, 1.0)
    assert "does nothing" in meter.verdict


def test_even_spectrum_has_the_rank_as_effective_rank():
    # The corners of a cross polytope: centred, of length 1, the same variance everywhere.
    corners = torch.cat([torch.eye(6), -torch.eye(6)])
    meter = rank_meter(corners, k=3)
    assert meter.rank == 6
    assert meter.effective_rank == pytest.approx(6.0)
    assert meter.variance_kept == pytest.approx(0.5)
    assert meter.spectrum == pytest.approx([1 / 6] * 6)
    assert "at work" in meter.verdict
    table = meter.table()
    assert table["kept"].sum() == 3
    assert table["cumulative"].iloc[-1] == pytest.approx(1.0)


def test_a_thin_tail_is_called_next_to_nothing():
    turned = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    meter = rank_meter(features(200, 3) @ turned + 0.01 * features(200, 64, 2), k=3)
    assert 0.99 < meter.variance_kept < 1
    assert "next to nothing" in meter.verdict


@settings(deadline=None, max_examples=30)
@given(batch=st.integers(2, 30), dim=st.integers(2, 30), k=st.integers(1, 30))
def test_agrees_with_the_components(batch, dim, k):
    batch_BD = torch.nn.functional.normalize(features(batch, dim, batch))
    meter = rank_meter(batch_BD, k)
    coarse_BD = primary_components(batch_BD, k)
    kept = coarse_BD.var(dim=0).sum() / batch_BD.var(dim=0).sum()
    assert meter.variance_kept == pytest.approx(kept.item(), rel=1e-4)
    assert meter.is_identity == torch.equal(coarse_BD, batch_BD)
    assert sum(meter.spectrum) == pytest.approx(1.0)
    assert 1 <= meter.effective_rank <= meter.rank + 1e-6


def test_duplicates_and_identical_images():
    twice = features(10, 64).repeat(2, 1)
    assert rank_meter(twice, k=12).rank == 9
    same = rank_meter(features(1, 64).expand(5, 64), k=1)
    assert (same.rank, same.is_identity, same.effective_rank) == (0, True, 0.0)
    assert sum(same.spectrum) == 0.0


def test_bad_input_of_the_meter():
    with pytest.raises(LabError, match="k: expected"):
        rank_meter(features(4, 4), k=0)
    with pytest.raises(LabError, match="1 NaN"):
        rank_meter(torch.tensor([[float("nan"), 1.0]]), k=1)


def test_the_meter_draws_itself():
    meter = rank_meter(features(64, 16), k=4)
    chart = meter.plot()
    assert "k=4" in chart.layout.title.text
    assert len(chart.data[0].y) == meter.rank
