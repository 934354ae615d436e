"""Groups by every rule, crossed with categories, edited by hand, and inputs that make none."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from holdfast.errors import DataError, MismatchError, UsageError
from holdfast.examples import Example, Examples
from holdfast.groups import RULES, Rule, group, groups_from_csv, groups_to_csv, recommend
from holdfast.groups.make import level_names
from holdfast.groups.stability import doubt
from holdfast.groups.table import escape_cell, unescape_cell
from holdfast.results.artifacts import Groups, Scores
from holdfast.results.run_dir import RunDir
from holdfast.stages.group import GroupConfig
from holdfast.stages.group import group as stage

NAN = math.nan


def scored(
    values: list[float], categories: list[str] | None = None, errors: list[float] | None = None
) -> tuple[Scores, Examples]:
    """Make rows with these scores; the scores lie in another order than the rows."""
    rows = Examples(
        Example(f"prompt {i}", "no", {"category": categories[i]} if categories else {})
        for i in range(len(values))
    )
    order = list(range(len(values)))[::-1]
    scores = Scores(
        ids=tuple(rows.ids[i] for i in order),
        values=np.array([values[i] for i in order]),
        errors=None if errors is None else np.array([errors[i] for i in order]),
        estimator="toy",
        data_hash=rows.hash,
        model_hash="",
    )
    return scores, rows


@pytest.mark.parametrize(
    ("rule", "values", "labels", "threshold"),
    [
        ("positive", [0, 3, 0, 1], [0, 1, 0, 1], 0.0),
        ("otsu", [0, 1, 10, 2], [0, 0, 1, 0], 6.0),
        # The 60 % quantile of 0..5 lies at 3: only what is above it is vulnerable.
        ("quantile", [5, 4, 3, 2, 1, 0], [1, 1, 0, 0, 0, 0], 3.0),
        # 5 + 3 are 80 % of 10; between 3 and 2.
        ("mass", [0, 5, 2, 3], [0, 1, 0, 1], 2.5),
        ("knee", [0, 10, 0, 0, 0], [0, 1, 0, 0, 0], 5.0),
    ],
)
def test_rules(rule: str, values: list[float], labels: list[int], threshold: float) -> None:
    scores, rows = scored(values)
    groups = group(scores, rows, rule=rule)
    assert groups.labels.tolist() == labels
    assert groups.labels.dtype == np.int64
    assert groups.ids == rows.ids
    assert groups.facts == {"threshold": threshold, "not_scored": 0}
    assert groups.names == ("invulnerable", "vulnerable")
    assert (groups.scores_hash, groups.data_hash) == (scores.hash, rows.hash)
    assert "toy" in groups.rule


def test_rows_without_a_score_are_vulnerable_and_counted() -> None:
    scores, rows = scored([NAN, 0, 10, 1, NAN])
    groups = group(scores, rows)
    assert groups.labels.tolist() == [1, 0, 1, 0, 1]
    assert groups.facts["not_scored"] == 2
    assert groups.sizes == {"invulnerable": 2, "vulnerable": 3}


def test_labels_follow_the_rows_asked_for() -> None:
    scores, rows = scored([0, 1, 10, 2])
    groups = group(scores, rows)
    assert groups.aligned_to(rows.ids[::-1]).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0, 1], {"rule": "median"}, "'median' is none of positive, quantile, mass, otsu"),
        ([], {}, r"0 scored rows \(of \d\): grouping needs at least 2"),
        ([1.0], {}, r"1 scored rows \(of \d\): grouping needs at least 2"),
        ([1.0, NAN, NAN], {}, r"1 scored rows \(of \d\): grouping needs at least 2"),
        ([NAN, NAN], {}, r"0 scored rows \(of \d\): grouping needs at least 2"),
        ([2.0, 2.0, 2.0], {}, "all 3 scores equal 2"),
        ([1, 2, 3], {"rule": "positive"}, "all 3 examples into the vulnerable group"),
        ([-1, -2, 0], {"rule": "positive"}, "all 3 examples into the invulnerable group"),
        ([-1, -2], {"rule": "positive"}, "--rule quantile"),
        ([0, 1, 1, 1, 1], {"rule": "quantile"}, "into the invulnerable group"),
        ([0, 1, 2], {"rule": Rule("quantile", quantile=0.0)}, "between 0 and 1"),
        ([0, 1, 2], {"rule": Rule("quantile", quantile=1.0)}, "between 0 and 1"),
        ([0, 1, 2], {"rule": Rule("quantile", quantile=NAN)}, "between 0 and 1"),
        ([0, 1, 1, 1], {"rule": Rule(groups=3)}, "only 2 different values"),
        # The 60 % and the 80 % quantile both lie at 0.
        ([0] * 8 + [1, 2], {"rule": Rule("quantile", groups=3)}, "leaves the group 'level 2 of 3'"),
        ([0, 1], {"by": "category"}, "no row of data has that column; the rows have no prov"),
    ],
)
def test_bad_inputs(values: list[float], options: dict[str, object], message: str) -> None:
    scores, rows = scored(values)
    with pytest.raises(UsageError, match=message):
        group(scores, rows, **options)  # type: ignore[arg-type]


def test_scores_of_other_rows_are_refused() -> None:
    scores, _ = scored([0, 1, 2])
    other = Examples([Example("another prompt", "no")])
    with pytest.raises(MismatchError, match="scores lack 1 of 1"):
        group(scores, other)


# ------------------------------------------------------------------------------- more than two


def test_three_groups_are_named_by_level_and_unscored_rows_are_in_the_last() -> None:
    scores, rows = scored([0, 1, 10, 11, 30, NAN])
    groups = group(scores, rows, rule=Rule(groups=3))
    assert groups.names == (
        "level 1 of 3 (least vulnerable)",
        "level 2 of 3",
        "level 3 of 3 (most vulnerable)",
    )
    assert groups.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert groups.facts == {"thresholds": [5.5, 20.5], "not_scored": 1}


@pytest.mark.parametrize("name", ["quantile", "mass", "otsu", "gmm"])
def test_every_rule_for_several_groups_says_so_in_words(name: str) -> None:
    rng = np.random.default_rng(0)
    scores, rows = scored([*rng.normal(5, 1, 40), *rng.normal(20, 1, 40), *rng.normal(40, 1, 40)])
    groups = group(scores, rows, rule=Rule(name, groups=3))
    assert sorted(groups.sizes.values())[0] > 0
    assert "toy" in groups.rule
    assert len(groups.facts["thresholds"]) == 2
    means = [scores.aligned_to(rows.ids)[groups.labels == k].mean() for k in range(3)]
    assert means == sorted(means)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_makes_two_groups_of_clear_scores(name: str) -> None:
    rng = np.random.default_rng(1)
    low, high = -rng.gamma(2.0, 0.1, 30), rng.normal(8, 0.2, 20)
    scores, rows = scored([*low, *high])
    rule = Rule(name, mass=1.0)
    groups = group(scores, rows, rule=rule)
    assert groups.labels.tolist() == [0] * 30 + [1] * 20 or name == "quantile"
    assert groups.sizes == {"invulnerable": 30, "vulnerable": 20}
    assert groups.names == level_names(2)


def test_auto_is_the_recommendation_with_its_reason() -> None:
    values = [0] * 7 + [1, 2, 3]
    scores, rows = scored(values)
    groups = group(scores, rows, rule="auto")
    advice = recommend(np.array(values, float))
    assert groups.facts["chosen_rule"] == advice.rule.name == "positive"
    assert groups.facts["reason"] == advice.reason
    assert groups.rule == (
        f"vulnerable = score of toy above 0 (chosen automatically: {advice.reason})"
    )
    assert groups.labels.tolist() == [0] * 7 + [1] * 3


def test_vaa_trains_on_three_groups(
    make_trainer: Callable[..., Any], make_model: Any, tokenizer: Any, data: Any
) -> None:
    rows = data.safety
    scores = Scores(rows.ids, np.arange(len(rows)) % 3 * 1.0, "toy", rows.hash, "")
    groups = group(scores, rows, rule=Rule(groups=3))
    model = make_model(vocab=len(tokenizer))
    trainer = make_trainer("vaa", model, replace(data, groups=groups), rho=0.05)
    trainer.train()
    assert trainer.names == groups.names
    assert trainer.sampler.probs.shape == (3,)


# --------------------------------------------------------------------------------- by category


def test_categories_are_divided_by_the_same_cut() -> None:
    values = [0, 0, 0, 10, 10, 1, 1, 12, 12, 12]
    scores, rows = scored(values, ["arms"] * 5 + ["drugs"] * 5)
    groups = group(scores, rows, by="category", min_size=2)
    # By mean score: arms 0, drugs 1, arms 10, drugs 12.
    assert groups.names == (
        "arms: invulnerable",
        "drugs: invulnerable",
        "arms: vulnerable",
        "drugs: vulnerable",
    )
    assert groups.labels.tolist() == [0, 0, 0, 2, 2, 1, 1, 3, 3, 3]
    assert groups.facts["by"] == "category"
    assert (groups.facts["merged_cells"], groups.facts["pooled_categories"]) == (0, 0)
    assert groups.rule.endswith("times category")


def test_tiny_cells_join_the_other_half_and_tiny_categories_are_pooled() -> None:
    values = [0, 0, 0, 10, 1, 1, 10, 10, 5, 11, 10, 0]
    categories = ["arms"] * 4 + ["drugs"] * 4 + ["", "", "fraud", "hate"]
    scores, rows = scored(values, categories)  # the cut lies between 1 and 10
    groups = group(scores, rows, by="category", min_size=2)
    named = [groups.names[k] for k in groups.labels]
    # arms has one vulnerable row only; fraud and hate have one row each and are pooled as other,
    # one row in each half; rows without a category are one half each, too.
    assert named == (
        ["arms: undivided"] * 4
        + ["drugs: invulnerable"] * 2
        + ["drugs: vulnerable"] * 2
        + ["unknown: undivided"] * 2
        + ["other: undivided"] * 2
    )
    assert groups.facts["merged_cells"] == 3
    assert groups.facts["pooled_categories"] == 2
    assert min(groups.sizes.values()) >= 2


def test_levels_merge_with_their_smaller_neighbour() -> None:
    # arms: 3, 1 and 2 rows in the three levels: the middle one joins the upper.
    values = [0, 0, 0, 10, 30, 30, 0, 0, 10, 10, 30, 30]
    scores, rows = scored(values, ["arms"] * 6 + ["drugs"] * 6)
    groups = group(scores, rows, rule=Rule(groups=3), by="category", min_size=2)
    named = [groups.names[k] for k in groups.labels]
    assert named[3:6] == ["arms: level 2 of 3 + level 3 of 3 (most vulnerable)"] * 3
    assert named[8] == "drugs: level 2 of 3"


def test_unscored_rows_of_a_category_come_last() -> None:
    scores, rows = scored([0, 0, 9, 9, NAN, NAN], ["arms"] * 4 + ["drugs"] * 2)
    groups = group(scores, rows, by="category", min_size=2)
    assert groups.names[-1] == "drugs: undivided"
    assert groups.labels.tolist() == [0, 0, 1, 1, 2, 2]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=6, max_size=40),
    st.integers(1, 6),
    st.integers(2, 3),
)
def test_no_group_is_ever_empty(rows_: list[tuple[int, str]], min_size: int, m: int) -> None:
    values, categories = zip(*rows_, strict=True)
    scores, rows = scored([float(v) for v in values], list(categories))
    try:
        groups = group(scores, rows, rule=Rule(groups=m), by="category", min_size=min_size)
    except UsageError:
        return
    sizes = groups.sizes
    assert min(sizes.values()) > 0
    assert len(sizes) == len(groups.names)
    # Only what is left of the pool may be smaller than asked for.
    assert all(n >= min_size for name, n in sizes.items() if not name.startswith("other"))


@pytest.mark.parametrize(
    ("by", "min_size", "message"),
    [
        ("kind", 8, "no row of data has that column; the rows have category"),
        ("category", 0, "--min-size 0 must be at least 1"),
        ("category", 50, "--min-size 50 merges all 4 examples into one group"),
    ],
)
def test_bad_crossings(by: str, min_size: int, message: str) -> None:
    scores, rows = scored([0, 0, 9, 9], ["arms"] * 4)
    with pytest.raises(UsageError, match=message):
        group(scores, rows, by=by, min_size=min_size)


# --------------------------------------------------------------------------------------- doubt


def test_doubt_is_kept_and_counted() -> None:
    # Otsu's cut of 0, 2, 8, 10 lies at 5.
    scores, rows = scored([0, 2, 8, 10, NAN], errors=[1.0, 6.0, 12.0, NAN, 1.0])
    groups = group(scores, rows)
    phi = scipy_stats.norm.cdf
    assert groups.doubt is not None
    assert groups.doubt[:3] == pytest.approx([phi(-5), phi(-3 / 6), phi(-3 / 12)])
    assert np.isnan(groups.doubt[3:]).all()
    # phi(-1/2) is 0.31 and phi(-1/4) is 0.40, both above a quarter.
    assert groups.facts["too_close_to_call"] == 2
    assert groups.facts["doubt_known"] == 3


def test_errors_of_few_repeats_leave_more_doubt() -> None:
    """Student's t with two repeats has one degree of freedom: 1/2 - arctan(x) / pi is its tail."""
    values, errors = np.array([0.0, 3.0]), np.array([1.0, 1.0])
    low, high = np.array([-np.inf, 1.0]), np.array([1.0, np.inf])
    known, many = doubt(values, errors, low, high), doubt(values, errors, low, high, 10_000)
    two = doubt(values, errors, low, high, 2)
    assert two is not None
    assert known is not None
    assert two == pytest.approx([0.5 - math.atan(x) / math.pi for x in (1, 2)])
    assert (two > known).all()
    assert many == pytest.approx(known, abs=1e-4)


