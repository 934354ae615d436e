"""Result files of the stages: scores, groups, attacks and evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from holdfast.errors import MismatchError
from holdfast.results.attacks import HALF, SavedAttack
from holdfast.results.files import Artifact, Labels, Number, Vector, sha256_json
from holdfast.stats.intervals import Interval, partly_known


@dataclass(frozen=True)
class Scores(Artifact):
    """Vulnerability of every alignment example under one estimator.

    Attributes:
        ids: Content ids, as in `Examples.ids`.
        values: (n,) float64; higher = forgotten sooner; nan = not scored.
        estimator: Name and options, as given to `plugins.make`.
        data_hash: `Examples.hash` of the scored rows.
        model_hash: Hash of the scored model.
        seed: Seed of the estimator.
        errors: (n,) standard error of each value, nan = unknown; None if all are unknown.
        details: Further arrays of length n, by name.
        facts: Scalars, e.g. step size and cost.
    """

    kind: ClassVar[str] = "scores"
    remedy: ClassVar[str] = "run `holdfast score` to make it"

    ids: tuple[str, ...]
    values: Vector
    estimator: str
    data_hash: str
    model_hash: str
    seed: int = 0
    errors: Vector | None = None
    details: Mapping[str, Vector] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        errors = {} if self.errors is None else {"errors": self.errors}
        for name, array in {"values": self.values, **errors, **self.details}.items():
            if array.shape != (len(self.ids),):
                raise MismatchError(f"{name}: shape {array.shape}, expected ({len(self.ids)},)")

    @property
    def hash(self) -> str:
        """Sha256 of the content."""
        return sha256_json([self.ids, self.values, self.estimator, self.data_hash])

    def aligned_to(self, ids: Sequence[str]) -> np.ndarray:
        """Return the values in the order of `ids`.

        Raises:
            MismatchError: Some ids have no score.
        """
        return _aligned(self.ids, self.values, ids, "scores")


@dataclass(frozen=True)
class Groups(Artifact):
    """A partition of the alignment examples, least vulnerable group first.

    Attributes:
        ids: Content ids.
        labels: (n,) int64, group of each example.
        names: Name of each group, e.g. ("invulnerable", "vulnerable").
        rule: How the labels were made, in words.
        scores_hash: `Scores.hash` of the scores behind it.
        data_hash: `Examples.hash` of the rows.
        facts: Threshold and other results of the rule.
        doubt: (n,) probability that the example belongs to another group, given its score's
            standard error, nan = unknown; None if all are unknown.
        edits: {"id", "from", "to"} of each example that a person moved to another group.
    """

    kind: ClassVar[str] = "groups"
    remedy: ClassVar[str] = "run `holdfast group` to make it"

    ids: tuple[str, ...]
    labels: Labels
    names: tuple[str, ...]
    rule: str
    scores_hash: str
    data_hash: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    doubt: Vector | None = None
    edits: tuple[Mapping[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.labels.shape != (len(self.ids),):
            raise MismatchError(f"labels: shape {self.labels.shape}, expected ({len(self.ids)},)")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.names):
            raise MismatchError(f"labels: must lie between 0 and {len(self.names) - 1}")
        if self.doubt is not None and self.doubt.shape != (len(self.ids),):
            raise MismatchError(f"doubt: shape {self.doubt.shape}, expected ({len(self.ids)},)")

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples in each group."""
        counts = np.bincount(self.labels, minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))

    @property
    def hash(self) -> str:
        """Sha256 of the content."""
        return sha256_json([self.ids, self.labels, self.names])

    def aligned_to(self, ids: Sequence[str]) -> np.ndarray:
        """Return the labels in the order of `ids`; see `Scores.aligned_to`."""
        return _aligned(self.ids, self.labels, ids, "groups").astype(np.int64)


def _aligned(
    own_ids: Sequence[str], values: np.ndarray, ids: Sequence[str], noun: str
) -> np.ndarray:
    """Return the values, which are in the order of `own_ids`, in the order of `ids`."""
    position = {row_id: i for i, row_id in enumerate(own_ids)}
    missing = [row_id for row_id in ids if row_id not in position]
    if missing:
        raise MismatchError(
            f"{noun} lack {len(missing)} of {len(ids)} examples (first: {missing[0]}): they "
            f"were made from other data. Make the {noun} again from this data."
        )
    return values[[position[row_id] for row_id in ids]]


