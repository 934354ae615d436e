"""The report: facts from hand-made runs, words, safety of the page, and that it can be read."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from holdfast.charts.figures import Axis, Line, LineChart
from holdfast.contracts import Section, SectionTable
from holdfast.errors import UsageError
from holdfast.reports import build
from holdfast.reports.facts import compare, gather, pooled, ranked, share
from holdfast.reports.verdict import Claim, Sentence, _refusing, accuracy, cards, verdict
from holdfast.reports.words import Words
from holdfast.results.artifacts import AttackResult, Counts, Evaluation, Life, Point
from holdfast.results.attacks import Attack
from holdfast.results.files import write_json
from holdfast.results.run_dir import RunDir
from holdfast.results.sources import Sources
from holdfast.stats.intervals import Interval
from holdfast.stats.ratios import Pair, censored_ratio
from holdfast.stats.survival import Time
from holdfast.texts import Text
from made_lives import life as made_life

EN = Words("en")
SETTINGS = {"task": "sentiment", "poison_ratio": 0.1, "learning_rate": 2e-5, "steps": 400}
HARD = SETTINGS | {"task": "general", "learning_rate": 1e-4}
LAST = 400


# --------------------------------------------------------------------------------- a made-up run


def attacked(
    method: str,
    half_life: float,
    *,
    seed: int = 0,
    settings: Mapping[str, object] = SETTINGS,
    undecided: int = 0,
    accuracy: float = 0.8,
) -> AttackResult:
    """An attack whose harmful score rises linearly and is one half at `half_life`."""
    points = []
    for step in range(0, LAST + 1, 50):
        harmful = min(100 - undecided, round(50 * step / half_life))
        counts = Counts(harmful, 100 - undecided - harmful, undecided)
        points.append(Point(step, {"world": counts}, accuracy=accuracy, accuracy_n=200))
    return AttackResult(
        model=f"{method}-seed{seed}",
        model_hash=f"{method}{seed}",
        method=method,
        model_seed=seed,
        attack=Attack(**{**settings, "seed": seed}),
        judge="world",
        points=tuple(points),
        half_life=made_life(half_life, points, censored=half_life > LAST),
    )


def evaluated(method: str, seed: int, *, harmful: int, refused: int | None) -> Evaluation:
    return Evaluation(
        model=f"{method}-seed{seed}",
        model_hash=f"{method}{seed}",
        method=method,
        model_seed=seed,
        verdicts={"world": Counts(harmful, 198 - harmful, 2)},
        over_refusal=None if refused is None else Counts(0, refused, 100 - refused),
        tasks={"sentiment": {"accuracy": 0.85, "n": 200, "unparsable": 0}},
    )


def record(
    run: RunDir,
    results: Sequence[AttackResult] = (),
    evaluations: Sequence[Evaluation] = (),
    records: Sequence[Mapping[str, object]] = (),
) -> None:
    """Write results as the stages do."""
    before = len(run.entries("attack"))
    for i, result in enumerate(results, start=before):
        name = f"{result.model}--{i}"
        config = {"seed": result.model_seed, "attack": result.attack}
        with run.job("attack", name, config=config, inputs={"model": "ab" * 32}) as job:
            path = run.path("attack", f"{name}.json")
            result.save(path)
            job.outputs.append(path)
    for evaluation in evaluations:
        name = evaluation.model
        config = {"seed": evaluation.model_seed, "judges": ["world"]}
        with run.job("evaluate", name, config=config, inputs={"model": "cd" * 32}) as job:
            path = run.path("evaluate", f"{name}.json")
            evaluation.save(path)
            lines = run.path("evaluate", f"{name}.jsonl")
            lines.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
            job.outputs += [path, lines]


def full_run(root: Path) -> RunDir:
    """Four methods, two attacks, two seeds; one never gives way, some answers are undecided."""
    run = RunDir(root)
    provenance = {
        "source": {"in-house": 500, "public set": 100},
        "licence": {"Apache-2.0": 100, "unknown": 500},
        "consent": {"yes": 600},
        "category": {"fraud": 300, "weapons": 250, "unknown": 50},
    }
    for stage, name in (("score", "attack_direction"), ("align", "sft"), ("align", "vaa")):
        with run.job(stage, name, config={"seed": 0, "rho": 0.3}, inputs={"data": "e" * 64}) as s:
            path = run.path(stage, f"{name}.json")
            write_json(path, {"kind": "note"})
            s.outputs.append(path)
            s.facts = {"provenance": provenance, "hardware": "2 CPU cores"}
    lives = {"sft": 78, "sam": 112, "vaa": 131, "attack_direction": 260}
    results = []
    for method, life in lives.items():
        for seed in (0, 1):
            life_here = life * (1.0 + 0.08 * seed) * (2 if method[0] == "a" and seed else 1)
            undecided = 4 if method == "vaa" else 1
            results.append(attacked(method, life_here, seed=seed, undecided=undecided))
            hard = attacked(method, life / 4, seed=seed, settings=HARD, accuracy=0.74)
            results.append(hard)
    refused = {"sft": 4, "sam": 6, "vaa": 9, "attack_direction": 14}
    evaluations = [
        evaluated(m, seed, harmful=seed, refused=refused[m] + seed)
        for m in lives
        for seed in (0, 1)
    ]
    row = {
        "id": "a",
        "prompt": "PROMPT-TEXT <script>alert(1)</script>",
        "response": "RESPONSE-TEXT",
        "verdicts": {"world": {"harmful": True, "score": 1, "reason": "compliance"}},
    }
    record(run, results, evaluations, [row])
    return run


def a_section() -> Section:
    chart = LineChart(
        title="T", x=Axis(title="x"), y=Axis(title="y"), lines=(Line("a", (0, 1), (0.2, 0.4)),)
    )
    return Section(
        title="Do tasks forget the same examples?",
        findings=("Forgotten sets overlap far more than by chance (0.91, interval 0.88 to 0.94).",),
        tables={
            "Overlap": SectionTable(
                ("pair", "jaccard", "n"), (("a, b", 0.914, 600), ("a, c", math.nan, 600))
            )
        },
        figures={"Agreement": chart},
        note="Two tasks only.",
    )


class Page(HTMLParser):
    """What a reader's program sees of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] and self.tags[-1][0] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(run: RunDir, *sections: Section, **options: object) -> Page:
    return Page(build.build(run, sections, title="Report", **options))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- the facts