def test_repeats_that_tie_are_not_certain() -> None:
    values, low, high = np.array([0.0, 2.0, 3.0]), np.full(3, -np.inf), np.full(3, 4.0)
    given = doubt(values, np.array([0.0, 1.0, 3.0]), low, high, 2)
    taken = doubt(values, np.array([2.0, 1.0, 3.0]), low, high, 2)
    np.testing.assert_array_equal(given, taken)
    np.testing.assert_array_equal(doubt(values, np.zeros(3), low, high, 2), [NAN] * 3)
    # An error that does not say what it was made of is taken for the truth.
    np.testing.assert_array_equal(doubt(values, np.zeros(3), low, high), [0.0] * 3)


def test_members_of_an_ensemble_are_few_repeats() -> None:
    """The error of two members has one degree of freedom, as that of two attacks has."""
    scores, rows = scored([0, 2, 8, 10], errors=[1.0, 6.0, 12.0, 1.0])
    exact, members, attacks = (
        group(replace(scores, facts=facts), rows).doubt
        for facts in ({}, {"members": 2}, {"attacks": 2})
    )
    assert exact is not None
    assert members is not None
    np.testing.assert_array_equal(members, attacks)
    assert (members > exact).all()


def test_nothing_is_said_of_doubt_without_errors() -> None:
    scores, rows = scored([0, 1, 9])
    assert group(scores, rows).doubt is None
    scores, rows = scored([0, 1, 9], errors=[NAN] * 3)
    assert "too_close_to_call" not in group(scores, rows).facts


