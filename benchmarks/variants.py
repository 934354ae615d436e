"""The methods that the benchmarks compare: all of holdfast's, and Hold with one thing changed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from holdfast.errors import UsageError
from holdfast.specs import value_text

if TYPE_CHECKING:
    from pathlib import Path

    from common import Setting

Methods = dict[str, dict[str, Any]]
BASELINE = "sft"
HOLD = "hold"
PUBLISHED = ("sam", "vaccine", "t_vaccine", "repnoise", "booster", "tar", "group_dro", "vaa")
MAIN = (BASELINE, *PUBLISHED, HOLD, "hold-lean", "hold-full", "hold-harmful")
FULL = {"mixture": "both", "every": 1, "attack_share": 1.0}
"""Both gradients in every update, a step of the attack too, of as many rows: what Hold spares."""
LEAN = {"every": 4, "inner_steps": 24, "reach": 1.4e-3}
"""A step of the attack half as often, twice as far."""
# What is left out or put in, one thing at a time.
CHANGES: dict[str, dict[str, Any]] = {
    "hold-full": FULL,
    "hold-harmful": {"attack_rows": "harmful"},
    "hold-mismatched": {"attack_rows": "mismatched"},
    "hold-both": {"mixture": "both"},
    "hold-every1": {"every": 1},
    "hold-lean": LEAN,
    "hold-lean-longer": {**LEAN, "inner_steps": 36},
    "hold-every4": {"every": 4},
    "hold-share1": {"attack_share": 1.0},
    "hold-anew4": {"every": 0, "inner_steps": 4},
    "hold-anew16": {"every": 0, "inner_steps": 16},
    "hold-8steps": {"inner_steps": 8},
    "hold-16steps": {"inner_steps": 16},
    "hold-32steps": {"inner_steps": 32},
    "hold-reach1e-3": {"reach": 1e-3},
    "hold-refuse0": {"refuse": 0.0},
    "hold-refuse1": {"refuse": 1.0},
    "hold-comply0": {"comply": 0.0},
    "hold-comply3": {"comply": 3.0},
    "hold-benign1": {"benign": 1.0},
    "hold-benign2": {"benign": 2.0},
    "hold-clean0": {"clean": 0.0},
    "hold-clean0.5": {"clean": 0.5},
    # Settings of transformers.TrainingArguments are options too.
    **{f"{name}-constant_rate": {"lr_scheduler_type": "constant"} for name in (BASELINE, HOLD)},
    **{f"hold-{control}": {"control": control} for control in ("ungrouped", "shuffled")},
    # VAA's own ablation; uniform is its importance sampling, as far as the paper says what that is.
    "vaa-ungrouped": {"control": "ungrouped"},
    "vaa-shuffled": {"control": "shuffled"},
    "vaa-noisy": {"control": "noisy"},
    "vaa-only_vulnerable": {"control": "only_last"},
    "vaa-only_invulnerable": {"control": "only_first"},
    "vaa-uniform": {"floor": 0.5},
    "vaa-random": {"perturbation": "random"},
    "vaa-both": {"mixture": "both", "sampler": "smoothed", "step_size": 0.1},
}
UNKNOWING = {f"{name}-mismatched": name for name in ("repnoise", "booster", "tar")}
"""Methods that need harmful rows, without any: prompts with unrelated benign answers instead."""
ATTACKED = ("venoms", "bursts", "locks", "forgery")
"""The world's four most frequent categories: those of an attacker whose rows are of some only."""
ELSEWHERE = {f"{name}-other": name for name in ("repnoise", "booster", "tar")}
"""Methods that need harmful rows, with rows of the other categories only."""
PUBLISHED_WITHOUT_HARMFUL = ("sam", "vaccine", "group_dro", "vaa", *UNKNOWING)
KNOWLEDGE = (*(name for pair in UNKNOWING.items() for name in pair), HOLD, "hold-harmful")
"""Methods with harmful rows and without."""
CATEGORIES = ("repnoise", "tar", *(f"{name}-other" for name in ("repnoise", "tar")), HOLD)
"""Methods whose harmful rows are of the attacker's categories among others, and of others only."""
GROUPS = (
    "vaa",
    *(f"vaa-{control}" for control in ("ungrouped", "shuffled", "noisy")),
    *(f"vaa-{control}" for control in ("only_vulnerable", "only_invulnerable", "uniform")),
    *(HOLD, f"{HOLD}-ungrouped", f"{HOLD}-shuffled"),
)
"""What the groups are worth: the paper's ablation, and the same of Hold."""
ABLATION = (BASELINE, "vaa", HOLD, *CHANGES)


def methods(base: Setting, names: str, tuned: Path | None = None) -> Methods:
    """Return the methods that are named, the baseline first.

    Args:
        base: Where; a setting says what fits its models.
        names: "main", "knowledge", "categories", "groups", "ablation", or names separated by
            commas.
        tuned: Results of tune.py; variants change what was chosen for their parent.

    Raises:
        UsageError: A name is not known, or the file holds no trials of this setting.
    """
    known = _known(base, _chosen(base, tuned) if tuned else {})
    sets = {
        **{"main": MAIN, "knowledge": KNOWLEDGE, "categories": CATEGORIES},
        **{"groups": GROUPS, "ablation": ABLATION},
    }
    chosen = sets.get(names) or tuple(names.split(","))
    if unknown := sorted(set(chosen) - known.keys()):
        raise UsageError(f"--methods {', '.join(unknown)}: none of {', '.join(known)}")
    return {name: known[name] for name in dict.fromkeys((BASELINE, *chosen))}


def scored_without_harm(base: Setting, quick: bool) -> dict[str, dict[str, Any]]:
    """Return the score that the groups of all methods are made from.

    Only some methods may see the known harmful rows, so it is made without them.
    """
    spec = f"{base.config.score['attack_direction']['estimator']},source=base"
    limit = {"limit": 64} if quick else {}
    return {"attack_direction": {"estimator": spec, "harmful": None, **limit}}


def _known(base: Setting, tuned: Methods) -> Methods:
    from holdfast import plugins
    from holdfast.stages.align import MISMATCHED

    found: Methods = {name: {"method": name} for name in plugins.available("methods")}
    for name, settings in {**base.config.methods, **tuned}.items():
        found[name] = {"method": name, **settings}
    for name, changes in CHANGES.items():
        found[name] = _changed(found[name.partition("-")[0]], changes)
    for name, parent in UNKNOWING.items():
        found[name] = {**found[parent], "harmful": MISMATCHED, "knowledge": "none"}
    if base.name == "world":
        others = f"{base.probe},not_category={value_text(ATTACKED)}"
        for name, parent in ELSEWHERE.items():
            found[name] = {**found[parent], "harmful": others, "knowledge": "other"}
    if base.prefix:
        affirmative = {"attack_rows": "affirmative", "prefix": base.prefix}
        found["hold-affirmative"] = _changed(found[HOLD], affirmative)
    return found


def _changed(parent: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    return {**parent, "options": {**parent.get("options", {}), **options}}


def _chosen(base: Setting, path: Path) -> Methods:
    try:
        result = json.loads(path.read_text())
        rows = [row for row in result["rows"] if row["chosen"]]
        setting = result["config"]["setting"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--tuned {path}: no results of tune.py") from error
    if setting != base.name:
        raise UsageError(f"--tuned {path} is of the {setting}, not of the {base.name}")
    found: Methods = {}
    for row in rows:
        rate = {} if row["learning_rate"] is None else {"learning_rate": row["learning_rate"]}
        found[row["method"]] = {"options": row["options"], **rate}
    return found
