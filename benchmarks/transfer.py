"""Do the scores of one model foresee what another model forgets?

Bases of the embedded world of other width, depth and seed, and another alignment of the same base,
are aligned with SFT, scored by the attack direction and attacked. Every pair is a row: the scores
of one, what the other forgets, how much is lost against the other's own scores, and whether the
check of `holdfast score --reuse` would have let the scores pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
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
    write,
)
from holdfast.errors import HoldfastError, UsageError
from holdfast.results.artifacts import Scores
from holdfast.results.run_dir import RunDir
from holdfast.results.validation import Case, cases
from holdfast.stats.agreement import agreement
from holdfast.stats.ranks import spearman

if TYPE_CHECKING:
    import argparse

    from holdfast.stages.pipeline import RunConfig

ESTIMATOR = "attack_direction,source=base"
NOTES = (
    "scored: whose scores; attacked: who is attacked, and whose ForgotNum (mean over its attacks) "
    "is the truth. lost: AUROC of its own scores less that of the other's. between: rank "
    "correlation of the two models' scores over all rows. reuse: whether the check of "
    "`score --reuse` (64 rows scored anew, towards the base of the model whose scores they are) "
    "let the scores pass. Intervals: bootstrap over examples."
)


@dataclass(frozen=True)
class Variant:
    """A model of the world: its base, and the seed of its alignment.

    Attributes:
        width: Hidden size of the base.
        depth: Layers of the base.
        seed: Of the base: its first weights and its text.
        alignment: Seed of the alignment.
    """

    width: int = 128
    depth: int = 4
    seed: int = 0
    alignment: int = 0

    @property
    def shipped(self) -> bool:
        """Whether its base is the one that ships."""
        return (self.width, self.depth, self.seed) == (128, 4, 0)


VARIANTS = {
    "shipped": Variant(),
    "other alignment seed": Variant(alignment=1),
    "other base seed": Variant(seed=1),
    "narrow": Variant(width=96),
    "wide": Variant(width=192),
    "shallow": Variant(depth=2),
    "deep": Variant(depth=6),
}
QUICK = ("shipped", "other alignment seed")


@dataclass(frozen=True)
class Model:
    """A variant that was aligned, scored and attacked.

    Attributes:
        config: Its run.
        case: What its attacks made it forget.
        scores: Its own scores.
    """

    config: RunConfig
    case: Case
    scores: Scores


def made(base: Setting, options: argparse.Namespace, work: Path, name: str) -> Model:
    """Align, score and attack a variant; what is there is not done again."""
    from holdfast.world import train_base

    variant, place = VARIANTS[name], work / name.replace(" ", "-")
    model = "world"
    if not variant.shipped:
        model = str(place / "base")
        if not (place / "base" / "config.json").exists():
            train_base.make(
                place / "base", width=variant.width, depth=variant.depth, seed=variant.seed
            )
    quick = {"limit": 160} if options.quick else {}
    attack: dict[str, Any] = {"steps": 100, "track_rows": 400, "task_rows": 0, **quick}
    attack["learning_rates"] = [2e-5, 3e-5]
    if options.quick:
        attack |= {"steps": 30, "rows": 150, "learning_rates": [1e-4]}
    changes: dict[str, Any] = {
        "model": model,
        "seeds": [variant.alignment],
        "methods": {"sft": {}},
        "score": {"direction": {"estimator": ESTIMATOR, **quick}},
        "group": {"scores": "direction", **quick},
        "align": QUICK_ALIGN[base.name] if options.quick else {},
        "attack": attack,
        "track": True,
    }
    config = configured(base, options, place / "run", changes)
    walk(config, ("align", "score", "attack"))
    (case,) = cases(RunDir(config.out))
    return Model(config, case, case.by_estimator["direction"])


def rows(models: Mapping[str, Model]) -> list[Row]:
    """Return a row for every ordered pair of models, a model with itself first."""
    same = [(name, name) for name in models]
    return [row(models, a, b) for a, b in (*same, *itertools.permutations(models, 2))]


def row(models: Mapping[str, Model], scored: str, attacked: str) -> Row:
    """Hold one model's scores against what another forgets."""
    giver, taker = models[scored], models[attacked]
    found = agreement(taker.case.values(giver.scores), taker.case.mean)
    own = agreement(taker.case.values(taker.scores), taker.case.mean, resamples=2)
    other = giver.scores.aligned_to(taker.scores.ids)
    known = np.isfinite(other) & np.isfinite(taker.scores.values)
    return {
        "scored": scored,
        "attacked": attacked,
        **found.auroc.fields("auroc"),
        **found.spearman.fields("spearman"),
        "lost": own.auroc.value - found.auroc.value,
        "between": spearman(other[known], taker.scores.values[known]),
        "reuse": None if scored == attacked else passes(giver, taker),
        "base_rate": found.base_rate,
        "n": found.n,
    }


def passes(giver: Model, taker: Model) -> bool:
    """Say whether `score --reuse` takes the giver's scores for the taker.

    Raises:
        UsageError: The check could not be made at all.
    """
    from holdfast.stages.score import ScoreConfig, score

    run = giver.config.out / "scores" / f"direction-s{giver.case.seed}.json"
    settings: dict[str, Any] = {
        "out": taker.config.out,
        "device": taker.config.device,
        "model": f"sft-s{taker.case.seed}",
        # Other bases are refused for that alone; what is asked here is whether the check would do.
        "base": giver.config.model,
        "data": taker.config.data.alignment,
        "benign": taker.config.data.benign,
        "estimator": ESTIMATOR,
        "limit": taker.config.score["direction"].get("limit"),
        "seed": taker.case.seed,
        "reuse": run,
        "name": "reused",
    }
    try:
        score(ScoreConfig(**settings))
    except UsageError:
        raise
    except HoldfastError:
        return False
    return True


def run_benchmark() -> None:
    """Make the models, compare all pairs, write."""
    options = parser(__doc__, seeds=1)
    add_setting(options)
    options.add_argument("--variants", help="only these models, separated by commas")
    chosen = options.parse_args()
    asked = QUICK if chosen.quick else tuple(VARIANTS)
    if chosen.variants:
        asked = tuple(chosen.variants.split(","))
    if unknown := set(asked) - VARIANTS.keys():
        raise UsageError(f"--variants {', '.join(unknown)}: none of {', '.join(VARIANTS)}")
    if chosen.setting != "world":
        raise UsageError("--setting text: there is one base of text; bases differ in the world")
    with folder(chosen.work) as work:
        base = setting(chosen, work)
        models = {name: made(base, chosen, work, name) for name in asked}
        facts = {
            "quick": chosen.quick,
            "variants": {name: vars(VARIANTS[name]) for name in asked},
            "estimator": ESTIMATOR,
            "attacks": sorted({a for m in models.values() for a in m.case.attacks}),
            "notes": NOTES,
        }
        write(chosen.json, "transfer", facts, rows(models))


if __name__ == "__main__":
    main(run_benchmark)
