"""Estimators in stages: their inputs, building them, and running them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from holdfast import plugins
from holdfast.contracts import Estimate, Estimator
from holdfast.errors import HoldfastError, UsageError
from holdfast.examples import Examples
from holdfast.models.cost import Cost, measure_cost
from holdfast.models.encoding import fields_that_fit, rows_that_fit
from holdfast.options import option_fields
from holdfast.results.run_dir import RunDir
from holdfast.specs import parse
from holdfast.stages.config import JudgeSpec, ModelConfig, Proxies
from holdfast.stages.plugin_inputs import judge_hashes
from holdfast.stages.run_models import model_hash

if TYPE_CHECKING:
    from holdfast.models.checkpoints import Loaded


class EstimatorConfig(ModelConfig):
    """Inputs of estimators; each estimator reads the ones it uses."""

    PLACES: ClassVar[frozenset[str]] = frozenset({"benign", "proxies", "harmful", "base", "judge"})

    benign: str | None = None
    """Ordinary rows."""
    proxies: Proxies = Field(default_factory=list)
    """Ordinary rows of one proxy task, instead of --benign, for estimators that average over proxy
    attacks on several tasks.
    """
    harmful: str | None = None
    """Harmful rows other than the attacker's."""
    base: str | None = None
    """The model before its alignment: "world", a directory, a GGUF file, package:NAME or a hub
    id.
    """
    judge: JudgeSpec = "refusal"
    """Judge of the responses."""


@dataclass(frozen=True)
class Inputs:
    """What an estimator was given, for the key and the manifest entry of a job.

    Attributes:
        hashes: Label -> hash of a model, of a judge's files, of options.
        rows: Label -> rows.
    """

    hashes: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Examples] = field(default_factory=dict)

    def __or__(self, other: Inputs) -> Inputs:
        """Return both together."""
        return Inputs({**self.hashes, **other.hashes}, {**self.rows, **other.rows})

    @property
    def all_hashes(self) -> dict[str, str]:
        """Label -> hash, of rows as well."""
        return {**self.hashes, **{label: rows.hash for label, rows in self.rows.items()}}


def estimator_of(config: EstimatorConfig, spec: str) -> tuple[Estimator, Inputs]:
    """Build an estimator with what it needs or can use.

    Returns:
        The estimator, and everything that decides its scores besides the model and its rows.

    Raises:
        UsageError: It is unknown, or lacks something.
    """
    parsed = parse(spec)
    name = parsed.name
    cls: type[Estimator] = plugins.find("estimators", name)
    resources = cls.needs | cls.accepts
    for option in parsed.options:
        if option in resources:
            # As an option it would be neither read nor part of the result's key.
            raise UsageError(f"{spec!r}: {option} is no option of {name!r}; give {_flag(option)}")
    values, inputs = _proxies(config, name, cls)
    for need in sorted(resources - {"proxies"}):
        if getattr(config, need) is None or (need == "benign" and config.proxies):
            if need in cls.needs:
                raise UsageError(f"estimator {name!r} needs {_flag(need)}")
            continue
        values[need], used = _resource(config, need)
        inputs |= used
    estimator: Estimator = plugins.make("estimators", spec, **values)
    # The options that were not given count too: another default is another score.
    hashes = {f"options of {spec}": plugins.options_hash(estimator)}
    for member, part in estimator.parts.items():
        hashes[f"options of member {member}"] = plugins.options_hash(part)
    return estimator, inputs | Inputs(hashes)


def _proxies(
    config: EstimatorConfig, name: str, cls: type[Estimator]
) -> tuple[dict[str, Any], Inputs]:
    if not config.proxies:
        return {}, Inputs()
    if "proxies" not in cls.accepts:
        raise UsageError(
            f"estimator {name!r} averages over no proxy tasks: leave out --proxy "
            "(and give --benign if it uses ordinary rows)"
        )
    proxies = tuple(config.read(spec, use="ordinary") for spec in config.proxies)
    rows = {f"proxy {number}": rows for number, rows in enumerate(proxies, start=1)}
    return {"proxies": proxies}, Inputs(rows=rows)


