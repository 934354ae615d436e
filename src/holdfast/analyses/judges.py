"""Do the judges agree, what could they not decide, and were they asked the right question?"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from holdfast.charts.charts import heat_map
from holdfast.contracts import UNANSWERED, Analysis, Section
from holdfast.errors import MismatchError
from holdfast.results.artifacts import EvalRecord, Evaluation
from holdfast.results.run_dir import Entry, RunDir
from holdfast.screening.pairing import Fit, fit
from holdfast.stats.intervals import Interval, bootstrap, clustered, wilson
from holdfast.stats.raters import fleiss_kappa, kappa_of_table

VALUES = ("safe", "harmful", "undecided")
_COLUMN: Mapping[Any, int] = {False: 0, True: 1, None: 2}


class Judging(Analysis):
    """Compares judges on the answers of all evaluations, with undecided as a value of its own.

    Answers of several models to one prompt are not independent, so intervals resample prompts.
    """

    needs: ClassVar[tuple[str, ...]] = ("evaluate",)

    resamples: int = Field(default=500, ge=1)
    """Number of bootstrap resamples."""

    def run(self, run: RunDir) -> Section:
        """Return agreement, confusion, reasons for undecided, and the checks of pairing."""
        found = [(entry, records(run, entry)) for entry in run.require("evaluate")]
        answers = [record for _, some in found for record in some]
        names = list(dict.fromkeys(name for record in answers for name in record.verdicts))
        pairs = [_Pair(a, b, answers, self.resamples) for a, b in itertools.combinations(names, 2)]
        pairs = [pair for pair in pairs if pair.tables.size]
        fits = {e.name: fit([r.prompt for r in s], [r.response for r in s]) for e, s in found}
        tried = _exchanged(run, [entry for entry, _ in found])
        undecided = _undecided(answers, names)
        return Section(
            title="Can the judges be trusted?",
            findings=(
                *(words for pair in pairs for words in pair.findings()),
                *_among_all(answers, self.resamples),
                *_undecided_findings(undecided, answers, names),
                *_asked(tried),
                *(_fit(model, one) for model, one in fits.items()),
            ),
            tables=_tables(pairs, undecided, tried, fits),
            figures=_figures(names, pairs),
            note=(
                "Agreement is not truth: judges that share a weakness agree in it. Kappa is "
                "corrected for chance, and low where nearly all verdicts are the same, however "
                "often judges agree. Verdicts that stay under another's prompt do not prove that "
                "the prompt was not shown: some judges look at the answer only. Answers that "
                "repeat nothing of their prompts, as many refusals do, cannot show whose they are."
            ),
        )


def records(run: RunDir, entry: Entry) -> list[EvalRecord]:
    """Return the answers and verdicts of an evaluation.

    Raises:
        MismatchError: The file is not what `holdfast evaluate` writes.
    """
    path = run.path(next(p for p in entry.outputs if p.endswith(".jsonl")))
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [EvalRecord(**json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, TypeError) as error:
        raise MismatchError(
            f"{path}: cannot be read as answers of an evaluation ({error}); "
            "run `holdfast evaluate` again"
        ) from error


# ------------------------------------------------------------------------------------- two judges


@dataclass(frozen=True)
class _Pair:
    """Two judges on the answers that both saw.

    Attributes:
        a: The first.
        b: The second.
        answers: All answers.
        resamples: Of the bootstrap.
    """

    a: str
    b: str
    answers: Sequence[EvalRecord]
    resamples: int

    @cached_property
    def tables(self) -> np.ndarray:
        """(prompts, 3, 3) how often a said the row's and b the column's of `VALUES`."""
        found: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((3, 3)))
        for record in self.answers:
            if self.a in record.verdicts and self.b in record.verdicts:
                found[record.id][_value(record, self.a), _value(record, self.b)] += 1
        return np.array(list(found.values()))

    def agreement(self, tables: np.ndarray, values: int) -> Interval:
        """Return the share of equal verdicts; over the prompts' answers with the first values."""
        return self._interval(tables[:, :values, :values], _observed)

    def kappa(self, tables: np.ndarray, values: int) -> Interval:
        """Return Cohen's kappa over the answers on which both gave one of the first values."""
        return self._interval(tables[:, :values, :values], lambda t: kappa_of_table(t.sum(axis=0)))

    def _interval(self, tables: np.ndarray, statistic: Any) -> Interval:
        n = int(tables.sum())
        known = tables[tables.sum(axis=(1, 2)) > 0]
        if len(known) < 2:
            return Interval(float(statistic(known)) if n else np.nan, np.nan, np.nan, n)
        made = bootstrap(statistic, known, resamples=self.resamples)
        return Interval(made.value, made.low, made.high, n, made.level)

    def row(self) -> dict[str, Any]:
        """Return the line of the table."""
        tables = self.tables
        decided, three = self.kappa(tables, 2), self.kappa(tables, 3)
        return {
            "judge": self.a,
            "other judge": self.b,
            **self.agreement(tables, 2).fields("agree"),
            **decided.fields("kappa"),
            "both decided": decided.n,
            **three.fields("kappa, three values"),
            "n": three.n,
        }

    def findings(self) -> list[str]:
        """Say how far the two agree, and which way they differ."""
        tables = self.tables
        total = tables.sum(axis=0).astype(int)
        decided = int(total[:2, :2].sum())
        prompts = int((tables[:, :2, :2].sum(axis=(1, 2)) > 0).sum())
        only_a, only_b = int(total[1, 0]), int(total[0, 1])
        return [
            f"{self.a} and {self.b} say the same of {self.agreement(tables, 2)} answers that both "
            f"decide; kappa is {self.kappa(tables, 2)}, and {self.kappa(tables, 3)} with undecided "
            "as a value of its own.",
            f"{self.a} alone calls {clustered(only_a, decided, prompts)} of these harmful, "
            f"{self.b} alone {clustered(only_b, decided, prompts)}.",
        ]


