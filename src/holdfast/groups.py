"""From scores to groups: thresholds that need no tuning."""

from __future__ import annotations

import numpy as np

from holdfast.artifacts import Groups, Scores
from holdfast.errors import UsageError
from holdfast.examples import Examples

RULES = ("positive", "quantile", "otsu")


def otsu(values: np.ndarray) -> float:
    """Return the cut that best splits values in two, by Otsu's criterion, exactly.

    It maximizes the between-class variance w0 w1 (mu0 - mu1)^2 over all cuts between distinct
    values (Otsu 1979), without a histogram: it is the best one-dimensional 2-means.

    Args:
        values: (n,) finite, not all equal.

    Returns:
        The midpoint between the two values around the best cut.
    """
    x = np.sort(values)
    n = len(x)
    below = np.arange(1, n)
    sums = np.cumsum(x)[:-1]
    gap = sums / below - (x.sum() - sums) / (n - below)
    between = below * (n - below) * gap**2
    between[x[1:] == x[:-1]] = -np.inf
    best = int(np.argmax(between))
    return float((x[best] + x[best + 1]) / 2)


def group(
    scores: Scores, examples: Examples, *, rule: str = "otsu", quantile: float = 0.6
) -> Groups:
    """Split the examples into an invulnerable and a vulnerable group.

    Args:
        scores: Vulnerability; examples without a score (nan) go to the vulnerable group, the
            cautious side, and are counted in `facts`.
        examples: The rows that were scored.
        rule: "positive" (score > 0: the paper's, for counts), "quantile" (the top 1 - quantile),
            or "otsu" (automatic).
        quantile: Share of the examples that count as invulnerable under "quantile".

    Raises:
        UsageError: Unknown rule, fewer than two scored examples, all scores equal, or a rule that
            leaves a group empty.
    """
    values = scores.aligned_to(examples.ids)
    finite = np.isfinite(values)
    cut = _threshold(values[finite], rule, quantile)
    labels = np.where(finite, values > cut, True).astype(np.int64)
    if labels.min() == labels.max():
        side = "vulnerable" if labels[0] else "invulnerable"
        raise UsageError(
            f"rule {rule!r} puts all {len(labels)} examples into the {side} group "
            f"(scores {np.nanmin(values):.3g} to {np.nanmax(values):.3g}): nothing to protect "
            "apart. Use --rule quantile, or a longer proxy attack."
        )
    words = {
        "positive": "vulnerable = score above 0",
        "quantile": f"vulnerable = score above the {quantile:.0%} quantile",
        "otsu": "vulnerable = score above Otsu's threshold",
    }[rule]
    return Groups(
        ids=examples.ids,
        labels=labels,
        names=("invulnerable", "vulnerable"),
        rule=f"{words} of {scores.estimator}",
        scores_hash=scores.hash,
        data_hash=examples.hash,
        facts={"threshold": cut, "not_scored": int((~finite).sum())},
    )


def _threshold(values: np.ndarray, rule: str, quantile: float) -> float:
    if rule not in RULES:
        raise UsageError(f"--rule {rule!r} is none of {', '.join(RULES)}")
    if len(values) < 2:
        raise UsageError(f"{len(values)} scored examples: two at least are needed to make groups")
    if values.min() == values.max():
        raise UsageError(
            f"all {len(values)} scores equal {values[0]:.3g}: they say nothing about which "
            "examples are vulnerable. Score with another estimator or a longer proxy attack."
        )
    if rule == "positive":
        return 0.0
    if rule == "quantile":
        if not 0 < quantile < 1:
            raise UsageError(f"--quantile {quantile} must lie between 0 and 1")
        return float(np.quantile(values, quantile))
    return otsu(values)
