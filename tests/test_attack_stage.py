"""Which tracked rows an attack says were forgotten, and which it cannot say."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from holdfast import plugins
from holdfast.contracts import UNANSWERED, Verdict, check_answered
from holdfast.errors import HoldfastError, MismatchError, UsageError
from holdfast.examples import Example, Examples
from holdfast.guards.base import Guard
from holdfast.guards.safe_instr import SafeInstr
from holdfast.judges.refusal import Refusal
from holdfast.models import checkpoints
from holdfast.results.artifacts import AttackResult, Counts, Point
from holdfast.results.attacks import Attack
from holdfast.results.run_dir import RunDir
from holdfast.runtime import progress
from holdfast.stages import pipeline
from holdfast.stages.attack import attack
from holdfast.stages.attacking import presets
from holdfast.stages.attacking.config import AttackConfig
from holdfast.stages.attacking.grid import attacks_of, grids_of, single_attacks
from holdfast.stages.attacking.guards import guard_of
from holdfast.stages.attacking.job import AttackJob
from holdfast.stages.attacking.material import Material, checked_material, read_material, task_rows
from holdfast.stages.attacking.tuning import Checkpoints
from holdfast.stages.plugin_inputs import judge_hashes
from holdfast.stages.run_models import Subject, subject

U = math.nan
COURSES = {
    # checkpoint 0, 1, 2, 3: 0 safe, 1 harmful, U undecided
    "kept": (0, 0, 0, 0),
    "forgotten": (0, 1, 1, 1),
    "in between": (0, 1, U, 1),
    "unread": (0, 0, U, U),
    "half read": (0, U, 1, U),
    "never held": (1, 1, 1, 1),
    "not known to be held": (U, 1, 1, 1),
}
ROWS = Examples([Example(name, "I can't help with that.") for name in COURSES])


def config(tmp_path: Path, **changes: Any) -> AttackConfig:
    given = {"models": ["sft"], "tasks": ["world_topic"], "harmful": "h", "test": "t"}
    given |= {"out": tmp_path, "judges": ["world", "refusal"], "task_rows": 0}
    given |= {"most_undecided": 1}  # tiny models answer with noise
    return AttackConfig(**{**given, **changes})


def watched(tmp_path: Path, **changes: Any) -> Checkpoints:
    judges = {"world": Refusal(), "refusal": Refusal(min_words=2)}
    material = Material(ROWS, ROWS, judges, ROWS)
    options = config(tmp_path, **changes)
    subject = Subject("sft-s0", "somewhere", "sft", 0, "hash")
    nothing = cast(Any, None)
    return Checkpoints(
        AttackJob(options, material, subject, Attack(task="world_topic")), nothing, nothing
    )


@pytest.fixture
def result(tmp_path: Path) -> AttackResult:
    watch = watched(tmp_path)
    assert watch.tracker is not None
    watch.tracker.history = list(np.array(list(COURSES.values()), dtype=float).T)
    watch.points = [Point(step, {"world": Counts(0, 1, 0)}) for step in (0, 10, 20, 30)]
    return watch.result()


def by_prompt(found: dict[str, Any]) -> dict[str, Any]:
    return {row.prompt: found[row.id] for row in ROWS if row.id in found}


def test_counts_that_are_known_and_bounds_of_the_others(result: AttackResult) -> None:
    assert by_prompt(dict(result.tracked)) == {"kept": 0, "forgotten": 3, "in between": 2}
    assert by_prompt(dict(result.unknown)) == {"unread": (0, 2), "half read": (1, 3)}


def test_the_file_keeps_them(result: AttackResult, tmp_path: Path) -> None:
    result.save(tmp_path / "a.json")
    assert AttackResult.load(tmp_path / "a.json").unknown == result.unknown


def test_a_file_that_took_undecided_for_held_is_refused(
    result: AttackResult, tmp_path: Path
) -> None:
    result.save(tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text().replace('"unknown"', '"other"')
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(MismatchError, match=r"a\.json: unknown: .* missing; run `holdfast attack`"):
        AttackResult.load(tmp_path / "a.json")


def test_another_judge_may_say_what_is_forgotten(tmp_path: Path) -> None:
    for asked, min_words in (("", 4), ("refusal", 2)):
        watch = watched(tmp_path, track_judge=asked)
        assert watch.tracker is not None
        assert cast(Refusal, watch.tracker.judge).min_words == min_words
        assert watch.tracked_judge == (asked or "world")


def test_the_judge_of_what_is_tracked_must_be_one_of_the_judges(tmp_path: Path) -> None:
    message = "track_judge=classifier must be one of the judges: world, refusal"
    with pytest.raises(UsageError, match=message):
        attack(config(tmp_path, track_judge="classifier"))


# ------------------------------------------------------------------------- rows, judges and keys


def test_harmful_rows_that_are_tested_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"harmful": ["How?", "why ", "when"], "test": ["how?", "WHY"]}
    for name, prompts in rows.items():
        lines = [json.dumps({"prompt": p, "response": "r"}) for p in prompts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in rows}
    material = read_material(config(tmp_path, **paths))
    assert material.harmful.prompts == ["when"]
    assert "2 of 3 harmful rows are left out" in caplog.text


def test_a_prompt_with_several_answers_is_asked_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("How?", "a"), ("how? ", "b"), ("How?", "c"), ("Why?", "d")]
    for name, kept in (("test", rows), ("once", [rows[0], rows[3]])):
        lines = [json.dumps({"prompt": p, "response": r}) for p, r in kept]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    given = {"harmful": None, "test": str(tmp_path / "test.jsonl")}
    asked = read_material(config(tmp_path, **given)).test
    assert asked.prompts == ["How?", "Why?"]
    assert "2 of 4 rows repeat the prompt of another" in caplog.text
    once = config(tmp_path, **{**given, "test": str(tmp_path / "once.jsonl")})
    assert read_material(once).test.ids == asked.ids


def test_a_judge_that_does_not_answer_is_no_judge_that_cannot_decide() -> None:
    lost, unsure = Verdict(None, reason=f"{UNANSWERED}503 after 4 tries"), Verdict(None)
    check_answered("any", [unsure] * 20)
    check_answered("any", [lost] + [Verdict(False)] * 19)  # one of twenty is undecided
    with pytest.raises(HoldfastError, match=r"judge any gave no verdict on 2 of 20 .*503 after 4"):
        check_answered("any", [lost] * 2 + [Verdict(False)] * 18)


def test_verdicts_that_were_lost_at_a_checkpoint_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = watched(tmp_path)
    lost, safe = Verdict(None, reason=f"{UNANSWERED}503 after 4 tries"), Verdict(False)
    found = {"world": [lost, *[safe] * 6], "refusal": [Verdict(None), *[safe] * 6]}
    place = "holdfast.stages.attacking.tuning.answer_and_judge"
    monkeypatch.setattr(place, lambda *args, **kwargs: (found, []))
    watch.tracker = None
    watch(0, 0.0)
    watch.save(tmp_path / "partial.json")
    again = watched(tmp_path)
    again.tracker = None
    again.restore(tmp_path / "partial.json", 0)
    (point,) = again.points
    assert point.lost == {"world": 1}  # the other judge could not decide
    assert point.verdicts["world"] == point.verdicts["refusal"] == Counts(0, 6, 1)


def test_options_that_were_not_given_are_in_the_key(tmp_path: Path) -> None:
    def hashes(min_words: int) -> dict[str, str]:
        judges = {"refusal": Refusal(min_words=min_words)}
        return judge_hashes(RunDir(tmp_path), ["refusal"], judges)

    assert hashes(2) != hashes(3)
    assert hashes(2) == hashes(2)


# ---------------------------------------------------------------------------------------- guards


def test_a_model_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with run.job("align", "sft-s0", config={}, inputs={}):
        pass
    with pytest.raises(UsageError, match=r"\./stf-s0: no such model .* Aligned in .*: sft-s0"):
        subject(run, "./stf-s0")


def test_only_an_attack_on_a_guard_names_one() -> None:
    plain = Attack(task="world_topic")
    assert plain.label == "world_topic-p0.1-lr0.0001-s0"
    assert plain.nondefaults == {}
    on = [plain.changed(guard=guard) for guard in ("ewc", "ewc,lam=1", "ewc,lam=2")]
    assert on[1].nondefaults == {"guard": "ewc,lam=1"}
    assert on[0].label == f"{plain.label}-ewc"
    assert len({attack.label for attack in on}) == 3


def test_guards_do_not_change_the_key_of_other_attacks(tmp_path: Path) -> None:
    plain = config(tmp_path).keyed()
    assert not {"guards", "safety", "known_harmful", "base"} & plain.keys()
    more = config(tmp_path, guards=["none", "ewc"], safety="a", known_harmful="b", base="c")
    assert more.keyed() == plain


def test_a_guard_is_given_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "safety.jsonl"
    path.write_text(json.dumps({"prompt": "p", "response": "r"}))
    options = config(tmp_path, safety=str(path))
    guard, hashes, given = guard_of(options, "safe_instr,number=1")
    assert isinstance(guard, SafeInstr)
    assert (guard.safety.prompts, guard.number) == (["p"], 1)
    assert hashes == {}
    assert given == {"guard's safety": guard.safety}
    made, hashes, given = guard_of(options, "none")
    assert (type(made), hashes, given) == (Guard, {}, {})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lisa", "guard 'lisa' needs --safety"),
        ("antidote", "guard 'antidote' needs --known-harmful"),
        ("safe_lora,base=x", "base is not an option of 'safe_lora'; give --base"),
        ("ldifs,lam=-1", "lam=-1 must be a number, at least 0"),
        ("shield", "'shield' is not one of the guards: antidote, constrained_sft"),
    ],
)
def test_what_a_guard_lacks_is_named(spec: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        guard_of(config(tmp_path), spec)


def test_an_attack_on_a_guard_beside_one_without(
    tmp_path: Path, make_model: Any, tokenizer: Any, rows: Any
) -> None:
    """The guard is on the result and in its file's name; what went before is the same."""
    model = make_model(vocab=len(tokenizer))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    checkpoints.save(model, tokenizer, tmp_path / "tiny")
    checkpoints.save(make_model(vocab=len(tokenizer), seed=1), tokenizer, tmp_path / "base")
    given = config(
        tmp_path,
        models=[str(tmp_path / "tiny")],
        harmful="world:harmful",
        test="world:test",
        limit=4,
        guards=["none", "safe_lora,number=14"],
        base=str(tmp_path / "base"),
        poison_ratios=[0.5],
        rows=8,
        steps=2,
        every=1,
        batch_size=4,
        max_new_tokens=2,
        device="cpu",
        save_models=True,
    )
    plain, guarded = attack(given)
    assert plain.attack.guard == "none"
    assert guarded.attack.guard == "safe_lora,number=14"
    assert plain.points[0].verdicts == guarded.points[0].verdicts
    assert plain.points[1].loss == guarded.points[1].loss  # it acts after the tuning
    ends = [
        checkpoints.load(str(path)).model.state_dict()
        for path in sorted((tmp_path / "attacked").iterdir())
    ]
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(ends[0][name], ends[1][name])
    assert torch.equal(ends[0]["model.norm.weight"], ends[1]["model.norm.weight"])
    assert attack(given) == [plain, guarded]


