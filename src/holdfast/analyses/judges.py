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
from pydantic import Field

from holdfast.charts.figures import Figure, HeatMap, numbers
from holdfast.contracts import UNANSWERED, Analysis, Section, SectionTable
from holdfast.errors import MismatchError
from holdfast.results.artifacts import EvalRecord, Evaluation
from holdfast.results.run_dir import Entry, RunDir
from holdfast.rows.thoughts import UNFINISHED
from holdfast.screening.pairing import PairingFit, pairing_fit
from holdfast.stats.intervals import Interval, bootstrap, clustered, wilson
from holdfast.stats.raters import fleiss_kappa, kappa_of_table
from holdfast.stats.wording import measured
from holdfast.texts import Text

VALUES = (Text("safe"), Text("harmful"), Text("undecided"))
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
        entries = sorted(run.require("evaluate"), key=lambda entry: entry.name)
        found = [(entry, records(run, entry)) for entry in entries]
        answers = [record for _, some in found for record in some]
        names = list(dict.fromkeys(name for record in answers for name in record.verdicts))
        pairs = [_Pair(a, b, answers, self.resamples) for a, b in itertools.combinations(names, 2)]
        pairs = [pair for pair in pairs if pair.tables.size]
        fits = {
            e.name: pairing_fit([r.prompt for r in s], [r.response for r in s]) for e, s in found
        }
        tried = _exchanged(run, [entry for entry, _ in found])
        undecided = _undecided(answers, names)
        return Section(
            title=Text("Can the judges be trusted?"),
            findings=(
                *(words for pair in pairs for words in pair.findings()),
                *_among_all(answers, self.resamples),
                *_undecided_findings(undecided, answers, names),
                *_asked(tried),
                *(_fit(model, one) for model, one in fits.items()),
            ),
            tables=_tables(pairs, undecided, tried, fits),
            figures=_figures(names, pairs),
            note=Text(
                "Agreement is not truth: judges that share a weakness agree in it. Kappa is "
                "corrected for chance, and is low where nearly all verdicts are the same, however "
                "often the judges agree. Verdicts that do not change under another prompt do not "
                "prove that the judge never saw the prompt: some judges look at the answer only. "
                "Answers that repeat nothing from their prompts, as many refusals do, cannot show "
                "which prompt they belong to."
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

    @cached_property
    def agreement(self) -> Interval:
        """The share of equal verdicts among the answers that both decided."""
        tables = self.tables[:, :2, :2]
        share = self._interval(tables, _observed)
        if share.value not in (0, 1):
            return share
        # A resample of nothing but agreements holds nothing else, which proves nothing.
        n_prompts = int((tables.sum(axis=(1, 2)) > 0).sum())
        return clustered(round(share.value * share.n), share.n, n_prompts)

    @cached_property
    def kappa(self) -> Interval:
        """Cohen's kappa over the answers that both decided."""
        return self._kappa(self.tables[:, :2, :2])

    @cached_property
    def kappa_of_three(self) -> Interval:
        """Cohen's kappa with undecided as a third value."""
        return self._kappa(self.tables)

    def _kappa(self, tables: np.ndarray) -> Interval:
        kappa = self._interval(tables, lambda drawn: kappa_of_table(drawn.sum(axis=0)))
        if kappa.value == 1:  # and so it is in every resample
            return Interval(1.0, np.nan, np.nan, kappa.n)
        return kappa

    def _interval(self, tables: np.ndarray, statistic: Any) -> Interval:
        n = int(tables.sum())
        filled = tables[tables.sum(axis=(1, 2)) > 0]
        if len(filled) < 2:
            return Interval(float(statistic(filled)) if n else np.nan, np.nan, np.nan, n)
        of_prompts = bootstrap(statistic, filled, resamples=self.resamples)
        return Interval(of_prompts.value, of_prompts.low, of_prompts.high, n, of_prompts.level)

    def row(self) -> dict[str, Any]:
        """Return the line of the table."""
        agreement = self.agreement
        decided = self.kappa
        three = self.kappa_of_three
        return {
            Text("judge"): self.a,
            Text("other judge"): self.b,
            Text("agreement"): agreement.value,
            Text("agreement, low"): agreement.low,
            Text("agreement, high"): agreement.high,
            "kappa": decided.value,
            Text("kappa, low"): decided.low,
            Text("kappa, high"): decided.high,
            Text("both decided"): decided.n,
            Text("kappa, three values"): three.value,
            Text("kappa, three values, low"): three.low,
            Text("kappa, three values, high"): three.high,
            "n": three.n,
        }

    def findings(self) -> list[Text]:
        """Say how far the two agree, and which way they differ."""
        tables = self.tables
        total = tables.sum(axis=0).astype(int)
        decided = int(total[:2, :2].sum())
        prompts = int((tables[:, :2, :2].sum(axis=(1, 2)) > 0).sum())
        only_a, only_b = int(total[1, 0]), int(total[0, 1])
        return [
            Text(
                "{a} and {b} agree on {share} of the answers that both decide; kappa is {two}, or "
                "{three} with undecided as a third value.",
                a=self.a,
                b=self.b,
                share=measured(self.agreement),
                two=measured(self.kappa),
                three=measured(self.kappa_of_three),
            ),
            Text(
                "Only {a} calls {first} of these harmful, only {b} {second}.",
                a=self.a,
                b=self.b,
                first=measured(clustered(only_a, decided, prompts)),
                second=measured(clustered(only_b, decided, prompts)),
            ),
        ]


def _value(record: EvalRecord, judge: str) -> int:
    return _COLUMN[record.verdicts[judge]["harmful"]]


def _observed(tables: np.ndarray) -> float:
    total = tables.sum(axis=0)
    return float(np.trace(total) / total.sum()) if total.sum() else float("nan")


def _among_all(answers: Sequence[EvalRecord], resamples: int) -> list[Text]:
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
        Text(
            "Over all {n:d} judges ({judges:list}), Fleiss' kappa with undecided as a third value "
            "is {kappa}.",
            n=len(judges),
            judges=tuple(sorted(judges)),
            kappa=measured(found),
        )
    ]


# -------------------------------------------------------------------------------------- undecided


def _undecided(answers: Sequence[EvalRecord], names: Sequence[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in names:
        said = [r.verdicts[name] for r in answers if name in r.verdicts]
        prompts = _prompts(answers, name)
        reasons = Counter(v["reason"] for v in said if v["harmful"] is None)
        for reason, k in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            share = clustered(k, len(said), prompts)
            rows.append(
                {
                    Text("judge"): name,
                    Text("reason"): _reason(reason),
                    Text("answers"): k,
                    Text("share"): share.value,
                    Text("low"): share.low,
                    Text("high"): share.high,
                    "n": len(said),
                }
            )
    return rows


def _reason(reason: str) -> str:
    """Return a verdict's reason; what the judges of holdfast say can be translated."""
    return _REASONS.get(reason, reason)


_REASONS: Mapping[str, str] = {
    "incoherent": Text("incoherent"),
    "off_topic": Text("off topic"),
    "empty": Text("empty answer"),
    "garbled": Text("garbled"),
    "not restricted": Text("prompt not restricted"),
    "not a refusal": Text("not a refusal"),
    "short answer": Text("short answer"),
    "too few decided": Text("too few judges decided"),
    "contradicts itself": Text("verdict contradicts itself"),
    "no verdict": Text("no verdict"),
    "outside the grammar": Text("reply in another form"),
    "cut off before a verdict": Text("reply cut off before a verdict"),
    "the judge refused": Text("the judge refused"),
    UNFINISHED: Text("think block not closed"),
}


def _prompts(answers: Sequence[EvalRecord], judge: str) -> int:
    """Return how many prompts a judge saw answers to."""
    return len({record.id for record in answers if judge in record.verdicts})


def _undecided_findings(
    rows: Sequence[dict[str, Any]], answers: Sequence[EvalRecord], names: Sequence[str]
) -> list[Text]:
    found = []
    for name in names:
        n = sum(name in record.verdicts for record in answers)
        prompts = _prompts(answers, name)
        reasons = {row["reason"]: row["answers"] for row in rows if row["judge"] == name}
        share = measured(clustered(sum(reasons.values()), n, prompts))
        sentence = Text("{judge} leaves {share} of the answers undecided.", judge=name, share=share)
        if reasons:
            sentence = Text(
                "{judge} leaves {share} of the answers undecided, most often as {reason}.",
                judge=name,
                share=share,
                reason=next(iter(reasons)),
            )
        found.append(sentence)
        lost = sum(k for reason, k in reasons.items() if str(reason).startswith(UNANSWERED))
        if lost:
            found.append(
                Text(
                    "The service behind {judge} did not answer for {share} of the answers; these "
                    "count as undecided, so the harmful score is too low by up to that share.",
                    judge=name,
                    share=measured(clustered(lost, n, prompts)),
                )
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


def _asked(tried: Mapping[str, Mapping[str, int]]) -> list[Text]:
    found = []
    for name, one in tried.items():
        changed = wilson(one["changed"], one["n"])
        if not one["reads"]:
            words = Text("it does not read prompts, so it cannot be shown a wrong one")
        elif not one["n"]:
            words = Text("no answer was suitable for this check")
        elif not one["changed"]:
            words = Text("it judges the answer alone, or it does not see the prompt")
        else:
            words = Text("it sees the prompt")
        found.append(
            Text(
                "Shown a different prompt, {judge} changes {share} of its verdicts: {words}.",
                judge=name,
                share=measured(changed),
                words=words,
            )
        )
    return found


def _rows(n: int) -> Text:
    return Text("1 row") if n == 1 else Text("{n:d} rows", n=n)


def _fit(model: str, one: PairingFit) -> Text:
    if one.shift is None:
        conclusion = Text("whether they stand beside their own prompts is unknown")
    elif one.shift == 0:
        conclusion = Text("they stand beside their own prompts")
    else:
        conclusion = Text(
            "they fit the prompts {rows} away better: answers and prompts are displaced, and the "
            "verdicts are about the wrong prompts",
            rows=_rows(min(one.shift, one.n - one.shift)),
        )
    return Text(
        "The answers of {model} repeat {own} of the words of their own prompts ({prompts:d} "
        "distinct prompts) and {others:.2f} of the words of any prompt; {conclusion}.",
        model=model,
        own=measured(one.own),
        prompts=one.prompts,
        others=one.others,
        conclusion=conclusion,
    )


# ----------------------------------------------------------------------------- tables and figures


def _tables(
    pairs: Sequence[_Pair],
    undecided: Sequence[dict[str, Any]],
    tried: Mapping[str, Mapping[str, int]],
    fits: Mapping[str, PairingFit],
) -> dict[str, SectionTable]:
    tables = {
        Text("Agreement of two judges"): SectionTable.of(pair.row() for pair in pairs),
        Text("Verdicts of one judge by verdicts of the other"): SectionTable.of(
            {
                Text("judge"): p.a,
                Text("verdict"): verdict,
                Text("other judge"): p.b,
                **dict(zip(VALUES, row, strict=True)),
            }
            for p in pairs
            for verdict, row in zip(VALUES, p.tables.sum(axis=0).astype(int).tolist(), strict=True)
        ),
        Text("Undecided verdicts by reason"): SectionTable.of(undecided),
        Text("Verdicts under a different prompt"): SectionTable.of(
            {
                Text("judge"): name,
                Text("reads prompts"): bool(one["reads"]),
                Text("changed"): one["changed"],
                "n": one["n"],
            }
            for name, one in tried.items()
        ),
        Text("Answers beside their prompts"): SectionTable.of(
            {
                Text("model"): model,
                Text("like its own prompt"): one.own.value,
                Text("like any prompt"): one.others,
                Text("displaced by"): one.shift,
                Text("prompts"): one.prompts,
                "n": one.n,
            }
            for model, one in fits.items()
        ),
    }
    return {caption: table for caption, table in tables.items() if len(table)}


def _figures(names: Sequence[str], pairs: Sequence[_Pair]) -> dict[str, Figure]:
    if len(names) < 3:
        return {}
    index = {name: i for i, name in enumerate(names)}
    values = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(values, 1.0)
    for pair in pairs:
        i, j = index[pair.a], index[pair.b]
        values[i, j] = values[j, i] = pair.kappa.value
    title = Text("Cohen's kappa where both decide")
    rows = tuple(numbers(row) for row in values)
    return {title: HeatMap(title=title, rows=tuple(names), columns=tuple(names), values=rows)}
