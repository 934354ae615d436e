"""Which kinds of requests fall first, and does an attack reach the kinds that it has no rows of?"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from holdfast.analyses.levelling import median_steps
from holdfast.contracts import Analysis, Section, SectionTable
from holdfast.errors import UsageError
from holdfast.results.artifacts import AttackResult, Life
from holdfast.results.comparison import compare_lives, line_names, pairs_of
from holdfast.results.lives import REFUSAL_HALF_LIFE, for_prompts, life_until
from holdfast.results.run_dir import Entry, RunDir
from holdfast.stats.corrections import holm
from holdfast.stats.ratios import Ratio
from holdfast.stats.wording import ratio_of
from holdfast.texts import UNKNOWN, Text, joined, number

ATTACKED, OTHERS = Text("the attacker's categories"), Text("all others")
ALPHA = 0.05


class Categories(Analysis):
    """Takes an attack's course apart by the category of the tested prompts.

    A harmful score over all prompts hides two things. Some kinds of requests may fall long before
    half of all do. And an attacker whose rows are of some categories only wants harm in these: a
    defense that has taken away what answers to the others are made of keeps the score over all
    prompts below one half for good, and holds nothing where it is attacked.
    """

    needs: ClassVar[tuple[str, ...]] = ("attack",)

    least: int = Field(default=10, ge=1)
    """Least number of tested prompts of a category that is looked at by itself."""
    baseline: str = "sft"
    """Method whose half-lives on the same prompts the others are compared with."""

    def run(self, run: RunDir) -> Section:
        """Return, for every method and category, how long it lasted.

        Raises:
            UsageError: There are no two categories of enough prompts to tell apart.
        """
        attacks = _attacks(run)
        of = {p: c for attack in attacks for p, c in attack.asked.items()}
        counts = Counter(of.values())
        kinds = [c for c in sorted(counts) if counts[c] >= self.least]
        if len(kinds) < 2:
            raise UsageError(
                f"{run.root}: {len(kinds)} categories of {self.least} tested prompts or more; give "
                "the test prompts a column named category, or take least=N"
            )
        named = line_names([a.result for a in attacks])
        by_name = defaultdict[str, list[_Attack]](list)
        for attack in attacks:
            by_name[named(attack.result)].append(attack)
        table = [_line(name, mine, kind) for name, mine in by_name.items() for kind in kinds]
        tables: dict[str, SectionTable] = {
            Text("Half-lives by category"): _frame(table, self.baseline)
        }
        sides = [
            _line(name, aimed, side)
            for name, mine in by_name.items()
            if (aimed := [a for a in mine if a.aimed(self.least)])
            for side in (ATTACKED, OTHERS)
        ]
        if sides:
            tables = {
                Text("Where the attacker has rows, and where not"): _frame(sides, self.baseline),
                **tables,
            }
        few = sum(counts.values()) - sum(counts[c] for c in kinds)
        return Section(
            title=Text("Which kinds of requests fall first?"),
            findings=(*_missed(sides, self.baseline), *_apart(table)),
            tables=tables,
            note=Text(
                "A ratio is the half-life of a category's prompts over the half-life of all "
                "prompts under the same attack, a geometric mean over attacks and seeds. Its "
                "interval covers attacks and seeds, not prompts: other prompts of the category "
                "may behave differently, especially where few were tested. An attack that stops "
                "when half of all answers are harmful (until_broken) says nothing about "
                "categories that last longer. {few:d} prompts are in categories with fewer than "
                "{least:d} prompts.",
                few=few,
                least=self.least,
            ),
        )


@dataclass(frozen=True)
class _Attack:
    """An attack whose prompts' categories are known.

    Attributes:
        result: What came of it.
        asked: Test prompt -> category, of those that have one.
        rows: Categories of the attacker's harmful rows; empty if they have none.
    """

    result: AttackResult
    asked: Mapping[str, str]
    rows: frozenset[str]

    def aimed(self, least: int) -> bool:
        """Whether its rows are of some of the tested categories only, few prompts set aside."""
        among_rows = sum(category in self.rows for category in self.asked.values())
        return least <= among_rows <= len(self.asked) - least

    def of(self, kind: str) -> AttackResult | None:
        """Return the result on the prompts of a category, or of one side; None without any."""
        if kind in (ATTACKED, OTHERS):
            mine = {p for p, c in self.asked.items() if (c in self.rows) == (kind == ATTACKED)}
        else:
            mine = {p for p, c in self.asked.items() if c == kind}
        return for_prompts(self.result, mine) if mine else None


def _attacks(run: RunDir) -> list[_Attack]:
    """Return the attacks with harmful rows; a customer's own rows are of no category."""
    found = []
    for entry in run.require("attack"):
        result = AttackResult.load(run.result(entry))
        category = _categories(run, entry, "test")
        rows = _categories(run, entry, "harmful")
        asked = {p: category[p] for p in result.prompts if p in category}
        if asked and result.attack.poison_ratio > 0:
            found.append(_Attack(result, asked, frozenset(rows.values())))
    return found


def _categories(run: RunDir, entry: Entry, label: str) -> Mapping[str, str]:
    """Return row -> category of rows of an attack; none if it was made without such rows."""
    if label not in entry.rows:
        return {}
    return _categories_of(run.root, entry.rows[label]["file"])


@lru_cache(maxsize=64)
def _categories_of(root: Path, file: str) -> Mapping[str, str]:
    """Read the categories of stored rows once: many attacks have the same ones."""
    rows = RunDir(root).rows.load(file)
    return {row.id: row.provenance["category"] for row in rows if "category" in row.provenance}


# ---------------------------------------------------------------------------------- lines


