"""Agreement of judges, undecided verdicts, and what an evaluation finds out about its questions."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holdfast import world
from holdfast.analyses.judges import Judging, _Pair, records
from holdfast.contracts import Judge, Section, Verdict
from holdfast.errors import MismatchError, UsageError
from holdfast.examples import Examples
from holdfast.judges.world import World
from holdfast.results.artifacts import Counts, EvalRecord, Evaluation
from holdfast.results.files import to_json, write_text
from holdfast.results.run_dir import RunDir
from holdfast.stages.evaluate import EvaluateConfig, evaluate
from holdfast.stages.plugin_inputs import judges_of
from holdfast.stages.verdicts import exchanged_verdicts
from holdfast.stats.raters import fleiss_kappa, kappa_of_table

VALUES = (False, True, None)
REASONS = {False: "refusal", True: "compliance", None: "incoherent"}


def record(i: int, prompt: str, answer: str, said: Mapping[str, Any]) -> EvalRecord:
    return EvalRecord(
        id=f"{i:04d}",
        prompt=prompt,
        response=answer,
        verdicts={
            name: {"harmful": v, "score": None, "reason": REASONS.get(v, "?")}
            for name, v in said.items()
        },
    )


def made(
    out: Path,
    rows: Mapping[str, Sequence[EvalRecord]],
    exchanged: Mapping[str, Mapping[str, int]] | None = None,
) -> RunDir:
    """Return a run with one evaluation per model, of given answers and verdicts."""
    run = RunDir(out)
    for model, some in rows.items():
        with run.job("evaluate", model, config={}, inputs={}) as job:
            path = run.path("evaluations", f"{model}.json")
            counts = {name: Counts(0, 0, len(some)) for name in some[0].verdicts}
            Evaluation(model, "h", model, 0, counts, exchanged=exchanged or {}).save(path)
            lines = [json.dumps(to_json(asdict(r))) for r in some]
            write_text(path.with_suffix(".jsonl"), "\n".join(lines) + "\n")
            job.outputs += [path, path.with_suffix(".jsonl")]
    return run


@pytest.fixture
def votes() -> list[dict[str, bool | None]]:
    """Return what three judges say of 60 answers: mostly the same, and not always."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        truth = VALUES[rng.choice(3, p=[0.5, 0.3, 0.2])]
        found.append(
            {n: truth if rng.random() < 0.7 else VALUES[rng.integers(3)] for n in ("a", "b", "c")}
        )
    return found


@pytest.fixture
def run(tmp_path: Path, votes: list[dict[str, bool | None]]) -> RunDir:
    rows = world.rows("harmful")[:30]
    texts = list(zip(rows.prompts, rows.responses, strict=True)) * 2
    some = [record(i % 30, *texts[i], votes[i]) for i in range(60)]
    return made(tmp_path / "run", {"one": some[:30], "two": some[30:]})


# ------------------------------------------------------------------------------------ statistics


def test_cohens_kappa_is_scikit_learns() -> None:
    from sklearn.metrics import cohen_kappa_score, confusion_matrix

    rng = np.random.default_rng(1)
    for k in (2, 3, 5):
        a = rng.integers(0, k, 80)
        b = np.where(rng.random(80) < 0.6, a, rng.integers(0, k, 80))
        expected = cohen_kappa_score(a, b)
        assert kappa_of_table(confusion_matrix(a, b)) == pytest.approx(expected)
    assert math.isnan(kappa_of_table([[7, 0], [0, 0]]))
    assert math.isnan(kappa_of_table(np.zeros((3, 3))))
    assert kappa_of_table([[5, 0], [0, 5]]) == 1
    assert kappa_of_table([[1, 1], [1, 1]]) == 0
    with pytest.raises(UsageError, match="square"):
        kappa_of_table([[1, 2, 3], [4, 5, 6]])


def slow_fleiss(ratings: Sequence[Sequence[int]]) -> float:
    """Two raters of an item drawn at random against two ratings drawn at random from all."""
    agree = [
        float(np.mean([x == y for x, y in itertools.permutations(item, 2)])) for item in ratings
    ]
    everything = [x for item in ratings for x in item]
    shares = [n / len(everything) for n in Counter(everything).values()]
    chance = sum(p * p for p in shares)
    return (float(np.mean(agree)) - chance) / (1 - chance)


