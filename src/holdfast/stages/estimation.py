"""What the stages that use an estimator have in common: its rows, its judge, its making."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from holdfast import plugins
from holdfast.contracts import Estimate, Estimator
from holdfast.errors import HoldfastError, UsageError
from holdfast.examples import Examples
from holdfast.models import checkpoints
from holdfast.models.cost import Cost, metered
from holdfast.options import option_fields
from holdfast.specs import parse
from holdfast.stages.config import JudgeSpec, Proxies, StageConfig
from holdfast.stages.judgement import hashes_of


class EstimatorConfig(StageConfig):
    """What an estimator is given; each takes what it uses."""

    benign: str | None = None
    """Ordinary rows."""
    proxies: Proxies = Field(default_factory=list)
    """Ordinary rows of one kind, instead of --benign, for estimators that run a proxy attack on
    each kind and average.
    """
    harmful: str | None = None
    """Harmful rows; not the attacker's."""
    base: str | None = None
    """The model before its alignment: "world", a directory or a hub id."""
    judge: JudgeSpec = "refusal"
    """Judge of the responses."""


def estimator_of(config: EstimatorConfig, spec: str) -> tuple[Estimator, dict[str, str]]:
    """Build an estimator with what it needs or can use.

    Returns:
        The estimator, and the hash of everything it was given and of its options.

    Raises:
        UsageError: It is unknown, or lacks something.
    """
    parsed = parse(spec)
    name = parsed.name
    cls: type[Estimator] = plugins.find("estimators", name)
    handed = [need for need in parsed.options if need in cls.needs | cls.accepts]
    if handed:
        # Given as an option it would neither be read nor become part of the result's key.
        raise UsageError(f"{spec!r}: {handed[0]} is no option of {name!r}; give {_flag(handed[0])}")
    given: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    if config.proxies:
        if "proxies" not in cls.accepts:
            raise UsageError(
                f"estimator {name!r} averages over no proxy tasks: leave out --proxy "
                "(and give --benign where it uses ordinary rows)"
            )
        given["proxies"] = tuple(config.read(rows) for rows in config.proxies)
        inputs |= {f"proxy {i}": rows.hash for i, rows in enumerate(given["proxies"], 1)}
    for need in sorted((cls.needs | cls.accepts) - {"proxies"}):
        value = getattr(config, need)
        if value is None or (need == "benign" and config.proxies):
            if need in cls.needs:
                raise UsageError(f"estimator {name!r} needs --{need}")
            continue
        if need == "judge":
            given[need] = plugins.make("judges", value)
            inputs |= hashes_of({value: given[need]})
        elif need == "base":
            given[need], inputs[need] = value, checkpoints.hash_model(checkpoints.resolve(value))
        else:
            given[need] = config.read(value)
            inputs[need] = given[need].hash
    made: Estimator = plugins.make("estimators", spec, **given)
    # Those that were not given as well: a default that another version changes is another score.
    inputs[f"options of {spec}"] = plugins.mark(made)
    parts = {f"options of member {name}": plugins.mark(part) for name, part in made.parts.items()}
    return made, inputs | parts


def check_base(inputs: Mapping[str, str], model_hash: str) -> None:
    """Refuse an aligned model as its own base: its answers are the refusals that are to be scored.

    Raises:
        UsageError: They are the same.
    """
    if inputs.get("base") == model_hash:
        raise UsageError(
            "--base is the aligned model itself: give the model as it was before its alignment, "
            "or leave --base out"
        )


def estimated(
    estimator: Estimator, loaded: checkpoints.Loaded, examples: Examples, seed: int
) -> tuple[Estimate, Cost]:
    """Score the examples, and return what that cost.

    Raises:
        HoldfastError: The estimator did not return one value per example.
    """
    with metered(loaded.model) as cost:
        estimate = estimator.score(loaded.model, loaded.tokenizer, examples, seed=seed)
    if estimate.values.shape != (len(examples),):
        raise HoldfastError(
            f"the estimator returned shape {estimate.values.shape} for {len(examples)} examples"
        )
    return estimate, cost


def options_of(spec: str) -> list[str]:
    """Return the options of an estimator, without what a stage hands over."""
    return list(option_fields(plugins.find("estimators", parse(spec).name)))


def _flag(need: str) -> str:
    return "--proxy" if need == "proxies" else f"--{need}"