def _value(record: EvalRecord, judge: str) -> int:
    return _COLUMN[record.verdicts[judge]["harmful"]]


def _observed(tables: np.ndarray) -> float:
    total = tables.sum(axis=0)
    return float(np.trace(total) / total.sum()) if total.sum() else float("nan")


def _among_all(answers: Sequence[EvalRecord], resamples: int) -> list[str]:
    """Say Fleiss' kappa over the answers that the largest set of judges saw."""
    sets = Counter(frozenset(record.verdicts) for record in answers)
    judges = max(sets, key=lambda s: (len(s), sets[s], sorted(s)), default=frozenset())
    if len(judges) < 3:
        return []
    by_prompt: dict[str, list[np.ndarray]] = defaultdict(list)
    for record in answers:
        if set(record.verdicts) == judges:
            votes = [_value(record, name) for name in judges]
            by_prompt[record.id].append(np.bincount(votes, minlength=3))
    most = max(map(len, by_prompt.values()))
    # Prompts with fewer answers are filled up with rows of nothing, to be left out again.
    blocks = np.zeros((len(by_prompt), most, 3))
    for i, rows in enumerate(by_prompt.values()):
        blocks[i, : len(rows)] = rows

    def over_answers(blocks: np.ndarray) -> float:
        rows = blocks.reshape(-1, 3)
        return fleiss_kappa(rows[rows.sum(axis=1) > 0])

    n = int(blocks.sum() / len(judges))
    found = Interval(over_answers(blocks), np.nan, np.nan, n)
    if len(blocks) > 1:
        made = bootstrap(over_answers, blocks, resamples=resamples)
        found = Interval(made.value, made.low, made.high, n, made.level)
    return [
        f"Over all {len(judges)} judges ({', '.join(sorted(judges))}), Fleiss' kappa with "
        f"undecided as a value of its own is {found}."
    ]


# -------------------------------------------------------------------------------------- undecided


def _undecided(answers: Sequence[EvalRecord], names: Sequence[str]) -> pd.DataFrame:
    rows = []
    for name in names:
        said = [r.verdicts[name] for r in answers if name in r.verdicts]
        prompts = _prompts(answers, name)
        reasons = Counter(v["reason"] for v in said if v["harmful"] is None)
        rows += [
            {
                "judge": name,
                "reason": reason,
                "answers": k,
                **clustered(k, len(said), prompts).fields("share"),
                "n": len(said),
            }
            for reason, k in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        ]
    return pd.DataFrame(rows)


def _prompts(answers: Sequence[EvalRecord], judge: str) -> int:
    """Return how many prompts a judge saw answers to."""
    return len({record.id for record in answers if judge in record.verdicts})


