"""Stage: check how well estimators predict what attacks made a model forget."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import combinations
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from holdfast import plugins
from holdfast.contracts import Estimator
from holdfast.errors import HoldfastError, UsageError
from holdfast.examples import Examples
from holdfast.models import checkpoints
from holdfast.models.cost import Cost
from holdfast.models.precision import computing_in
from holdfast.options import Flag
from holdfast.results.artifacts import AttackResult
from holdfast.results.files import sha256_json
from holdfast.results.sources import Sources
from holdfast.results.validation import Case, Validation, cases
from holdfast.rows.similarity import prompt_key
from holdfast.runtime import progress
from holdfast.specs import parse
from holdfast.stages.config import EstimatorSpecs
from holdfast.stages.estimator_inputs import (
    EstimatorConfig,
    Inputs,
    check_base,
    estimated,
    estimator_of,
    options_of,
)
from holdfast.stages.run_models import subject
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

Variant = tuple[str, str, int]
"""Estimator, the option that is varied ("" for none), and seed."""


class ValidateConfig(EstimatorConfig):
    """Options of the stage."""

    PLACES: ClassVar[frozenset[str]] = frozenset({"model", "data", "name"})

    model: str
    """Aligned model that was attacked with `holdfast attack --track`: its label in the run, a
    directory, a GGUF file, package:NAME or a hub id.
    """
    data: str
    """Alignment rows that the attacks tracked."""
    estimators: EstimatorSpecs = Field(default=["attack_direction"], min_length=1)
    """Estimator to validate."""
    vary: list[str] = Field(default=list(VARIED))
    """Estimator option to vary on its own, with its values, for example rows=8,16,64 or
    source=harmful,mismatched; estimators without the option are not varied.
    """
    seeds: int = Field(default=3, ge=1)
    """Number of seeds to score with, to show how stable the scores are."""
    examples: Annotated[list[int], Flag("example")] = Field(default=[50, 100, 200, 400])
    """Size of a subsample to repeat the comparison on, to show its effect."""
    name: str = ""
    """Label of the result (default: the model's label)."""


def validate(config: ValidateConfig) -> Validation:
    """Score the model in every way asked for and compare with its attacks.

    The result is `validations/<name>.json`.

    Raises:
        UsageError: The model was not attacked with these rows tracked, the attacks order none of
            them, an estimator lacks what it needs, or an option is varied that none of them has.
    """
    variants = _variants(config)
    examples = config.read(config.data)
    target = subject(config.run, config.model)
    case = _case(config, target.hash, examples)
    _check_ordered(config, case)
    name = config.name or target.label
    path = config.run.path("validations", f"{name}.json")
    inputs = Inputs({"model": target.hash}, {"data": examples})
    inputs |= Inputs(
        {f"attack {label}": sha256_json([case.ids, v]) for label, v in case.attacks.items()}
    )
    estimators: dict[Variant, Estimator] = {}
    for spec, option, seed in variants:
        # All are built before the first one runs, so that a wrong value is reported at once.
        estimators[spec, option, seed], used = estimator_of(config, _full(spec, option))
        check_base(used, target.hash)
        inputs |= used
    if "harmful" in inputs.rows:
        _check_apart(config, case, inputs.rows["harmful"])
    with config.run.job(
        "validate-estimator",
        name,
        config=config.keyed_for(target.source),
        inputs=inputs.hashes,
        rows=inputs.rows,
    ) as job:
        if job.done is None:
            loaded = checkpoints.load(target.source, device=config.device)
            with computing_in(config.computing(target.source)):
                validation = _validation(config, case, examples, loaded, estimators)
            validation.save(path)
            job.outputs.append(path)
            job.facts |= {"ceiling": validation.ceiling, "stability": validation.stability}
    return Validation.load(path)


def _case(config: ValidateConfig, model_hash: str, examples: Examples) -> Case:
    of_model = [case for case in cases(config.run) if case.model_hash == model_hash]
    tracked = of_model[0].ids if of_model else ()
    undecided = 0 if tracked else _undecided(config, model_hash)
    if undecided:
        raise UsageError(
            f"{config.out}: attacks on {config.model} tracked {undecided} rows, and the judge "
            "could not decide for any of them how often it was forgotten: attack with fewer "
            "steps, a lower rate, or another --track-judge"
        )
    if not tracked or not set(examples.ids).issuperset(tracked):
        raise UsageError(
            f"{config.out}: no attack on {config.model} tracked the rows of {config.data}; run "
            f"`holdfast attack --model {config.model} --track {config.data}` first, with tasks, "
            "ratios, seeds or rates that the estimator does not use itself"
        )
    return of_model[0]


def _check_ordered(config: ValidateConfig, case: Case) -> None:
    """Refuse attacks that forgot all rows equally often: there is no order to agree with."""
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


def _check_apart(config: ValidateConfig, case: Case, harmful: Examples) -> None:
    """Refuse harmful rows that the attacks trained on: scores made from them foresee too well."""
    sources = Sources(config.run)
    attackers: set[str] = set()
    for entry in config.run.entries("attack"):
        if entry.inputs.get("model") == case.model_hash and "harmful" in entry.rows:
            attackers.update(sources.of(entry, "harmful").ids)
    shared = attackers.intersection(harmful.ids)
    if shared:
        raise UsageError(
            f"--harmful {config.harmful}: {len(shared)} of its {len(harmful)} rows are among those "
            f"that the attacks on {config.model} were made of, and scores made of them would be "
            "too good. Give harmful rows that no attack had."
        )


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
    estimators: Mapping[Variant, Estimator],
) -> Validation:
    free, _ = _score(config, _free(estimators), case, examples, loaded)
    values, costs = _all_scores(config, case, examples, loaded, estimators)
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
        rows=tuple(_row(case, key, values[key], free, costs[key], units) for key in estimators),
        stability={spec: _stability(values, spec) for spec in config.estimators},
        categories=tuple(_categories(case, examples, first, units)),
        sizes=tuple(_sizes(case, config, first, units)),
    )