def test_an_undivided_category_leaves_no_doubt() -> None:
    errors = [5.0] * 8
    scores, rows = scored([0, 0, 9, 9, 0, 0, 0, 9], ["arms"] * 4 + ["drugs"] * 4, errors)
    groups = group(scores, rows, by="category", min_size=2)
    assert groups.doubt is not None
    assert (groups.doubt[4:] == 0).all()
    assert (groups.doubt[:4] > 0.1).all()


def test_groups_round_trip_with_doubt_and_edits(tmp_path: Path) -> None:
    scores, rows = scored([0, 1, 9], errors=[1.0, NAN, 2.0])
    edits = ({"id": rows.ids[0], "from": "invulnerable", "to": "vulnerable"},)
    groups = replace(group(scores, rows), edits=edits)
    groups.save(tmp_path / "g.json")
    found = Groups.load(tmp_path / "g.json")
    np.testing.assert_array_equal(found.doubt, groups.doubt)
    assert found.edits == edits
    assert found.hash == groups.hash


def test_files_without_doubt_name_the_missing_key(tmp_path: Path) -> None:
    scores, rows = scored([0, 1, 9])
    group(scores, rows).save(tmp_path / "g.json")
    raw = json.loads((tmp_path / "g.json").read_text())
    del raw["doubt"]
    (tmp_path / "g.json").write_text(json.dumps(raw))
    with pytest.raises(MismatchError, match="g.json: doubt: this key is missing"):
        Groups.load(tmp_path / "g.json")


