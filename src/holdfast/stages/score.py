"""Stage: score how vulnerable every alignment example is in an aligned model."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
from pydantic import Field

from holdfast.contracts import Estimator
from holdfast.errors import HoldfastError, MismatchError, UsageError
from holdfast.examples import Examples
from holdfast.models import checkpoints
from holdfast.models.cost import Cost
from holdfast.models.precision import computing, computing_in
from holdfast.results.artifacts import Scores
from holdfast.results.files import sha256_json
from holdfast.results.run_dir import RunDir
from holdfast.rows.provenance import provenance_table
from holdfast.specs import parse
from holdfast.stages.config import EstimatorSpec
from holdfast.stages.estimator_inputs import EstimatorConfig, check_base, estimated, estimator_of
from holdfast.stages.run_models import Subject, subject
from holdfast.stats.intervals import bootstrap
from holdfast.stats.ranks import spearman

CHECKED = 64
"""Rows scored again to check another model's scores."""
FEWEST = 20
"""How many of these must have a score on both models: a handful of ranks agrees by chance."""


class ScoreConfig(EstimatorConfig):
    """Options of the stage."""

    PLACES: ClassVar[frozenset[str]] = frozenset({"model", "data", "reuse", "name"})

    model: str
    """Aligned model: its label in the run, a directory, a GGUF file, package:NAME or a hub id."""
    data: str
    """Alignment rows to score."""
    estimator: EstimatorSpec = "attack_direction"
    """Estimator to score with, for example attack_direction,variant=critical_step."""
    reuse: Path | None = None
    """Scores file of the same rows from another model. The scores are reused if a quick check shows
    that they hold on this model.
    """
    agreement: float = Field(default=0.7, ge=-1, le=1)
    """Minimum rank correlation for --reuse, compared with the lower end of its interval."""
    name: str = ""
    """Label of the result (default: the estimator's name)."""

    @property
    def label(self) -> str:
        """Name of the scores within the run."""
        return self.name or parse(self.estimator).short_name


def score(config: ScoreConfig) -> Scores:
    """Score the rows and save `scores/<name>.json`.

    Raises:
        UsageError: Rows, model and estimator do not fit together, or the run has scores of this
            name from another model.
    """
    examples = config.read(config.data)
    estimator, inputs = estimator_of(config, config.estimator)
    target = subject(config.run, config.model)
    _check_name(config, target)
    check_base(inputs, target.hash)
    hashes = {**inputs.hashes, "model": target.hash}
    if config.reuse:
        hashes["reuse"] = Scores.load(config.reuse).hash
    rows = {**inputs.rows, "data": examples}
    path = config.run.path("scores", f"{config.label}.json")
    with config.run.job(
        "score", config.label, config=config.keyed_for(target.source), inputs=hashes, rows=rows
    ) as job:
        if job.done is None:
            resources = sha256_json(inputs.all_hashes)
            if config.reuse:
                scores = _reused(config, estimator, examples, target, resources)
            else:
                scores = _scored(config, estimator, examples, target)
            scores = replace(scores, facts={**scores.facts, "resources": resources})
            scores.save(path)
            job.outputs.append(path)
            job.facts |= {
                **scores.facts,
                "provenance": provenance_table(examples),
                "model": target.label,
                "model_source": target.source,
                "base": config.base,
            }
    return Scores.load(path)


def _check_name(config: ScoreConfig, target: Subject) -> None:
    """Refuse to replace the scores of another model."""
    earlier = config.run.entry("score", config.label)
    if earlier and earlier.facts.get("model", target.label) != target.label:
        raise UsageError(
            f"{config.run.root} has the scores {config.label!r} of the model "
            f"{earlier.facts['model']}; give those of {target.label} another name with --name"
        )


def _scored(
    config: ScoreConfig, estimator: Estimator, examples: Examples, target: Subject
) -> Scores:
    loaded = checkpoints.load(target.source, device=config.device)
    with computing_in(config.computing(target.source)):
        return scores_of(
            config.run,
            estimator,
            loaded,
            examples,
            spec=config.estimator,
            model_hash=target.hash,
            seed=config.seed,
        )