def _all_scores(
    config: ValidateConfig,
    case: Case,
    examples: Examples,
    loaded: checkpoints.Loaded,
    estimators: Mapping[Variant, Estimator],
) -> tuple[dict[Variant, np.ndarray], dict[Variant, Mapping[str, Any]]]:
    """Return the scores of the case's examples by every estimator, and what they cost."""
    values: dict[Variant, np.ndarray] = {}
    costs: dict[Variant, Mapping[str, Any]] = {}
    for key, estimator in estimators.items():
        spec, option, seed = key
        progress.report("validate", len(values), len(estimators))
        try:
            values[key], costs[key] = _score(config, estimator, case, examples, loaded, seed)
        except HoldfastError as error:
            if not option:
                raise
            # One variant that cannot score must not discard the others' results.
            logger.warning("%s, %s: %s", spec, option, error)
            values[key] = np.full(len(case.ids), np.nan)
            costs[key] = _unknown_cost()
    progress.report("validate", len(estimators), len(estimators))
    return values, costs


def _free(estimators: Mapping[Variant, Estimator]) -> Estimator:
    """Return the free margin, with rows as long as those of the estimators it is compared with."""
    lengths = [getattr(estimator, "max_length", None) for estimator in estimators.values()]
    longest = max((length for length in lengths if length is not None), default=None)
    spec = FREE if longest is None else f"{FREE},max_length={longest}"
    estimator: Estimator = plugins.make("estimators", spec)
    return estimator


def _variants(config: ValidateConfig) -> list[Variant]:
    """List what is compared, the plain estimators first.

    Raises:
        UsageError: An estimator is unknown, --vary cannot be read, or no estimator has the option.
    """
    options = {spec: options_of(spec) for spec in config.estimators}
    varied = [_varied(text, options) for text in config.vary]
    variants: list[Variant] = []
    for spec in options:
        variants += [(spec, "", config.seed + i) for i in range(config.seeds)]
        for text, (option, values) in zip(config.vary, varied, strict=True):
            applies = text not in VARIED or parse(spec).name == PROBE
            if applies and option in options[spec]:
                variants += [(spec, f"{option}={value}", config.seed) for value in values]
    return list(dict.fromkeys(variants))