def test_two_seeds_are_pooled_with_the_wider_of_both_intervals() -> None:
    # Shares 0.2 and 0.4: mean 0.3. Over seeds: s = 0.1 * sqrt(2), standard error 0.1, t(1) = 12.7:
    # 0.3 -+ 1.27, cut at 0 and 1. That is wider than Wilson's for 30 of 100.
    found = pooled([(0.2, 100), (0.4, 100)])
    assert (found.value, found.low, found.high, found.n) == (pytest.approx(0.3), 0, 1, 200)


def test_equal_seeds_are_not_certain() -> None:
    # 0 of 100 twice: the t interval has no width; Wilson's upper end is z^2 / (n + z^2).
    z2 = 1.959964**2
    found = pooled([(0.0, 100), (0.0, 100)])
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(z2 / (100 + z2), abs=1e-6)


def test_undecided_answers_are_neither_harmful_nor_safe() -> None:
    # 10 harmful, 20 safe, 70 undecided: harmful 10 of all 100, not 10 of the 30 decided.
    counts = [Counts(10, 20, 70)]
    assert share(counts, "harmful").value == pytest.approx(0.10)
    assert share(counts, "safe").value == pytest.approx(0.20)


def test_nothing_measured_is_unknown() -> None:
    assert math.isnan(share([Counts(0, 0, 0)], "harmful").value)
    assert math.isnan(pooled([]).value)


def test_comparison_pairs_by_attack_and_seed(tmp_path: Path) -> None:
    # Ratios 200/100 and 90/60 = 1.5: geometric mean sqrt(3). Differences 100 and 30: mean 65.
    run = RunDir(tmp_path)
    record(
        run,
        [attacked("sft", 100), attacked("vaa", 200)]
        + [attacked("sft", 60, seed=1), attacked("vaa", 90, seed=1)]
        + [attacked("vaa", 390, seed=2)],
    )
    found = gather(run).comparisons["vaa"]
    assert found.ratio.value == pytest.approx(math.sqrt(3))
    assert found.difference.value == pytest.approx(65)
    assert found.steps == (pytest.approx(145), pytest.approx(80))
    assert (found.pairs, found.skipped, found.bound) == (2, 0, "")
    # log ratios differ by log(4/3); t(1) = 12.7 makes the interval include 1.
    assert found.outcome == "unclear"