def scores_of(  # noqa: PLR0913  # everything that the scores record
    run: RunDir | None,
    estimator: Estimator,
    loaded: checkpoints.Loaded,
    examples: Examples,
    *,
    spec: str,
    model_hash: str,
    seed: int,
) -> Scores:
    """Score the examples on a loaded model.

    Args:
        run: The run, which keeps a list of rows that are not scored; None keeps none.
        estimator: Scores them.
        loaded: The aligned model, which is left as it was.
        examples: The alignment rows.
        spec: Name and options of the estimator.
        model_hash: Hash of the model; "" if unknown.
        seed: Random seed.

    Raises:
        HoldfastError: No example could be scored.
    """
    estimate, cost = estimated(run, estimator, loaded, examples, seed)
    if np.isnan(estimate.values).all():
        raise HoldfastError(
            f"{spec} could score none of the {len(examples)} examples: all its values "
            "are nan. Check that the model's weights are finite and that the judge can decide."
        )
    return Scores(
        ids=examples.ids,
        values=estimate.values,
        estimator=spec,
        data_hash=examples.hash,
        model_hash=model_hash,
        seed=seed,
        errors=estimate.errors,
        details=estimate.details,
        facts={**estimate.facts, **asdict(cost), "precision": computing()},
    )


def _reused(
    config: ScoreConfig,
    estimator: Estimator,
    examples: Examples,
    target: Subject,
    resources: str,
) -> Scores:
    """Return another model's scores, if a sample scored on this model has the same order.

    Args:
        config: Options of the stage.
        estimator: The estimator.
        examples: The rows.
        target: The model.
        resources: Hash of all that the estimator is given.

    Raises:
        MismatchError: They are of other rows, by another estimator, or it was given other rows.
        HoldfastError: The check did not confirm them.
    """
    old = Scores.load(cast(Path, config.reuse))
    if old.data_hash != examples.hash or old.estimator != config.estimator:
        raise MismatchError(
            f"{config.reuse}: scores by {old.estimator!r} of rows {old.data_hash[:12]}, asked for "
            f"{config.estimator!r} of {examples.hash[:12]}: only the same may be used again. "
            "Score this model without --reuse."
        )
    if old.facts.get("resources", resources) != resources:
        raise MismatchError(
            f"{config.reuse}: made with other options, rows, base or judge than are given here: "
            "only the same may be used again. Give those, or score this model without --reuse."
        )
    # Reused scores name the model they were made on; drift must not be lost in a chain.
    made_on = old.facts.get("reused_from", old.model_hash)
    if old.model_hash == target.hash:
        return replace(old, facts={**old.facts, "reused_from": made_on})
    values = old.aligned_to(examples.ids)
    scored = np.flatnonzero(np.isfinite(values))
    rng = np.random.default_rng(config.seed)
    sample = np.sort(rng.choice(scored, min(CHECKED, len(scored)), replace=False))
    fresh = _scored(config, estimator, examples.select(sample.tolist()), target)
    facts = {
        "reused_from": made_on,
        "drift_check": _agreement(config, values[sample], fresh.values),
        **{field.name: fresh.facts[field.name] for field in fields(Cost)},
        "precision": fresh.facts["precision"],
    }
    return replace(old, model_hash=target.hash, errors=None, details={}, facts=facts)


def _agreement(config: ScoreConfig, old: np.ndarray, fresh: np.ndarray) -> str:
    """Return the rank correlation of old and fresh scores of the rows checked, in words.

    Raises:
        HoldfastError: It is too low, or too few rows could be scored again to tell.
    """
    both = np.isfinite(fresh)
    way_out = "Score this model without --reuse."
    if both.sum() < FEWEST:
        raise HoldfastError(
            f"the scores of {config.reuse} cannot be checked on {config.model}: of {len(old)} rows "
            f"{int(both.sum())} could be scored again, and {FEWEST} are needed. {way_out}"
        )
    correlation = bootstrap(spearman, old[both], fresh[both], seed=config.seed)
    if not correlation.low >= config.agreement:
        raise HoldfastError(
            f"the scores of {config.reuse} do not hold on {config.model}: on {correlation.n} rows "
            f"scored again the ranks correlate at {correlation}, and the lower end must reach "
            f"{config.agreement:g}. {way_out}"
        )
    return str(correlation)
