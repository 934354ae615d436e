"""The mean of several estimators' ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from holdfast import plugins
from holdfast.contracts import Estimate, Estimator, Judge
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.stats.intervals import standard_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Ensemble(Estimator):
    """Ask several estimators and average where each of them puts an example.

        score_i = 1/k sum over members m of (rank_m(i) - 1/2) / n

    with mid-ranks from 1 to n, ties sharing their mean, over the n examples that every member
    could score. An example that is unknown to one member is unknown: its mean over the others would
    be on another scale. Ranks, since a margin, a norm and a count have no unit in common; what is
    lost is by how much one example exceeds the next.

    `errors` is the standard deviation of an example's ranks between members over sqrt(k). It says
    how far members disagree, not how far the score is from the truth: members that share a
    weakness agree in it.

    Attributes:
        harmful: Rows for members that use them.
        benign: Rows for members that use them.
        proxies: Rows for members that average over proxy tasks.
        base: The model before its alignment, for members that ask it.
        judge: For members that need one.
        members: At least two names separated by "+"; a member's options follow it after "/":
            "attack_direction/variant=critical_step/rows=16+loss/quantity=first_token". So an
            option whose value holds one of "+/," cannot be given here.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"harmful", "benign", "proxies", "base", "judge"})

    harmful: Examples | None = None
    benign: Examples | None = None
    proxies: tuple[Examples, ...] = ()
    base: str | None = None
    judge: Judge | None = None
    members: str = "attack_direction+loss"

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        *,
        seed: int,
    ) -> Estimate:
        """Let every member score with the same seed; their values are kept in `details`."""
        made = self.parts
        found: dict[str, Estimate] = {}
        for name, member in made.items():
            try:
                found[name] = member.score(model, tokenizer, examples, seed=seed)
            except UsageError as error:
                raise UsageError(f"ensemble: member {name!r}: {error}") from error
        details = {name: estimate.values for name, estimate in found.items()}
        ranks = shared_ranks(details)
        facts: dict[str, float | str] = {"members": len(made)}
        for name, estimate in found.items():
            facts |= {f"{name}: {key}": value for key, value in estimate.facts.items()}
        return Estimate(
            values=ranks.mean(axis=0),
            errors=standard_error(list(ranks)),
            details=details,
            facts=facts,
        )

    @property
    def parts(self) -> dict[str, Estimator]:
        """The members, all of them built before any is run.

        Raises:
            UsageError: Too few, one named twice, one that does not exist, or one without its rows.
        """
        names = [name.strip() for name in self.members.split("+")]
        if len(names) < 2 or not all(names):
            raise UsageError(
                f"ensemble: members={self.members!r} must name at least two estimators, "
                "separated by '+'"
            )
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UsageError(
                f"ensemble: members={self.members!r} names {twice[0]!r} twice, which would count "
                "double; name it once, or give it other options"
            )
        return {name: self._make(name) for name in names}

    def _make(self, name: str) -> Estimator:
        spec = name.replace("/", ",")
        try:
            cls: type[Estimator] = plugins.find("estimators", plugins.parse(spec)[0])
            asked = {need: getattr(self, need, None) for need in cls.needs | cls.accepts}
            missing = sorted(need for need in cls.needs if asked[need] is None)
            if missing:
                options = " and ".join(f"--{need}" for need in missing)
                raise UsageError(f"it needs {options}: give it, or leave the member out")
            given: dict[str, Any] = {k: v for k, v in asked.items() if v is not None}
            member: Estimator = plugins.make("estimators", spec, **given)
        except UsageError as error:
            raise UsageError(f"ensemble: member {name!r}: {error}") from error
        return member


def shared_ranks(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (mid-rank - 1/2) / n of each example in each row of values, (k, n).

    Ranks are over the examples that have a value in all rows; the others are nan throughout.
    """
    from scipy.stats import rankdata

    table = np.stack(list(values.values()))
    known = ~np.isnan(table).any(axis=0)
    ranks = np.full(table.shape, math.nan)
    if known.any():
        ranks[:, known] = (rankdata(table[:, known], axis=1) - 0.5) / known.sum()
    return ranks