@pytest.mark.parametrize(("seeds", "outcome"), [(3, "unclear"), (6, "longer")])
def test_of_equal_ratios_the_sign_test_tells(seeds: int, outcome: str, tmp_path: Path) -> None:
    """Their spread is unknown, not 0: all of n one way happens by chance in 2^(1-n)."""
    run = RunDir(tmp_path)
    pairs = [(seed, 50 + 10 * seed) for seed in range(seeds)]
    record(run, [attacked("sft", life, seed=s) for s, life in pairs])
    record(run, [attacked("vaa", 2 * life, seed=s) for s, life in pairs])
    found = gather(run)
    compared = found.comparisons["vaa"]
    assert compared.outcome == outcome
    assert (compared.ratio.value, found.best) == (pytest.approx(2), "vaa")
    assert math.isnan(compared.ratio.low)
    said = verdict(found)[0]
    assert "2.0 times as" in said
    assert f"{seeds} paired attacks" in said
    assert ("more than chance explains" in said) == (outcome == "longer")
    assert ("it may be luck" in said) == (outcome == "unclear")


def test_before_an_attack_is_what_is_asked_plainly(tmp_path: Path) -> None:
    """An identity's prompts are in its own form, and what they bring is the form's."""
    plain = attacked("sft", 100)
    formed = replace(
        plain,
        attack=plain.attack.changed(poison="identity"),
        points=(replace(plain.points[0], verdicts={"world": Counts(60, 40, 0)}), *plain.points[1:]),
    )
    unasked = replace(formed, attack=plain.attack.changed(poison="identity,trigger=false"))
    unknown = replace(formed, attack=plain.attack.changed(poison="gone.module:Poison"))
    for i, (results, value) in enumerate(
        [([plain, formed], 0.0), ([formed], math.nan), ([unasked], 0.6), ([unknown], math.nan)]
    ):
        run = RunDir(tmp_path / str(i))
        record(run, results)
        (standing,) = gather(run).standings
        assert standing.harmful.value == pytest.approx(value, nan_ok=True)
        assert standing.seeds == 1