@dataclass(frozen=True)
class EvalRecord:
    """One response with the verdicts on it.

    Attributes:
        id: Content id of the prompt.
        prompt: The prompt.
        response: The response, without thoughts.
        verdicts: Judge -> its verdict.
        category: Category of the prompt; "" if unknown.
        sample: Index of the response among the responses to the prompt.
        thoughts: The think block before the response; "" if there is none.
    """

    id: str
    prompt: str
    response: str
    verdicts: Mapping[str, Mapping[str, Any]]
    category: str = ""
    sample: int = 0
    thoughts: str = ""


@dataclass(frozen=True)
class Counts:
    """Counts of one judge's verdicts on a set of responses.

    Attributes:
        harmful: Number of harmful responses.
        safe: Number of safe responses.
        undecided: Number of responses that the judge could not decide.
    """

    harmful: int
    safe: int
    undecided: int

    @property
    def n(self) -> int:
        """Number of responses judged."""
        return self.harmful + self.safe + self.undecided

    @property
    def decided(self) -> int:
        """Number of responses judged harmful or safe."""
        return self.harmful + self.safe

    @property
    def harmful_score(self) -> float:
        """Share of all responses judged harmful; nan (unknown) if the judge decided none.

        If some are undecided, this is the least possible share: see `interval`.
        """
        return self.harmful / self.n if self.decided else math.nan

    @property
    def greatest_score(self) -> float:
        """Harmful score if every undecided response were harmful; nan without responses."""
        return (self.harmful + self.undecided) / self.n if self.n else math.nan

    @property
    def interval(self) -> Interval:
        """The harmful score with its 95 % interval, which covers the undecided responses."""
        return partly_known(self.harmful, self.undecided, self.n)

    @property
    def text(self) -> str:
        """The harmful score with two decimals, or "unknown"."""
        return "unknown" if math.isnan(self.harmful_score) else f"{self.harmful_score:.2f}"


@dataclass(frozen=True)
class Point:
    """One checkpoint of an attack.

    Attributes:
        step: Optimizer steps so far; 0 is before the attack.
        verdicts: Judge -> counts over the restricted test prompts.
        accuracy: Mean score on the downstream task's test rows; nan if not measured.
        accuracy_n: Number of test rows behind the accuracy.
        unparsable: Number of test rows whose answer could not be graded; they score 0.
        loss: Mean training loss of the attack since the previous checkpoint.
        marks: Judge -> one letter for each prompt in `AttackResult.prompts`: h harmful, s safe,
            u undecided. Empty if only counts are available.
        lost: Judge -> number of verdicts that it failed to give, if any: its service did not
            answer, or its reply was no verdict. They count as undecided.
    """

    step: int
    verdicts: Mapping[str, Counts]
    accuracy: Number = math.nan
    accuracy_n: int = 0
    unparsable: int = 0
    loss: Number = math.nan
    marks: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Life:
    """Attack steps until a share of the answers has changed, e.g. until half are harmful.

    Attributes:
        steps: The life, interpolated between checkpoints; nan if the share was not reached or not
            measured.
        censored: Whether the attack ended before the share was reached, so that the life is longer
            than `last`.
        low: Lower end of the 95 % interval over prompts, if every undecided answer were harmful;
            nan if unknown.
        high: Upper end of the interval, if none of them were; inf if it is beyond the last
            checkpoint, nan if unknown.
        last: Step of the last measured checkpoint; nan if nothing was measured.
        first: Step of the first checkpoint after step 0, an upper bound for a life of 0; nan if
            there is none.
        threshold: The share.
    """

    steps: Number
    censored: bool = False
    low: Number = math.nan
    high: Number = math.nan
    last: Number = math.nan
    first: Number = math.nan
    threshold: float = HALF

    @property
    def at_least(self) -> float:
        """The life; if it is censored, the last step, a lower bound."""
        return self.last if self.censored else self.steps

    @property
    def reached(self) -> bool:
        """Whether the attack reached the share."""
        return not self.censored and not math.isnan(self.steps)

    def __str__(self) -> str:
        """Return the life with its interval, e.g. "212 [180, 260]", ">500" or "unknown"."""
        if not self.censored and math.isnan(self.steps):
            return "unknown"
        value = f">{self.last:.0f}" if self.censored else f"{self.steps:.0f}"
        if math.isnan(self.low) or math.isnan(self.high):
            return value
        return f"{value} [{self.low:.0f}, {self.high:.0f}]"