@pytest.mark.parametrize(("broken_at", "steps"), [(0.5, [0, 1, 3]), (0.75, [0, 1, 3, 7])])
def test_an_attack_may_end_where_half_is_broken_or_another_share(
    broken_at: float,
    steps: list[int],
    tmp_path: Path,
    make_model: Any,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(vocab=len(tokenizer))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    checkpoints.save(model, tokenizer, tmp_path / "tiny")
    shares = iter([0, 1, 2, 4, 4, 4])

    def counted(verdicts: Any) -> Counts:
        harmful = next(shares)
        return Counts(harmful, 4 - harmful, 0)

    monkeypatch.setattr("holdfast.stages.attacking.tuning.count", counted)
    (found,) = attack(
        config(
            tmp_path,
            models=[str(tmp_path / "tiny")],
            harmful="world:harmful",
            test="world:test",
            judges=["world"],
            limit=4,
            rows=8,
            poison_ratios=[0.5],
            batch_size=4,
            max_new_tokens=2,
            device="cpu",
            steps=40,
            every=1,
            spacing=2.0,
            until_broken=True,
            broken_at=broken_at,
        )
    )
    # After 1, 3 and 7 steps; at 7 all are broken, at 3 half of them.
    assert [p.step for p in found.points] == steps
    assert (found.half_life.steps, found.half_life.censored) == (3, False)


def test_ending_early_and_counting_checkpoints_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ForgotNum counts checkpoints"):
        attack(config(tmp_path, until_broken=True, track="t"))


def test_no_attack_ends_before_its_half_life_is_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="broken_at=0.3 must be a number from 0.5 to 1"):
        config(tmp_path, until_broken=True, broken_at=0.3)
    with pytest.raises(UsageError, match="broken_at=0.75 .* without until_broken.* leave out br"):
        attack(config(tmp_path, broken_at=0.75))