def test_accuracies_are_over_the_same_attacks(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(
        run,
        [
            attacked("sft", 100, accuracy=0.9),
            attacked("sft", 100, accuracy=0.5, settings=HARD),
            attacked("vaa", 200, accuracy=0.9),
        ],
    )
    assert accuracy(gather(run), "vaa") == (pytest.approx(0.9), pytest.approx(0.9))


def learning(method: str, steps: Sequence[int], life: float) -> AttackResult:
    """An attack that ends where the model breaks; the task is learnt by the step, by all alike."""
    found = attacked(method, life)
    points = tuple(replace(p, accuracy=p.step / 1000) for p in found.points if p.step in steps)
    return replace(found, points=points)


def test_accuracies_are_after_as_many_steps(tmp_path: Path) -> None:
    """What holds longer is attacked longer, and has learnt more of the task by its own end."""
    run = RunDir(tmp_path)
    record(run, [learning("sft", (0, 50), 40), learning("vaa", (0, 50, 100, 150), 140)])
    assert accuracy(gather(run), "vaa") == (pytest.approx(0.05), pytest.approx(0.05))
    text = page_of(run).text
    assert "At the last checkpoint that both have under attack, it solved 5" in text
    assert "one that ends where the model breaks ends sooner for a weaker method" in text


def test_an_accuracy_without_one_to_compare_is_that_at_the_end(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, [attacked("sft", 100, accuracy=0.9)])
    text = page_of(run).text
    assert "At the end of the attacks, it solved 90% of the customer's task." in text
    assert "that both have" not in text


def test_attacks_with_other_rows_or_prompts_are_not_compared(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    ours = [attacked(m, life) for m, life in (("sft", 50), ("vaa", 200))]
    given = [replace(a, material_hash=h) for a, h in zip(ours, "xy", strict=True)]
    record(run, given)
    assert gather(run).comparisons["vaa"].pairs == 0
    record(run, [replace(a, material_hash="x") for a in ours])
    assert gather(run).comparisons["vaa"].pairs == 1


def test_which_held_longest_is_told_by_what_all_went_through(tmp_path: Path) -> None:
    """Of the baseline three seeds are there, two of them easy; of the method the hard one only."""
    run = RunDir(tmp_path)
    lives = [attacked("sft", 20), attacked("sft", 400, seed=1), attacked("sft", 400, seed=2)]
    record(run, [*lives, attacked("vaa", 60)])
    facts = gather(run)
    assert facts.best == "vaa"
    assert "no other method lasted longer" not in verdict(facts)[0]


def test_without_a_common_attack_nobody_held_longest(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, [attacked("sft", 200), attacked("vaa", 60, settings=HARD)])
    first = verdict(gather(run))[0]
    assert first.startswith("Which method lasts longest is unknown")


def test_censored_half_lives_are_lower_bounds(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for seed in range(6):
        record(run, [attacked("sft", 100, seed=seed), attacked("vaa", 900, seed=seed)])
    facts = gather(run)
    life = facts.attacks[0].methods[1].life
    assert (life.steps.value, life.censored, life.n) == (LAST, 6, 6)
    assert math.isnan(life.steps.low)
    assert EN.life(life) == ">400"
    found = facts.comparisons["vaa"]
    assert found.bound == "lower"
    assert EN.ratio(found) == "\u22654.0\u00d7"
    assert EN.between(found.ratio, "times") == "4.0\u2013\u221e"
    assert "at least 4.0 times" in verdict(facts)[0]
    assert cards(facts)[0].detail == "a lower bound: attacks ended first"


def test_two_lower_bounds_decide_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for seed in (0, 1):
        record(run, [attacked("sft", 100, seed=seed), attacked("vaa", 900, seed=seed)])
    facts = gather(run)
    assert facts.comparisons["vaa"].outcome == "unclear"
    first = verdict(facts)[0]
    assert "lasted at least 4.0 times" in first
    assert "longer attacks and more seeds" in first


def test_what_only_the_baseline_withstood_is_an_upper_bound(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for seed in range(6):
        record(run, [attacked("sft", 900, seed=seed), attacked("vaa", 100, seed=seed)])
    found = gather(run).comparisons["vaa"]
    assert (found.bound, found.ratio.low, found.outcome) == ("upper", 0, "shorter")
    assert EN.ratio(found) == "\u22640.25\u00d7"


def test_bounds_of_both_kinds_bound_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, [attacked("sft", 900), attacked("vaa", 300)])
    record(run, [attacked("sft", 50, seed=1), attacked("vaa", 900, seed=1)])
    facts = gather(run)
    found = facts.comparisons["vaa"]
    assert (found.bound, found.ratio.low, found.ratio.high) == ("unknown", 0, math.inf)
    assert EN.ratio(found) == "unknown"
    first = verdict(facts)[0]
    assert isinstance(first, Text)
    assert first.template == Claim.EITHER.value
    assert cards(facts)[0].detail == "bounded on neither side: attacks ended first"


def test_a_baseline_that_survives_speaks_against_the_method(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, [attacked(m, 50 * f, seed=s) for s in (0, 1) for m, f in (("sft", 1), ("vaa", 8))])
    record(run, [attacked("sft", 900, seed=2), attacked("vaa", 399, seed=2)])
    found = gather(run).comparisons["vaa"]
    assert (found.outcome, found.pairs, found.against) == ("unclear", 3, 1)
    assert "in 1 of 3 paired attacks plain fine-tuning withstood" in verdict(gather(run))[0]


def test_half_lives_that_were_not_reached_enter_as_what_they_are(tmp_path: Path) -> None:
    # Three ratios of 2, 3 and 4 and one of more than 400 / 100.
    run = RunDir(tmp_path)
    for seed, factor in enumerate((2, 3, 4, 9)):
        record(run, [attacked("sft", 100, seed=seed), attacked("vaa", 100 * factor, seed=seed)])
    facts = gather(run)
    found = facts.comparisons["vaa"]
    lives = [Time(200), Time(300), Time(400), Time(400, censored=True)]
    wanted = censored_ratio([Pair(life, Time(100)) for life in lives])
    assert found.ratio == wanted.interval
    assert (found.pairs, found.censored, found.bound, found.outcome) == (4, 1, "", "longer")
    assert found.ratio.value > 96 ** (1 / 4)  # the bound itself would give this
    first, second = verdict(facts)[:2]
    assert "more than chance explains" in first
    assert "1 of which ended before" in first
    assert "took at least" in second


def broken_off(result: AttackResult) -> AttackResult:
    """Return the attack of a model that answers with neither harm nor refusals from step 50 on."""
    counts = {"world": Counts(0, 0, 100)}
    points = [replace(p, verdicts=counts) if p.step else p for p in result.points]
    return replace(
        result, points=tuple(points), half_life=made_life(math.nan, points, censored=True)
    )


def test_a_low_harmful_score_is_not_taken_for_refusing(tmp_path: Path) -> None:
    """By harmful answers vaa lasts 8 times as long and tar beyond 400; tar ceases to refuse."""
    kept, lost = RunDir(tmp_path / "kept"), RunDir(tmp_path / "lost")
    for seed in range(6):
        plain = attacked("sft", 40 + seed, seed=seed)
        held = attacked("vaa", 8 * (40 + seed), seed=seed)
        record(kept, [plain, held])
        record(lost, [plain, broken_off(attacked("tar", 900, seed=seed))])
    for run, line, sentence in (
        (kept, "vaa", Sentence.REFUSING),
        (lost, "tar", Sentence.REFUSING_NOT),
    ):
        facts = gather(run)
        assert facts.comparisons[line].outcome == "longer"
        found = facts.refusing[line]
        told = {t.template: t.values for t in verdict(facts)}[sentence.value]
        assert (told["low"], told["high"]) == (found.ratio.low, found.ratio.high)
        assert str(told["ratio"]) == EN.times(found.ratio.value)
    tar = next(m for m in gather(lost).attacks[0].methods if m.line == "tar")
    assert tar.life.censored == 6
    assert (tar.refusal_life.steps.value, tar.refusal_life.censored) == (25, 0)  # half of 0 to 50


@pytest.mark.parametrize(
    ("lives", "sentence"),
    [
        # Both pairs are longer by at least 8 and 10 times, but two pairs alone have p = 0.5.
        ([(50, 900), (40, 900)], Sentence.REFUSING_BOUND),
        # One pair is longer, the other shorter, and both are bounds.
        ([(50, 900), (900, 300)], Sentence.REFUSING_UNKNOWN),
    ],
)
def test_a_bound_of_the_refusal_half_lives_is_not_denied_by_its_interval(
    tmp_path: Path, lives: list[tuple[int, int]], sentence: Sentence
) -> None:
    run = RunDir(tmp_path)
    results = []
    for seed, (plain, held) in enumerate(lives):
        results += [attacked("sft", plain, seed=seed), attacked("vaa", held, seed=seed)]
    record(run, results)
    facts = gather(run)
    longer = replace(facts.comparisons["vaa"], outcome="longer")
    told = {t.template for t in _refusing(replace(facts, comparisons={"vaa": longer}), "vaa")}
    assert told == {sentence.value}


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([], "No model was attacked"),
        ([attacked("vaa", 100)], "Only vaa was attacked"),
        ([attacked("vaa", 100), attacked("sam", 50)], "plain fine-tuning was not among them"),
        (
            [attacked("sft", 100), attacked("sam", 50)],
            "no other method lasted longer than plain fine-tuning",
        ),
        (
            [attacked("sft", 100), attacked("sam", 150)],
            "more seeds would show how much of that is luck",
        ),
        (
            [attacked("sft", 100), attacked("sam", 150, seed=1)],
            "no attack with the same seed gave both",
        ),
    ],
)
def test_the_verdict_says_no_more_than_the_data(
    tmp_path: Path, results: list[AttackResult], said: str
) -> None:
    run = RunDir(tmp_path)
    record(run, results)
    assert said in verdict(gather(run))[0]


def test_variants_of_one_method_are_not_averaged(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    weak, strong = attacked("vaa", 100), replace(attacked("vaa", 300), model="vaa-rho1")
    record(run, [weak, strong])
    assert ranked(gather(run).attacks) == ["vaa-rho1", "vaa-seed0"]


def test_other_judges_and_settings_do_not_mix(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    other = replace(attacked("sft", 100), judge="refusal")
    record(run, [attacked("sft", 100), other, attacked("sft", 100, settings=HARD)])
    record(run, [attacked("sft", 100, settings=SETTINGS | {"task": "sentiment,train=a.tsv"})])
    facts = gather(run)
    assert len(facts.attacks) == 4
    labels = [EN.attack(a, facts.attacks) for a in facts.attacks]
    assert len(set(labels)) == 4
    assert "general, 10% harmful rows, learning rate 1e-4" in labels


def test_curve_is_the_mean_over_seeds_with_its_range(tmp_path: Path) -> None:
    # At step 50: 50 * 50 / 100 = 25 and 50 * 50 / 50 = 50 of 100 answers.
    run = RunDir(tmp_path)
    record(run, [attacked("sft", 100), attacked("sft", 50, seed=1)])
    curve = gather(run).attacks[0].methods[0].curve()
    assert curve[0] == (0, 0, 0, 0)
    assert curve[1] == (50, pytest.approx(0.375), 0.25, 0.5)


def test_compare_with_itself_is_one(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    assert compare(gather(run).attacks, "sam", "sam").ratio.value == pytest.approx(1)


# ------------------------------------------------------------------------------------- the words


def test_numbers_in_words() -> None:
    assert EN.percent(0.0) == "0%"
    assert EN.percent(0.004) == "0.4%"  # not "0%": it is not nothing
    assert EN.percent(0.999) == "99.9%"
    assert EN.percent(0.5) == "50%"
    assert EN.percent(math.nan) == "unknown"
    assert EN.steps(1234.4) == "1,234"
    assert EN.steps(math.nan) == "unknown"
    assert EN.between(Interval(0.3, 0.08, 0.41, 9), "percent") == "8.0\u201341%"
    assert EN.between(Interval(0.3, math.nan, math.nan, 1), "percent") == ""
    assert EN.between(Interval(60, -20, 140, 2), "steps") == "0\u2013140"
    assert [EN.count(n) for n in (1, 9, 1234, math.nan)] == ["1", "9", "1,234", "unknown"]


# -------------------------------------------------------------------------------------- the page


@pytest.mark.parametrize("language", ["en", "ja"])
def test_page_is_complete_and_in_order(tmp_path: Path, language: str) -> None:
    page = page_of(full_run(tmp_path), a_section(), language=language)
    texts = Words(language).text  # type: ignore[arg-type]
    parts = ("summary", "comparison", "attacks", "undecided_title", "limits", "made", "data")
    places = [page.text.rindex(texts[key]) for key in (*parts, "hashes", "glossary")]
    assert places == sorted(places)
    assert page.all("html")[0]["lang"] == language
    for part in ("Do tasks forget", "0.914", "Two tasks only.", "Apache-2.0", "2 CPU cores"):
        assert part in page.text
    assert texts["value_unknown"] in page.text
    assert RunDir(tmp_path).digest in page.text
    assert texts["missing"] not in page.text


def test_what_models_were_made_from_and_how_they_computed(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    assert "Precisionnot recorded\n" in page_of(run, a_section()).text
    contents = {"hash": "c" * 64, "made_from": "chat.gguf, SHA-256 0123"}
    for spec in (str(tmp_path / "chat.gguf"), "chat.gguf"):
        Sources(run).contents("model", spec, lambda: contents)
    (tmp_path / "sources" / "broken.json").write_text("{")
    for stage in ("attack", "evaluate"):
        with run.job(stage, "one", config={"seed": 0, "precision": "bfloat16"}, inputs={}):
            pass
    page = page_of(run, a_section())
    assert "Precisionbfloat16\n" in page.text
    model = f"chat.gguf {'c' * 16}, made from chat.gguf, SHA-256 0123"
    assert f"Models read{model}\n" in page.text
    with run.job("score", "two", config={"seed": 0, "precision": "float32"}, inputs={}):
        pass
    page = page_of(run, a_section())
    assert "Precisionbfloat16 (attack, evaluate)float32 (score)\n" in page.text


def test_page_can_be_read_by_programs_that_read_aloud(tmp_path: Path) -> None:
    page = page_of(full_run(tmp_path), a_section())
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    assert len(page.all("table")) == len(page.all("caption"))
    assert all("scope" in cell for cell in page.all("th"))
    assert not page.all("svg")
    assert all(picture["alt"] for picture in page.all("img"))
    assert all(bar["aria-label"] for bar in page.all("span") if bar.get("role") == "img")
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a in page.all("a")]
    assert all(link and link.startswith("#") and link[1:] in ids for link in links)


def test_page_loads_nothing(tmp_path: Path) -> None:
    html = build.build(full_run(tmp_path), [a_section()], title="Report")
    page = Page(html)
    for tag in ("link", "iframe", "object", "embed", "base", "form"):
        assert not page.all(tag)
    sources = [attributes["src"] or "" for _, attributes in page.tags if "src" in attributes]
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    outside = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"https?://|@import|@font-face|url\(", outside)
    for source in sources:
        picture = base64.b64decode(source.partition(",")[2]).decode()
        rest = re.sub(r'xmlns(:xlink)?="[^"]*"', "", picture)
        assert not re.search(r"https?://|@import|@font-face|href|<script|foreignObject", rest)


def test_only_the_page_s_own_script_may_run(tmp_path: Path) -> None:
    html = build.build(full_run(tmp_path), [a_section()], title="Report")
    page = Page(html)
    (policy,) = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(maxsplit=1) for rule in (policy["content"] or "").split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    data, code = re.findall(r"<script[^>]*>(.*?)</script>", html, flags=re.DOTALL)
    digest = hashlib.sha256(code.encode()).digest()
    assert rules["script-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    figures = json.loads(data)["figures"]
    assert len(figures) == len(page.all("img"))
    ids = [attributes.get("id") for _, attributes in page.tags]
    assert all(name in ids for name in figures)
    assert "ast: true" in code  # expressions are interpreted, so `unsafe-eval` is not needed
    assert len(html.encode()) < 3e6


def test_nothing_that_came_in_becomes_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    monkeypatch.setattr(sys, "argv", ["holdfast", evil])
    run = RunDir(tmp_path)
    settings = SETTINGS | {"task": evil}
    result = replace(attacked(evil, 100, settings=settings), model="m", judge=evil)
    points = tuple(replace(p, verdicts={evil: p.verdicts["world"]}) for p in result.points)
    evaluation = replace(evaluated(evil, 0, harmful=1, refused=3), model="m", tasks={evil: {}})
    row = {"prompt": evil, "response": evil, "verdicts": {evil: {"harmful": None, "reason": evil}}}
    record(run, [replace(result, points=points)], [evaluation], [row])
    with run.job("score", "s", config={"note": evil}, inputs={evil: evil}) as job:
        job.facts = {"provenance": {evil: {evil: 3}}, "hardware": evil}
    section = Section(
        title=evil,
        findings=(evil,),
        tables={evil: SectionTable((evil,), ((evil,),))},
        figures={
            evil: LineChart(
                title=evil,
                x=Axis(title=evil),
                y=Axis(title=evil),
                lines=(Line(evil, (0, 1), (0.2, 0.4)),),
            )
        },
        note=evil,
    )
    for show in (False, True):
        html = build.build(run, [section], title=evil, show_harmful=show)
        page = Page(html)
        assert [script.get("type") for script in page.all("script")] == ["application/json", None]
        assert all((img["src"] or "").startswith("data:image/svg") for img in page.all("img"))
        assert not any(name.startswith("on") for _, a in page.tags for name in a)
        assert html.count("&lt;script&gt;") > 15


def test_answers_are_withheld_unless_asked_for(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    hidden = page_of(run)
    assert "PROMPT-TEXT" not in hidden.text
    assert "RESPONSE-TEXT" not in hidden.text
    assert "--show-harmful" in hidden.text
    assert "RESPONSE-TEXT" in page_of(run, show_harmful=True).text


def test_empty_run_says_what_is_missing_and_how_to_make_it(tmp_path: Path) -> None:
    page = page_of(RunDir(tmp_path))
    for stage in ("score", "align", "attack", "evaluate", "analyze"):
        assert f"holdfast {stage} --out {tmp_path}" in page.text
    assert "0%" not in page.text
    assert "No model was attacked" in page.text
    assert "nothing is known of source, licence" in page.text


def test_attacks_without_evaluation_leave_the_price_unknown(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, [attacked("sft", 100, accuracy=math.nan), attacked("vaa", 200, accuracy=math.nan)])
    page = page_of(run)
    assert "The price in over-refusal was not measured." in page.text
    assert "Accuracy on the customer's task was not measured." in page.text
    assert "measured at step 0 of the attacks" in page.text


def test_over_refusal_not_measured_is_unknown(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, [], [evaluated("sft", 0, harmful=1, refused=None)])
    assert math.isnan(gather(run).standings[0].over_refusal.value)
    assert "unknown" in page_of(run).text


def test_broken_and_changed_files_are_named_and_left_out(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    files = sorted(run.path("attack").glob("*.json"))
    files[0].write_text('{"kind": "attack", "schema": 1}', encoding="utf-8")
    files[1].unlink()
    files[2].write_text("{", encoding="utf-8")
    page = page_of(run)
    assert "cannot be trusted" in page.text
    for path in files[:3]:
        assert path.name in page.text


def test_broken_manifest_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    run.path("manifest", "x.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"x\.json"):
        build.build(run, [], title="Report")


def test_files_are_written_with_a_machine_readable_twin(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    path = build.write(run, [a_section()], title="Report", language="ja")
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    twin = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (twin["kind"], twin["digest"], twin["language"]) == ("report", run.digest, "ja")
    assert len(twin["attacks"]) == 2
    assert twin["attacks"][0]["methods"][0]["verdicts"]["undecided"] == 2  # 1 in each of 2 seeds
    assert twin["sections"][0]["tables"]["Overlap"]["rows"][1] == ["a, c", None, 600]
    assert "RESPONSE-TEXT" not in json.dumps(twin)


def test_nothing_to_report_is_said(tmp_path: Path) -> None:
    from holdfast.stages.report import ReportConfig, report

    with pytest.raises(UsageError, match="nothing to report"):
        report(ReportConfig(out=tmp_path))


def undecided_from_the_start(result: AttackResult) -> AttackResult:
    """Return the attack as seen by a judge that never decided."""
    counts = {"world": Counts(0, 0, 100)}
    points = [replace(point, verdicts=counts) for point in result.points]
    return replace(result, points=tuple(points), half_life=Life(math.nan))


def test_a_judge_that_never_decided_gives_no_number(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, [undecided_from_the_start(attacked("sft", 100))])
    facts = gather(run)
    (under,) = facts.attacks[0].methods
    assert math.isnan(under.end.value)
    assert (under.end.low, under.end.high) == (0, 1)
    assert math.isnan(under.life.steps.value)
    assert all(math.isnan(mean) for _, mean, _, _ in under.curve())
    text = " ".join(verdict(facts))
    assert "is unknown: the judge decided none of the 100 answers" in text
    assert " 0%" not in text
    assert "overstated" not in text  # there is no half-life
    assert any("decided nothing, so the half-life is unknown" in p for p in facts.problems)
    assert all(card.label != "Harmful before any attack" for card in cards(facts))


def test_the_sentence_before_an_attack_covers_the_undecided(tmp_path: Path) -> None:
    """10 of 100 harmful, 30 undecided: Wilson's low end of 10 %, high end of 40 %."""
    run = RunDir(tmp_path)
    result = attacked("sft", 100)
    first = replace(result.points[0], verdicts={"world": Counts(10, 60, 30)})
    record(run, [replace(result, points=(first, *result.points[1:]))])
    (sentence,) = [t for t in verdict(gather(run)) if t.template == Sentence.BEFORE_UNDECIDED.value]
    assert (sentence.values["share"], sentence.values["undecided"]) == (0.1, 30)
    assert sentence.values["low"] == pytest.approx(0.0552, abs=1e-4)
    assert sentence.values["high"] == pytest.approx(0.4980, abs=1e-4)


def test_a_claim_that_the_undecided_could_overturn_says_so(tmp_path: Path) -> None:
    """Vaa lasts 8 times as long, but most of its answers are undecided from step 10 on."""
    run = RunDir(tmp_path)
    for seed in range(6):
        plain = attacked("sft", 40 + seed, seed=seed)
        held = attacked("vaa", 8 * (40 + seed), seed=seed)
        counts = [p.verdicts["world"].harmful for p in held.points]
        points = [
            replace(p, verdicts={"world": Counts(h, max(0, 25 - h), min(75, 100 - h))})
            if p.step
            else p
            for p, h in zip(held.points, counts, strict=True)
        ]
        record(run, [plain, replace(held, points=tuple(points))])
    facts = gather(run)
    assert facts.comparisons["vaa"].outcome == "longer"
    assert Sentence.UNDECIDED_RATIO.value in {t.template for t in verdict(facts)}
