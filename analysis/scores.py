"""Scores of predicted against reference sigma: regression and classification, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from analysis.stability import SIGMA_UNSTABLE

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
"""Bootstrap samples behind an interval."""

SMALLEST_SAMPLE = 5
"""Fewer compounds give no interval: resampling them says little."""


@dataclass(frozen=True)
class Score:
    """A value with its 95 % bootstrap interval over compounds; nan where it is not defined."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "–"
        interval = "" if np.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


@dataclass(frozen=True)
class Confusion:
    """Counts of compounds; the positive class is unstable (sigma >= 1)."""

    unstable_found: int
    unstable_missed: int
    stable_found: int
    stable_missed: int


def mean_absolute_error(reference: Floats, predicted: Floats) -> float:
    """Return the mean of |predicted - reference|."""
    return float(np.abs(predicted - reference).mean())


def root_mean_square_error(reference: Floats, predicted: Floats) -> float:
    """Return the root of the mean square of predicted - reference."""
    return float(np.sqrt(((predicted - reference) ** 2).mean()))


def bias(reference: Floats, predicted: Floats) -> float:
    """Return the mean of predicted - reference: positive if the model is too anharmonic."""
    return float((predicted - reference).mean())


def r_squared(reference: Floats, predicted: Floats) -> float:
    """Return the coefficient of determination about the line predicted = reference (may be negative)."""
    spread = ((reference - reference.mean()) ** 2).sum()
    return float(1.0 - ((predicted - reference) ** 2).sum() / spread) if spread > 0 else float("nan")


def pearson(reference: Floats, predicted: Floats) -> float:
    """Return the linear correlation coefficient; nan where one side does not vary."""
    if len(reference) < 2 or np.ptp(reference) == 0 or np.ptp(predicted) == 0:
        return float("nan")
    return float(np.corrcoef(reference, predicted)[0, 1])


def spearman(reference: Floats, predicted: Floats) -> float:
    """Return the rank correlation coefficient (ties share their mean rank)."""
    return pearson(stats.rankdata(reference), stats.rankdata(predicted))


def confusion(reference: Floats, predicted: Floats) -> Confusion:
    """Count compounds by whether they are unstable in the reference and in the prediction."""
    truth, claim = reference >= SIGMA_UNSTABLE, predicted >= SIGMA_UNSTABLE
    return Confusion(
        unstable_found=int((truth & claim).sum()),
        unstable_missed=int((truth & ~claim).sum()),
        stable_found=int((~truth & ~claim).sum()),
        stable_missed=int((~truth & claim).sum()),
    )


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")


def precision(reference: Floats, predicted: Floats) -> float:
    """Return which fraction of those predicted unstable are."""
    counts = confusion(reference, predicted)
    return _over(counts.unstable_found, counts.unstable_found + counts.stable_missed)


def recall(reference: Floats, predicted: Floats) -> float:
    """Return which fraction of the unstable are predicted so."""
    counts = confusion(reference, predicted)
    return _over(counts.unstable_found, counts.unstable_found + counts.unstable_missed)


def f1(reference: Floats, predicted: Floats) -> float:
    """Return the harmonic mean of precision and recall of the unstable class."""
    counts = confusion(reference, predicted)
    return _over(2 * counts.unstable_found, 2 * counts.unstable_found + counts.stable_missed + counts.unstable_missed)


def balanced_accuracy(reference: Floats, predicted: Floats) -> float:
    """Return the mean recall of both classes: 1/2 if everything is called stable; nan with one class only."""
    counts = confusion(reference, predicted)
    stable = _over(counts.stable_found, counts.stable_found + counts.stable_missed)
    return (recall(reference, predicted) + stable) / 2.0


def matthews(reference: Floats, predicted: Floats) -> float:
    """Return Matthews' correlation coefficient of the two classifications; nan where a row or column is empty."""
    c = confusion(reference, predicted)
    numerator = c.unstable_found * c.stable_found - c.stable_missed * c.unstable_missed
    margins = (
        (c.unstable_found + c.stable_missed)
        * (c.unstable_found + c.unstable_missed)
        * (c.stable_found + c.stable_missed)
        * (c.stable_found + c.unstable_missed)
    )
    return _over(numerator, float(np.sqrt(float(margins))))


SCORES: Mapping[str, Callable[[Floats, Floats], float]] = {
    "MAE": mean_absolute_error,
    "RMSE": root_mean_square_error,
    "bias": bias,
    "R2": r_squared,
    "Pearson": pearson,
    "Spearman": spearman,
    "balanced accuracy": balanced_accuracy,
    "MCC": matthews,
    "precision (unstable)": precision,
    "recall (unstable)": recall,
    "F1 (unstable)": f1,
}
"""Every score by its name, in the order of tables."""


def score_all(reference: Floats, predicted: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Score]:
    """Return every score with a percentile bootstrap interval, compounds resampled with replacement.

    Parameters
    ----------
    reference, predicted : (n,) float
        Sigma; the same compound at the same place.
    resamples, seed : int
        The interval is reproducible: it depends on the data and these only.
    """
    reference, predicted = np.asarray(reference, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    count = len(reference)
    if count == 0:
        return {name: Score(np.nan, np.nan, np.nan) for name in SCORES}
    values = {name: score(reference, predicted) for name, score in SCORES.items()}
    if count < SMALLEST_SAMPLE:
        return {name: Score(value, np.nan, np.nan) for name, value in values.items()}
    draws = np.random.default_rng(seed).integers(0, count, (resamples, count))
    found = {}
    for name, score in SCORES.items():
        sampled = np.array([score(reference[draw], predicted[draw]) for draw in draws])
        sampled = sampled[~np.isnan(sampled)]
        low, high = np.percentile(sampled, [2.5, 97.5]) if sampled.size else (np.nan, np.nan)
        found[name] = Score(values[name], float(low), float(high))
    return found
