"""Stage: score how vulnerable every alignment example is in an aligned model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from pydantic import Field

from holdfast import models, plugins
from holdfast.artifacts import Scores
from holdfast.contracts import Estimate, Estimator
from holdfast.cost import metered
from holdfast.data import provenance_table
from holdfast.errors import HoldfastError, UsageError
from holdfast.examples import Examples
from holdfast.stages.config import StageConfig


class ScoreConfig(StageConfig):
    """Options of the stage.

    Attributes:
        model: An aligned model: "world", a directory, or a hub id.
        data: The alignment rows to score.
        estimator: Name and options, e.g. "attack_direction,variant=critical_step".
        benign: Ordinary rows, for estimators that use them.
        proxies: Ordinary rows of several kinds, instead of `benign`, for estimators that run a
            proxy attack on each and average.
        harmful: Harmful rows, for estimators that use them.
        judge: Name and options of the judge, for estimators that use one.
        name: Label of the result; the estimator's name if empty.
    """

    model: str
    data: str
    estimator: str = "attack_direction"
    benign: str | None = None
    proxies: list[str] = Field(default_factory=list)
    harmful: str | None = None
    judge: str = "refusal"
    name: str = ""

    @property
    def label(self) -> str:
        """Name of the scores within the run."""
        return self.name or plugins.parse(self.estimator)[0].rpartition(":")[2]


def score(config: ScoreConfig) -> Scores:
    """Score the rows and save `scores/<name>.json`.

    Raises:
        UsageError: Rows, model and estimator do not fit together.
    """
    examples = config.read(config.data)
    estimator, inputs = estimator_of(config)
    inputs |= {
        "model": models.hash_model(models.resolve(config.model)),
        "data": examples.hash,
    }
    path = config.run.path("scores", f"{config.label}.json")
    with config.run.step("score", config.label, config=config.keyed(), inputs=inputs) as step:
        if step.done is None:
            loaded = models.load(config.model, device=config.device)
            with metered(loaded.model) as cost:
                estimate = estimator.score(
                    loaded.model, loaded.tokenizer, examples, seed=config.seed
                )
            _check(estimate, examples)
            facts = {**estimate.facts, **asdict(cost)}
            Scores(
                ids=examples.ids,
                values=estimate.values,
                estimator=config.estimator,
                data_hash=examples.hash,
                model_hash=inputs["model"],
                seed=config.seed,
                errors=estimate.errors,
                details=estimate.details,
                facts=facts,
            ).save(path)
            step.outputs.append(path)
            step.facts |= {**facts, "provenance": provenance_table(examples)}
    return Scores.load(path)


def estimator_of(config: ScoreConfig) -> tuple[Estimator, dict[str, str]]:
    """Build the estimator with the rows and the judge that it needs or can use.

    Returns:
        The estimator, and the hash of every set of rows it was given.

    Raises:
        UsageError: It is unknown, or lacks something.
    """
    name, _ = plugins.parse(config.estimator)
    cls: type[Estimator] = plugins.find("estimators", name)
    resources: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    if config.proxies:
        if "proxies" not in getattr(cls, "__dataclass_fields__", {}):
            raise UsageError(
                f"estimator {name!r} averages over no proxy tasks: leave out --proxy "
                "(and give --benign where it uses ordinary rows)"
            )
        resources["proxies"] = tuple(config.read(spec) for spec in config.proxies)
        inputs |= {f"proxy {i}": rows.hash for i, rows in enumerate(resources["proxies"], 1)}
    for need in sorted((cls.needs | cls.accepts) - ({"benign"} if config.proxies else set())):
        spec = getattr(config, need)
        if spec is None:
            if need in cls.needs:
                raise UsageError(f"estimator {name!r} needs --{need}")
            continue
        if need == "judge":
            resources[need] = plugins.make("judges", spec)
        else:
            rows = config.read(spec)
            resources[need], inputs[need] = rows, rows.hash
    made: Estimator = plugins.make("estimators", config.estimator, **resources)
    return made, inputs


def _check(estimate: Estimate, examples: Examples) -> None:
    if estimate.values.shape != (len(examples),):
        raise HoldfastError(
            f"the estimator returned shape {estimate.values.shape} for {len(examples)} examples"
        )
    if np.isnan(estimate.values).all():
        raise HoldfastError(
            "no example could be scored: none was safe before the proxy attack. "
            "Score the aligned model, not its base, and check the judge."
        )
