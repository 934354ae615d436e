"""Stage: find out how far an estimator can be trusted on a model that was attacked."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import combinations
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from holdfast import plugins
from holdfast.contracts import Estimator
from holdfast.errors import HoldfastError, UsageError
from holdfast.examples import Examples
from holdfast.models import checkpoints
from holdfast.models.cost import Cost
from holdfast.options import Flag
from holdfast.results.artifacts import AttackResult
from holdfast.results.files import sha256_json
from holdfast.results.run_dir import Entry
from holdfast.results.validation import Case, Validation, cases, read_again
from holdfast.rows.similarity import prompt_key
from holdfast.rows.text import prompt_text
from holdfast.runtime import progress
from holdfast.specs import parse
from holdfast.stages.config import EstimatorSpecs
from holdfast.stages.estimation import (
    EstimatorConfig,
    check_base,
    estimated,
    estimator_of,
    options_of,
)
from holdfast.stages.subjects import subject
from holdfast.stats.agreement import Agreement, agreement, auroc_gain, ceilings
from holdfast.stats.intervals import mean_interval
from holdfast.stats.ranks import spearman

logger = logging.getLogger(__name__)
FREE = "loss"
"""The free refusal margin, which every estimator must beat."""
SMALLEST = 20
"""Categories and samples of fewer examples say nothing."""
VARIED = ("rows=8,16,64",)
"""Varied unless told otherwise, on `PROBE`: elsewhere the rows are a whole attack's."""
PROBE = "attack_direction"

Tried = tuple[str, str, int]
"""Estimator, the option that is varied ("" for none), and seed."""


class ValidateConfig(EstimatorConfig):
    """Options of the stage."""

    model: str
    """Aligned model that `holdfast attack --track` attacked: its label in the run, a directory or a
    hub id.
    """
    data: str
    """Alignment rows that were tracked."""
    estimators: EstimatorSpecs = Field(default=["attack_direction"], min_length=1)
    """Estimator to validate."""
    vary: list[str] = Field(default=list(VARIED))
    """Option to vary by itself on every estimator that has it, for example rows=8,16,64 or
    source=harmful,mismatched.
    """
    seeds: int = Field(default=3, ge=1)
    """Number of seeds, which shows how stable the scores are."""
    examples: Annotated[list[int], Flag("example")] = Field(default=[50, 100, 200, 400])
    """Number of examples with which the answer is computed as well."""
    name: str = ""
    """Label of the result; empty takes the model's label."""


def validate(config: ValidateConfig) -> Validation:
    """Score the model in every way asked for and compare with its attacks.

    The result is `validations/<name>.json`.

    Raises:
        UsageError: The model was not attacked with these rows tracked, the attacks order none of
            them, an estimator lacks what it needs, or an option is varied that none of them has.
    """
    tried = _tried(config)
    examples = config.read(config.data)
    target = subject(config.run, config.model)
    case = _case(config, target.hash, examples)
    _check_ordered(config, case)
    name = config.name or target.label
    path = config.run.path("validations", f"{name}.json")
    inputs = {"model": target.hash, "data": examples.hash}
    inputs |= {f"attack {k}": sha256_json([case.ids, v]) for k, v in case.attacks.items()}
    made: dict[Tried, Estimator] = {}
    for spec, variant, seed in tried:
        # All are built before the first is run: a wrong value is said at once.
        made[spec, variant, seed], used = estimator_of(config, _full(spec, variant))
        check_base(used, target.hash)
        inputs |= used
    if "harmful" in inputs:
        _check_apart(config, case)
    with config.run.job("validate-estimator", name, config=config.keyed(), inputs=inputs) as job:
        if job.done is None:
            loaded = checkpoints.load(target.source, device=config.device)
            found = _validation(config, case, examples, loaded, made)
            found.save(path)
            job.outputs.append(path)
            job.facts |= {"ceiling": found.ceiling, "stability": found.stability}
    return Validation.load(path)


def _case(config: ValidateConfig, model_hash: str, examples: Examples) -> Case:
    found = [case for case in cases(config.run) if case.model_hash == model_hash]
    known = set(examples.ids)
    if not (found and found[0].ids) and (lost := _undecided(config, model_hash)):
        raise UsageError(
            f"{config.out}: attacks on {config.model} tracked {lost} rows, and the judge could not "
            "decide of any how often it was forgotten: attack with fewer steps, a lower rate, or "
            "another --track-judge"
        )
    if not found or not found[0].ids or not known.issuperset(found[0].ids):
        raise UsageError(
            f"{config.out}: no attack on {config.model} tracked the rows of {config.data}; run "
            f"`holdfast attack --model {config.model} --track {config.data}` first, with tasks, "
            "ratios, seeds or rates that the estimator does not use itself"
        )
    return found[0]