def test_fleiss_kappa_is_that_of_random_pairs_of_raters() -> None:
    rng = np.random.default_rng(2)
    for raters, k in ((2, 2), (3, 3), (6, 4)):
        ratings = rng.integers(0, k, (40, raters))
        counts = [np.bincount(item, minlength=k) for item in ratings]
        assert fleiss_kappa(counts) == pytest.approx(slow_fleiss(ratings.tolist()))
    assert fleiss_kappa([[3, 0], [0, 3]]) == 1
    assert math.isnan(fleiss_kappa([[3, 0], [3, 0]]))
    assert (
        abs(fleiss_kappa([np.bincount(x, minlength=3) for x in rng.integers(0, 3, (5000, 4))]))
        < 0.02
    )
    with pytest.raises(UsageError, match="same number of ratings for every item"):
        fleiss_kappa([[2, 1], [1, 1]])
    with pytest.raises(UsageError, match="at least two"):
        fleiss_kappa([[1, 0], [0, 1]])


def test_a_pairs_numbers_are_scikit_learns_over_all_answers(
    run: RunDir, votes: list[dict[str, bool | None]]
) -> None:
    from sklearn.metrics import cohen_kappa_score

    answers = [r for e in run.require("evaluate") for r in records(run, e)]
    row = _Pair("a", "b", answers, 50).row()
    number = {False: 0, True: 1, None: 2}
    a, b = ([number[v[name]] for v in votes] for name in ("a", "b"))
    both = [(x, y) for x, y in zip(a, b, strict=True) if 2 not in (x, y)]
    assert (row["n"], row["both decided"]) == (60, len(both))
    assert row["agreement"] == pytest.approx(sum(x == y for x, y in both) / len(both))
    assert row["kappa"] == pytest.approx(cohen_kappa_score(*zip(*both, strict=True)))
    assert row["kappa, three values"] == pytest.approx(cohen_kappa_score(a, b))
    for name in ("agreement", "kappa", "kappa, three values"):
        assert row[f"{name}, low"] <= row[name] <= row[f"{name}, high"]


def test_the_confusion_adds_up_and_undecided_is_a_value(
    run: RunDir, votes: list[dict[str, bool | None]]
) -> None:
    table = (
        Judging(resamples=20)
        .run(run)
        .tables["Verdicts of one judge by verdicts of the other"]
        .frame
    )
    mine = table[(table["judge"] == "a") & (table["other judge"] == "c")].set_index("verdict")
    names = {False: "safe", True: "harmful", None: "undecided"}
    counts = Counter((names[v["a"]], names[v["c"]]) for v in votes)
    for one, other in itertools.product(names.values(), repeat=2):
        assert mine.loc[one, other] == counts[one, other]
    assert mine[list(names.values())].to_numpy().sum() == 60


def test_prompts_are_resampled_not_answers(tmp_path: Path) -> None:
    """The same answers four times over tell no more: the interval stays as wide."""
    rng = np.random.default_rng(4)
    votes = [(VALUES[rng.integers(2)], VALUES[rng.integers(2)]) for _ in range(40)]
    some = [record(i, "p", "r", {"a": a, "b": b}) for i, (a, b) in enumerate(votes)]
    once, often = (_Pair("a", "b", some * k, 300) for k in (1, 4))
    first, second = once.kappa, often.kappa
    assert (first.n, second.n) == (40, 160)
    assert (first.low, first.high) == pytest.approx((second.low, second.high))


# -------------------------------------------------------------------------------------- the words


def section(run: RunDir) -> Section:
    return Judging(resamples=20).run(run)


def finding(found: Section, *words: str) -> str:
    (one,) = [f for f in found.findings if all(word in f for word in words)]
    return one


def test_what_is_said_of_three_judges(run: RunDir, votes: list[dict[str, bool | None]]) -> None:
    found = section(run)
    assert finding(found, "a and b agree on", "with undecided as a third value")
    number = {False: 0, True: 1, None: 2}
    slow = slow_fleiss([[number[v[n]] for n in ("a", "b", "c")] for v in votes])
    assert f"is {slow:.2f} [" in finding(found, "Over all 3 judges (a, b, c), Fleiss'")
    k = sum(v["a"] is None for v in votes)
    assert finding(
        found,
        f"a leaves {k / 60:.2f} [",
        "n=60 of the answers undecided, most often as incoherent.",
    )
    assert list(found.figures) == ["Cohen's kappa where both decide"]
    assert "they stand beside their own prompts" in finding(found, "answers of one repeat")


