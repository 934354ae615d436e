"""Print the committed results as Markdown: python benchmarks/tables.py."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from defenses import attack_label
from holdfast.reports.facts import add
from holdfast.results.artifacts import AttackResult
from kept import Kept

RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "estimators": (
        ("estimator", "estimator"),
        ("AUROC", "auroc"),
        ("Spearman", "spearman"),
        ("AUPRC", "auprc"),
        ("base rate", "base_rate"),
        ("AUROC above the free margin", "gain"),
        ("one attack alone: AUROC", "single_auroc"),
        ("Spearman", "single_spearman"),
        ("processor seconds", "processor_seconds"),
        ("share of ForgotNum's", "time_share"),
        ("over the bare passes", "over_bare"),
    ),
    "defenses": (
        ("method", "method"),
        ("attack", "attack"),
        ("HS", "hs"),
        ("half-life against SFT", "half_life_ratio"),
        ("against the best published", "best_ratio"),
        ("against the best without harmful rows", "best_without_harmful_ratio"),
        ("half-life (median, steps)", "half_life_median"),
        ("FA", "fa"),
        ("over-refusal", "over_refusal"),
    ),
    "generation": (
        ("what", "what"),
        ("ratio", "ratio"),
        ("seconds", "seconds"),
        ("n", "n"),
    ),
    "tune": (
        ("method", "method"),
        ("learning rate", "learning_rate"),
        ("options", "options"),
        ("half-life against SFT", "half_life_ratio"),
        ("refused", "refused"),
        ("over-refusal", "over_refusal"),
        ("general ability", "general"),
        ("HS", "hs"),
        ("chosen", "chosen"),
    ),
    "worst": (
        ("method", "method"),
        ("seed", "seed"),
        ("worst HS", "hs"),
        ("on fresh prompts", "fresh_hs"),
        ("FA under it", "fa"),
        ("clean FA", "clean_accuracy"),
        ("attacks tried", "tried"),
        ("above the floor", "kept_the_floor"),
        ("found attack", "attack"),
    ),
    "unseen": (
        ("foreseen by", "predictor"),
        ("AUROC", "auroc"),
        ("Spearman", "spearman"),
        ("on held-out trained rows: Spearman with the score", "trained_spearman"),
        ("prompts", "n"),
        ("seeds", "seeds"),
    ),
    "levelling": (
        ("method", "method"),
        ("seeds", "seeds"),
        ("steps to 10 %", "steps_0.1"),
        ("to half", "steps_0.5"),
        ("to 90 %", "steps_0.9"),
        ("10 % against half", "weakest_over_half"),
        ("90 % against half", "strongest_over_half"),
        ("half-life against SFT", "0.5_against_sft"),
        ("10 % against no groups", "0.1_against_ungrouped"),
        ("half-life against no groups", "0.5_against_ungrouped"),
    ),
    "transfer": (
        ("scores of", "scored"),
        ("forgotten by", "attacked"),
        ("AUROC", "auroc"),
        ("Spearman", "spearman"),
        ("AUROC lost", "lost"),
        ("rank correlation of the scores", "between"),
        ("re-use allowed", "reuse"),
    ),
    "before": (
        ("method", "method"),
        ("HS", "hs"),
        ("undecided", "undecided"),
        ("over-refusal", "over_refusal"),
        ("general ability", "general"),
        ("n", "n"),
        ("seeds", "seeds"),
    ),
    "train_text_base": (
        ("step", "step"),
        ("tokens", "tokens"),
        ("loss", "loss"),
        ("validation loss", "validation_loss"),
        ("seconds", "seconds"),
    ),
    "check_text_base": (
        ("measure", "measure"),
        ("judge", "judge"),
        ("found", "value"),
        ("undecided", "undecided"),
        ("n", "n"),
        ("target", "target"),
        ("reached", "reached"),
    ),
    "judge": (
        ("seed of the split", "seed"),
        ("accuracy", "accuracy"),
        ("among those it decides", "decided_accuracy"),
        ("n", "n"),
    ),
    "step_time": (
        ("method", "method"),
        ("mode", "mode"),
        ("parameters", "parameters"),
        ("model", "model"),
        ("batch", "batch"),
        ("time", "time_ratio"),
        ("processor time", "cpu_time_ratio"),
        ("memory", "memory_ratio"),
        ("extra copies", "extra_parameter_copies"),
    ),
    "engine": (
        ("model", "model"),
        ("what", "what"),
        ("precision", "precision"),
        ("threads", "threads"),
        ("time", "time_ratio"),
        ("peak memory", "memory_ratio"),
        ("peer", "peer"),
        ("time over the peer's", "peer_ratio"),
        ("over SFT's step", "sft_ratio"),
        ("seconds", "seconds"),
        ("peak GiB", "peak_gib"),
        ("rounds", "rounds"),
    ),
    "side_by_side": (
        ("model", "model"),
        ("what", "what"),
        ("settings", "settings"),
        ("threads", "threads"),
        ("two at once over one after the other", "pair_ratio"),
        ("alone over libgomp's", "alone_ratio"),
        ("rounds", "rounds"),
    ),
}


ENDS = ("low", "high")
BOUNDS = {"lower": "at least ", "upper": "at most ", "unknown": "unknown, "}


def cell(row: dict[str, Any], key: str) -> str:
    """Write a value with its interval where the row has one."""
    value = row.get(key)
    if key == "time_share" and row.get("processor_seconds"):
        share = row["processor_seconds"] / row["reference_processor_seconds"]
        return f"1/{1 / share:.0f}" if share <= 0.5 else f"{share:.2f}"
    if not isinstance(value, float):
        return "" if value is None else str(value)
    if key == "learning_rate":
        return f"{value:g}"
    low, high = (row.get(f"{key}_{end}", row.get(end) if key == "value" else None) for end in ENDS)
    interval = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    bound = BOUNDS.get(row.get(f"{key}_bound", ""), "")
    return f"{bound}{value:.2f}{interval}"


def table(path: Path) -> str:
    """Return a results file as Markdown."""
    result = json.loads(path.read_text(encoding="utf-8"))
    plain = [(k, k) for k, v in result["rows"][0].items() if not isinstance(v, (list, dict))]
    columns = COLUMNS.get(result["benchmark"], plain)
    lines = [f"`{path.name}`, commit {result['commit'][:10]}, {len(result['rows'])} rows", ""]
    lines.append("| " + " | ".join(title for title, _ in columns) + " |")
    lines.append("|" + "---|" * len(columns))
    for row in result["rows"]:
        lines.append("| " + " | ".join(cell(row, key) for _, key in columns) + " |")
    return "\n".join(lines)


SUMMARY = (
    ("method", "all", "method"),
    ("half-life against SFT", "all", "half_life_ratio"),
    ("a tenth harmful, against SFT", "all", "tenth_ratio"),
    ("still refuses, against SFT", "all", "refusing_ratio"),
    ("against the best published", "all", "best_ratio"),
    ("a tenth harmful: that", "all", "best_tenth_ratio"),
    ("against the best without harmful rows", "all", "best_without_harmful_ratio"),
    ("of a variant: against its parent", "all", "parent_ratio"),
    ("half-life (median, steps)", "all", "half_life_median"),
    ("HS before", "none", "hs"),
    ("undecided before", "none", "undecided"),
    ("over-refusal", "all", "over_refusal"),
    ("over-refusal less SFT's", "all", "over_refusal_more"),
    ("general ability before", "none", "fa"),
    ("FA", "all", "fa"),
    ("FA less SFT's", "all", "fa_more"),
    ("seeds", "all", "seeds"),
)
"""Heading, whether over all attacks or before any, and what is shown there."""


def summary(path: Path) -> str:
    """Return one line a method of a file of defenses, the one that lasts longest first."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    by_place = {(row["method"], row["attack"]): row for row in rows}
    methods = [row["method"] for row in rows if row["attack"] == "all"]
    methods.sort(key=lambda method: -(by_place[method, "all"]["half_life_ratio"] or 0))
    lines = ["| " + " | ".join(title for title, _, _ in SUMMARY) + " |"]
    lines.append("|" + "---|" * len(SUMMARY))
    for method in methods:
        cells = [cell(by_place.get((method, place), {}), key) for _, place, key in SUMMARY]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