def test_doubt_of_another_length_is_refused() -> None:
    scores, rows = scored([0, 1, 9])
    with pytest.raises(MismatchError, match=r"doubt: shape \(2,\)"):
        replace(group(scores, rows), doubt=np.zeros(2))


# ------------------------------------------------------------------------------------- by hand


@pytest.fixture
def made(tmp_path: Path) -> tuple[Groups, Scores, Examples, Path]:
    """Return groups of six rows and the table written from them."""
    scores, rows = scored(
        [0, 1, -2, 9, 8, NAN], ["=cmd", "b, c", "", "d", "e", "f"], [0.1, NAN, 9.0, 1.0, 1.0, 1.0]
    )
    groups = group(scores, rows)
    path = tmp_path / "tables" / "groups.csv"
    groups_to_csv(groups, scores, rows, path)
    return groups, scores, rows, path


def lines(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def write(path: Path, rows: list[list[str]], delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def test_the_table_by_hand(made: tuple[Groups, Scores, Examples, Path]) -> None:
    groups, _, rows, path = made
    header, *found = lines(path)
    assert header == ["id", "prompt", "category", "score", "error", "doubt", "group"]
    assert [unescape_cell(line[0]) for line in found] == list(rows.ids)
    assert found[0][1:5] == ["prompt 0", "'=cmd", "0", "0.1"]
    assert found[1][2:6] == ["b, c", "1", "", ""]
    assert found[2][3] == "-2"  # a number is no formula
    assert found[5][3:6] == ["", "1", ""]
    assert [line[6] for line in found] == ["invulnerable"] * 3 + ["vulnerable"] * 3
    assert groups.doubt is not None
    assert float(found[2][5]) == pytest.approx(groups.doubt[2], rel=1e-5)


def test_an_untouched_table_changes_nothing(made: tuple[Groups, Scores, Examples, Path]) -> None:
    groups, _, _, path = made
    assert groups_from_csv(path, groups) is groups


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_edits_are_read_and_recorded(
    made: tuple[Groups, Scores, Examples, Path], delimiter: str
) -> None:
    groups, _, rows, path = made
    header, *found = lines(path)
    found[2][6] = " vulnerable "
    write(path, [[*header, "remark"], *([*line, "seen"] for line in found[::-1])], delimiter)
    edited = groups_from_csv(path, groups)
    assert edited.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert edited.edits == ({"id": rows.ids[2], "from": "invulnerable", "to": "vulnerable"},)
    assert edited.rule == groups.rule + "; edited by hand: 1 of 6 moved"
    assert edited.hash != groups.hash
    # Phi(-|-2 - 4.5| / 9) is 0.24; whatever it was, a person decided.
    assert edited.doubt is not None
    assert np.isnan(edited.doubt[2])
    assert edited.facts["doubt_known"] == groups.facts["doubt_known"] - 1
    assert groups.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_second_edit_is_told_from_the_rule(
    made: tuple[Groups, Scores, Examples, Path], tmp_path: Path
) -> None:
    groups, scores, rows, path = made
    header, *found = lines(path)
    found[2][6], found[3][6] = "vulnerable", "invulnerable"
    write(path, [header, *found])
    once = groups_from_csv(path, groups)
    again = tmp_path / "again.csv"
    groups_to_csv(once, scores, rows, again)
    header, *found = lines(again)
    found[2][6], found[0][6] = "invulnerable", "vulnerable"  # one is moved back
    write(again, [header, *found])
    twice = groups_from_csv(again, once)
    assert {edit["id"] for edit in twice.edits} == {rows.ids[0], rows.ids[3]}
    assert twice.rule == groups.rule + "; edited by hand: 2 of 6 moved"


Change = Callable[[list[list[str]]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[3].__setitem__(0, "f" * 16), r":4: column 'id': 'f{16}' is not in"),
        (lambda t: t[3].__setitem__(0, t[1][0]), r":4: column 'id': .* is there twice"),
        (lambda t: t[2].__setitem__(6, "safe"), r":3: column 'group': 'safe' is none of 'invul"),
        (lambda t: t.pop(2), r"column 'id' lacks 1 of 6 examples \(first: "),
        (lambda t: t[0].__setitem__(6, "label"), r":1: no column 'group'"),
        (lambda t: t[0].__setitem__(1, "id"), r":1: 2 times the column 'id'"),
        (lambda t: t[4].pop(), r":5: 6 cells, the header has 7"),
        (lambda t: [line.__setitem__(6, "vulnerable") for line in t[1:]], "nothing is left in"),
        (lambda t: t.clear(), "empty; write the table again"),
    ],
)
def test_bad_tables(
    made: tuple[Groups, Scores, Examples, Path], change: Change, message: str
) -> None:
    groups, _, _, path = made
    table = lines(path)
    change(table)
    write(path, table)
    with pytest.raises(UsageError, match=message) as raised:
        groups_from_csv(path, groups)
    assert str(raised.value).startswith(str(path))


def test_unreadable_tables(made: tuple[Groups, Scores, Examples, Path]) -> None:
    groups, _, _, path = made
    with pytest.raises(UsageError, match="no such file"):
        groups_from_csv(path.with_name("none.csv"), groups)
    path.write_bytes(b"id,group\n\xff,vulnerable\n")
    with pytest.raises(UsageError, match="cannot be read as UTF-8"):
        groups_from_csv(path, groups)
    path.write_text('id,group\n"x,vulnerable\n')
    with pytest.raises(DataError, match=":2: .*close every quote"):
        groups_from_csv(path, groups)


def test_a_table_with_edits_is_not_overwritten(
    made: tuple[Groups, Scores, Examples, Path],
) -> None:
    groups, scores, rows, path = made
    before = path.read_bytes()
    groups_to_csv(groups, scores, rows, path)
    assert path.read_bytes() == before
    path.write_bytes(before.replace(b",vulnerable", b",invulnerable", 1))
    with pytest.raises(UsageError, match="it may hold edits"):
        groups_to_csv(groups, scores, rows, path)


def test_the_table_of_other_scores_is_refused(
    made: tuple[Groups, Scores, Examples, Path], tmp_path: Path
) -> None:
    groups, scores, rows, _ = made
    other = replace(scores, values=scores.values + 1)
    with pytest.raises(MismatchError, match="made from other scores"):
        groups_to_csv(groups, other, rows, tmp_path / "x.csv")


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1", "-1", "@x", "\tx", "0123456789012345", "12e45", "1"]
)
def test_cells_that_spreadsheets_run_or_rewrite_are_protected(cell: str) -> None:
    assert escape_cell(cell) == "'" + cell
    assert unescape_cell(escape_cell(cell)) == cell


