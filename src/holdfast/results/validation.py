"""Which scores of a run can be held against which of its attacks, and of which rows they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from holdfast.results.artifacts import AttackResult, Scores
from holdfast.results.attacks import NO_GUARD, table_names
from holdfast.results.files import Artifact
from holdfast.results.run_dir import RunDir
from holdfast.results.sources import Sources
from holdfast.rows.similarity import prompt_key
from holdfast.stats.agreement import mean_count


@dataclass(frozen=True)
class Case:
    """An aligned model, its scores, and what attacks made it forget.

    Attributes:
        model: Label of the model within the run.
        model_hash: Hash of its weights and tokenizer.
        seed: Seed of its alignment.
        ids: Content ids of the examples that all its attacks could count.
        unknown: Examples that were tracked and held, but that the judge's undecided verdicts left
            without a count in one attack or more.
        attacks: Label of each attack -> its ForgotNum, (n,), as if all had as many checkpoints as
            the one with most; nan = not held before the attack.
        scores: Name -> scores of this model.
    """

    model: str
    model_hash: str
    seed: int
    ids: tuple[str, ...]
    attacks: Mapping[str, np.ndarray]
    scores: Mapping[str, Scores]
    unknown: int = 0

    @property
    def mean(self) -> np.ndarray:
        """Mean ForgotNum over the attacks, (n,): the label with the least noise."""
        return mean_count(list(self.attacks.values()))

    @property
    def by_estimator(self) -> dict[str, Scores]:
        """Scores, named alike in all seeds: by their name within the run without the seed's suffix.

        Where that would give two scores of one model the same name, both keep their own.
        """
        short = {name: name.removesuffix(f"-s{s.seed}") for name, s in self.scores.items()}
        times = Counter(short.values())
        return {
            short[name] if times[short[name]] == 1 else name: s for name, s in self.scores.items()
        }

    def values(self, scores: Scores) -> np.ndarray:
        """Return scores in the order of `ids`, (n,); nan where an example was not scored."""
        known = dict(zip(scores.ids, scores.values.tolist(), strict=True))
        return np.array([known.get(i, np.nan) for i in self.ids], dtype=np.float64)


def cases(run: RunDir) -> list[Case]:
    """Return a case for every model of a run that was attacked with its examples tracked.

    Scores belong to a case only if they were made of that very model. A model without scores is a
    case as well: its attacks say what the label is worth.

    Raises:
        UsageError: The run has no attack.
    """
    attacks: dict[str, list[AttackResult]] = {}
    for entry in run.require("attack"):
        result = AttackResult.load(run.result(entry))
        # What is forgotten behind a guard says as much of the guard.
        if result.tracked and result.attack.guard == NO_GUARD:
            attacks.setdefault(result.model_hash, []).append(result)
    scores: dict[str, dict[str, Scores]] = {}
    for entry in run.entries("score"):
        found = Scores.load(run.result(entry))
        scores.setdefault(found.model_hash, {})[entry.name] = found
    return [_case(mine, scores.get(key, {})) for key, mine in attacks.items()]


def prompts_of(run: RunDir, case: Case) -> list[str] | None:
    """Return the prompt of each of a case's examples; None if none of its scores has them all.

    A model forgets a prompt: several answers to it are one observation.

    Raises:
        DataError: The rows of the scores are missing from the run, or were changed.
    """
    for entry in run.entries("score"):
        if entry.name in case.scores:
            rows = Sources(run).of(entry, "data")
            prompts = {row.id: prompt_key(row.prompt) for row in rows}
            if prompts.keys() >= set(case.ids):
                return [prompts[i] for i in case.ids]
    return None


def _case(attacks: list[AttackResult], scores: Mapping[str, Scores]) -> Case:
    first = attacks[0]
    ids = tuple(i for i in first.tracked if all(i in a.tracked for a in attacks))
    looks = [len(a.points) - 1 for a in attacks]  # checkpoint 0 counts nothing
    scales = [max(looks) / n if n else 1.0 for n in looks]
    return Case(
        model=first.model,
        model_hash=first.model_hash,
        seed=first.model_seed,
        ids=ids,
        attacks={
            name: np.array([a.tracked[i] for i in ids], dtype=np.float64) * scale
            for name, a, scale in zip(
                map(str, table_names([a.attack for a in attacks])), attacks, scales, strict=True
            )
        },
        scores=scores,
        unknown=len({i for a in attacks for i in a.unknown}),
    )


@dataclass(frozen=True)
class Validation(Artifact):
    """How far estimators agree with what attacks made a model forget.

    Attributes:
        model: Label of the model.
        model_hash: Its hash.
        data_hash: `Examples.hash` of the rows.
        attacks: Labels of the attacks whose mean ForgotNum is the truth.
        n: Examples that all attacks tracked.
        ceiling: How well the other attacks' mean foresees each attack: mean of spearman, auroc.
        rows: One per estimator and variant: agreement, gain over the free margin, cost.
        stability: Estimator -> mean rank correlation between its seeds; nan with one seed.
        categories: One row per estimator and category of at least 20 examples.
        sizes: One row per estimator and number of examples.
        unknown: Examples that are left out, their count unknown, because the judge could not decide
            enough of their answers; None where an earlier version did not keep it.
    """

    kind: ClassVar[str] = "validation"
    remedy: ClassVar[str] = "run `holdfast validate-estimator` to make it"

    model: str
    model_hash: str
    data_hash: str
    attacks: tuple[str, ...]
    n: int
    ceiling: Mapping[str, float | None]
    rows: tuple[Mapping[str, Any], ...]
    stability: Mapping[str, float | None]
    categories: tuple[Mapping[str, Any], ...] = ()
    sizes: tuple[Mapping[str, Any], ...] = ()
    unknown: int = 0
