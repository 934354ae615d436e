"""Score, group, attack and evaluate a model that is in memory, without a run directory.

The same computations as in the stages, on a model, a tokenizer and rows that a program already has.
Models, tokenizers and random generators are left as they were.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from holdfast import plugins
from holdfast.contracts import MOST_UNDECIDED, Split, Task
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.options import Supplied
from holdfast.results.attacks import Attack
from holdfast.rows.memory import examples_of
from holdfast.specs import parse
from holdfast.stages.attacking.job import AttackJob
from holdfast.stages.run_models import Subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.models.checkpoints import Loaded
    from holdfast.models.precision import Precision
    from holdfast.results.artifacts import AttackResult, Evaluation, Groups, Scores
    from holdfast.rows.marks import Use
    from holdfast.rows.memory import Rows
    from holdfast.stages.attacking.config import AttackConfig
    from holdfast.stages.plugin_inputs import RunTask

NAME = "model in memory"
SUBJECT = Subject(label="model", source="", method="model", seed=0, hash="")
LONGEST_SHOWN = 80
"""Characters of a value that a message shows."""
NOWHERE = Path("in-memory")
"""Run directory of stage options that are used without a run; nothing is written there."""


def score(  # noqa: PLR0913  # what any estimator may need
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    *,
    base: str | None = None,
    estimator: str = "attack_direction",
    benign: Rows | None = None,
    harmful: Rows | None = None,
    judge: str | None = None,
    seed: int = 0,
    precision: Precision = "auto",
) -> Scores:
    """Score how soon each alignment row would be forgotten under fine-tuning.

    Example:
        >>> scores = h.score(model, tokenizer, safety, benign=benign)
        >>> len(scores.values) == len(safety)
        True

    Args:
        model: The aligned model.
        tokenizer: Its tokenizer.
        rows: The alignment rows.
        base: The model before its alignment: "world", a directory, or a hub id.
        estimator: Name and options of the estimator.
        benign: Ordinary rows, for estimators that use them.
        harmful: Harmful rows, for estimators that use them.
        judge: Name and options of a judge, for estimators that use one; the refusal judge if None.
        seed: Random seed.
        precision: float32, bfloat16, or auto: bfloat16 where that is faster.

    Raises:
        DataError: Rows are missing or unusable.
        UsageError: The estimator needs rows that are not given, or the tokenizer does not fit.
        HoldfastError: No row could be scored.
    """
    from holdfast.models.adapters import refuse_adapted
    from holdfast.stages.score import scores_of

    examples = examples_of(rows, use="safety")
    name = parse(estimator).name
    cls = plugins.find("estimators", name)
    usable = cls.needs | cls.accepts
    inputs: dict[str, Any] = {"base": base}
    inputs["benign"] = (
        None if benign is None else examples_of(benign, name="benign", use="ordinary")
    )
    if harmful is not None:
        inputs["harmful"] = examples_of(harmful, name="harmful", use="harmful")
    if "judge" in usable:
        inputs["judge"] = plugins.make("judges", judge or "refusal")
    given = {need: value for need, value in inputs.items() if need in usable and value is not None}
    if lacking := sorted(cls.needs - given.keys()):
        raise UsageError(f"estimator {name!r} needs {lacking[0]}=...")
    made = plugins.make("estimators", estimator, **given)
    with _unchanged(model, tokenizer, precision) as loaded:
        refuse_adapted(model, "score")
        return scores_of(None, made, loaded, examples, spec=estimator, model_hash="", seed=seed)


def group(  # noqa: PLR0913  # options of the rules, each with a default
    scores: Scores,
    rows: Rows,
    *,
    rule: str = "otsu",
    quantile: float = 0.6,
    mass: float = 0.8,
    groups: int = 2,
    by: str = "",
    min_size: int = 8,
    seed: int = 0,
) -> Groups:
    """Split scored rows into groups by vulnerability, least vulnerable first.

    Example:
        >>> h.group(scores, safety, rule="quantile").names
        ('invulnerable', 'vulnerable')

    Args:
        scores: Scores of the rows.
        rows: The rows that were scored.
        rule: positive, quantile, mass, otsu, gmm, knee or auto; see `holdfast group --help`.
        quantile: Share that counts as invulnerable under quantile.
        mass: Share of the summed positive scores in the vulnerable group under mass.
        groups: Number of groups by vulnerability.
        by: Column of the rows' provenance with which the groups are crossed.
        min_size: Groups by category that are smaller are merged.
        seed: Random seed.

    Raises:
        UsageError: The rule cannot split these scores.
        MismatchError: The scores are of other rows.
    """
    from holdfast.groups import Rule
    from holdfast.groups import group as make_groups
    from holdfast.results.artifacts import Scores

    if not isinstance(scores, Scores):
        raise UsageError(
            f"scores={scores!r:.60} are not scores; make them with holdfast.score(model, "
            "tokenizer, rows), or read those of a run with holdfast.Scores.load(path)"
        )
    chosen = Rule(rule, quantile, mass, groups)
    examples = examples_of(rows, use="safety")
    return make_groups(scores, examples, rule=chosen, by=by, min_size=min_size, seed=seed)


def attack(  # noqa: PLR0913  # an attack is made of all this
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    benign: Rows | None = None,
    *,
    test: Rows,
    harmful: Rows | None = None,
    task: str = "",
    judge: str = "refusal",
    max_new_tokens: int = 32,
    most_undecided: float = MOST_UNDECIDED,
    precision: Precision = "auto",
    **settings: Any,
) -> AttackResult:
    """Fine-tune a copy of the model on partly harmful rows, and measure it at every checkpoint.

    Example:
        >>> result = h.attack(model, tokenizer, benign, harmful=harmful, test=prompts, steps=4,
        ...                   every=2, poison_ratio=0.5)
        >>> str(result.half_life)  # doctest: +ELLIPSIS
        '...'

    Args:
        model: The model; a copy of it is attacked.
        tokenizer: Its tokenizer.
        benign: The customer's ordinary rows, unless a task is given.
        test: Restricted prompts asked at every checkpoint.
        harmful: The attacker's rows; those that ask a test prompt are left out.
        task: Name and options of a task, instead of `benign`.
        judge: Name and options of the judge whose verdicts define the half-life.
        max_new_tokens: Length of the judged responses in tokens.
        most_undecided: See `AttackConfig`.
        precision: float32, bfloat16, or auto: bfloat16 where that is faster.
        **settings: Settings of the attack such as steps, learning_rate, poison_ratio or seed; see
            `holdfast.Attack`. `rows` is the number of fine-tuning rows; by default as many as the
            given rows allow, at most 400.

    Returns:
        The checkpoints, and `half_life`: a `Life` with interval and censoring.

    Raises:
        OptionError: A setting is unknown, ill-typed or out of range.
        UsageError: Rows are too few or missing, or the tokenizer does not fit.
        HoldfastError: The loss is not finite, or the judge left too many answers undecided.
    """
    from holdfast.models.adapters import refuse_adapted
    from holdfast.stages.attacking.material import Material
    from holdfast.stages.attacking.tuning import attack_loaded
    from holdfast.stages.plugin_inputs import check_judges, judges_of

    prompts = _prompts(test, "test", "restricted prompts")
    poison = _poison(harmful, prompts)
    downstream = _downstream(benign, task)
    settings.setdefault("poison_ratio", 0.1 if poison else 0.0)
    attempt = Attack(task=task or "rows", **settings)
    if "rows" not in settings:
        attempt = attempt.changed(rows=_most_rows(attempt, downstream.load("train"), poison))
    config = _attack_config(
        attempt, prompts, max_new_tokens=max_new_tokens, most_undecided=most_undecided
    )
    material = Material(poison, prompts, judges_of([judge]), track=None)
    check_judges(material.judges)
    job = InMemoryJob(config, material, SUBJECT, attempt, downstream=downstream)
    with _unchanged(copy.deepcopy(model), tokenizer, precision) as loaded:
        refuse_adapted(model, "attack")
        _, result = attack_loaded(job, loaded)
    return result


def _attack_config(attack: Attack, prompts: Examples, **options: Any) -> AttackConfig:
    """Return the options of the attack stage for one attack."""
    from holdfast.stages.attacking.config import AttackConfig

    return AttackConfig(
        out=NOWHERE,
        models=[SUBJECT.label],
        tasks=[attack.task],
        test=prompts.name,
        task_rows=0,
        **options,
    )


def evaluate(  # noqa: PLR0913  # each of them may be left out
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test: Rows,
    *,
    judge: str | Sequence[str] = "refusal",
    over_refusal: Rows | None = None,
    tasks: Sequence[str] = (),
    max_new_tokens: int = 32,
    most_undecided: float = MOST_UNDECIDED,
    precision: Precision = "auto",
) -> Evaluation:
    """Measure harmful score, over-refusal and task accuracy of a model.

    Example:
        >>> evaluation = h.evaluate(model, tokenizer, prompts)
        >>> evaluation.verdicts["refusal"].n == len(prompts)
        True

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        test: Restricted prompts.
        judge: Name and options of a judge, or of several.
        over_refusal: Benign prompts that an over-careful model refuses.
        tasks: Names and options of tasks whose test rows are asked.
        max_new_tokens: Length of the judged responses in tokens.
        most_undecided: Largest share of undecided verdicts of a judge.
        precision: float32, bfloat16, or auto: bfloat16 where that is faster.

    Raises:
        DataError: There are no prompts.
        UsageError: A judge or a task does not exist, or the tokenizer does not fit.
        HoldfastError: A judge left more answers undecided.
    """
    from holdfast.models.answers import answer_with_transformers
    from holdfast.stages.evaluate import EvaluateConfig, Questions, measured
    from holdfast.stages.plugin_inputs import check_judges, judges_of, labelled

    prompts = _prompts(test, "test", "restricted prompts")
    borderline = None
    if over_refusal is not None:
        borderline = _prompts(over_refusal, "over_refusal", "harmless prompts")
    judges = judges_of([judge] if isinstance(judge, str) else list(judge))
    if not judges:
        raise UsageError("judge=[]: name at least one judge, for example 'refusal'")
    check_judges(judges)
    config = EvaluateConfig(
        models=[SUBJECT.label],
        test=prompts.name,
        out=NOWHERE,
        max_new_tokens=max_new_tokens,
        most_undecided=most_undecided,
    )
    specs = labelled("task", list(tasks))
    asked = {label: plugins.make("tasks", spec) for label, spec in specs.items()}
    questions = Questions(prompts, borderline, judges, asked)
    with _unchanged(model, tokenizer, precision) as loaded:
        answer = answer_with_transformers(loaded.model, loaded.tokenizer)
        evaluation, _, _ = measured(config, SUBJECT, questions, answer)
    return evaluation


class GivenRows(Task):
    """The customer's rows, given in memory; they have no test rows."""

    examples: Supplied[Any]
    """The rows."""

    def load(self, split: Split) -> Examples:
        """Return the rows; there are none for testing."""
        rows: Examples = self.examples
        return rows if split == "train" else Examples([], name=rows.name)

    def score(self, response: str, reference: str) -> float:
        """Return whether a response is the reference."""
        return float(response == reference)


