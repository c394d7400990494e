from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.scores import SCORES, confusion, score_all


def example(count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = rng.lognormal(-0.6, 0.6, count)
    return reference, reference * rng.lognormal(0.05, 0.25, count)


def test_regression_scores_against_scipy():
    reference, predicted = example()
    scores = {name: score.value for name, score in score_all(reference, predicted, resamples=50).items()}
    assert scores["Pearson"] == pytest.approx(stats.pearsonr(reference, predicted)[0])
    assert scores["Spearman"] == pytest.approx(stats.spearmanr(reference, predicted)[0])
    assert scores["MAE"] == pytest.approx(np.mean(np.abs(predicted - reference)))
    assert scores["RMSE"] == pytest.approx(np.sqrt(np.mean((predicted - reference) ** 2)))
    assert scores["bias"] == pytest.approx(np.mean(predicted) - np.mean(reference))
    assert scores["R2"] == pytest.approx(1 - np.var(predicted - reference) / np.var(reference), abs=0.05)


def test_classification_scores_by_hand():
    """Unstable: 3 found, 1 missed; stable: 5 found, 1 called unstable."""
    reference = np.array([1.0, 1.2, 1.5, 1.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9])
    predicted = np.array([1.3, 1.0, 1.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0])
    counts = confusion(reference, predicted)
    assert (counts.unstable_found, counts.unstable_missed) == (3, 1)
    assert (counts.stable_found, counts.stable_missed) == (5, 1)
    scores = {name: score.value for name, score in score_all(reference, predicted, resamples=50).items()}
    assert scores["precision (unstable)"] == pytest.approx(3 / 4)
    assert scores["recall (unstable)"] == pytest.approx(3 / 4)
    assert scores["F1 (unstable)"] == pytest.approx(3 / 4)
    assert scores["balanced accuracy"] == pytest.approx((3 / 4 + 5 / 6) / 2)
    assert scores["MCC"] == pytest.approx((3 * 5 - 1 * 1) / np.sqrt(4 * 4 * 6 * 6))


def test_everything_stable_scores_nothing():
    reference, _ = example()
    scores = score_all(reference, np.full_like(reference, 0.4), resamples=50)
    assert scores["balanced accuracy"].value == pytest.approx(0.5)
    assert scores["recall (unstable)"].value == 0.0
    assert np.isnan(scores["MCC"].value)
    assert np.isnan(scores["Pearson"].value)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of 60 samples of a known bias, about 95 % of the intervals hold it; fewer than 80 % would be a defect."""
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(60):
        reference = rng.uniform(0.2, 1.2, 60)
        predicted = reference + 0.1 + 0.1 * rng.standard_normal(60)
        score = score_all(reference, predicted, resamples=100, seed=seed)["bias"]
        assert score.low < score.value < score.high
        held += score.low < 0.1 < score.high
    assert held >= 48


def test_reproducible_and_small_samples():
    reference, predicted = example(30)
    assert str(score_all(reference, predicted)["MAE"]) == str(score_all(reference, predicted)["MAE"])
    few = score_all(reference[:3], predicted[:3])
    assert np.isnan(few["MAE"].low)
    assert few["MAE"].value > 0
    assert all(np.isnan(score.value) for score in score_all(np.array([]), np.array([])).values())
    assert set(few) == set(SCORES)
