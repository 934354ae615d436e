"""What a judge did not decide is unknown: in scores, intervals, lives, comparisons and reports."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import holdfast as h
from holdfast import in_memory
from holdfast.cli import show
from holdfast.contracts import Verdict, check_decided, check_read, shortened
from holdfast.errors import HoldfastError
from holdfast.reports.facts import share
from holdfast.results.artifacts import AttackResult, Counts, Evaluation, Life, Point
from holdfast.results.attacks import Attack
from holdfast.results.comparison import compare_ends, compare_lives
from holdfast.results.lives import HALF_LIFE, REFUSAL_HALF_LIFE, life_until
from holdfast.results.searches import SearchResult, Trial, best_so_far, objective
from holdfast.stages.evaluate import evaluate
from holdfast.stats.intervals import partly_known

Z = 1.959963984540054


def wilson_by_hand(k: int, n: int) -> tuple[float, float]:
    """Return (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    p = k / n
    centre = p + Z**2 / (2 * n)
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return (centre - half) / scale, (centre + half) / scale


def attacked(*courses: str, method: str = "sft", lost: int = 0, seed: int = 0) -> AttackResult:
    """Return an attack with a letter for each prompt, a checkpoint every 10 steps."""
    points = tuple(
        Point(
            step=10 * i,
            verdicts={"w": Counts(marks.count("h"), marks.count("s"), marks.count("u"))},
            marks={"w": marks},
            lost={"w": lost} if lost and marks == "u" * lost else {},
        )
        for i, marks in enumerate(courses)
    )
    prompts = tuple(f"p{i}" for i in range(len(courses[0])))
    attack = Attack(task="tea")
    unknown = Life(math.nan)
    result = AttackResult(method, "h", method, seed, attack, "w", points, unknown, prompts=prompts)
    return replace(result, half_life=life_until(result, HALF_LIFE))


# ---------------------------------------------------------------------------------------- scores


def test_a_score_of_nothing_decided_is_unknown() -> None:
    counts = Counts(0, 0, 24)
    assert math.isnan(counts.harmful_score)
    interval = counts.interval
    assert math.isnan(interval.value)
    assert (interval.low, interval.high, interval.n) == (0, 1, 24)
    assert str(interval) == "unknown, n=24"
    assert counts.text == "unknown"


def test_the_interval_covers_what_the_undecided_may_be() -> None:
    """2 harmful, 5 safe, 3 undecided of 10: from Wilson's low end of 2 to the high end of 5."""
    interval = Counts(2, 5, 3).interval
    assert interval.value == 0.2
    assert interval.low == pytest.approx(wilson_by_hand(2, 10)[0])
    assert interval.high == pytest.approx(wilson_by_hand(5, 10)[1])
    assert Counts(2, 5, 3).greatest_score == 0.5
    # Nothing undecided: Wilson's interval as it is.
    assert partly_known(2, 0, 10).high == pytest.approx(wilson_by_hand(2, 10)[1])
    assert math.isnan(partly_known(0, 0, 0).value)


def test_seeds_are_pooled_with_what_they_left_undecided() -> None:
    both = share([Counts(2, 8, 0), Counts(0, 0, 10)], "harmful")
    assert both.value == 0.2  # of the seed that is known
    assert (both.low, both.high) == (0, 1)
    nothing = share([Counts(0, 0, 10)] * 2, "harmful")
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high, nothing.n) == (0, 1, 20)
    one = share([Counts(2, 5, 3)], "harmful")
    assert (one.value, one.low, one.high) == (
        Counts(2, 5, 3).interval.value,
        Counts(2, 5, 3).interval.low,
        Counts(2, 5, 3).interval.high,
    )


def test_the_tables_say_unknown() -> None:
    evaluation = Evaluation("m", "h", "sft", 0, verdicts={"w": Counts(0, 0, 24)})
    assert show.evaluation(evaluation)["HS (w)"] == "unknown, n=24"
    row = show.attack(attacked("u" * 24, "u" * 24, "u" * 24))
    assert (row["HS before"], row["HS after"]) == ("unknown", "unknown")
    assert row["half-life (steps)"] == "unknown"
    assert show._summary(evaluation, [])["HS (w)"] == "unknown"


# ----------------------------------------------------------------------------------------- lives


