"""The first sentence is read with the table below it in sight, and never denies it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from holdfast.reports.facts import BASELINE, gather
from holdfast.reports.verdict import UNDECIDED, Carry, Claim, Sentence, cards, verdict
from holdfast.reports.words import Words
from holdfast.results.artifacts import AttackResult
from holdfast.results.lives import life_at
from holdfast.results.run_dir import RunDir
from holdfast.texts import Text
from made_lives import life as made_life
from test_report import HARD, SETTINGS, attacked, record

EN = Words("en")


@dataclass(frozen=True)
class Case:
    """Half-lives of sft and vaa by seed (above 400: not reached), and what may be claimed."""

    sft: Sequence[float]
    vaa: Sequence[float]
    claim: Claim
    carry: Carry | None
    undecided: int = 0


CASES = {
    "one seed": Case((32,), (240,), Claim.RATIO, Carry.ONE_SEED),
    "one seed, not reached": Case((32,), (900,), Claim.AT_LEAST, Carry.ENDED),
    "several seeds": Case((50, 60, 70), (200, 250, 270), Claim.RATIO, Carry.CLEAR),
    "several seeds, within chance": Case((50, 60, 70), (60, 50, 90), Claim.RATIO, Carry.CHANCE),
    "some not reached": Case((50,) * 5, (200, 250, 270, 300, 900), Claim.RATIO, Carry.CENSORED),
    "all not reached": Case((50,) * 6, (900,) * 6, Claim.AT_LEAST, Carry.CLEAR_BOUND),
    "two, not reached": Case((50,) * 2, (900,) * 2, Claim.AT_LEAST, Carry.ENDED),
    "neither reached": Case((900, 900), (900, 900), Claim.BASELINE, None),
    "equal": Case((100, 100, 100), (100, 100, 100), Claim.BASELINE, None),
    "worse": Case((200, 200, 200), (100, 100, 100), Claim.BASELINE, None),
    "equal ratios": Case((50, 60, 70), (100, 120, 140), Claim.RATIO, Carry.FEW),
    "undecided": Case((50, 60, 70), (200, 250, 270), Claim.RATIO, Carry.CLEAR, undecided=40),
    "the baseline withstood one": Case(
        (50, 50, 900), (390, 390, 399), Claim.AT_MOST, Carry.AGAINST
    ),
    "bounds of both kinds": Case((900, 50), (300, 900), Claim.EITHER, None),
}


def results(case: Case) -> list[AttackResult]:
    found = []
    for method, lives, undecided in (("sft", case.sft, 0), ("vaa", case.vaa, case.undecided)):
        for seed, life in enumerate(lives):
            found.append(attacked(method, life, seed=seed, undecided=undecided))
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_first_sentence_agrees_with_the_table(name: str, tmp_path: Path) -> None:
    case, run = CASES[name], RunDir(tmp_path)
    record(run, results(case))
    facts = gather(run)
    first = verdict(facts)[0]
    claim = first.values.get("claim", first)
    assert isinstance(claim, Text)
    assert claim.template == case.claim.value
    assert (first.template == case.carry.value) if case.carry else claim is first
    assert "cannot tell" not in first
    found = facts.comparisons["vaa"]
    lives = {m.line: m.life.steps.value for m in facts.attacks[0].methods}
    if case.claim in (Claim.RATIO, Claim.AT_LEAST):
        # What is claimed of the best is what the table shows of it, digit for digit.
        assert EN.ratio(found).lstrip("\u2265").removesuffix("\u00d7") in first
        assert lives["vaa"] > lives["sft"]
        assert ("at least" in first) == (EN.ratio(found)[0] == "\u2265")
    if case.claim is Claim.BASELINE:
        assert facts.best == BASELINE
        assert lives["vaa"] <= lives["sft"]
    seeds = len(case.sft)
    assert ("with one seed" in first) == (seeds == 1)
    assert (f"over {seeds} seeds" in first) == (seeds > 1)
    for low, high in re.findall(r"interval,? ([\d.]+) to ([\d.\u221e]+)", first):
        assert EN.between(found.ratio, "times") == f"{low}\u2013{high}"
    if "more than chance explains" in first:
        assert found.outcome == "longer"
    if "luck" in first:
        assert found.outcome == "unclear" or seeds == 1


@pytest.mark.parametrize("share", [int(100 * UNDECIDED) - 1, int(100 * UNDECIDED)])
def test_many_undecided_answers_are_warned_of(share: int, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, [attacked("sft", 50), attacked("vaa", 250, undecided=share)])
    told = [text for text in verdict(gather(run)) if text.template == Sentence.UNDECIDED.value]
    assert len(told) == (share >= 100 * UNDECIDED)
    assert all(f"{share}%" in text for text in told)


def test_failed_steps_are_told(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, [attacked("sft", 50), attacked("vaa", 250)])
    with pytest.raises(RuntimeError), run.job("attack", "broken", config={}, inputs={}):
        raise RuntimeError("out of memory")
    failed = gather(run).failed
    told = [text for text in verdict(gather(run)) if text.template == Sentence.FAILED.value]
    assert [text.values["n"] for text in told] == ([len(failed)] if failed else [])


def test_other_attacks_do_not_pair(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, [attacked("sft", 50), attacked("vaa", 250, settings=HARD)])
    first = verdict(gather(run))[0]
    assert first.template in (Claim.UNPAIRED.value, Claim.APART.value)
    assert "unknown" in first


def claim_of(run: RunDir) -> Text:
    """Return what the first sentence claims, without how far it carries."""
    first = verdict(gather(run))[0]
    claim = first.values.get("claim", first)
    assert isinstance(claim, Text)
    return claim


def test_two_methods_that_withstood_their_attacks_are_not_told_apart(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    # The last checkpoint of sft was not measured: it withstood 350 steps, and vaa 400.
    shorter = attacked("sft", 900)
    points = shorter.points[:-1]
    shorter = replace(shorter, points=points, half_life=made_life(900, points, censored=True))
    record(run, [shorter, attacked("vaa", 900)])
    facts = gather(run)
    assert facts.best == "vaa"
    withstood = facts.comparisons["vaa"]
    assert (withstood.pairs, withstood.skipped) == (0, 1)
    claim = claim_of(run)
    assert claim.template == Claim.WITHSTOOD.value
    assert "neither vaa nor plain fine-tuning (sft) gave way before the attacks ended" in claim
    assert not re.search(r"\d times", claim)


def test_a_ratio_that_rounds_to_one_is_not_said_to_be_longer(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    # 200 against 200.4 steps: 1.002 times, which the table shows as 1.00.
    record(run, [attacked("sft", 200), attacked("vaa", 200.4)])
    facts = gather(run)
    assert facts.best == "vaa"
    assert facts.comparisons["vaa"].ratio.value == pytest.approx(1.002)
    claim = claim_of(run)
    assert claim.template == Claim.EQUAL.value
    assert claim.endswith("vaa lasted as long as plain fine-tuning (sft)")


def test_the_shortest_half_life_is_of_attacks_with_harmful_rows(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    clean = {**SETTINGS, "poison_ratio": 0.0}
    record(
        run,
        [
            attacked("sft", 50),
            attacked("vaa", 250),
            attacked("vaa", 300, settings=HARD),
            attacked("vaa", 20, settings=clean),  # broken by the customer's own rows
        ],
    )
    by_label = {card.label: card for card in cards(gather(run))}
    shortest = by_label["Shortest half-life"]
    assert shortest.value.startswith("250")


def test_an_unknown_half_life_is_not_a_short_one(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    nothing = replace(attacked("vaa", 250), points=(), half_life=life_at([], [], 0.5))
    record(run, [attacked("sft", 50), nothing])
    assert not re.search(r"\d times", verdict(gather(run))[0])


def test_every_rung_of_the_ladder_is_reached_by_a_case_or_said_elsewhere() -> None:
    elsewhere = {Claim.NONE, Claim.ALONE, Claim.NO_BASELINE, Claim.APART, Claim.UNPAIRED}
    elsewhere |= {Claim.WITHSTOOD, Claim.EQUAL}  # each has a test of its own
    assert {case.claim for case in CASES.values()} | elsewhere == set(Claim)
    assert {case.carry for case in CASES.values()} - {None} == set(Carry)