@dataclass(frozen=True)
class InMemoryJob(AttackJob):
    """An attack on rows and a model that no run knows."""

    downstream: Any = None

    @cached_property
    def task(self) -> RunTask:
        """What the customer fine-tunes for; no run keeps its rows."""
        return cast("RunTask", self.downstream)


def _downstream(rows: Rows | None, task: str) -> Task:
    """Return what the customer fine-tunes for."""
    if (rows is None) == (not task):
        raise UsageError("attack needs either the customer's rows or task=..., and not both")
    if rows is None:
        made: Task = plugins.make("tasks", task)
        return made
    return GivenRows(examples=examples_of(rows, use="ordinary"))


def _prompts(rows: Rows, name: str, use: Use) -> Examples:
    """Return rows of which only the prompts are used."""
    return examples_of(rows, name=name, needs_response=False, use=use)


def _poison(harmful: Rows | None, prompts: Examples) -> Examples:
    """Return the harmful rows that do not ask a test prompt."""
    from holdfast.stages.attacking.material import untested

    if harmful is None:
        return Examples([], name="harmful")
    return untested(examples_of(harmful, name="harmful", use="harmful"), prompts)


def _most_rows(attack: Attack, benign: Examples, harmful: Examples) -> int:
    """Return the most rows in all, up to the default, that the pools are enough for."""
    ratio = attack.poison_ratio
    limits = [attack.rows]
    if ratio < 1:
        limits.append(int(len(benign) / (1 - ratio)))
    if ratio and "harmful" in plugins.find("poisons", parse(attack.poison).name).needs:
        limits.append(int(len(harmful) / ratio))
    return max(1, min(limits))