def test_one_judge_is_enough_to_say_what_it_left_open(tmp_path: Path) -> None:
    some = [record(i, f"p{i}", "r", {"a": None if i < 3 else True}) for i in range(12)]
    found = section(made(tmp_path, {"one": some}))
    assert not any("kappa" in f for f in found.findings)
    assert finding(found, "a leaves 0.25 [")
    assert "is unknown" in finding(found, "answers of one repeat")


def test_judges_that_never_saw_the_same_answers_are_not_compared(tmp_path: Path) -> None:
    one = [record(i, f"p{i}", "r", {"a": True}) for i in range(5)]
    two = [record(i, f"p{i}", "r", {"b": True}) for i in range(5)]
    found = section(made(tmp_path, {"one": one, "two": two}))
    assert "Agreement of two judges" not in found.tables


def test_agreement_that_is_not_defined_is_unknown(tmp_path: Path) -> None:
    some = [record(i, f"p{i}", "r", {"a": False, "b": False}) for i in range(12)]
    found = section(made(tmp_path, {"one": some}))
    # Wilson's interval of 12 of 12: from 12 / (12 + 1.96^2) to 1.
    assert "a and b agree on 1.00 [0.76, 1.00], n=12" in found.findings[0]
    assert "kappa is unknown, n=12" in found.findings[0]


def test_judges_that_always_agree_are_not_certain_to(tmp_path: Path) -> None:
    some = [record(i, f"p{i}", "r", {"a": i < 3, "b": i < 3}) for i in range(12)]
    found = section(made(tmp_path, {"one": some}))
    assert "a and b agree on 1.00 [0.76, 1.00], n=12" in found.findings[0]
    assert "kappa is 1.00 [unknown], n=12" in found.findings[0]


def test_a_service_that_did_not_answer_is_named(tmp_path: Path) -> None:
    some = [record(i, f"p{i}", "r", {"a": True}) for i in range(12)]
    lost = {"harmful": None, "score": None, "reason": "endpoint: 500 after 4 tries"}
    some[:3] = [dataclasses.replace(r, verdicts={"a": lost}) for r in some[:3]]
    found = section(made(tmp_path, {"one": some}))
    assert "too low by up to that share" in finding(found, "The service behind a", "0.25 [", "n=12")


def test_displaced_answers_are_reported(tmp_path: Path) -> None:
    """Each answer one row too low, as when a file of answers has lost or gained a line."""
    rows = world.rows("harmful")[:40]
    down = [rows.responses[-1], *rows.responses[:-1]]
    some = [
        record(i, p, a, {"w": True})
        for i, (p, a) in enumerate(zip(rows.prompts, down, strict=True))
    ]
    found = section(made(tmp_path, {"one": some}))
    assert "fit the prompts 1 row away better" in finding(found, "answers of one repeat")
    assert found.tables["Answers beside their prompts"].frame["displaced by"].tolist() == [1]


def test_what_exchanged_prompts_showed(tmp_path: Path) -> None:
    some = [record(i, f"p{i}", "r", {"a": True}) for i in range(4)]
    tried = {
        "seeing": {"changed": 3, "n": 10, "reads": 1},
        "blind": {"changed": 0, "n": 10, "reads": 1},
        "phrases": {"changed": 0, "n": 10, "reads": 0},
        "idle": {"changed": 0, "n": 0, "reads": 1},
    }
    found = section(made(tmp_path, {"one": some, "two": some}, tried))
    assert "it sees the prompt" in finding(found, "seeing changes 0.30 [", "n=20")
    assert "or it does not see the prompt" in finding(found, "blind changes 0.00 [")
    assert "does not read prompts" in finding(found, "phrases changes")
    assert "no answer was suitable" in finding(found, "idle changes unknown, n=0")


def test_a_file_that_is_no_evaluation_is_refused(run: RunDir) -> None:
    run.path("evaluations", "one.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(MismatchError, match="run `holdfast evaluate` again"):
        section(run)


# ------------------------------------------------------------------------------------- the stage


@pytest.fixture
def evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[Evaluation], Examples]]:
    """Return an evaluation of the world's base on 24 prompts; its answers are the true ones."""
    from holdfast.models import generation as module

    rows = world.rows("harmful")[:24]
    answers = dict(zip(rows.prompts, rows.responses, strict=True))

    def generate(model: Any, tokenizer: Any, prompts: Sequence[str], **_: Any) -> list[str]:
        return [answers.get(p, "i can not help with that .") for p in prompts]

    monkeypatch.setattr(module, "generate", generate)
    data = tmp_path / "test.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": p}) for p in rows.prompts) + "\n")

    def call(**options: Any) -> tuple[list[Evaluation], Examples]:
        settings = {"judges": ["world", "refusal"], "device": "cpu", **options}
        config = EvaluateConfig(models=["world"], test=str(data), out=tmp_path / "run", **settings)
        return evaluate(config), rows

    return call