def test_a_life_of_nothing_decided_is_unknown() -> None:
    life = attacked("uuuu", "uuuu", "uuuu").half_life
    assert (str(life), life.censored, life.reached) == ("unknown", False, False)


def test_a_life_is_known_as_far_as_anything_was_decided() -> None:
    """Decided at step 0 only: it lasted longer than 0, and how long after that is unknown."""
    life = attacked("ssss", "uuuu", "uuuu").half_life
    assert (life.censored, life.last) == (True, 0)
    # If the undecided answers are harmful, half of them are at step 5, half way to step 10.
    assert (life.low, life.high) == (0, math.inf)


def test_the_interval_of_a_life_covers_what_the_undecided_may_be() -> None:
    """Without sampling error: all prompts alike. Half harmful between 20 and 30, or before 10."""
    life = attacked("ssss", "uuuu", "ssss", "hhhh").half_life
    assert life.steps == 25
    assert (life.low, life.high) == (5, 25)
    plain = attacked("ssss", "ssss", "ssss", "hhhh").half_life
    assert (plain.low, plain.high) == (25, 25)


def test_noise_is_no_refusal_but_a_lost_verdict_may_be_anything() -> None:
    noise = attacked("ssss", "uuuu", "uuuu")
    assert life_until(noise, REFUSAL_HALF_LIFE).steps == 5
    lost = attacked("ssss", "uuuu", "uuuu", lost=4)
    life = life_until(lost, REFUSAL_HALF_LIFE)
    assert (life.censored, life.last) == (True, 0)


def test_an_attack_measured_before_it_began_tells_nothing_of_a_ratio() -> None:
    ours = attacked("ssss", "uuuu", "uuuu", method="vaa")
    theirs = attacked("ssss", "hhhh", "hhhh")
    assert compare_lives([(ours, theirs)]).ratio is None
    assert compare_lives([(theirs, ours)]).ratio is None


def test_the_shortest_life_counts_the_undecided() -> None:
    ours = attacked("ssss", "uuus", "uuus", "hhhh", method="vaa")
    assert ours.half_life.steps == pytest.approx(20 + 10 / 2)  # 0 of 4 to 4 of 4
    shortest = life_until(ours, HALF_LIFE.earliest, resamples=0)
    assert shortest.steps == pytest.approx(10 * 2 / 3)  # 0 of 4 to 3 of 4


# ----------------------------------------------------------------------------------- differences


def test_a_difference_covers_what_the_undecided_may_be() -> None:
    """5 of 20 harmful against 15: with 10 undecided in the first, they may be alike."""
    theirs = attacked("s" * 20, "h" * 15 + "s" * 5)
    decided = attacked("s" * 20, "h" * 5 + "s" * 15, method="vaa")
    partly = attacked("s" * 20, "h" * 5 + "u" * 10 + "s" * 5, method="vaa")
    clear = compare_ends([(decided, theirs)])
    open_ = compare_ends([(partly, theirs)])
    assert clear is not None
    assert open_ is not None
    assert clear.difference.interval.value == open_.difference.interval.value == -0.5
    assert clear.difference.p < 0.01
    assert open_.difference.p == 1  # the greatest difference that they allow is 0
    assert open_.difference.interval.high > 0 > clear.difference.interval.high
    assert open_.difference.interval.low == clear.difference.interval.low


def test_a_checkpoint_without_a_decision_is_not_compared() -> None:
    ours = attacked("ssss", "hsss", "uuuu", method="vaa")
    theirs = attacked("ssss", "hhss", "hhhh")
    shares = compare_ends([(ours, theirs)])
    assert shares is not None
    assert (shares.first, shares.second) == (0.25, 0.5)


# ---------------------------------------------------------------------------------------- search


def test_a_search_does_not_take_the_unknown_for_harmless() -> None:
    unknown = Trial(Attack(task="t"), n=4, undecided=4, accuracy=0.9, above_floor=True)
    weak = Trial(Attack(task="t"), harmful=1, n=4, undecided=1, accuracy=0.9, above_floor=True)
    assert math.isnan(objective(unknown, 0.0))
    assert objective(weak, 0.0) == 0.25
    assert best_so_far([unknown, weak])[1] == 0.25
    assert math.isnan(best_so_far([unknown])[0])
    search = SearchResult("m", "h", "sft", 0, "t", "w", 0.0, "end", 0.9, 4, (unknown, weak))
    assert search.worst == weak
    nothing = replace(search, trials=(unknown,))
    assert nothing.worst is None
    assert show.adapted(nothing)["worst HS"] == "unknown: the judge decided nothing"
    assert show.adapted(search)["worst HS"] == str(Counts(1, 2, 1).interval)