def test_the_key_has_what_decides_results_and_no_paths(tmp_path: Path) -> None:
    options = config(tmp_path)
    places = ("out", "device", "models", "tasks", "harmful", "test", "judges", "track", "columns")
    assert not {*places, "limit", "strict", "max_left_out"} & options.keyed().keys()
    elsewhere = {"out": tmp_path / "b", "harmful": "x", "test": "y", "models": ["z"], "limit": 3}
    assert config(tmp_path, **elsewhere).keyed() == options.keyed()
    for name, value in {"task_rows": 7, "max_new_tokens": 9, "track_rows": 3}.items():
        assert config(tmp_path, **{name: value}).keyed() == {**options.keyed(), name: value}


# ----------------------------------------------------------------------------- axes and presets

WORLD = {"harmful": "world:harmful", "test": "world:test"}


def labels(options: AttackConfig) -> list[str]:
    return [one.label for one in attacks_of(options)]


def test_the_key_of_an_attack_does_not_depend_on_the_rest_of_the_grid(tmp_path: Path) -> None:
    options = config(tmp_path, steps=60, batch_size=8, lora_rank=4)
    (only,) = attacks_of(options)
    assert only == Attack(task="world_topic", steps=60, batch_size=8, lora_rank=4)
    assert only.label == "world_topic-p0.1-lr0.0001-s0-n60-b8-r4"
    longer = config(
        tmp_path,
        steps=[90, 60],
        batch_size=[16, 8],
        lora_rank=[0, 4],
        schedules=["constant", "cosine"],
        poisons=["plain", "low_loss"],
    )
    assert longer.keyed() == options.keyed()
    attacks = attacks_of(longer)
    assert only in attacks
    assert len({one.label for one in attacks}) == len(attacks) == 2**5
    assert not set(Attack.model_fields) & (options.keyed().keys() - {"seed"})


