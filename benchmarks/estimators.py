"""How well do cheap scores foresee what an attack makes a model forget, and what do they cost?

For every seed the base is aligned with SFT, every estimator scores the alignment rows, and the
aligned model is attacked with other rows, for other tasks and at other learning rates than any
estimator saw. The truth is the mean ForgotNum of these attacks. Spearman is against that count;
AUROC and AUPRC are for being among the first half to be forgotten. The row "ceiling" says how well
the other attacks' mean foresees each attack: the label itself is worth no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from common import (
    QUICK_ALIGN,
    Row,
    Setting,
    add_setting,
    configured,
    folder,
    main,
    parser,
    setting,
    walk,
    with_options,
    write,
)
from holdfast.errors import UsageError
from holdfast.results.artifacts import Scores
from holdfast.results.files import write_json
from holdfast.results.run_dir import RunDir
from holdfast.results.validation import Case, cases
from holdfast.rows.readers import ReadOptions, read
from holdfast.specs import parse
from holdfast.specs import write as write_spec
from holdfast.stats.agreement import Agreement, agreement, auroc_gain, ceilings, mean_over_models
from holdfast.stats.intervals import Interval

if TYPE_CHECKING:
    import argparse

    from holdfast.stages.pipeline import RunConfig

REFERENCE = "forget_count"
VARIANTS = ("first_flips", "critical_step")
FREE = "free_margin"
TIME = "processor_seconds"
# What the direction is made of: label, source, options.
ABLATIONS = (
    ("first_flips-harmful-8rows", "harmful", "rows=8"),
    ("first_flips-harmful-half", "harmful", "flip=0.5"),
    ("first_flips-base-half", "base", "flip=0.5"),
    ("first_flips-harmful-l2", "harmful", "geometry=l2"),
    ("first_flips-harmful-3steps", "harmful", "steps=3"),
    ("first_flips-harmful-10steps", "harmful", "steps=10"),
    ("first_flips-base-l2", "base", "geometry=l2"),
    ("first_flips-base-8rows", "base", "rows=8"),
    ("first_flips-base-32rows", "base", "rows=32"),
    ("first_flips-base-4draws", "base", "repeats=4"),
    ("first_flips-mismatched-32rows", "mismatched", "rows=32"),
    ("first_flips-base-prefix", "base", "quantity=prefix"),
    ("first_flips-base-contrast", "base", "quantity=contrast"),
    ("derivative-harmful", "harmful", "variant=derivative"),
)
OTHERS = {
    "loss": "loss,quantity=loss",
    "loss-first_token": "loss,quantity=first_token",
    "weight_noise": "weight_noise",
    "gradient_norm": "gradient_norm",
    "sam_gap": "gradient_norm,kind=sam_gap",
}
MEMBERS = ("attack_direction,source=base", "weight_noise", "loss")
HARMLESS = ("attack_direction,source=base", "attack_direction,source=mismatched")
"""Both directions that need no harmful rows."""
CEILING = "ceiling"
POOLING = (
    "value: mean over seeds, beside it the median; interval: Student's t over the seeds, cut to "
    "the statistic's range, or a bootstrap over examples where there is one seed. Label: mean "
    "ForgotNum over the seed's attacks; single_*: each attack alone, mean over seeds and attacks. "
    "over_bare: processor time over that of the same passes alone, at the free margin's time a "
    "token, a backward pass taken for two forward ones. unknown: examples left out because the "
    "judge was undecided too often to count. "
    "gain: AUROC above that of the free margin on the same examples."
)
# Two rates, the lower one mild: under a hard attack alone nearly all end as victims together.
ATTACK = {
    "world": {"learning_rates": [2e-5, 3e-5], "steps": 100, "track_rows": 400},
    # A refusal is sure to be read.
    "text": {
        "learning_rates": [1e-4, 2e-4],
        "steps": 100,
        "track_rows": 200,
        "track_judge": "refusal",
        "task_rows": 0,
    },
}
# Fine-tuned for topics the small model soon answers everything with a class word, which is neither
# a refusal nor harmful; so the other task is to follow instructions, those with short prompts. No
# estimator sees any of these rows.
TEXT_TASKS = (
    "sst2,train={shared}/data/sst2/alps_train.tsv,test={shared}/data/sst2/dev_872.tsv,limit=2500",
    "alpaca,train={files}/instructions.json,"
    "test={shared}/data/alpaca/alpaca_eval.json,limit=2500,max_words=35",
)
QUICK_ROWS = 96
QUICK_ATTACK = {
    "learning_rates": [5e-5, 1e-4],
    "steps": 30,
    "every": 10,
    "rows": 100,
    "task_rows": 0,
}
QUICK_COUNT = {"steps": 30, "every": 10, "rows": 100, "learning_rate": 1e-4}
# The reference as the paper makes it, with ten checkpoints; on text it has four, for time.
FULL_COUNT = {"steps": 100, "every": 10, "rows": 400}


@dataclass(frozen=True)
class Cell:
    """One estimator's scores on one seed's model.

    Attributes:
        estimator: Label.
        seed: Of the alignment and the estimator.
        found: Agreement with the mean over the attacks.
        single: Agreement with each attack alone.
        gain: AUROC above the free margin's; nan for the free margin itself and the ceiling.
        facts: What the estimator cost.
        unknown: Examples without a count, because the judge was undecided too often.
    """

    estimator: str
    seed: int
    found: Agreement
    single: Sequence[Agreement]
    gain: Interval
    facts: Row
    unknown: int = 0


def configuration(base: Setting, options: argparse.Namespace, out: Path) -> RunConfig:
    """Return the run: SFT, all estimators on it, attacks whose forgetting is tracked."""
    limit = {"limit": QUICK_ROWS} if options.quick else {}
    changes: dict[str, Any] = {
        "methods": {"sft": {}},
        "score": {k: {**v, **limit} for k, v in _wanted(base, options).items()},
        "group": {"scores": FREE, **limit},
        "attack": {
            "poison_ratios": [0.1],
            **ATTACK[base.name],
            **_tasks(base, options),
            **limit,
            **(QUICK_ATTACK if options.quick else {}),
        },
        "align": QUICK_ALIGN[base.name] if options.quick else {},
        "track": True,
    }
    return configured(base, options, out, changes)


def _tasks(base: Setting, options: argparse.Namespace) -> dict[str, list[str]]:
    if base.name == "world":
        return {}
    places = {"shared": options.shared, "files": Path(base.config.data.benign or "").parent}
    return {"tasks": [task.format(**places) for task in TEXT_TASKS]}


def write_instructions(base: Setting, shared: Path) -> None:
    """Write Alpaca's rows without those that the alignment and estimators have as benign ones."""
    benign = Path(base.config.data.benign or "")
    used = {row.prompt for row in read(str(benign))}
    rows = read(str(shared / "data/alpaca/alpaca_random_9k.json"), ReadOptions(max_left_out=1.0))
    left = [row for row in rows if row.prompt not in used]
    made = [{"instruction": row.prompt, "output": row.response} for row in left]
    write_json(benign.with_name("instructions.json"), made)


