"""Stage: predict how vulnerable new examples would be, from their text or a probe on a model."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from holdfast.contracts import Estimator
from holdfast.errors import MismatchError, UsageError
from holdfast.estimators.attack_direction import MOST_TOKENS
from holdfast.examples import Examples
from holdfast.groups.make import level_names
from holdfast.models import checkpoints, encoding
from holdfast.models.precision import computing_in
from holdfast.results.artifacts import Groups, Scores
from holdfast.results.files import sha256_json, write_text
from holdfast.rows.provenance import provenance_table
from holdfast.screening.text_screener import Screen, ScreenedRow, place_among_scored, screen_text
from holdfast.stages.config import EstimatorSpec
from holdfast.stages.estimator_inputs import EstimatorConfig, check_base, estimated, estimator_of
from holdfast.stages.run_models import subject
from holdfast.stages.run_scores import only, scores_with_rows
from holdfast.stats.intervals import bootstrap
from holdfast.stats.ranks import spearman

FEWEST_PROBED = 20
LONGEST = 2**20
"""Tokens of a row of which only the first of its response is looked at."""
DISAGREES = "the probe does not order the scored rows as their scores do: compare with care"
PROBE_FAILED = "the probe could not score it"
NO_REFUSAL = "its response does not begin as those of the scored rows do, and was not probed"


class ScreenConfig(EstimatorConfig):
    """Options of the stage."""

    PLACES: ClassVar[frozenset[str]] = frozenset(
        {"new", "data", "scores", "groups", "model", "name", "csv"}
    )

    new: str
    """Rows to screen; rows without a response are placed by their prompt alone."""
    data: str | None = None
    """Alignment rows that were scored (default: the rows stored in the run)."""
    scores: str | None = None
    """Name of the scores in the run; optional if there is only one set."""
    coverage: float = Field(default=0.9, gt=0, lt=1)
    """Probability that a row's interval contains its rank."""
    groups: str | None = None
    """Name of a grouping of the scored rows in the run. Every new row then gets a probability of
    being in the most vulnerable group.
    """
    model: str | None = None
    """Aligned model to probe: its label in the run, a directory, a GGUF file,
    package:NAME or a hub id. Without it, rows are
    screened by their text alone.
    """
    estimator: EstimatorSpec = "attack_direction"
    """Estimator to use as the probe."""
    sample: int = Field(default=200, ge=0)
    """Number of scored rows to probe with the new ones, to make ranks comparable; 0 probes all."""
    name: str = ""
    """Label of the result (default: derived from --new)."""
    csv: Path | None = None
    """CSV file to write the results to, most vulnerable rows first."""

    @property
    def label(self) -> str:
        """Name of the result within the run."""
        stem = self.name or Path(self.new).stem
        return "".join(c if c.isalnum() or c in "-_.=" else "-" for c in stem)


@dataclass(frozen=True)
class _Scored:
    """The scored rows, their scores, and which of them are in the most vulnerable group."""

    examples: Examples
    values: np.ndarray
    scores: Scores
    vulnerable: np.ndarray | None


@dataclass(frozen=True)
class _Probe:
    """An estimator, and where the model lies that it is to be run on."""

    estimator: Estimator
    source: str


def screen(config: ScreenConfig) -> Screen:
    """Screen the new rows and save `screens/<label>.json`.

    Rows that were scored keep their rank. The others are placed by the probe if a model is given
    (rows without a response it cannot read), and by their text otherwise.

    Raises:
        MismatchError: The scores or groups were made from other rows.
        UsageError: Too few scored rows, all scores equal, or nothing that the probe can read.
    """
    new = config.read(config.new, needs_response=False)
    scored, inputs = _scored(config)
    inputs["new categories"] = _categories(new)
    inputs["categories"] = _categories(scored.examples)
    rows = {"new": new, "data": scored.examples}
    probe: _Probe | None = None
    settings = config.keyed()
    if config.model is not None:
        estimator, used = estimator_of(config, config.estimator)
        target = subject(config.run, config.model)
        check_base(used, target.hash)
        probe = _Probe(estimator, target.source)
        settings["precision"] = config.computing(target.source)
        inputs |= {**used.hashes, "model": target.hash}
        rows |= used.rows
    path = config.run.path("screens", f"{config.label}.json")
    with config.run.job("screen", config.label, config=settings, inputs=inputs, rows=rows) as job:
        if job.done is None:
            screen = _screen(config, new, scored, probe, inputs)
            screen.save(path)
            job.outputs.append(path)
            job.facts |= {"counts": screen.counts, "provenance": provenance_table(new)}
            job.facts["accuracy"] = [str(measure) for measure in screen.accuracy]
    screen = Screen.load(path)
    if config.csv is not None:
        write_text(config.csv, as_csv(screen))
    return screen