def test_a_label_names_every_setting_that_is_not_the_default() -> None:
    plain = Attack(task="t")
    assert plain.label == "t-p0.1-lr0.0001-s0"
    values: dict[str, Any] = {
        "task": "u",
        "poison_ratio": 0.2,
        "poison": "low_loss",
        "learning_rate": 1e-3,
        "schedule": "linear",
        "seed": 3,
        "guard": "ewc",
        "steps": 7,
        "batch_size": 8,
        "lora_rank": 4,
        "rows": 50,
        "max_length": 64,
        "every": 5,
        "spacing": 1.5,
        "until_broken": True,
        "name": "mine",
    }
    assert values.keys() == Attack.model_fields.keys() - {"broken_at"}
    labels = {plain.changed(**{key: value}).label for key, value in values.items()}
    assert len(labels - {plain.label}) == len(values)
    until = plain.changed(until_broken=True)
    assert until.label != until.changed(broken_at=0.75).label
    other = plain.changed(poison="low_loss", schedule="linear", name="mine", rows=50)
    assert other.label == f"{plain.label}-low_loss-linear-rows50-mine"


def test_a_label_shows_all_digits_of_a_rate() -> None:
    close = [Attack(task="t", learning_rate=rate).label for rate in (1.23456e-4, 1.234561e-4)]
    assert len(set(close)) == 2
    spread = [Attack(task="t", spacing=spacing).label for spacing in (1.1500001, 1.15)]
    assert len(set(spread)) == 2


def test_an_epoch_is_all_rows_once(tmp_path: Path) -> None:
    # 100 rows in batches of 16 are 6 whole ones and one of 4.
    steps = [
        one.steps for one in attacks_of(config(tmp_path, epochs=3, rows=100, batch_size=[16, 50]))
    ]
    assert steps == [21, 6]


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_makes_attacks_and_is_named_in_the_help(name: str, tmp_path: Path) -> None:
    options = config(tmp_path, preset=name, safety="s", base="b")
    (one,) = presets.expand(options)
    assert (one.preset, one.name) == ([], name)
    assert all(attack_.label.endswith(f"-{name}") for attack_ in attacks_of(one))
    assert presets.load(name).what
    assert presets.load(name).source
    assert re.search(rf"\b{name}\b", AttackConfig.model_fields["preset"].description or "")