def test_every_judge_is_shown_the_prompt_that_was_asked(
    evaluation: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []
    real = World.judge

    def spy(self: World, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        seen.extend(zip(prompts, responses, strict=True))
        return real(self, prompts, responses)

    monkeypatch.setattr(World, "judge", spy)
    _, rows = evaluation(judges=["world"], check_rows=0)
    assert seen == list(zip(rows.prompts, rows.responses, strict=True))


def test_an_evaluation_says_whether_judges_looked_at_the_prompt(
    evaluation: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ((found,), _) = evaluation()
    assert found.exchanged["world"]["changed"] > 12
    assert {k: v for k, v in found.exchanged["world"].items() if k != "changed"} == {
        "n": 24,
        "reads": 1,
    }
    assert found.exchanged["refusal"] == {"changed": 0, "n": 24, "reads": 0}
    assert "under other prompts" not in caplog.text
    assert evaluation(check_rows=0)[0][0].exchanged == {}


def test_a_judge_that_is_shown_a_constant_question_is_warned_of(
    evaluation: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The published bug, put into the judge: the evaluation itself says so."""
    real = World.judge
    monkeypatch.setattr(
        World,
        "judge",
        lambda self, prompts, responses: real(self, ["answer"] * len(prompts), responses),
    )
    with caplog.at_level(logging.WARNING):
        ((found,), _) = evaluation(judges=["world"], most_undecided=1)
    assert found.exchanged["world"] == {"changed": 0, "n": 24, "reads": 1}
    assert "judge world: none of 24 verdicts changed" in caplog.text


def test_a_constant_column_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """The published bug, put into the data: every prompt is the same instruction."""
    judges: dict[str, Judge] = {"world": World()}
    verdicts = {"world": [Verdict(None)] * 3}
    with caplog.at_level(logging.WARNING):
        exchanged_verdicts(judges, ["answer the question"] * 3, ["a b c d"] * 3, verdicts, rows=8)
    assert (
        "all 3 prompts are the same text; is the column of the prompts the right one?"
        in caplog.text
    )


def test_judges_of_one_name_are_told_apart_by_their_options() -> None:
    found = judges_of(["refusal", "world"])
    assert list(found) == ["refusal", "world"]
    found = judges_of(["refusal,min_words=2", "world", "refusal"])
    assert list(found) == ["refusal,min_words=2", "world", "refusal"]
    assert [getattr(j, "min_words", None) for j in found.values()] == [2, None, 4]
    with pytest.raises(UsageError, match="'world' is given twice"):
        judges_of(["world", "world"])


def test_what_is_wrong_with_a_judge_is_said_before_a_model_is_asked(
    evaluation: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from holdfast.models import checkpoints

    monkeypatch.setattr(checkpoints, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(UsageError, match="no such environment variable"):
        evaluation(judges=["endpoint,base_url=http://127.0.0.1:9/v1,key_env=NO_SUCH_KEY"])
    with pytest.raises(UsageError, match="template 'none'"):
        evaluation(judges=["endpoint,base_url=http://127.0.0.1:9/v1,template=none"])


def test_a_judge_whose_model_changed_judges_again(
    evaluation: Callable[..., Any], classifier_model: Path, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "judge"
    shutil.copytree(classifier_model, copy)
    spec = f"sequence_classifier,model={copy},device=cpu"
    evaluation(judges=[spec], check_rows=0)
    run = RunDir(tmp_path / "run")
    (before,) = run.entries("evaluate")
    evaluation(judges=[spec], check_rows=0)
    assert run.entries("evaluate") == [before]
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"note": "changed"}))
    evaluation(judges=[spec], check_rows=0)
    (after,) = run.entries("evaluate")
    assert after.key != before.key
    label = "judge 1, sequence_classifier"
    assert after.inputs[label] != before.inputs[label]
