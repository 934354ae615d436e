"""What the chapter on categories says of attacks whose prompts' verdicts are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from holdfast.analyses.categories import ATTACKED, OTHERS, Categories
from holdfast.contracts import SectionTable
from holdfast.errors import MismatchError, UsageError
from holdfast.examples import Example, Examples, example_id
from holdfast.results.artifacts import AttackResult, Counts, Point
from holdfast.results.attacks import Attack
from holdfast.results.lives import for_prompts
from holdfast.results.run_dir import RunDir
from made_lives import life

ASKED = {"locks": 4, "venoms": 4, "tea": 2}


def prompts() -> list[tuple[str, str]]:
    return [(f"{kind} {i}?", kind) for kind, n in ASKED.items() for i in range(n)]


def files(*rows_of: str) -> dict[str, Examples]:
    """Return the tested prompts, and an attacker's rows of some categories."""
    test = [Example(prompt, provenance={"category": kind}) for prompt, kind in prompts()]
    harmful = [Example(kind, "so", {"category": kind}) for kind in rows_of]
    return {"test": Examples(test), "harmful": Examples(harmful, ids_only=True)}


def attacked(
    marks: Mapping[int, str], seed: int = 0, ratio: float = 0.1, method: str = "sft"
) -> AttackResult:
    """Return an attack with a letter for each prompt, in their order, at each step."""
    ids = tuple(example_id(prompt, "") for prompt, _ in prompts())
    points = tuple(
        Point(step, {"world": Counts(m.count("h"), m.count("s"), m.count("u"))}, marks={"world": m})
        for step, m in marks.items()
    )
    about = Attack(task="tea", poison_ratio=ratio)
    half_life = life(15, points)
    return AttackResult(
        f"{method}-s{seed}", method, method, seed, about, "world", points, half_life, prompts=ids
    )


def kept(path: Path, rows: Mapping[str, Examples], *attacks: AttackResult) -> RunDir:
    run = RunDir(path / "run")
    for i, result in enumerate(attacks):
        with run.job("attack", f"a{i}", config={}, inputs={}, rows=rows) as job:
            result.save(run.path("attacks", f"{i}.json"))
            job.outputs.append(run.path("attacks", f"{i}.json"))
    return run


def lines(table: SectionTable) -> dict[str, dict[str, object]]:
    return {row["category"]: row for row in table.frame.to_dict("records")}


# Locks are half harmful at 10 and at 20, venoms at 40 and 80, all ten prompts in between.
COURSES = (
    {0: "ssssssssss", 10: "hhssssssss", 30: "hhhhhsssss", 40: "hhhhhhssss", 60: "hhhhhhhhss"},
    {0: "ssssssssss", 20: "hhssssssss", 60: "hhhhhsssss", 80: "hhhhhhssss", 99: "hhhhhhhhss"},
)


def test_a_category_lasts_as_long_as_its_own_prompts(tmp_path: Path) -> None:
    run = kept(tmp_path, files(*ASKED), *map(attacked, COURSES, (0, 1)))
    section = Categories(least=4).run(run)
    (table,) = section.tables.values()  # the attacker has rows of all
    found = lines(table)
    assert set(found) == {"locks", "venoms"}
    assert [found["locks"][k] for k in ("prompts", "attacks", "seeds")] == [4, 2, 2]
    assert [found[k]["half-life"] for k in ("locks", "venoms")] == ["15", "60"]
    assert {row["attacker has rows"] for row in found.values()} == {"yes"}
    # Against 15, which all have: geometric means of 10/15 and 20/15, of 40/15 and 80/15.
    locks, venoms = (math.sqrt(x) / 15 for x in (10 * 20, 40 * 80))
    assert str(found["locks"]["against all prompts"]).startswith(f"{locks:.2f} [")
    assert str(found["venoms"]["against all prompts"]).startswith(f"{venoms:.2f} [")
    assert "2 prompts are in categories with fewer than 4" in section.note
    told = (
        f"On sft, the 2 categories last between {locks:.2f} and {venoms:.2f} times as long as all"
    )
    assert section.findings[0].startswith(told)
    # Two seeds apart by a factor of two each: nothing can be told.
    assert section.findings[0].endswith(
        "(n=2 attacks); none of them clearly differs from all prompts."
    )