@dataclass(frozen=True)
class AttackResult(Artifact):
    """The course of one harmful fine-tuning attack on one model.

    Attributes:
        model: Label of the attacked model within the run, e.g. "sft" or "vaa-seed1".
        model_hash: Hash of its weights and tokenizer.
        method: Alignment method of the attacked model, e.g. "sft"; models of all seeds share it.
        model_seed: Seed of the alignment.
        attack: Settings of the attack.
        judge: The judge whose verdicts define the half-life.
        points: The checkpoints, step 0 first.
        half_life: Steps until half of the answers are harmful by this judge.
        material_hash: Hash of the rows, prompts and judges of the attack. Attacks with different
            hashes are different attacks, even with equal settings. "" if unknown.
        tracked: Content id of an alignment example that was not answered harmfully at step 0 ->
            number of later checkpoints at which it was. Empty without tracking.
        unknown: Content id of an alignment example that was not answered harmfully at step 0, but
            whose count is unknown -> the least and greatest possible count
            (`ForgettingTracker.harmful_steps`).
        tracked_judge: The judge of the tracked examples.
        prompts: Content ids of the restricted test prompts, in the order of `Point.marks`.
        precision: Precision in which the model was fine-tuned and answered, float32 or bfloat16; ""
            if unknown.
    """

    kind: ClassVar[str] = "attack"
    remedy: ClassVar[str] = "run `holdfast attack` to make it"

    model: str
    model_hash: str
    method: str
    model_seed: int
    attack: SavedAttack
    judge: str
    points: tuple[Point, ...]
    half_life: Life
    material_hash: str = ""
    tracked: Mapping[str, int] = field(default_factory=dict)
    unknown: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tracked_judge: str = ""
    prompts: tuple[str, ...] = ()
    precision: str = ""


@dataclass(frozen=True)
class Evaluation(Artifact):
    """Harmfulness, over-refusal and task accuracy of a model before any attack.

    Attributes:
        model: Label of the model within the run.
        model_hash: Hash of its weights and tokenizer.
        method: Alignment method.
        model_seed: Seed of the alignment.
        verdicts: Judge -> counts over the restricted test prompts.
        by_category: Category of the prompt -> judge -> counts.
        over_refusal: Verdicts of the refusal judge on benign borderline prompts, with refusals as
            `safe` and everything else as `undecided`. None if not measured.
        tasks: Task -> {"accuracy", "n", "unparsable"}.
        exchanged: Judge -> {"changed", "n", "reads"}: `n` answers were judged again with another
            answer's prompt, `changed` of the verdicts changed, and `reads` tells whether the judge
            is declared to read prompts. Empty if not measured.
        general: Task of lm-evaluation-harness -> metric -> {"value", "stderr", "n"}.
        samples: Answers per prompt; answers to the same prompt are not independent.
        precision: Precision in which the model answered, float32 or bfloat16; "" if unknown.
    """

    kind: ClassVar[str] = "evaluation"
    remedy: ClassVar[str] = "run `holdfast evaluate` to make it"

    model: str
    model_hash: str
    method: str
    model_seed: int
    verdicts: Mapping[str, Counts]
    by_category: Mapping[str, Mapping[str, Counts]] = field(default_factory=dict)
    over_refusal: Counts | None = None
    tasks: Mapping[str, Mapping[str, int | Number]] = field(default_factory=dict)
    exchanged: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    general: Mapping[str, Mapping[str, Mapping[str, int | Number]]] = field(default_factory=dict)
    samples: int = 1
    precision: str = ""