GRID_STEP = 28
"""A checkpoint of all attacks of the world by which plain fine-tuning is about half broken."""


def grid(path: Path) -> str:
    """Return the harmful score after `GRID_STEP` steps, and the half-life, by method and attack."""
    attacks = [a for a in Kept.load(path).attacks if a.attack.poison_ratio > 0]
    labels = dict.fromkeys(attack_label(a) for a in attacks)
    lines = ["| method | " + " | ".join(labels) + " |", "|" + "---|" * (1 + len(labels))]
    for method in dict.fromkeys(a.method for a in attacks):
        mine = [a for a in attacks if a.method == method]
        cells = [_both([a for a in mine if attack_label(a) == label]) for label in labels]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _both(attacks: Sequence[AttackResult]) -> str:
    counts = [p.verdicts[a.judge] for a in attacks for p in a.points if p.step == GRID_STEP]
    found = add(counts).interval
    value = "unknown" if math.isnan(found.value) else f"{found.value:.2f}"
    score = f"{value} [{found.low:.2f}, {found.high:.2f}]" if counts else ""
    broken = len(attacks) - len(counts)
    ended = f"{broken} of {len(attacks)} broken before" if broken else ""
    steps = [math.inf if a.half_life.censored else a.half_life.steps for a in attacks]
    return f"{', '.join(filter(None, (score, ended)))}; {median(steps):.0f} steps"


def main() -> None:
    """Print every table there is."""
    for path in sorted(RESULTS.glob("*.json")):
        sys.stdout.write(table(path) + "\n\n")
        if path.with_suffix(".jsonl").exists():
            sys.stdout.write(summary(path) + "\n\n")
            sys.stdout.write(grid(path.with_suffix(".jsonl")) + "\n\n")


if __name__ == "__main__":
    main()