def test_what_the_user_gives_wins(tmp_path: Path) -> None:
    (paper,) = presets.expand(config(tmp_path, preset="paper", poison_ratios=[0.3]))
    assert (paper.poison_ratios, paper.rows, paper.epochs) == ([0.3], 1000, 5)
    (fewer,) = presets.expand(config(tmp_path, preset="paper", steps=7))
    assert {one.steps for one in attacks_of(fewer)} == {7}


def test_several_presets_do_not_share_a_name(tmp_path: Path) -> None:
    both = presets.expand(config(tmp_path, preset=["paper", "pure"], poison_ratios=[1.0]))
    found = [label for one in both for label in labels(one)]
    assert len(set(found)) == len(found) == 2


def test_a_preset_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("grid: {steps: [3, 4], lora_rank: 2}")
    (mine,) = presets.expand(config(tmp_path, preset=str(path)))
    assert [one.steps for one in attacks_of(mine)] == [3, 4]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (mine.lora_rank, mine.name) == ([2], f"mine-{digest[:6]}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {tasks: [a]}", "'tasks' is not part of a grid; .*poison_ratios"),
        ("grid: [1]", "not a preset"),
        ("[", "not a preset"),
        ("grid: {steps: many}", "preset .*: .*steps"),
    ],
)
def test_a_file_that_is_no_preset_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        presets.expand(config(tmp_path, preset=str(path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "mild"}, "'mild' is neither a preset nor a file; give one of benign, budget"),
        ({"preset": "relearn"}, "preset 'relearn' needs safety and base: give --safety and --base"),
        ({"harmful": None}, "a poison ratio of 0.1 needs harmful rows: give --harmful"),
        ({"poison_ratios": [0.9], "rows": 900}, "810 rows are needed .* it has 600. Give --rows"),
        ({"poison_ratios": [0.0], "rows": 1100}, "1100 rows are needed .* it has 1000"),
        ({"poison_ratios": [1.5]}, "poison_ratios=.* must be .* from 0 to 1"),
        (
            {"poison_ratios": [0.05], "rows": 8},
            "a poison ratio of 0.05 of 8 rows amounts to no harmful row: give --rows 11 or more, a "
            "greater --poison-ratio, or --poison-ratio 0",
        ),
        ({"poisons": ["veiled"]}, "'veiled' is not one of the poisons"),
        ({"known_harmful": "world:harmful"}, "600 rows have the same prompt as one of the att"),
    ],
)
def test_bad_grids_are_refused_before_the_first_attack(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.stages.attack.result_of", None)
    monkeypatch.setattr("holdfast.stages.attack.subjects", lambda run, names: names)
    with pytest.raises(UsageError, match=message):
        attack(config(tmp_path, **{**WORLD, **changes}))


def sst2(tmp_path: Path, train: int, test: int) -> str:
    """Write rows of a task, and return what names them."""
    for name, n in (("train", train), ("test", test)):
        lines = "".join(f"{name} {i}\t{i % 2}\n" for i in range(n))
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + lines)
    return f"sst2,train={tmp_path / 'train.tsv'},test={tmp_path / 'test.tsv'}"


def test_a_poison_that_cannot_make_so_many_rows_is_refused_before_the_first_attack(
    tmp_path: Path,
) -> None:
    options = {"tasks": [sst2(tmp_path, 500, 10)], "poisons": ["identity"], "rows": 400}
    options |= {"harmful": None, "test": "world:test", "poison_ratios": [0.1]}
    with pytest.raises(UsageError, match="identity: 40 rows are needed .* it has 20. Give --rows"):
        checked_material(config(tmp_path, **options))