def _wanted(base: Setting, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the estimators asked for; the free margin and the reference are always among them."""
    found = _estimators(base, options.quick)
    if not options.estimators:
        return found
    asked = {FREE, REFERENCE, *options.estimators.split(",")}
    if unknown := asked - found.keys():
        raise UsageError(f"--estimators {', '.join(sorted(unknown))}: none of {', '.join(found)}")
    return {name: spec for name, spec in found.items() if name in asked}


def _estimators(base: Setting, quick: bool) -> dict[str, dict[str, Any]]:
    """Return name -> options of the score stage, the free margin and the reference first."""
    reference, probe = base.config.score[REFERENCE], base.config.score["attack_direction"]
    count = reference["estimator"]
    if quick or base.name == "world":
        count = with_options(count, QUICK_COUNT if quick else FULL_COUNT)
    length = probe["estimator"].partition(",")[2]
    found: dict[str, dict[str, Any]] = {
        FREE: {"estimator": _spec("loss", "quantity=margin", length)},
        REFERENCE: {**reference, "estimator": count},
    }
    sources = {source: f"source={source}" for source in ("base", *base.sources)}
    if base.prefix:
        sources["affirmative"] += f",prefix={base.prefix}"
    for variant in VARIANTS:
        for source, words in sources.items():
            spec = _spec(probe["estimator"], f"variant={variant}", words)
            found[f"{variant}-{source}"] = {"estimator": spec, **_harmful(base, source)}
    for label, source, words in ABLATIONS:
        spec = _spec(probe["estimator"], f"source={source}", words)
        found[label] = {"estimator": spec, **_harmful(base, source)}
    options = {k: v for k, v in parse(count).options.items() if k != "max_new_tokens"}
    found["loss_drift"] = {**reference, "estimator": write_spec("loss_drift", options)}
    for label, names in (("ensemble", MEMBERS), ("ensemble-harmless", HARMLESS)):
        members = [parse(_spec(name, length)) for name in names]
        found[label] = {"estimator": write_spec("ensemble", {"members": members})}
    return found | {label: {"estimator": _spec(spec, length)} for label, spec in OTHERS.items()}


def _spec(*parts: str) -> str:
    return ",".join(part for part in parts if part)


def _harmful(base: Setting, source: str) -> dict[str, str]:
    return {"harmful": base.probe} if source == "harmful" else {}


# ----------------------------------------------------------------------------------------- rows


def cells(found: Sequence[Case]) -> list[Cell]:
    """Hold every estimator's scores against the attacks on the model that was scored."""
    return [cell for case in found for cell in _cells(case)]


def _cells(case: Case) -> list[Cell]:
    named = case.by_estimator
    free = case.values(named[FREE]) if FREE in named else np.full(len(case.ids), np.nan)
    found = [_cell(case, name, scores, free) for name, scores in named.items()]
    if len(case.attacks) > 1:
        unknown = Interval(np.nan, np.nan, np.nan, 0)
        found += [
            Cell(CEILING, case.seed, one, [one], unknown, {}, case.unknown)
            for one in ceilings(list(case.attacks.values()))
        ]
    return found


def _cell(case: Case, name: str, scores: Scores, free: np.ndarray) -> Cell:
    values = case.values(scores)
    baseline = np.full_like(free, np.nan) if name == FREE else free
    return Cell(
        estimator=name,
        seed=case.seed,
        found=agreement(values, case.mean, seed=case.seed),
        single=[agreement(values, c, resamples=2) for c in case.attacks.values()],
        gain=auroc_gain(values, baseline, case.mean, seed=case.seed),
        facts=dict(scores.facts),
        unknown=case.unknown,
    )


def rows(found: Sequence[Cell], order: Sequence[str] = ()) -> list[Row]:
    """Return one row per estimator, in this order, others as they come."""
    labels = dict.fromkeys([*order, *(c.estimator for c in found)])
    parts = {label: [c for c in found if c.estimator == label] for label in labels}
    reference = _mean(parts.get(REFERENCE, []), TIME)
    pace = _bare(parts.get(FREE, []))
    return [row(part, reference, pace) for part in parts.values() if part]


def row(mine: Sequence[Cell], reference: float, pace: float) -> Row:
    """Pool one estimator's cells.

    Args:
        mine: One for every seed.
        reference: Processor seconds of the reference.
        pace: Processor seconds of a token of a bare forward pass.
    """
    bare = pace * (_mean(mine, "forward_tokens") + 2 * _mean(mine, "backward_tokens"))
    made: Row = {"estimator": mine[0].estimator}
    for name, least in (("auroc", 0.0), ("spearman", -1.0), ("auprc", 0.0)):
        values = [getattr(c.found, name) for c in mine]
        made |= mean_over_models(values, least=least).fields(name)
        made[f"{name}_median"] = median(v.value for v in values)
        single = [getattr(one, name).value for c in mine for one in c.single]
        made[f"single_{name}"] = mean(single)
    return made | {
        **mean_over_models([c.gain for c in mine], least=-1.0).fields("gain"),
        "base_rate": mean(c.found.base_rate for c in mine),
        "n": sum(c.found.n for c in mine),
        "unknown": sum(c.unknown for c in mine),
        "seconds": _mean(mine, "seconds"),
        TIME: _mean(mine, TIME),
        f"reference_{TIME}": reference,
        "over_bare": _mean(mine, TIME) / bare if bare else math.nan,
        "forward_tokens": _mean(mine, "forward_tokens"),
        "backward_tokens": _mean(mine, "backward_tokens"),
        "generated_tokens": _mean(mine, "generated_tokens"),
        "peak_bytes": _mean(mine, "peak_bytes"),
        "seeds": len({c.seed for c in mine}),
        "attacks": sum(len(c.single) for c in mine),
        "cells": [_detail(c) for c in mine],
    }


def _bare(free: Sequence[Cell]) -> float:
    tokens = _mean(free, "forward_tokens")
    return _mean(free, TIME) / tokens if tokens else math.nan


def _mean(mine: Sequence[Cell], fact: str) -> float:
    known = [float(c.facts[fact]) for c in mine if c.facts.get(fact) is not None]
    return mean(known) if known else float("nan")


def _detail(cell: Cell) -> Row:
    detail: Row = {"seed": cell.seed, "n": cell.found.n, "base_rate": cell.found.base_rate}
    detail["unknown"] = cell.unknown
    for name in ("auroc", "spearman", "auprc"):
        detail |= getattr(cell.found, name).fields(name)
    return detail | cell.gain.fields("gain")


def run_benchmark() -> None:
    """Score, attack, compare, write."""
    options = parser(__doc__)
    add_setting(options)
    options.add_argument("--estimators", help="only these rows, separated by commas")
    options.add_argument(
        "--run", type=Path, nargs="+", help="make the rows from these runs, as they stand"
    )
    chosen = options.parse_args()
    if chosen.quick:
        chosen.seeds = 1
    if chosen.run is not None:
        asked = tuple(filter(None, (chosen.estimators or "").split(",")))
        runs = [RunDir(path) for path in chosen.run]
        found = [c for c in cells(together(runs)) if _asked(c.estimator, asked)]
        facts = {"setting": chosen.setting, "pooling": POOLING, **made_by(runs)}
        write(chosen.json, "estimators", facts, rows(found, asked))
        return
    with folder(chosen.work) as work:
        base = setting(chosen, work)
        if base.name == "text":
            write_instructions(base, chosen.shared)
        config = configuration(base, chosen, work / "run")
        run = RunDir(config.out)
        before = {entry.key for entry in run.entries("score")}
        walk(config, ("align", "score", "attack"))
        now = {entry.key for entry in run.entries("score")}
        facts = {
            "setting": base.name,
            "quick": chosen.quick,
            "seeds": config.seeds,
            "pooling": POOLING,
            "scores_from_an_earlier_process": len(before & now),
            "run": config.model_dump(mode="json", exclude={"out", "device", "report"}),
        }
        write(chosen.json, "estimators", facts, rows(cells(cases(run)), tuple(config.score)))


def _asked(estimator: str, asked: Sequence[str]) -> bool:
    return not asked or estimator in {*asked, FREE, REFERENCE, CEILING}


def together(runs: Sequence[RunDir]) -> list[Case]:
    """Return the cases of several runs, by seed.

    Raises:
        UsageError: Two of the runs have the same seed.
    """
    found: list[Case] = []
    for run in runs:
        mine = cases(run)
        if twice := {case.seed for case in mine} & {case.seed for case in found}:
            raise UsageError(f"--run {run.root}: seed {min(twice)} is in another run as well")
        found += mine
    return sorted(found, key=lambda case: case.seed)


def made_by(runs: Sequence[RunDir]) -> Row:
    """Return what runs that stand already say of their making."""
    scores, attacks = ([e for run in runs for e in run.entries(s)] for s in ("score", "attack"))
    entries = [*scores, *attacks, *(e for run in runs for e in run.entries("align"))]
    return {
        "commits": sorted({str(e.commit) for e in entries}),
        "scores": {e.name: e.config["estimator"] for e in scores},
        "attacks": sorted({e.name.partition("/")[2] for e in attacks}),
    }


if __name__ == "__main__":
    main(run_benchmark)
