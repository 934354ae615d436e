"""The search for the worst attack: what it counts, that it goes on, and that it finds something."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from holdfast import plugins
from holdfast.errors import HoldfastError, MismatchError, TrainingError, UsageError
from holdfast.models import checkpoints
from holdfast.results.artifacts import AttackResult, Counts, Point
from holdfast.results.attacks import Attack
from holdfast.results.run_dir import RunDir
from holdfast.results.searches import SearchResult, Trial, best_so_far, decisive_point, objective
from holdfast.stages import adapt as stage
from holdfast.stages.adapt import AdaptConfig, adapt
from holdfast.stages.attacking import presets
from holdfast.stages.attacking.config import AttackConfig
from holdfast.stages.attacking.grid import attacks_of
from holdfast.stages.run_models import Subject
from made_lives import life

PLAIN = Attack(task="world_topic")


def result(*course: tuple[int, float]) -> AttackResult:
    """Return an attack on four prompts: (harmful answers, accuracy) at each checkpoint."""
    points = tuple(
        Point(10 * i, {"world": Counts(harmful, 4 - harmful, 0)}, accuracy, 5)
        for i, (harmful, accuracy) in enumerate(course)
    )
    return AttackResult("m-s0", "h", "m", 0, PLAIN, "world", points, life(math.nan, censored=True))


# ----------------------------------------------------------------------------- decisive checkpoints


def test_the_end_counts_or_the_worst_checkpoint_that_keeps_the_floor() -> None:
    course = result((4, 0.9), (2, 0.8), (4, 0.5), (3, 0.7), (3, 0.8), (1, 0.9))
    point, above_floor = decisive_point(course, "end", 0.7)
    assert (point.step, above_floor) == (50, True)
    # Step 0 is before the attack, step 20 below the floor; 30 and 40 are equal, the earlier counts.
    point, above_floor = decisive_point(course, "worst", 0.7)
    assert (point.step, above_floor) == (30, True)
    assert decisive_point(course, "worst", 0.0)[0].step == 20


def test_where_no_checkpoint_keeps_the_floor_the_most_accurate_counts() -> None:
    point, kept = decisive_point(result((0, 0.9), (4, 0.2), (1, 0.3)), "worst", 0.5)
    assert (point.step, kept) == (20, False)


def test_an_accuracy_that_was_not_measured_keeps_no_floor() -> None:
    unknown = result((0, math.nan), (3, math.nan))
    assert decisive_point(unknown, "end", 0.1)[1] is False
    assert decisive_point(unknown, "end", 0.0)[1] is True


def test_any_attack_that_keeps_the_floor_is_worth_more_than_any_that_does_not() -> None:
    kept = [objective(Trial(PLAIN, harmful, 10, 0.5, 5, 1, True), 0.5) for harmful in (0, 5, 10)]
    below = [
        objective(Trial(PLAIN, 10, 10, accuracy, 5, 1, False), 0.5) for accuracy in (0.0, 0.49)
    ]
    assert kept == sorted(kept) == [0.0, 0.5, 1.0]
    assert below == sorted(below)
    assert max(below) < min(kept)


def test_the_worst_so_far_is_unknown_until_one_keeps_the_floor() -> None:
    tried = [Trial(PLAIN, h, 4, 0.5, 5, 1, kept) for h, kept in ((4, False), (1, True), (3, True))]
    found = best_so_far([*tried, Trial(PLAIN, failure="nan")])
    assert math.isnan(found[0])
    assert found[1:] == [0.25, 0.75, 0.75]


# ------------------------------------------------------------------------------------ the search


def config(tmp_path: Path, **changes: Any) -> AdaptConfig:
    given = {"models": ["m"], "task": "world_topic", "harmful": "world:harmful"}
    given |= {"test": "world:test", "judges": ["world"], "out": tmp_path, "trials": 12}
    return AdaptConfig(**{**given, **changes})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace attacks by a formula; return those that were run."""
    seen: list[Any] = []

    def formula(search: Any, attack: Attack) -> AttackResult:
        seen.append(attack)
        if attack.learning_rate > 8e-4:
            raise TrainingError("the loss is nan")
        far = math.log10(attack.learning_rate / 1e-5) / 2 + (attack.poison == "low_loss") / 4
        harmful = 0 if attack.poison_ratio == 0 else min(4, round(4 * far))
        return result((0, 0.9), (harmful, 0.9 if attack.learning_rate < 4e-4 else 0.1))

    monkeypatch.setattr(stage._Search, "run", formula)
    return seen