def as_csv(screen: Screen) -> str:
    """Return a table, most vulnerable rows first; unknown numbers are empty cells.

    Rows are named by their number in the new data (1 is the first) and by their content id: a
    prompt in a spreadsheet can be a formula.
    """
    columns = ("rank", "low", "high", "vulnerable")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("row", "id", *columns, "basis", "note"))
    for position, row in screen.ranked:
        numbers = [getattr(row, column) for column in columns]
        cells = ["" if math.isnan(number) else f"{number:.4f}" for number in numbers]
        writer.writerow((position + 1, row.id, *cells, row.basis, row.note))
    return file.getvalue()


def _screen(
    config: ScreenConfig,
    new: Examples,
    scored: _Scored,
    probe: _Probe | None,
    inputs: Mapping[str, str],
) -> Screen:
    with_score = set(np.array(scored.examples.ids)[np.isfinite(scored.values)].tolist())
    probed: dict[str, ScreenedRow] = {}
    facts: dict[str, Any] = {}
    strange: set[str] = set()
    unknown = [i for i, identity in enumerate(new.ids) if identity not in with_score]
    if probe is not None and unknown:
        answered = new.select([i for i in unknown if new[i].response.strip()])
        probed, facts = _probe(config, answered, scored, probe)
        facts["model_hash"] = inputs["model"]
        strange = set(answered.ids) - probed.keys()
    placed = {identity for identity, row in probed.items() if not math.isnan(row.rank)}
    rows, accuracy = screen_text(
        new.select([i for i, identity in enumerate(new.ids) if identity not in placed]),
        scored.examples,
        scored.values,
        coverage=config.coverage,
        vulnerable=scored.vulnerable,
        seed=config.seed,
    )
    by_id = {row.id: _noted(row, PROBE_FAILED) if row.id in probed else row for row in rows}
    by_id |= {row.id: _noted(row, NO_REFUSAL) for row in rows if row.id in strange}
    return Screen(
        rows=tuple(probed[i] if i in placed else by_id[i] for i in new.ids),
        coverage=config.coverage,
        new_hash=new.hash,
        data_hash=scored.examples.hash,
        scores_hash=scored.scores.hash,
        accuracy=accuracy,
        facts=facts,
    )


def _noted(row: ScreenedRow, note: str) -> ScreenedRow:
    return replace(row, note="; ".join(filter(None, (note, row.note))))