@given(st.text(alphabet="'=+-@1e.\ta ", max_size=8))
def test_protection_is_undone_exactly(text: str) -> None:
    cell = escape_cell(text)
    assert unescape_cell(cell) == text
    assert cell[:1] not in tuple("=+-@\t")


@settings(max_examples=30, deadline=None)
@given(prompts=st.lists(st.text(min_size=1, max_size=12), min_size=4, max_size=8))
def test_any_prompt_survives_the_table(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str]
) -> None:
    unique = {Example(p).id: Example(p) for p in prompts if p.isprintable()}
    rows = Examples(unique.values())
    if len(rows) < 2:
        return
    values = np.arange(len(rows), dtype=float)
    scores = Scores(rows.ids, values, "toy", rows.hash, "")
    groups = group(scores, rows)
    path = tmp_path_factory.mktemp("table") / "g.csv"
    groups_to_csv(groups, scores, rows, path)
    assert [unescape_cell(line[1]) for line in lines(path)[1:]] == rows.prompts
    assert groups_from_csv(path, groups) is groups


# --------------------------------------------------------------------------------------- stage


@pytest.fixture
def scored_run(tmp_path: Path) -> tuple[Path, Path]:
    """Return a run directory with scores, and the rows' file."""
    data = tmp_path / "rows.jsonl"
    content = [
        {"prompt": f"prompt {i}", "response": "no", "category": "ab"[i % 2]} for i in range(20)
    ]
    data.write_text("\n".join(json.dumps(row) for row in content))
    rows = Examples(Example(f"prompt {i}", "no") for i in range(20))
    out = tmp_path / "run"
    values = np.array([*range(10), *range(100, 110)], float)
    run = RunDir(out)
    with run.job("score", "toy", config={}, inputs={}) as job:
        Scores(rows.ids, values, "toy", rows.hash, "", errors=np.full(20, 30.0)).save(
            run.path("scores", "toy.json")
        )
        job.outputs.append(run.path("scores", "toy.json"))
    return out, data