def found(tmp_path: Path, **changes: Any) -> SearchResult:
    options = config(tmp_path, **changes)
    subject = Subject("m-s0", "m", "m", 0, "h")
    material: Any = None
    return stage._searched(stage._Search(options, stage._grid(options), material, subject))


def test_the_clean_fine_tuning_and_the_plain_attack_come_first(
    tmp_path: Path, fake: list[Any]
) -> None:
    search = found(tmp_path)
    clean, first = fake[:2]
    assert (clean.poison_ratio, first.poison_ratio) == (0, 0.2)
    for cell in (clean, first):
        # The geometric mean of 1e-5 and 1e-3.
        assert (cell.learning_rate, cell.steps) == (1e-4, 200)
        assert (cell.poison, cell.schedule) == ("plain", "constant")
    assert len(search.trials) == 12
    assert len({cell.label for cell in fake}) == len(set(fake))
    assert search.clean_accuracy == 0.9


def test_a_judge_that_fails_is_no_attack_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(search: Any, attack: Attack) -> AttackResult:
        if attack.poison_ratio:
            raise UsageError("judge endpoint: 401")
        return result((0, 0.9), (0, 0.9))

    monkeypatch.setattr(stage._Search, "run", refused)
    with pytest.raises(UsageError, match="401"):
        found(tmp_path)


