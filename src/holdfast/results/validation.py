"""Validation of estimators: the scores of a model next to what attacks made it forget."""

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
        seed: Seed of the alignment.
        ids: Content ids of the examples with a count in every attack.
        attacks: Label of each attack -> its ForgotNum, (n,), scaled to the number of checkpoints of
            the longest attack; nan = not held before the attack.
        scores: Name -> scores of this model.
        unknown: Number of examples that were tracked and held, but whose count is unknown in at
            least one attack because of undecided verdicts.
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
        """Mean ForgotNum over the attacks, (n,), less noisy than that of a single attack."""
        return mean_count(list(self.attacks.values()))

    @property
    def by_estimator(self) -> dict[str, Scores]:
        """The scores by their names without the seed's suffix, which are the same for all seeds.

        If two scores have the same name without the suffix, both keep their full names.
        """
        short_names = {
            name: name.removesuffix(f"-s{scores.seed}") for name, scores in self.scores.items()
        }
        uses = Counter(short_names.values())
        return {
            short_names[name] if uses[short_names[name]] == 1 else name: scores
            for name, scores in self.scores.items()
        }

    def values(self, scores: Scores) -> np.ndarray:
        """Return scores in the order of `ids`, (n,); nan for an example without a score."""
        by_id = dict(zip(scores.ids, scores.values.tolist(), strict=True))
        return np.array([by_id.get(row_id, np.nan) for row_id in self.ids], dtype=np.float64)


def cases(run: RunDir) -> list[Case]:
    """Return a case for every model of a run that has attacks with tracked examples.

    Scores belong to the case of the model with the same hash. A model without scores is a case too:
    its attacks tell how reproducible the label is.

    Raises:
        UsageError: The run has no attack.
    """
    attacks: dict[str, list[AttackResult]] = {}
    for entry in run.require("attack"):
        result = AttackResult.load(run.result(entry))
        # What a model forgets behind a guard depends on the guard as well.
        if result.tracked and result.attack.guard == NO_GUARD:
            attacks.setdefault(result.model_hash, []).append(result)
    scores: dict[str, dict[str, Scores]] = {}
    for entry in run.entries("score"):
        loaded = Scores.load(run.result(entry))
        scores.setdefault(loaded.model_hash, {})[entry.name] = loaded
    return [_case(results, scores.get(model, {})) for model, results in attacks.items()]


def prompts_of(run: RunDir, case: Case) -> list[str] | None:
    """Return the prompt of each example of a case; None if no scores cover all examples.

    Examples with the same prompt are one observation, since a model forgets to refuse a prompt.

    Raises:
        DataError: The rows of the scores are missing from the run or were changed.
    """
    for entry in run.entries("score"):
        if entry.name in case.scores:
            rows = Sources(run).of(entry, "data")
            prompts = {row.id: prompt_key(row.prompt) for row in rows}
            if prompts.keys() >= set(case.ids):
                return [prompts[row_id] for row_id in case.ids]
    return None


def _case(attacks: list[AttackResult], scores: Mapping[str, Scores]) -> Case:
    first = attacks[0]
    ids = tuple(
        row_id for row_id in first.tracked if all(row_id in result.tracked for result in attacks)
    )
    checkpoints = [len(result.points) - 1 for result in attacks]  # step 0 is not counted
    names = table_names([result.attack for result in attacks])
    counts = {}
    for name, result, number in zip(names, attacks, checkpoints, strict=True):
        scale = max(checkpoints) / number if number else 1.0
        tracked = [result.tracked[row_id] for row_id in ids]
        counts[str(name)] = np.array(tracked, dtype=np.float64) * scale
    return Case(
        model=first.model,
        model_hash=first.model_hash,
        seed=first.model_seed,
        ids=ids,
        attacks=counts,
        scores=scores,
        unknown=len({row_id for result in attacks for row_id in result.unknown}),
    )


@dataclass(frozen=True)
class Validation(Artifact):
    """Agreement of estimators with what attacks made a model forget.

    Attributes:
        model: Label of the model.
        model_hash: Hash of the model.
        data_hash: `Examples.hash` of the rows.
        attacks: Labels of the attacks whose mean ForgotNum is the truth.
        n: Number of examples that all attacks tracked.
        ceiling: How well the mean of the other attacks predicts each attack: means of spearman and
            auroc.
        rows: One row per estimator and variant: agreement, gain over the free margin, cost.
        stability: Estimator -> mean rank correlation between its seeds; nan with one seed.
        categories: One row per estimator and category of at least 20 examples.
        sizes: One row per estimator and number of examples.
        unknown: Number of examples left out because too many verdicts on them were undecided.
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
