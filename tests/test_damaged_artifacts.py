"""Every kind of artifact comes back as it went, and a damaged one is one message with a way out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast.errors import MismatchError, UsageError
from holdfast.results.artifacts import AttackResult, Counts, Evaluation, Groups, Point, Scores
from holdfast.results.attacks import Attack
from holdfast.results.files import Artifact
from holdfast.results.run_dir import Entry, Failure
from holdfast.results.searches import SearchResult, Trial
from holdfast.results.validation import Validation
from holdfast.screening.text_screener import HeldOutAccuracy, Screen, ScreenedRow
from holdfast.stages.attacking.tuning import PartialAttack
from holdfast.stats.intervals import Interval
from made_lives import life

POINTS = (
    Point(0, {"w": Counts(0, 1, 1)}, marks={"w": "su"}, lost={"w": 1}),
    Point(10, {"w": Counts(2, 0, 0)}, 0.5, 4, 1, 2.5, {"w": "hh"}),
)
ATTACK = Attack(task="sst2", steps=20)
EXAMPLES: tuple[Artifact, ...] = (
    Scores(
        ids=("x", "y"),
        values=np.array([0.1, math.nan]),
        estimator="loss",
        data_hash="d",
        model_hash="m",
        errors=np.array([0.1, math.nan]),
        details={"loss": np.array([math.nan, 1.0])},
        facts={"passes": 2},
    ),
    Groups(
        ids=("x", "y"),
        labels=np.array([1, 0]),
        names=("a", "b"),
        rule="above 0",
        scores_hash="s",
        data_hash="d",
        facts={"threshold": 0.0},
        doubt=np.array([0.5, math.nan]),
        edits=({"id": "x", "from": "a", "to": "b"},),
    ),
    AttackResult(
        model="vaa-s1",
        model_hash="m",
        method="vaa",
        model_seed=1,
        attack=ATTACK,
        judge="w",
        points=POINTS,
        half_life=life(7.5, POINTS),
        material_hash="r",
        tracked={"x": 2},
        unknown={"y": (0, 1)},
        tracked_judge="w",
        prompts=("p", "q"),
    ),
    Evaluation(
        model="sft",
        model_hash="m",
        method="sft",
        model_seed=0,
        verdicts={"w": Counts(1, 2, 3)},
        by_category={"theft": {"w": Counts(1, 0, 0)}},
        over_refusal=Counts(0, 1, 9),
        tasks={"sst2": {"accuracy": math.nan, "n": 4, "unparsable": 1}},
        exchanged={"w": {"changed": 1, "n": 2, "reads": 1}},
        general={"arc": {"acc": {"value": 0.5, "stderr": math.nan, "n": 8}}},
    ),
    SearchResult(
        model="sft-s0",
        model_hash="m",
        method="sft",
        model_seed=0,
        task="sst2",
        judge="w",
        floor=0.9,
        at="end",
        clean_accuracy=math.nan,
        clean_n=8,
        trials=(Trial(ATTACK, 1, 2, 0.5, 4, 20, above_floor=True), Trial(ATTACK, failure="nan")),
        grid={"steps": [20]},
    ),
    Validation(
        model="sft",
        model_hash="m",
        data_hash="d",
        attacks=("a", "b"),
        n=8,
        ceiling={"auroc": 0.9, "spearman": None},
        rows=({"estimator": "loss", "auroc": 0.5},),
        stability={"loss": None},
        categories=({"category": "theft"},),
        sizes=({"n": 10},),
        unknown=1,
    ),
    Screen(
        rows=(ScreenedRow("x", 0.5, math.nan, 0.9, "text", "note"),),
        coverage=0.9,
        new_hash="n",
        data_hash="d",
        scores_hash="s",
        accuracy=(
            HeldOutAccuracy(
                features="prompt",
                spearman=Interval(0.5, math.nan, math.nan, 8),
                coverage=Interval(0.9, 0.8, 0.95, 8),
                aim=0.9,
                width=0.5,
                rows=8,
                prompts=4,
            ),
        ),
        facts={"estimator": "loss"},
    ),
    PartialAttack(points=POINTS, history=(np.array([0.0, math.nan]), np.array([1.0, 0.0]))),
    Entry(
        stage="score",
        name="a",
        key="k",
        config={"seed": 1},
        inputs={"data": "d"},
        outputs={"scores/a.json": "h"},
        seed=1,
        command="holdfast score",
        versions={"python": "3.11"},
        commit="c",
        started="2026-01-01T00:00:00",
        seconds=1.5,
        facts={"hardware": "x"},
    ),
    Failure(stage="score", name="a", reason="r", when="2026-01-01T00:00:00"),
)
KINDS = [example.kind for example in EXAMPLES]
each_kind = pytest.mark.parametrize("example", EXAMPLES, ids=KINDS)

FREE = {"facts", "config", "grid", "rows", "categories", "sizes"}
"""Fields whose content is free: a mapping, or rows, of anything."""


def saved(example: Artifact, path: Path) -> dict[str, Any]:
    example.save(path)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def subclasses(cls: type[Artifact]) -> Iterator[type[Artifact]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def test_every_kind_of_artifact_is_here() -> None:
    known = {cls for cls in subclasses(Artifact) if cls.__module__.startswith("holdfast")}
    assert known == {type(example) for example in EXAMPLES}
    assert len(set(KINDS)) == len(KINDS)


@each_kind
def test_it_comes_back_as_it_went(example: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    example.save(path)
    loaded = type(example).load(path)
    assert repr(loaded) == repr(example)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def nested(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of every key, also inside the values whose keys are fixed."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, content in items:
        if isinstance(value, dict):
            yield (*place, key)
        if isinstance(content, (dict, list)) and not (not place and key in FREE):
            yield from nested(content, (*place, key))


FIXED = ("attack", "half_life", "points", "trials", "accuracy")
"""Fields that hold values with keys of their own, which must all be there."""


@each_kind
def test_a_missing_key_is_named(example: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = saved(example, path)
    for name in (field.name for field in fields(example)):
        path.write_text(json.dumps({k: v for k, v in content.items() if k != name}))
        with pytest.raises(MismatchError) as refused:
            type(example).load(path)
        assert str(refused.value) == f"{path}: {name}: this key is missing; {example.remedy}"


@each_kind
def test_a_missing_key_inside_a_value_is_named(example: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = saved(example, path)
    open_ended = ("verdicts", "marks", "lost", "settings")
    places = [
        place
        for place in nested({k: v for k, v in content.items() if k in FIXED})
        if len(place) > 1 and not set(place[:-1]) & set(open_ended)
    ]
    for place in places:
        damaged = json.loads(json.dumps(content))
        inner = damaged
        for key in place[:-1]:
            inner = inner[key]
        del inner[place[-1]]
        path.write_text(json.dumps(damaged))
        with pytest.raises(MismatchError) as refused:
            type(example).load(path)
        message = str(refused.value)
        assert message.startswith(f"{path}: {place[0]}")
        assert str(place[-1]) in message
        assert message.endswith(example.remedy)


@each_kind
def test_a_value_of_the_wrong_type_is_named(example: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = saved(example, path)
    for name in (field.name for field in fields(example)):
        for wrong in ({"wrong": [1]}, [["wrong"]], "wrong", 1.5, True):
            if type(wrong) is type(content[name]) and (name in FREE or not hasattr(wrong, "pop")):
                continue
            if content[name] is None and wrong == 1.5:
                continue  # an unknown number might as well be known
            path.write_text(json.dumps(content | {name: wrong}))
            with pytest.raises(MismatchError) as refused:
                type(example).load(path)
            message = str(refused.value)
            key = "wrong" if name == "details" and "shape" in message else name
            assert message.startswith(f"{path}: {key}"), (name, wrong)
            assert message.endswith(example.remedy)


@each_kind
def test_an_unknown_key_is_named(example: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(saved(example, path) | {"more": 1}))
    with pytest.raises(MismatchError, match=r"a\.json: more: unknown key; "):
        type(example).load(path)


@each_kind
def test_a_truncated_file_is_one_message(example: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    saved(example, path)
    whole = path.read_bytes().rstrip()
    for length in {0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError) as refused:
            type(example).load(path)
        assert str(refused.value).startswith(f"{path}: not valid JSON (")
        assert str(refused.value).endswith(example.remedy)


@each_kind
def test_another_kind_or_version_or_no_file_is_one_message(
    example: Artifact, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    content = saved(example, path)
    for other in EXAMPLES:
        if other.kind != example.kind:
            other.save(path)
            with pytest.raises(MismatchError, match=f"kind: expected {example.kind!r}, got"):
                type(example).load(path)
    path.write_text(json.dumps(content | {"schema": 1}))
    with pytest.raises(MismatchError, match="schema: this version reads 2, got 1; "):
        type(example).load(path)
    path.unlink()
    with pytest.raises(UsageError) as refused:
        type(example).load(path)
    assert str(refused.value) == f"{path}: no such file; {example.remedy}"


def test_labels_and_ids_must_go_together(tmp_path: Path) -> None:
    groups = next(example for example in EXAMPLES if isinstance(example, Groups))
    path = tmp_path / "a.json"
    content = saved(groups, path)
    for wrong, message in (([0], "labels: shape"), ([0, 2], "labels: must lie between 0 and 1")):
        path.write_text(json.dumps(content | {"labels": wrong}))
        with pytest.raises(MismatchError, match=f"a.json: {message}.*holdfast group"):
            Groups.load(path)