def test_the_stage_writes_a_table_and_reads_it_back(
    scored_run: tuple[Path, Path], tmp_path: Path
) -> None:
    out, data = scored_run
    table = tmp_path / "g.csv"
    first = stage(GroupConfig(out=out, data=str(data), csv=table))
    assert first.sizes == {"invulnerable": 10, "vulnerable": 10}
    header, *found = lines(table)
    found[0][6] = "vulnerable"
    write(table, [header, *found])
    edited = stage(GroupConfig(out=out, data=str(data), edited=table))
    assert edited.sizes == {"invulnerable": 9, "vulnerable": 11}
    (entry,) = RunDir(out).entries("group")
    assert entry.facts["rule"].endswith("edited by hand: 1 of 20 moved")
    assert list(entry.outputs) == ["groups/toy.json"]
    assert RunDir(out).verify() == []
    # The same labels from a table elsewhere are the same step; other labels are not.
    moved = tmp_path / "moved.csv"
    moved.write_bytes(table.read_bytes())
    stage(GroupConfig(out=out, data=str(data), edited=moved))
    assert RunDir(out).entries("group")[0].started == entry.started
    found[1][6] = "vulnerable"
    write(table, [header, *found])
    assert stage(GroupConfig(out=out, data=str(data), edited=table)).sizes["vulnerable"] == 12