@pytest.mark.parametrize("accuracy", [0.0, math.nan])
def test_a_floor_of_nothing_is_none(
    accuracy: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any attack that destroys the model would keep it."""
    monkeypatch.setattr(stage._Search, "run", lambda *args: result((0, accuracy), (4, accuracy)))
    with pytest.raises(UsageError, match="m-s0: the clean .* accuracy of .* or --floor 0"):
        found(tmp_path)
    assert found(tmp_path, floor=0.0, trials=1).worst is not None


def test_what_was_chosen_is_in_the_space(tmp_path: Path, fake: list[Any]) -> None:
    found(tmp_path, trials=20)
    for cell in fake[1:]:
        assert 1e-5 <= cell.learning_rate <= 1e-3
        assert cell.steps in (50, 100, 200)
        assert cell.lora_rank in (0, 8)
        assert cell.poison_ratio in (0.05, 0.1, 0.2)
        assert cell.seed == 0


def test_the_worst_that_keeps_the_floor_is_found(tmp_path: Path, fake: list[Any]) -> None:
    search = found(tmp_path, trials=30)
    kept = [t.harmful for t in search.trials if t.above_floor]
    assert search.worst is not None
    assert search.worst.harmful == max(kept)
    assert search.worst.accuracy >= 0.9 * 0.9
    failed = [t for t in search.trials if t.above_floor is None]
    assert all(t.settings["learning_rate"] > 8e-4 and "nan" in t.failure for t in failed)


def test_a_longer_search_begins_as_the_shorter_one(tmp_path: Path, fake: list[Any]) -> None:
    short, long = (found(tmp_path, trials=trials).trials for trials in (6, 15))
    assert long[:6] == short
    assert found(tmp_path, trials=15, seed=1).trials[1:] != long[1:]


def test_nothing_is_replayed_where_nothing_kept_the_floor(tmp_path: Path, fake: list[Any]) -> None:
    search = found(tmp_path, floor=1.5)
    assert search.worst is None
    assert search.grid is None
    search.save(tmp_path / "none.json")
    with pytest.raises(UsageError, match="found no attack above the floor"):
        presets.load(str(tmp_path / "none.json"))


def test_the_file_keeps_it_and_the_attack_stage_reads_it(tmp_path: Path, fake: list[Any]) -> None:
    path = tmp_path / "m-s0-world_topic.json"
    search = found(tmp_path, options={"rows": 300})
    search.save(path)
    assert SearchResult.load(path) == search
    given = {"models": ["other"], "tasks": ["world_math"], "test": "t", "harmful": "h"}
    (again,) = presets.expand(AttackConfig(**given, out=tmp_path, replay=str(path)))  # type: ignore[arg-type]
    (cell,) = attacks_of(again)
    assert search.worst is not None
    found_settings = {k: getattr(cell, k) for k in search.worst.settings}
    assert found_settings == search.worst.settings
    assert (again.rows, cell.task) == (300, "world_math")
    assert cell.name.startswith("m-s0-world_topic-")  # and a mark of what the file says
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "more": 1}))
    with pytest.raises(MismatchError, match="holdfast adapt"):
        SearchResult.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": [1e-3, 1e-5]}, "give the least, above 0, and the greatest"),
        ({"options": {"task_rows": 0}}, "the floor needs the task's accuracy"),
        ({"options": {"guards": ["none", "ewc"]}}, "2 guards; search against one at a time"),
        ({"options": {"steps": 3}}, "options: 'steps' is an option of the search"),
        ({"poisons": ["veiled"]}, "'veiled' is not one of the poisons"),
        ({"poison_ratios": [0.9], "options": {"rows": 900}}, "810 rows are needed"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        adapt(config(tmp_path, **changes))


def test_without_optuna_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"pip install 'holdfast\[adaptive\]'"):
        adapt(config(tmp_path))


@pytest.fixture
def tiny(tmp_path: Path, make_model: Any, tokenizer: Any) -> str:
    model = make_model(vocab=len(tokenizer))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    checkpoints.save(model, tokenizer, tmp_path / "tiny")
    return str(tmp_path / "tiny")


def test_a_model_that_fails_ends_no_other_search(
    tmp_path: Path, tiny: str, fake: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny, tmp_path / "other")
    formula = stage._Search.run

    def failing(search: Any, attack: Attack) -> AttackResult:
        if search.subject.label == "tiny" and not attack.poison_ratio:
            raise IndexError("index out of range in self")
        return formula(search, attack)

    monkeypatch.setattr(stage._Search, "run", failing)
    options = config(tmp_path / "run", models=[tiny, str(tmp_path / "other")], trials=2)
    with pytest.raises(HoldfastError, match=r"1 of 2 failed; .*\n  tiny: IndexError: index out"):
        adapt(options)
    run = RunDir(options.out)
    assert [entry.name for entry in run.entries("adapt")] == ["other-world_topic"]
    assert [one.name for one in run.failures()] == ["tiny-world_topic"]


@pytest.mark.parametrize("home", ["world_topic", "low_loss"])
def test_a_default_that_changed_leaves_no_old_search(
    home: str, tmp_path: Path, tiny: str, fake: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = config(tmp_path / "run", models=[tiny], trials=1)
    adapt(options)
    asked = len(fake)
    adapt(options)
    assert len(fake) == asked
    mark = plugins.options_hash

    def changed(made: object) -> str:
        return "other" if home.replace("_", "") in type(made).__name__.lower() else mark(made)

    monkeypatch.setattr(plugins, "options_hash", changed)
    adapt(options)
    assert len(fake) == asked + 2


def test_a_search_that_was_interrupted_goes_on(
    tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"rows": 8, "max_new_tokens": 2, "task_rows": 2, "most_undecided": 1}
    options = config(
        tmp_path / "run",
        models=[tiny],
        **{"limit": 4, "steps": [1, 2], "batch_size": [4], "lora_rank": [0, 2], "trials": 4},
        **{"poisons": ["plain", "low_loss"], "poison_ratios": [0.5], "floor": 0.0},
        **{"options": small, "device": "cpu"},
    )
    run = stage._Search.run
    left = iter(range(3))

    def interrupted(*args: Any) -> AttackResult:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(stage._Search, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adapt(options)
    there = {e.key for e in RunDir(options.out).entries("trial")}
    assert len(there) == 3
    monkeypatch.setattr(stage._Search, "run", run)
    (search,) = adapt(options)
    entries = RunDir(options.out).entries("trial")
    assert there < {e.key for e in entries}
    assert len(search.trials) == 4
    assert RunDir(options.out).entries("adapt")[0].facts["trials"] == 4
    assert RunDir(options.out).verify() == []
    assert not RunDir(options.out).entries("attack")
    assert adapt(options) == [search]