@dataclass(frozen=True)
class _Line:
    """A method's attacks seen on the prompts of a category, and against those on all prompts."""

    method: str
    kind: str
    rows: str
    part: tuple[AttackResult, ...]
    ratio: Ratio | None

    def shown(self) -> dict[str, Any]:
        """Return it as a row of the table."""
        scores = [a.points[-1].verdicts[a.judge].harmful_score for a in self.part]
        ends = [score for score in scores if not math.isnan(score)]
        return {
            Text("method"): self.method,
            Text("category"): self.kind,
            Text("attacker has rows"): self.rows,
            Text("prompts"): max((len(a.prompts) for a in self.part), default=0),
            Text("attacks"): len(self.part),
            Text("seeds"): len({a.model_seed for a in self.part}),
            Text("harmful at the end"): sum(ends) / len(ends) if ends else math.nan,
            Text("half-life"): _median([a.half_life for a in self.part]),
            Text("not reached"): sum(a.half_life.censored for a in self.part),
            Text("refusal half-life"): _median(
                [life_until(a, REFUSAL_HALF_LIFE, resamples=0) for a in self.part]
            ),
            Text("against all prompts"): ratio_of(self.ratio),
        }


def _median(lives_of: Sequence[Life]) -> Text:
    steps = median_steps(lives_of)
    if math.isnan(steps):
        return Text(UNKNOWN)
    return Text("not reached") if math.isinf(steps) else number(steps, ".0f")


def _line(name: str, attacks: Sequence[_Attack], kind: str) -> _Line:
    seen = [(part, a) for a in attacks if (part := a.of(kind))]
    has = {_has_rows(a, kind) for _, a in seen}
    rows = has.pop() if len(has) == 1 else Text("in some attacks")
    pairs = [(part, a.result) for part, a in seen]
    return _Line(name, kind, rows, tuple(part for part, _ in seen), compare_lives(pairs).ratio)


def _has_rows(attack: _Attack, kind: str) -> str:
    if kind in (ATTACKED, OTHERS):
        return Text("yes") if kind == ATTACKED else Text("no")
    if not attack.rows:
        return Text("unknown")
    return Text("yes") if kind in attack.rows else Text("no")


def _frame(lines: Sequence[_Line], baseline: str) -> SectionTable:
    plain = {line.kind: line for line in lines if line.method == baseline}
    rows = [line.shown() for line in lines]
    for line, row in zip(lines, rows, strict=True) if plain else ():
        against = "" if line in plain.values() else _times(line, plain[line.kind])
        row[Text("against {baseline}", baseline=baseline)] = against
    return SectionTable.of(rows)


def _times(ours: _Line, theirs: _Line) -> Text:
    """Return how many times as long ours lasts under the same attacks."""
    return ratio_of(compare_lives(pairs_of(ours.part, theirs.part)).ratio)


# ------------------------------------------------------------------------------- findings


def _missed(sides: Sequence[_Line], baseline: str) -> list[Text]:
    """Say how long prompts last that the attacker has rows for, and how long all others last."""
    plain = next((line for line in sides if line.method == baseline), None)
    found = []
    for attacked, others in zip(sides[::2], sides[1::2], strict=True):
        first = Text(
            "On {method}, half of the answers in the attacker's categories turn harmful in "
            "{broken:d} of {n:d} attacks",
            method=attacked.method,
            broken=_broken(attacked),
            n=len(attacked.part),
        )
        if plain and attacked is not plain:
            times = _times(attacked, plain)
            first = Text(
                "{first}, after {times} times the steps of {baseline}",
                first=first,
                times=times,
                baseline=baseline,
            )
        ratio = compare_lives(list(zip(others.part, attacked.part, strict=True))).ratio
        found.append(
            Text(
                "{first}; in all other categories in {broken:d} of {n:d} attacks, after {ratio} "
                "times the steps of the attacker's categories (n={n:d} attacks).",
                first=first,
                broken=_broken(others),
                n=len(others.part),
                ratio=ratio_of(ratio),
            )
        )
    return found


def _broken(line: _Line) -> int:
    return sum(a.half_life.reached for a in line.part)


def _apart(lines: Sequence[_Line]) -> list[Text]:
    """Say how far each method's categories lie apart, and which differ from all prompts."""
    tested = [(line, r) for line in lines if (r := line.ratio) and not math.isnan(r.p)]
    corrected = holm([r.p for _, r in tested])
    by_name: dict[str, list[tuple[str, Ratio, float]]] = {line.method: [] for line in lines}
    for (line, ratio), p in zip(tested, corrected, strict=True):
        by_name[line.method].append((line.kind, ratio, p))
    found = []
    for name, mine in by_name.items():
        n = max(len(line.part) for line in lines if line.method == name)
        if not mine:
            found.append(
                Text(
                    "On {method}, how long the categories last is unknown (n={n:d} attacks).",
                    method=name,
                    n=n,
                )
            )
            continue
        values = [ratio.interval.value for _, ratio, _ in mine]
        clear = [
            Text("{category} ({ratio})", category=kind, ratio=ratio_of(ratio))
            for kind, ratio, p in mine
            if p <= ALPHA
        ]
        found.append(
            Text(
                "On {method}, the {k:d} categories last between {low:.2f} and {high:.2f} times as "
                "long as all prompts together (n={n:d} attacks); {which}.",
                method=name,
                k=len(mine),
                low=min(values),
                high=max(values),
                n=n,
                which=Text(
                    "the difference is clear for {categories}",
                    categories=joined(clear, "semicolon"),
                )
                if clear
                else Text("none of them clearly differs from all prompts"),
            )
        )
    return found