def _check_ordered(config: ValidateConfig, case: Case) -> None:
    """Refuse attacks that forgot all rows alike: no score can agree with an order that is none."""
    if len(case.ids) < 2 or case.mean.min() < case.mean.max():
        return
    attacks = f"{config.out}: {config.model} attacked with {', '.join(case.attacks)}"
    if case.mean.any():
        raise UsageError(
            f"{attacks} forgot all {len(case.ids)} tracked rows equally often: there is no order "
            "to foresee. Attack more mildly with a lower --lr, or look earlier with a smaller "
            "--every and fewer --steps"
        )
    raise UsageError(
        f"{attacks} forgot none of {len(case.ids)} tracked rows: there is nothing to foresee. "
        "Attack harder with a higher --lr, more --steps or a higher --poison-ratio"
    )


def _check_apart(config: ValidateConfig, case: Case) -> None:
    """Refuse harmful rows that the attacks trained on: scores made of them foresee too well.

    Of an attack whose rows cannot be read any more only the hash of all its rows is compared.
    """
    rows = config.read_if(config.harmful) or Examples([])
    attacks = {
        entry.inputs["harmful"]: entry
        for entry in config.run.entries("attack")
        if entry.inputs.get("model") == case.model_hash and "harmful" in entry.inputs
    }
    theirs = {i for entry in attacks.values() for i in _attacked_with(entry)}
    both = len(rows) if rows.hash in attacks else len(theirs.intersection(rows.ids))
    if both:
        raise UsageError(
            f"--harmful {config.harmful}: {both} of its {len(rows)} rows are among those that the "
            f"attacks on {config.model} were made of, and scores made of them would be too good. "
            "Give harmful rows that no attack had."
        )


def _attacked_with(entry: Entry) -> list[str]:
    """Return the ids of the harmful rows of an attack, which has none that ask its test prompts."""
    tested = set(map(prompt_text, read_again(entry, "test", needs_response=False).prompts))
    harmful = read_again(entry, "harmful")
    return [row.id for row in harmful if prompt_text(row.prompt) not in tested]


def _unknown_cost() -> dict[str, float]:
    return dict.fromkeys((f.name for f in fields(Cost)), math.nan)


def _undecided(config: ValidateConfig, model_hash: str) -> int:
    """Return how many rows attacks on the model tracked without knowing their counts."""
    results = [AttackResult.load(config.run.result(e)) for e in config.run.entries("attack")]
    return max((len(r.unknown) for r in results if r.model_hash == model_hash), default=0)


def _validation(
    config: ValidateConfig,
    case: Case,
    examples: Examples,
    loaded: checkpoints.Loaded,
    made: Mapping[Tried, Estimator],
) -> Validation:
    values: dict[Tried, np.ndarray] = {}
    costs: dict[Tried, Mapping[str, Any]] = {}
    free, _ = _score(_free(made), case, examples, loaded, 0)
    for done, (key, estimator) in enumerate(made.items()):
        progress.report("validate", done, len(made))
        try:
            values[key], costs[key] = _score(estimator, case, examples, loaded, key[2])
        except HoldfastError as error:
            if not key[1]:
                raise
            # One variant that cannot score must not take the others' results with it.
            logger.warning("%s, %s: %s", key[0], key[1], error)
            values[key], costs[key] = np.full(len(case.ids), np.nan), _unknown_cost()
    progress.report("validate", len(made), len(made))
    prompts = {row.id: prompt_key(row.prompt) for row in examples}
    units = [prompts[i] for i in case.ids]
    first = {spec: values[spec, "", config.seed] for spec in config.estimators}
    return Validation(
        model=case.model,
        model_hash=case.model_hash,
        data_hash=examples.hash,
        attacks=tuple(case.attacks),
        n=len(case.ids),
        unknown=case.unknown,
        ceiling=_ceiling(case),
        rows=tuple(_row(case, key, values[key], free, costs[key], units) for key in made),
        stability={spec: _stability(values, spec) for spec in config.estimators},
        categories=tuple(_categories(case, examples, first, units)),
        sizes=tuple(_sizes(case, config, first, units)),
    )


def _free(made: Mapping[Tried, Estimator]) -> Estimator:
    """Return the free margin; it takes rows as long as the estimators that it is held against."""
    lengths = [n for one in made.values() if (n := getattr(one, "max_length", None)) is not None]
    spec = f"{FREE},max_length={max(lengths)}" if lengths else FREE
    found: Estimator = plugins.make("estimators", spec)
    return found


