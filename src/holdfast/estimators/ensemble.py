"""Averages the ranks of several estimators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field, model_validator

from holdfast import plugins
from holdfast.contracts import Estimate, Estimator, Judge
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.option_types import SpecOf
from holdfast.options import Supplied
from holdfast.specs import parse
from holdfast.stats.intervals import standard_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Ensemble(Estimator):
    """Averages the ranks that several estimators give an example.

        score_i = 1/k sum over members m of (rank_m(i) - 1/2) / n

    with mid-ranks from 1 to n (ties share their mean) over the n examples that every member could
    score. An example that one member could not score is unknown, since a mean over the others
    would be on another scale. Ranks are used because a margin, a norm and a count have no common
    unit; by how much one example exceeds the next is lost.

    `errors` is the standard deviation of an example's ranks between members, over sqrt(k). It
    measures how far members disagree, not how far the score is from the truth: members that share
    a weakness agree.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"harmful", "benign", "proxies", "base", "judge"})

    harmful: Supplied[Examples | None] = None
    benign: Supplied[Examples | None] = None
    proxies: Supplied[tuple[Examples, ...]] = ()
    base: Supplied[str | None] = None
    judge: Supplied[Judge | None] = None
    members: tuple[Annotated[str, SpecOf("estimators")], ...] = Field(
        default=("attack_direction", "loss"), min_length=2
    )
    """Estimators whose ranks are averaged, for example
    [loss,(attack_direction,variant=critical_step)].
    """

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Examples,
        *,
        seed: int,
    ) -> Estimate:
        """Average the ranks of all members, run with the same seed; `details` has their values."""
        estimators = self.parts
        estimates: dict[str, Estimate] = {}
        for name, member in estimators.items():
            try:
                estimates[name] = member.score(model, tokenizer, examples, seed=seed)
            except UsageError as error:
                raise UsageError(f"ensemble: member {name!r}: {error}") from error
        details = {name: estimate.values for name, estimate in estimates.items()}
        ranks = shared_ranks(details)
        facts: dict[str, float | str] = {"members": len(estimators)}
        for name, estimate in estimates.items():
            facts |= {f"{name}: {key}": value for key, value in estimate.facts.items()}
        return Estimate(
            values=ranks.mean(axis=0),
            errors=standard_error(list(ranks)),
            details=details,
            facts=facts,
        )

    @model_validator(mode="after")
    def _check_members(self) -> Ensemble:
        plugins.check_distinct("members", self.members)
        return self

    @property
    def parts(self) -> dict[str, Estimator]:
        """The members by spec, all built before any is run.

        Raises:
            UsageError: A member does not exist or lacks rows that it needs.
        """
        return {member: self._make(member) for member in self.members}

    def _make(self, spec: str) -> Estimator:
        try:
            cls: type[Estimator] = plugins.find("estimators", parse(spec).name)
            supplies = {need: getattr(self, need, None) for need in cls.needs | cls.accepts}
            missing = sorted(need for need in cls.needs if supplies[need] is None)
            if missing:
                flags = " and ".join(f"--{need}" for need in missing)
                raise UsageError(f"it needs {flags}: give it, or leave the member out")
            supplied = {name: value for name, value in supplies.items() if value is not None}
            member: Estimator = plugins.make("estimators", spec, **supplied)
        except UsageError as error:
            raise UsageError(f"ensemble: member {spec!r}: {error}") from error
        return member


def shared_ranks(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (mid-rank - 1/2) / n of each example for each estimator, (k, n).

    Ranks are over the n examples that all estimators could score; the others are nan.
    """
    from scipy.stats import rankdata

    table = np.stack(list(values.values()))
    measured = ~np.isnan(table).any(axis=0)
    ranks = np.full(table.shape, math.nan)
    if measured.any():
        ranks[:, measured] = (rankdata(table[:, measured], axis=1) - 0.5) / measured.sum()
    return ranks