def test_an_attacker_with_rows_of_one_category(tmp_path: Path) -> None:
    """The others: six prompts, three of them harmful never before 60 and 99, where four are."""
    run = kept(tmp_path, files("locks"), *map(attacked, COURSES, (0, 1)))
    section = Categories(least=4).run(run)
    sides, single = section.tables.values()
    found = lines(sides)
    assert [found[k]["prompts"] for k in (ATTACKED, OTHERS)] == [4, 6]
    assert [found[k]["attacker has rows"] for k in (ATTACKED, OTHERS)] == ["yes", "no"]
    assert lines(single)["venoms"]["attacker has rows"] == "no"
    # Two of six at 40, four at 60: half, by the line between them, at 50; and at 89.5.
    assert found[OTHERS]["half-life"] == f"{(50 + 89.5) / 2:.0f}"
    ratio = math.sqrt(50 / 10 * 89.5 / 20)
    assert f"other categories in 2 of 2 attacks, after {ratio:.2f} [" in section.findings[0]
    assert "against sft" in sides.columns


def test_what_is_never_reached_is_a_bound_and_undecided_is_not_harmful(tmp_path: Path) -> None:
    courses = [{0: "s" * 10, 10: "hhuuuuuuus", 50: "hhhhuuuuus"} for _ in range(2)]
    run = kept(tmp_path, files("locks"), *map(attacked, courses, (0, 1)))
    section = Categories(least=4).run(run)
    found = lines(next(iter(section.tables.values())))
    assert (found[ATTACKED]["not reached"], found[OTHERS]["not reached"]) == (0, 2)
    assert found[OTHERS]["half-life"] == "not reached"
    assert found[OTHERS]["harmful at the end"] == 0
    assert "all other categories in 0 of 2 attacks, after at least 5.00 [" in section.findings[0]


def test_a_method_is_compared_with_the_baseline_on_the_same_prompts(tmp_path: Path) -> None:
    """It lasts twice as long on locks, and falls as soon as plain fine-tuning elsewhere."""
    longer = [
        {0: "s" * 10, 10: "s" * 10, 20: "hhssssssss", 30: "hhhhhsssss", 60: "hhhhhhhhss"},
        {0: "s" * 10, 20: "s" * 10, 40: "hhssssssss", 60: "hhhhhsssss", 99: "hhhhhhhhss"},
    ]
    plain = [attacked(course, seed) for seed, course in enumerate(COURSES)]
    vaa = [attacked(course, seed, method="vaa") for seed, course in enumerate(longer)]
    section = Categories(least=4).run(kept(tmp_path, files("locks"), *plain, *vaa))
    rows = next(iter(section.tables.values())).frame.to_dict("records")
    found = {(row["method"], row["category"]): row["against sft"] for row in rows}
    assert found["vaa", ATTACKED].startswith("2.00 [")
    assert found["sft", ATTACKED] == ""
    assert "in 2 of 2 attacks, after 2.00 [" in section.findings[1]
    assert "steps of sft" not in section.findings[0]
    assert "steps of sft" in section.findings[1]


def test_without_categories_or_harmful_rows_there_is_nothing_to_tell(tmp_path: Path) -> None:
    told = files("locks")
    customer = kept(tmp_path, told, attacked(COURSES[0], ratio=0.0))
    with pytest.raises(UsageError, match="0 categories of 10 tested prompts or more"):
        Categories().run(customer)
    with pytest.raises(UsageError, match="least=N"):
        Categories(least=5).run(kept(tmp_path / "b", told, attacked(COURSES[0])))
    with pytest.raises(UsageError, match="least=0"):
        Categories(least=0)


def test_an_attack_on_some_of_its_prompts_is_counted_anew() -> None:
    result = attacked(COURSES[0])
    one = for_prompts(result, result.prompts[:2])
    assert [p.verdicts["world"] for p in one.points[:2]] == [Counts(0, 2, 0), Counts(2, 0, 0)]
    assert (one.half_life.steps, one.half_life.censored, len(one.prompts)) == (5, False, 2)
    assert for_prompts(result, result.prompts[8:]).half_life.censored
    with pytest.raises(MismatchError, match="rerun `holdfast attack`"):
        for_prompts(attacked({0: ""}), result.prompts)


def test_all_prompts_are_the_attack_itself() -> None:
    result = attacked(COURSES[1])
    assert for_prompts(result, result.prompts).points == result.points