def _varied(text: str, options: Mapping[str, Sequence[str]]) -> tuple[str, list[str]]:
    option, _, listed = text.partition("=")
    values = [value.strip() for value in listed.split(",") if value.strip()]
    option = option.strip()
    if not option or not values:
        raise UsageError(f"--vary {text!r} must be OPTION=VALUE,VALUE,...")
    if text not in VARIED and not any(option in names for names in options.values()):
        raise UsageError(
            f"--vary {text!r}: {' and '.join(options)} {'have' if len(options) > 1 else 'has'} no "
            f"option {option!r}; there is "
            f"{', '.join(sorted(set().union(*options.values()))) or 'none'}"
        )
    return option, values


def _full(spec: str, variant: str) -> str:
    return f"{spec},{variant}" if variant else spec


def _score(
    config: ValidateConfig,
    estimator: Estimator,
    case: Case,
    examples: Examples,
    loaded: checkpoints.Loaded,
    seed: int = 0,
) -> tuple[np.ndarray, Mapping[str, Any]]:
    """Return the scores of the case's examples, and what they cost."""
    estimate, cost = estimated(config.run, estimator, loaded, examples, seed)
    by_id = dict(zip(examples.ids, estimate.values.tolist(), strict=True))
    return np.array([by_id[i] for i in case.ids]), asdict(cost)


def _row(
    case: Case,
    key: Variant,
    values: np.ndarray,
    free: np.ndarray,
    cost: Mapping[str, Any],
    units: Sequence[str],
) -> dict[str, Any]:
    measured = agreement(values, case.mean, seed=key[2], units=units)
    return {
        "estimator": key[0],
        "variant": key[1],
        "seed": key[2],
        **_fields(measured),
        **auroc_gain(values, free, case.mean, seed=key[2], units=units).fields("gain"),
        **cost,
    }


def _fields(measured: Agreement) -> dict[str, Any]:
    return {
        **measured.spearman.fields("spearman"),
        **measured.auroc.fields("auroc"),
        **measured.auprc.fields("auprc"),
        "base_rate": measured.base_rate,
        "n": measured.n,
    }


def _ceiling(case: Case) -> dict[str, float]:
    if len(case.attacks) < 2:
        return {"spearman": np.nan, "auroc": np.nan}
    agreements = ceilings(list(case.attacks.values()))
    return {
        "spearman": mean_interval([each.spearman.value for each in agreements]).value,
        "auroc": mean_interval([each.auroc.value for each in agreements]).value,
    }


def _stability(values: Mapping[Variant, np.ndarray], spec: str) -> float:
    of_seeds = [v for (name, option, _), v in values.items() if name == spec and not option]
    return mean_interval([spearman(a, b) for a, b in combinations(of_seeds, 2)]).value


def _categories(
    case: Case, examples: Examples, first: Mapping[str, np.ndarray], units: Sequence[str]
) -> Iterator[dict[str, Any]]:
    of = {row.id: row.provenance.get("category", "unknown") for row in examples}
    categories = np.array([of[i] for i in case.ids])
    for spec, values in first.items():
        for category in sorted(set(categories.tolist())):
            members = categories == category
            if members.sum() >= SMALLEST:
                prompts = [unit for unit, member in zip(units, members, strict=True) if member]
                measured = agreement(
                    values[members], case.mean[members], resamples=200, units=prompts
                )
                yield {"estimator": spec, "category": category, **_fields(measured)}


def _sizes(
    case: Case, config: ValidateConfig, first: Mapping[str, np.ndarray], units: Sequence[str]
) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(len(case.ids))
    sizes = sorted({n for n in config.examples if SMALLEST <= n < len(case.ids)})
    for spec, values in first.items():
        for n in sizes:
            sample = order[:n]
            prompts = [units[i] for i in sample]
            measured = agreement(values[sample], case.mean[sample], units=prompts)
            yield {"estimator": spec, "examples": n, **_fields(measured)}