def test_the_stage_does_not_overwrite_edits(scored_run: tuple[Path, Path], tmp_path: Path) -> None:
    out, data = scored_run
    table = tmp_path / "g.csv"
    table.write_text("id,group\n")
    with pytest.raises(UsageError, match="may hold edits"):
        stage(GroupConfig(out=out, data=str(data), csv=table))
    assert RunDir(out).entries("group") == []
    with pytest.raises(UsageError, match="--edited .*none.csv: no such file"):
        stage(GroupConfig(out=out, data=str(data), edited=tmp_path / "none.csv"))


def test_the_stage_crosses_with_a_column(scored_run: tuple[Path, Path]) -> None:
    out, data = scored_run
    options = {"out": out, "data": str(data), "by": "category", "min_size": 2}
    groups = stage(GroupConfig(**options))
    assert len(groups.names) == 4
    # Categories are no part of the rows' hash, but they decide the groups.
    data.write_text(data.read_text().replace('"category": "b"', '"category": "a"'))
    assert stage(GroupConfig(**options)).names == ("a: invulnerable", "a: vulnerable")


@pytest.mark.parametrize("rule", [*RULES, "auto"])
def test_the_stage_knows_every_rule(scored_run: tuple[Path, Path], rule: str) -> None:
    out, data = scored_run
    groups = stage(GroupConfig(out=out, data=str(data), rule=rule, name=rule))
    assert min(groups.sizes.values()) > 0


@pytest.mark.parametrize("wanted", [0, 1])
def test_the_stage_makes_two_groups_at_least(scored_run: tuple[Path, Path], wanted: int) -> None:
    out, data = scored_run
    with pytest.raises(UsageError, match=f"groups={wanted} must be a whole number, at least 2"):
        GroupConfig(out=out, data=str(data), groups=wanted)