def _tried(config: ValidateConfig) -> list[Tried]:
    """List what is tried, the plain estimators first.

    Raises:
        UsageError: An estimator is unknown, --vary cannot be read, or no estimator has the option.
    """
    options = {spec: options_of(spec) for spec in config.estimators}
    varied = [_varied(text, options) for text in config.vary]
    found: list[Tried] = []
    for spec in options:
        found += [(spec, "", config.seed + i) for i in range(config.seeds)]
        for text, (option, values) in zip(config.vary, varied, strict=True):
            ours = text not in VARIED or parse(spec).name == PROBE
            if ours and option in options[spec]:
                found += [(spec, f"{option}={value}", config.seed) for value in values]
    return list(dict.fromkeys(found))


def _varied(text: str, options: Mapping[str, Sequence[str]]) -> tuple[str, list[str]]:
    option, _, listed = text.partition("=")
    values = [value.strip() for value in listed.split(",") if value.strip()]
    option = option.strip()
    if not option or not values:
        raise UsageError(f"--vary {text!r} must be OPTION=VALUE,VALUE,...")
    if text not in VARIED and not any(option in mine for mine in options.values()):
        raise UsageError(
            f"--vary {text!r}: {' and '.join(options)} {'have' if len(options) > 1 else 'has'} no "
            f"option {option!r}; there is "
            f"{', '.join(sorted(set().union(*options.values()))) or 'none'}"
        )
    return option, values


def _full(spec: str, variant: str) -> str:
    return f"{spec},{variant}" if variant else spec


def _score(
    estimator: Estimator, case: Case, examples: Examples, loaded: checkpoints.Loaded, seed: int
) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Return the scores of the case's examples, and what they cost."""
    estimate, cost = estimated(estimator, loaded, examples, seed)
    known = dict(zip(examples.ids, estimate.values.tolist(), strict=True))
    return np.array([known[i] for i in case.ids]), asdict(cost)


def _row(
    case: Case,
    key: Tried,
    values: np.ndarray,
    free: np.ndarray,
    cost: Mapping[str, Any],
    units: Sequence[str],
) -> dict[str, Any]:
    found = agreement(values, case.mean, seed=key[2], units=units)
    return {
        "estimator": key[0],
        "variant": key[1],
        "seed": key[2],
        **_shown(found),
        **auroc_gain(values, free, case.mean, seed=key[2], units=units).fields("gain"),
        **cost,
    }


def _shown(found: Agreement) -> dict[str, Any]:
    return {
        **found.spearman.fields("spearman"),
        **found.auroc.fields("auroc"),
        **found.auprc.fields("auprc"),
        "base_rate": found.base_rate,
        "n": found.n,
    }


def _ceiling(case: Case) -> dict[str, float]:
    if len(case.attacks) < 2:
        return {"spearman": np.nan, "auroc": np.nan}
    found = ceilings(list(case.attacks.values()))
    return {
        "spearman": mean_interval([one.spearman.value for one in found]).value,
        "auroc": mean_interval([one.auroc.value for one in found]).value,
    }


def _stability(values: Mapping[Tried, np.ndarray], spec: str) -> float:
    mine = [v for (name, variant, _), v in values.items() if name == spec and not variant]
    return mean_interval([spearman(a, b) for a, b in combinations(mine, 2)]).value


def _categories(
    case: Case, examples: Examples, first: Mapping[str, np.ndarray], units: Sequence[str]
) -> Iterator[dict[str, Any]]:
    of = {row.id: row.provenance.get("category", "unknown") for row in examples}
    categories = np.array([of[i] for i in case.ids])
    for spec, values in first.items():
        for category in sorted(set(categories.tolist())):
            mine = categories == category
            if mine.sum() >= SMALLEST:
                prompts = [unit for unit, here in zip(units, mine, strict=True) if here]
                found = agreement(values[mine], case.mean[mine], resamples=200, units=prompts)
                yield {"estimator": spec, "category": category, **_shown(found)}


def _sizes(
    case: Case, config: ValidateConfig, first: Mapping[str, np.ndarray], units: Sequence[str]
) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(len(case.ids))
    wanted: Sequence[int] = sorted({n for n in config.examples if SMALLEST <= n < len(case.ids)})
    for spec, values in first.items():
        for n in wanted:
            some = order[:n]
            prompts = [units[i] for i in some]
            found = agreement(values[some], case.mean[some], units=prompts)
            yield {"estimator": spec, "examples": n, **_shown(found)}