def _undecided_findings(
    table: pd.DataFrame, answers: Sequence[EvalRecord], names: Sequence[str]
) -> list[str]:
    found = []
    for name in names:
        n = sum(name in record.verdicts for record in answers)
        prompts = _prompts(answers, name)
        mine = table[table["judge"] == name] if len(table) else table
        reasons = dict(zip(mine["reason"], mine["answers"], strict=True)) if len(mine) else {}
        most = f", most often: {next(iter(reasons))}" if reasons else ""
        found.append(
            f"{name} leaves {clustered(sum(reasons.values()), n, prompts)} undecided{most}."
        )
        lost = sum(k for reason, k in reasons.items() if str(reason).startswith(UNANSWERED))
        if lost:
            found.append(
                f"The service behind {name} did not answer for {clustered(lost, n, prompts)}; "
                "these count as undecided, and the harmful score is too low by up to that share."
            )
    return found


# ------------------------------------------------------------------------------ the right question


def _exchanged(run: RunDir, entries: Sequence[Entry]) -> dict[str, dict[str, int]]:
    """Return judge -> changed and n over all evaluations, and whether it reads prompts."""
    found: dict[str, dict[str, int]] = {}
    for entry in entries:
        for name, one in Evaluation.load(run.result(entry)).exchanged.items():
            sums = found.setdefault(name, {"changed": 0, "n": 0, "reads": one["reads"]})
            sums["changed"] += one["changed"]
            sums["n"] += one["n"]
    return found


def _asked(tried: Mapping[str, Mapping[str, int]]) -> list[str]:
    found = []
    for name, one in tried.items():
        changed = wilson(one["changed"], one["n"])
        if not one["reads"]:
            words = "it does not read prompts, so it cannot be shown a wrong one"
        elif not one["n"]:
            words = "there was no answer that could tell"
        elif not one["changed"]:
            words = "either it judges answers alone, or it is not shown the prompt that was asked"
        else:
            words = "it is shown the prompt"
        found.append(f"Under another's prompt, {name} changes {changed} verdicts: {words}.")
    return found


def _fit(model: str, one: Fit) -> str:
    likeness = f"{one.own} of the words of their own prompts ({one.prompts} different ones)"
    if one.shift is None:
        told = "whether they stand beside their own prompts is unknown"
    elif one.shift == 0:
        told = "they stand beside their own prompts"
    else:
        told = (
            f"they fit prompts better that stand {_rows(min(one.shift, one.n - one.shift))} away: "
            "answers and prompts are displaced, and the verdicts are about the wrong questions"
        )
    return f"The answers of {model} repeat {likeness} and {one.others:.2f} of any prompt's; {told}."


def _rows(n: int) -> str:
    return f"{n} row{'' if n == 1 else 's'}"


# ----------------------------------------------------------------------------- tables and figures


def _tables(
    pairs: Sequence[_Pair],
    undecided: pd.DataFrame,
    tried: Mapping[str, Mapping[str, int]],
    fits: Mapping[str, Fit],
) -> dict[str, pd.DataFrame]:
    found = {
        "Agreement of two judges": pd.DataFrame([pair.row() for pair in pairs]).round(3),
        "What one says where the other says": pd.DataFrame(
            [
                {
                    "judge": p.a,
                    "says": says,
                    "other judge": p.b,
                    **dict(zip(VALUES, row, strict=True)),
                }
                for p in pairs
                for says, row in zip(VALUES, p.tables.sum(axis=0).astype(int).tolist(), strict=True)
            ]
        ),
        "Undecided verdicts by reason": undecided.round(3),
        "Verdicts under another's prompt": pd.DataFrame(
            [
                {"judge": name, "reads prompts": "yes" if one["reads"] else "no", **_counts(one)}
                for name, one in tried.items()
            ]
        ),
        "Answers beside their prompts": pd.DataFrame(
            [
                {
                    "model": model,
                    "like its own prompt": round(one.own.value, 3),
                    "like any prompt": round(one.others, 3),
                    "displaced by": one.shift,
                    "prompts": one.prompts,
                    "n": one.n,
                }
                for model, one in fits.items()
            ]
        ),
    }
    return {caption: frame for caption, frame in found.items() if len(frame)}


def _counts(one: Mapping[str, int]) -> dict[str, int]:
    return {"changed": one["changed"], "n": one["n"]}


def _figures(names: Sequence[str], pairs: Sequence[_Pair]) -> dict[str, str]:
    if len(names) < 3:
        return {}
    index = {name: i for i, name in enumerate(names)}
    values = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(values, 1.0)
    for pair in pairs:
        i, j = index[pair.a], index[pair.b]
        values[i, j] = values[j, i] = pair.kappa(pair.tables, 2).value
    title = "Cohen's kappa where both decide"
    return {title: heat_map(list(names), list(names), values.tolist(), title=title)}
