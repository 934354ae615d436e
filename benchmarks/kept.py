"""What a results file was made from, one line an attack, so that seeds can be added to it later.

A line of an attack holds its settings and, for each checkpoint, step, accuracy, its test rows, and
what each judge counted as harmful, safe and undecided; a line of an evaluation its counts and
accuracies; the first line how the methods aligned. Texts, marks and tracked rows are left in the
run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from holdfast.errors import MismatchError
from holdfast.results.artifacts import AttackResult, Counts, Evaluation, Life, Point
from holdfast.results.attacks import Attack
from holdfast.results.files import to_json, write_text


@dataclass(frozen=True)
class Kept:
    """Attacks and evaluations with how their models were aligned.

    Attributes:
        setting: "world" or "text".
        methods: Method -> everything that its alignment was told.
        attacks: Of all methods.
        evaluations: Of all methods.
    """

    setting: str
    methods: Mapping[str, Any]
    attacks: Sequence[AttackResult] = ()
    evaluations: Sequence[Evaluation] = ()
    path: str = field(default="this run", compare=False)

    def and_also(self, other: Kept) -> Kept:
        """Return both together.

        Raises:
            MismatchError: Another setting, a method that was aligned differently, or a model that
                is in both.
        """
        if self.setting != other.setting:
            raise MismatchError(
                f"{self.path} is of the {self.setting}, {other.path} of the {other.setting}"
            )
        for method in sorted(self.methods.keys() & other.methods.keys()):
            ours, theirs = to_json(self.methods[method]), to_json(other.methods[method])
            if ours != theirs:
                raise MismatchError(
                    f"{method!r} was aligned with {ours} in {self.path} and with {theirs} in "
                    f"{other.path}: make one of them again"
                )
        twice = _models(self) & _models(other)
        if twice:
            raise MismatchError(
                f"{', '.join(sorted(twice))}: in {self.path} and in {other.path}; add other seeds"
            )
        return Kept(
            self.setting,
            {**self.methods, **other.methods},
            (*self.attacks, *other.attacks),
            (*self.evaluations, *other.evaluations),
            f"{self.path} and {other.path}",
        )

    def without(self, other: Kept) -> Kept:
        """Return all but the other's models, and no method of which none is left."""
        gone = _models(other)
        attacks = [a for a in self.attacks if a.model not in gone]
        left = {a.method for a in attacks}
        return replace(
            self,
            methods={name: how for name, how in self.methods.items() if name in left},
            attacks=attacks,
            evaluations=[e for e in self.evaluations if e.model not in gone],
        )

    def save(self, path: Path) -> None:
        """Write the lines atomically."""
        lines: list[Any] = [{"setting": self.setting, "methods": self.methods}]
        lines += [_attack_line(a) for a in self.attacks]
        lines += [_evaluation_line(e) for e in self.evaluations]
        write_text(path, "".join(json.dumps(to_json(line)) + "\n" for line in lines))

    @classmethod
    def load(cls, path: Path) -> Kept:
        """Read a file written by `save`.

        Raises:
            MismatchError: It is none.
        """
        try:
            head, *rest = [json.loads(line) for line in path.read_text().splitlines()]
            attacks = [_attack(line) for line in rest if "points" in line]
            stood = [_evaluation(line) for line in rest if "points" not in line]
            return cls(head["setting"], head["methods"], attacks, stood, str(path))
        except FileNotFoundError as error:
            raise MismatchError(f"{path}: no such file") from error
        except (ValueError, KeyError, TypeError) as error:
            raise MismatchError(f"{path}: no lines of attacks, as --json writes them") from error


def _models(kept: Kept) -> set[str]:
    stood = (e.model for e in kept.evaluations if e.method in kept.methods)
    return {*(a.model for a in kept.attacks), *stood}


def _attack_line(result: AttackResult) -> dict[str, Any]:
    return {
        **_whose(result),
        "judge": result.judge,
        "attack": result.attack.model_dump(),
        "material_hash": result.material_hash,
        "half_life": result.half_life.steps,
        "censored": result.half_life.censored,
        "judges": list(result.points[0].verdicts),
        "points": [_point_line(p) for p in result.points],
    }


def _point_line(point: Point) -> list[Any]:
    counts = [_counts(c) for c in point.verdicts.values()]
    return [point.step, point.accuracy, point.accuracy_n, *counts]


def _attack(line: Mapping[str, Any]) -> AttackResult:
    points = tuple(
        Point(
            step,
            {judge: Counts(*c) for judge, c in zip(line["judges"], counts, strict=True)},
            _number(accuracy),
            n,
        )
        for step, accuracy, n, *counts in line["points"]
    )
    steps = [float(point.step) for point in points]
    half_life = Life(
        steps=_number(line["half_life"]),
        censored=line["censored"],
        last=steps[-1],
        first=next((step for step in steps if step > 0), math.nan),
    )
    others = ("judges", "half_life", "censored", "points", "attack")
    fields = {name: value for name, value in line.items() if name not in others}
    attack = Attack(**line["attack"])
    return AttackResult(**fields, attack=attack, points=points, half_life=half_life)


def _evaluation_line(found: Evaluation) -> dict[str, Any]:
    return {
        **_whose(found),
        "verdicts": {judge: _counts(counts) for judge, counts in found.verdicts.items()},
        "over_refusal": found.over_refusal and _counts(found.over_refusal),
        "tasks": found.tasks,
    }


def _evaluation(line: Mapping[str, Any]) -> Evaluation:
    made = dict(line)
    made["verdicts"] = {judge: Counts(*counts) for judge, counts in line["verdicts"].items()}
    made["over_refusal"] = line["over_refusal"] and Counts(*line["over_refusal"])
    made["tasks"] = {
        task: {name: _number(value) for name, value in found.items()}
        for task, found in line["tasks"].items()
    }
    return Evaluation(**made)


def _whose(result: AttackResult | Evaluation) -> dict[str, Any]:
    names = ("model", "model_hash", "method", "model_seed")
    return {name: getattr(result, name) for name in names}


def _counts(counts: Counts) -> list[int]:
    return [counts.harmful, counts.safe, counts.undecided]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