def _probe(
    config: ScreenConfig, new: Examples, scored: _Scored, probe: _Probe
) -> tuple[dict[str, ScreenedRow], dict[str, Any]]:
    """Run the estimator on new and scored rows together, and place the new ones among the scored.

    Rows that are answered otherwise than the scored ones are left out: estimators learn from the
    rows how refusals begin, and a few others among them would change that for all.

    Raises:
        UsageError: No row has a response, too few scored rows can be probed, or the probe orders
            them in another way than their scores do.
    """
    if not len(new):
        raise UsageError(
            "no new row has a response, and the probe reads the response that is wanted. Add "
            "responses, or leave --model out to judge the prompts alone."
        )
    sample = _sample(config, scored)
    beside = scored.examples.select(sample)
    loaded = checkpoints.load(probe.source, device=config.device)
    new = _alike(loaded, new, beside)
    together = Examples([*new, *beside], name="new and scored rows")
    with computing_in(config.computing(probe.source)):
        estimate, _ = estimated(config.run, probe.estimator, loaded, together, config.seed)
    values = estimate.values
    of_new = values[: len(new)]
    of_scored = values[len(new) :]
    finite = np.isfinite(of_scored)
    if finite.sum() < FEWEST_PROBED:
        raise UsageError(
            f"the probe could score {int(finite.sum())} of {len(sample)} scored rows beside the "
            f"new ones; {FEWEST_PROBED} are needed to place these. Raise --sample, or check the "
            "model."
        )
    agreement = bootstrap(
        spearman, scored.values[sample][finite], of_scored[finite], seed=config.seed, resamples=500
    )
    if not agreement.high > 0:
        raise UsageError(
            f"the probe orders {agreement.n} scored rows in another way than their scores do (rank "
            f"correlation {agreement}): its ranks would say nothing. Give the model that was "
            "scored, or leave --model out to judge by the text."
        )
    note = "" if agreement.low > 0 else DISAGREES
    places = place_among_scored(of_new, of_scored[finite], config.coverage).tolist()
    rows = {
        identity: ScreenedRow(identity, rank, low, high, "probe", note)
        for identity, (rank, low, high) in zip(new.ids, places, strict=True)
    }
    facts = {
        "estimator": config.estimator,
        "sample": int(finite.sum()),
        "agreement": str(agreement),
        **estimate.facts,
    }
    return rows, facts


def _alike(loaded: checkpoints.Loaded, new: Examples, scored: Examples) -> Examples:
    """Return the new rows whose responses begin as the scored rows' do, if those share a way.

    Raises:
        UsageError: None does.
    """
    from holdfast.models.losses import refusal_tokens

    def encoded(rows: Examples) -> list[encoding.Encoded]:
        return encoding.encode(loaded.tokenizer, rows, LONGEST)

    scored_tokens = encoded(scored)
    if len(refusal_tokens(scored_tokens, coverage=0.95)) > MOST_TOKENS:
        return new
    openings = set(refusal_tokens(scored_tokens).tolist())
    alike = [i for i, row in enumerate(encoded(new)) if row.ids[row.start] in openings]
    if not alike:
        raise UsageError(
            f"none of the {len(new)} new responses begins as those of the scored rows do: they are "
            "no refusals, or worded otherwise. Leave --model out to judge by the text."
        )
    return new.select(alike)


def _sample(config: ScreenConfig, scored: _Scored) -> list[int]:
    positions = np.flatnonzero(np.isfinite(scored.values))
    if config.sample and config.sample < len(positions):
        rng = np.random.default_rng(config.seed)
        positions = rng.choice(positions, config.sample, replace=False)
    return sorted(positions.tolist())


# ---------------------------------------------------------------------------------------- inputs


def _scored(config: ScreenConfig) -> tuple[_Scored, dict[str, str]]:
    entry, scores, examples = scores_with_rows(config, config.data, config.scores)
    inputs = {"scores": scores.hash}
    vulnerable = None
    if config.groups is not None:
        groups = Groups.load(config.run.result(only(config, "group", config.groups)))
        if groups.names != level_names(2):
            raise UsageError(
                f"--groups {config.groups!r} has the {len(groups.names)} groups "
                f"{', '.join(groups.names)}; give one of two, {' and '.join(level_names(2))}: "
                "`holdfast group` makes it without --by and --groups"
            )
        if groups.scores_hash != scores.hash:
            raise MismatchError(
                f"--groups {config.groups!r} were made from other scores than {entry.name!r} (hash "
                f"{groups.scores_hash[:12]}, here {scores.hash[:12]}). Choose these with --scores, "
                "or run `holdfast group` again."
            )
        vulnerable = groups.aligned_to(examples.ids) == 1
        inputs["groups"] = groups.hash
    return _Scored(examples, scores.aligned_to(examples.ids), scores, vulnerable), inputs


def _categories(rows: Examples) -> str:
    """Hash the one provenance column that is read: the rows' own hash covers their texts only."""
    return sha256_json(sorted([row.id, row.provenance.get("category", "")] for row in rows))