def _resource(config: EstimatorConfig, need: str) -> tuple[Any, Inputs]:
    """Return what an estimator is given under a name, and its hash or rows."""
    spec: str = getattr(config, need)
    if need == "judge":
        judge = plugins.make("judges", spec)
        return judge, Inputs(judge_hashes(config.run, [spec], {spec: judge}))
    if need == "base":
        return spec, Inputs({"base": model_hash(config.run, spec)})
    rows = config.read(spec, use="harmful" if need == "harmful" else "ordinary")
    return rows, Inputs(rows={need: rows})


def check_base(inputs: Inputs, model: str) -> None:
    """Refuse an aligned model as its own base: its refusals are what is to be scored.

    Args:
        inputs: Of the estimator.
        model: Hash of the aligned model.

    Raises:
        UsageError: They are the same.
    """
    if inputs.hashes.get("base") == model:
        raise UsageError(
            "--base is the aligned model itself: give the model as it was before its alignment, "
            "or leave --base out"
        )


def estimated(
    run: RunDir | None, estimator: Estimator, loaded: Loaded, examples: Examples, seed: int
) -> tuple[Estimate, Cost]:
    """Score the examples, and return what that cost.

    Rows whose prompt leaves no room for an answer in the estimator's `max_length` are not scored:
    their values are nan, and `facts["left_out"]` counts them and names the file that lists them.

    Args:
        run: The run, which keeps the list; without one, they are only counted.
        estimator: The estimator.
        loaded: The model.
        examples: The rows.
        seed: Random seed.

    Raises:
        HoldfastError: The estimator did not return one value per example.
    """
    length = _length(estimator)
    rows = examples
    if length is not None:
        rows = rows_that_fit(loaded.model, loaded.tokenizer, examples, length)
        estimator = fields_that_fit(estimator, loaded.model, loaded.tokenizer, length)
    with measure_cost(loaded.model) as cost:
        estimate = estimator.score(loaded.model, loaded.tokenizer, rows, seed=seed)
    if estimate.values.shape != (len(rows),):
        raise HoldfastError(
            f"the estimator returned shape {estimate.values.shape} for {len(rows)} examples"
        )
    if len(rows) < len(examples):
        record = {"n": len(examples) - len(rows)} if run is None else run.rows.record_left_out(rows)
        facts = {**estimate.facts, "left_out": {"data": record}}
        estimate = _spread(replace(estimate, facts=facts), rows, examples)
    return estimate, cost


def _length(estimator: Estimator) -> int | None:
    """Return the tokens that an estimator keeps of a row, the fewest of its parts; None if any."""
    parts = [estimator, *estimator.parts.values()]
    lengths = [getattr(part, "max_length", None) for part in parts]
    return min((length for length in lengths if length is not None), default=None)


def _spread(estimate: Estimate, scored: Examples, examples: Examples) -> Estimate:
    """Return an estimate of some rows as one of all rows; nan for the others."""
    position = {identity: i for i, identity in enumerate(examples.ids)}
    places = [position[identity] for identity in scored.ids]

    def spread(values: np.ndarray) -> np.ndarray:
        everywhere = np.full(len(examples), np.nan)
        everywhere[places] = values
        return everywhere

    return Estimate(
        values=spread(estimate.values),
        errors=None if estimate.errors is None else spread(estimate.errors),
        details={name: spread(values) for name, values in estimate.details.items()},
        facts=estimate.facts,
    )


def options_of(spec: str) -> list[str]:
    """Return the options of an estimator, without what a stage hands over."""
    return list(option_fields(plugins.find("estimators", parse(spec).name)))


def _flag(need: str) -> str:
    return "--proxy" if need == "proxies" else f"--{need}"
