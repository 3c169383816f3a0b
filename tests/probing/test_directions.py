"""What directions encode: known features with known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longclip_lab.errors import LabError
from longclip_lab.probing.linear_probe import explained_by


@pytest.fixture
def made():
    """Direction 1 is the ground, direction 2 the sky; direction 3 is noise."""
    rng = np.random.default_rng(0)
    ground, sky = rng.integers(2, size=600), rng.integers(2, size=600)
    features = np.zeros((600, 5))
    features[:, 0] = 10.0
    features[:, 1] = 3.0 * (2 * ground - 1)
    features[:, 2] = 1.0 * (2 * sky - 1)
    features[:, 3] = 0.3 * rng.standard_normal(600)
    features *= rng.uniform(0.5, 2.0, size=(600, 1))
    facts = {
        "ground": [f"g{g}" for g in ground],
        "sky": list(sky),
        "coin": rng.integers(2, size=600),
    }
    return torch.tensor(features), facts


def test_each_direction_is_told_by_its_fact(made):
    table = explained_by(*made, k=3)
    assert list(table.index) == [1, 2, 3]
    assert table["variance"].is_monotonic_decreasing
    assert table["variance"].sum() == pytest.approx(1, abs=0.01)
    assert table.loc[1, "ground"] > 0.99
    assert table.loc[2, "sky"] > 0.99
    assert abs(table.loc[3, "ground"]) < 0.02


def test_a_fact_that_has_nothing_to_do_with_it_explains_nothing_on_average(made):
    features, _ = made
    rng = np.random.default_rng(1)
    many = {f"coin {i}": rng.integers(20, size=600) for i in range(40)}
    assert explained_by(features, many, k=3)[list(many)].to_numpy().mean() == pytest.approx(
        0, abs=0.005
    )


def test_wrong_input_is_refused(made):
    features, facts = made
    with pytest.raises(LabError, match="expected k from 1 to 5"):
        explained_by(features, facts, k=6)
    with pytest.raises(LabError, match="'ground': expected 600 values"):
        explained_by(features, {"ground": [1, 2]}, k=2)
    with pytest.raises(LabError, match="different values, got 1"):
        explained_by(features, {"ground": [1] * 600}, k=2)