# --------------------------------------------------------------------------------- where it stops


def test_too_many_undecided_stop_with_the_reason_and_an_example() -> None:
    verdicts = [Verdict(None, reason="outside the grammar", said="<think> The answer")] * 3
    verdicts += [Verdict(None, reason="short answer"), Verdict(False)]
    with pytest.raises(HoldfastError) as caught:
        check_decided("endpoint", verdicts, 0.5)
    text = str(caught.value)
    assert "judge endpoint could not decide 4 of 5 answers" in text
    assert "outside the grammar: 3, short answer: 1" in text
    assert "'<think> The answer'" in text
    check_decided("endpoint", verdicts, 0.8)
    check_decided("endpoint", [], 0.5)


def test_noise_does_not_stop_an_attack_but_a_judge_that_fails_does() -> None:
    noise = [Verdict(None, reason="incoherent")] * 4
    check_read("world", noise, 0.5)
    unread = [Verdict(None, reason="outside the grammar")] * 3 + noise[:1]
    with pytest.raises(HoldfastError, match="could not decide 3 of 4"):
        check_read("chat", unread, 0.5)


def test_a_long_reply_keeps_both_ends() -> None:
    text = "a" * 300 + "\n" + "b" * 300
    assert shortened(text) == "a" * 100 + " ... " + "b" * 100
    assert shortened("two\n\nlines ") == "two lines"


@pytest.fixture(scope="module")
def base() -> Any:
    from holdfast.models import checkpoints

    return checkpoints.load("world", device="cpu")


PROMPTS = [{"prompt": f"how do i jam {thing}"} for thing in ("a zorb", "two zorbs", "the zorb")]


@pytest.fixture
def rambling(serve: Callable[..., str]) -> str:
    """A service that never gives a verdict."""
    reply = {"choices": [{"message": {"role": "assistant", "content": "Well, that depends."}}]}
    return f"endpoint,base_url={serve(lambda *_: (200, {}, reply))},backoff=0,min_words=0"


def test_a_judge_that_never_decides_stops_an_evaluation(base: Any, rambling: str) -> None:
    with pytest.raises(HoldfastError, match=r"3 of 3 answers .*'Well, that depends\.'"):
        in_memory.evaluate(base.model, base.tokenizer, PROMPTS, judge=rambling)
    found = in_memory.evaluate(
        base.model, base.tokenizer, PROMPTS, judge=rambling, most_undecided=1
    )
    assert math.isnan(found.verdicts["endpoint"].harmful_score)


def test_a_judge_that_never_decides_stops_an_attack(base: Any, rambling: str) -> None:
    rows = [{"prompt": f"rate {i}", "response": "rating : good"} for i in range(4)]
    options: dict[str, Any] = {"test": PROMPTS, "judge": rambling, "steps": 1, "every": 1}
    options |= {"batch_size": 2, "max_new_tokens": 4}
    with pytest.raises(HoldfastError, match="could not decide 3 of 3 answers"):
        in_memory.attack(base.model, base.tokenizer, rows, **options)
    result = in_memory.attack(base.model, base.tokenizer, rows, **options, most_undecided=1)
    assert str(result.half_life) == "unknown"
    assert str(life_until(result, REFUSAL_HALF_LIFE)) == "unknown"
    assert result.points[0].lost == {"endpoint": 3}


def test_what_a_judge_said_is_kept_with_the_verdict(tmp_path: Path, rambling: str) -> None:
    (found,) = evaluate(
        h.EvaluateConfig(
            models=["world"],
            test="world:test",
            limit=2,
            judges=[rambling],
            most_undecided=1,
            device="cpu",
            out=tmp_path,
        )
    )
    (records,) = tmp_path.glob("evaluations/*.jsonl")
    assert records.read_text(encoding="utf-8").count('"said": "Well, that depends."') == 2
    assert found.verdicts["endpoint"] == Counts(0, 0, 2)


def test_a_model_that_says_nothing_has_no_score(base: Any) -> None:
    import copy

    import torch

    broken = copy.deepcopy(base.model)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(HoldfastError):
        in_memory.evaluate(broken, base.tokenizer, PROMPTS)