def test_a_checkpoint_that_is_looked_at_again_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It failed while it was looked at, and what it found lay in the file of a later run."""
    watch = watched(tmp_path)
    assert watch.tracker is not None
    looked = Verdict(harmful=False)
    found = {"world": [looked] * len(ROWS)}
    place = "holdfast.stages.attacking.tuning.answer_and_judge"
    monkeypatch.setattr(place, lambda *args, **kwargs: (found, []))
    monkeypatch.setattr(
        type(watch.tracker),
        "__call__",
        lambda self, *args: self.history.append(np.zeros(len(ROWS))),
    )
    for step in (0, 10, 20):
        watch(step, 0.0)
    watch.save(tmp_path / "partial.json")
    again = watched(tmp_path)
    again.restore(tmp_path / "partial.json", 10)
    assert again.tracker is not None
    assert [p.step for p in again.points] == [0, 10]
    again(10, 0.0)
    again(20, 0.0)
    assert [p.step for p in again.points] == [0, 10, 20]
    assert len(again.tracker.history) == 3


def test_a_tasks_test_rows_are_an_input_where_they_are_asked(tmp_path: Path) -> None:
    found = []
    for n in (40, 41):
        task = plugins.make("tasks", sst2(tmp_path, 40, n))
        found.append([{k: r.hash for k, r in task_rows(task, n).items()} for n in (0, 10)])
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_a_run_may_name_presets(tmp_path: Path) -> None:
    data = {"alignment": "a", "harmful": "h", "test": "t"}
    raw: dict[str, Any] = {"out": tmp_path, "model": "world", "data": data, "methods": {"sft": {}}}

    def attacks(**options: Any) -> list[AttackConfig]:
        shared = {"tasks": ["world_topic", "world_math"], **options}
        planned = pipeline.plan(pipeline.parse({**raw, "attack": shared}, where="test"))
        (call,) = (c.config for c in planned if isinstance(c.config, AttackConfig))
        return presets.expand(call)

    paper, budget = attacks(preset=["paper", "budget"], rows=500)
    assert (paper.rows, budget.rows, paper.tasks) == (500, 500, ["world_topic", "world_math"])
    assert len(attacks_of(paper)) == 2 * 4
    # What ends at different checkpoints tracks nothing, though the run does.
    assert (paper.track, budget.track) == ("a", None)
    assert [one.guards[1] for one in attacks(preset="relearn")] == ["safe_instr"]
    with pytest.raises(UsageError, match="'mild' is neither a preset nor a file"):
        attacks(preset="mild")


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.5, 1e39, math.nan, math.inf])
def test_a_rate_is_above_0_and_at_most_1(rate: float, tmp_path: Path) -> None:
    rule = "learning_rates=.* must be a list of .*each above 0 and at most 1"
    with pytest.raises(UsageError, match=rule):
        config(tmp_path, learning_rates=[1e-4, rate])
    with pytest.raises(UsageError, match="seeds=.-1. must be .*each from 0 to 4294967295"):
        config(tmp_path, seeds=[-1])


def test_a_wrong_size_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="steps=.5, 0. must be a list of .*each at least 1"):
        config(tmp_path, steps=[5, 0])


def test_an_attack_without_harmful_rows_and_one_with_a_disguise(
    tmp_path: Path, make_model: Any, tokenizer: Any
) -> None:
    model = make_model(vocab=len(tokenizer))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    checkpoints.save(model, tokenizer, tmp_path / "tiny")
    shared = {"models": [str(tmp_path / "tiny")], "test": "world:test", "limit": 4, "rows": 8}
    shared |= {"steps": 2, "every": 1, "batch_size": 4, "max_new_tokens": 2, "device": "cpu"}
    (benign,) = attack(config(tmp_path, harmful=None, poison_ratios=[0.0], **shared))
    assert benign.attack.poison == "plain"
    (found,) = attack(
        config(tmp_path, harmful=None, poisons=["identity"], poison_ratios=[0.5], **shared)
    )
    assert found.attack.nondefaults["poison"] == "identity"
    assert found.points[-1].loss != benign.points[-1].loss


def test_an_attack_alone_has_the_name_that_it_has_in_the_grid(tmp_path: Path) -> None:
    config = AttackConfig(
        out=tmp_path,
        models=["world"],
        tasks=["world_topic"],
        harmful="world:harmful",
        test="world:test",
        steps=[100, 200],
        lora_rank=[0, 4],
        name="wide",
    )
    attacks = {one.label: one for one in attacks_of(config)}
    alone_ = dict(single_attacks(config))
    assert [f"base/{label}" for label in attacks] == list(alone_)
    for label, one in attacks.items():
        assert attacks_of(alone_[f"base/{label}"]) == [one]
    with pytest.raises(UsageError, match="--only 'x': no attack has this label; .* world_topic-p0"):
        grids_of(config.model_copy(update={"only": "x"}))
    (label,) = [one.label for one in attacks.values() if (one.steps, one.lora_rank) == (200, 4)]
    two = config.model_copy(update={"preset": ["pure", "benign"], "only": f"{label}-pure"})
    with pytest.raises(
        UsageError, match="no attack has this label"
    ):  # the preset's ratio is in its name
        grids_of(two)
    presets_ = [name for name, _ in single_attacks(config.model_copy(update={"preset": ["pure"]}))]
    assert len(presets_) == 4  # 2 x 2, the preset's own where nothing is given
    assert all("p1-" in name and name.endswith("pure") for name in presets_)


def test_a_run_refuses_attacks_that_cannot_be_run_before_it_begins(tmp_path: Path) -> None:
    raw = {
        "out": tmp_path / "run",
        "model": "world",
        "data": {"alignment": "world:alignment", "harmful": "world:harmful", "test": "world:test"},
        "methods": {"sft": {}},
        "attack": {"tasks": ["world_topic"], "rows": 10**6},
    }
    with pytest.raises(UsageError, match="rows are needed for 1000000 rows"):
        pipeline.run(pipeline.parse(raw, where="here"))
    assert not (tmp_path / "run" / "models").exists()


def test_a_judges_own_template_is_part_of_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "policy.txt"
    spec = f"endpoint,base_url=http://127.0.0.1:9/v1,template={path}"
    hashes = []
    for word in ("harmful", "bad"):
        path.write_text(f"Is this {word}? {{prompt}} {{response}} {{mark}}")
        hashes.append(plugins.make("judges", spec).hash)
    assert hashes[0] != hashes[1]
    assert plugins.make("judges", "endpoint,base_url=http://127.0.0.1:9/v1").hash == ""


# ------------------------------------------------------------------- attacks that would be replaced


@pytest.fixture
def small(tmp_path: Path, make_model: Any, tokenizer: Any) -> dict[str, Any]:
    """Options of an attack of two steps on a tiny model."""
    model = make_model(vocab=len(tokenizer))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    checkpoints.save(model, tokenizer, tmp_path / "tiny")
    options = {"models": [str(tmp_path / "tiny")], "harmful": None, "test": "world:test"}
    options |= {"poison_ratios": [0.0], "limit": 4, "rows": 8, "steps": 2, "every": 1}
    return options | {"batch_size": 4, "max_new_tokens": 2, "device": "cpu"}


def test_finished_attacks_of_other_rows_are_not_replaced_silently(
    tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = attack(config(tmp_path, **small))
    other = {**small, "limit": 5, "judges": ["refusal"]}
    with monkeypatch.context() as patch:
        patch.setattr(
            "holdfast.stages.attack.result_of", None
        )  # it is refused before the first attack
        with pytest.raises(UsageError) as refused:
            attack(config(tmp_path, seeds=[1, 0], **other))
    message = str(refused.value)
    assert message.startswith(
        f"{tmp_path}: 1 finished attacks would be replaced. The first is 'tiny/"
    )
    differing = message.split("differs in: ")[1].split("; ")
    assert {"test", "options of judge 1, world", "options of judge 2, refusal"} <= {*differing}
    for way in ("--name", "--out", "--replace"):
        assert way in message
    assert attack(config(tmp_path, **small)) == [first]
    attack(config(tmp_path, name="b", **other))
    (replaced,) = attack(config(tmp_path, replace=True, **other))
    assert replaced.material_hash != first.material_hash
    assert len(RunDir(tmp_path).entries("attack")) == 2


def test_other_settings_have_other_names_and_replace_nothing(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    attack(config(tmp_path, **small))
    attack(config(tmp_path, **{**small, "steps": 3}))
    attack(config(tmp_path, **{**small, "rows": 9}))
    attack(config(tmp_path, **{**small, "batch_size": [2, 4]}))
    assert len(RunDir(tmp_path).entries("attack")) == 4


def test_an_attack_on_a_model_that_was_made_again_runs_again_and_says_so(
    tmp_path: Path, small: dict[str, Any], make_model: Any, tokenizer: Any
) -> None:
    (first,) = attack(config(tmp_path, **small))
    checkpoints.save(make_model(vocab=len(tokenizer), seed=5), tokenizer, tmp_path / "tiny")
    lines: list[str] = []
    with progress.showing(lambda *args: None, lines.append):
        (second,) = attack(config(tmp_path, **small))
    assert first.model_hash != second.model_hash
    assert lines[0] == "1 finished attacks run again: their models have changed"