def _check_loaded(model: object, tokenizer: object) -> None:
    if not hasattr(model, "get_input_embeddings"):
        raise UsageError(
            f"model={_shown(model)} is not a loaded model; load it with "
            "AutoModelForCausalLM.from_pretrained(...)"
        )
    if not hasattr(model, "generate"):
        raise UsageError(
            f"model={_shown(model)} is not a causal language model, which generates text; load it "
            "with AutoModelForCausalLM.from_pretrained(...)"
        )
    if not hasattr(tokenizer, "get_vocab"):
        raise UsageError(
            f"tokenizer={_shown(tokenizer)} is not a loaded tokenizer; load it with "
            "AutoTokenizer.from_pretrained(...)"
        )


def _shown(value: object) -> str:
    """Return a value as a message shows it: models and tokenizers by their class."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else type(value).__name__


@contextlib.contextmanager
def _unchanged(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, precision: Precision
) -> Iterator[Loaded]:
    """Lend model and tokenizer, and put modes, gradients and random generators back afterwards.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        precision: Precision in which it computes inside the block.

    Raises:
        UsageError: There is no model or no tokenizer, or the tokenizer does not belong to the
            model, or cannot end a response.
    """
    from holdfast.models.checkpoints import Loaded, check_fit, prepare_tokenizer
    from holdfast.models.modes import untouched_generators
    from holdfast.models.precision import computing_in, resolve, weights_of

    _check_loaded(model, tokenizer)
    check_fit(model, tokenizer, NAME)
    if tokenizer.pad_token_id is None:
        tokenizer = copy.deepcopy(tokenizer)
    prepare_tokenizer(tokenizer, NAME)
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    returns_dict = getattr(model.config, "return_dict", True)
    computed_in = resolve(precision, model.device, weights_of(model))
    with untouched_generators(), computing_in(computed_in):
        try:
            model.eval()
            model.config.return_dict = True
            yield Loaded(model, tokenizer, source=NAME, hash="")
        finally:
            model.config.return_dict = returns_dict
            for module, training in modes:
                module.training = training
            for parameter, requires_grad in trained:
                parameter.requires_grad_(requires_grad)
