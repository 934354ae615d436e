"""Where does every method stand before any attack?

Aligns with every method and asks every model once: harmful score, undecided answers by reason,
over-refusal and accuracy on ordinary rows. The alignments are those of defenses.py, at a small part
of its time. With `--run DIR` the rows are made from the evaluations of a run that is already there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import Row, add_setting, folder, main, parser, setting, walk, write
from defenses import HARMFUL, configuration
from holdfast.errors import UsageError
from holdfast.judges.world import World
from holdfast.results.artifacts import Counts, Evaluation
from holdfast.results.run_dir import RunDir
from holdfast.stages.verdicts import count
from holdfast.stats.intervals import wilson
from variants import methods

NOTES = (
    "hs, undecided: of the answers to restricted prompts, pooled over seeds; intervals: Wilson on "
    "the pooled counts, which leaves out the spread between seeds. reasons: how many answers are "
    "undecided for which reason. over_refusal: by the phrases of the refusal judge. general: "
    "accuracy on ordinary rows."
)
EXAMPLES = 5
"""Undecided answers shown for each method, the most frequent first."""


def row(method: str, evaluations: Sequence[Evaluation], records: Sequence[Row]) -> Row:
    """Pool a method's seeds; the world's judge reads the kept answers anew."""
    prompts = [str(record["prompt"]) for record in records]
    responses = [str(record["response"]) for record in records]
    verdicts = World().judge(prompts, responses)
    counts = count(verdicts)
    unread = [
        (response, verdict.reason)
        for response, verdict in zip(responses, verdicts, strict=True)
        if verdict.harmful is None
    ]
    by_response = Counter(response for response, _ in unread)
    borderline = _sum([e.over_refusal for e in evaluations if e.over_refusal is not None])
    tasks = [task for e in evaluations for task in e.tasks.values()]
    asked = sum(int(task["n"]) for task in tasks)
    solved = sum(task["accuracy"] * int(task["n"]) for task in tasks)
    return {
        "method": method,
        "seeds": len({e.model_seed for e in evaluations}),
        "n": counts.n,
        **counts.interval.fields("hs"),
        **wilson(counts.undecided, counts.n).fields("undecided"),
        **wilson(borderline.safe, borderline.n).fields("over_refusal"),
        "general": solved / asked if asked else None,
        "reasons": dict(Counter(reason for _, reason in unread)),
        "undecided_answers": dict(by_response.most_common(EXAMPLES)),
    }


def rows(run: RunDir) -> list[Row]:
    """Return one row per method of a run, in the order in which they were evaluated."""
    evaluations: dict[str, list[Evaluation]] = {}
    records: dict[str, list[Row]] = {}
    for entry in run.require("evaluate"):
        path = run.path("evaluations", f"{entry.name}.json")
        evaluation = Evaluation.load(path)
        evaluations.setdefault(evaluation.method, []).append(evaluation)
        lines = path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
        records.setdefault(evaluation.method, []).extend(json.loads(line) for line in lines)
    return [row(method, evaluations[method], records[method]) for method in evaluations]


def _sum(counts: Sequence[Counts]) -> Counts:
    return Counts(
        sum(c.harmful for c in counts),
        sum(c.safe for c in counts),
        sum(c.undecided for c in counts),
    )


def run_benchmark() -> None:
    """Align, ask, write."""
    options = parser(__doc__)
    add_setting(options)
    options.add_argument("--methods", default="main", help="as in defenses.py")
    options.add_argument("--tuned", type=Path, help="results of tune.py: options of the methods")
    options.add_argument("--run", type=Path, help="make the rows from this run; run nothing")
    chosen = options.parse_args()
    facts: dict[str, Any] = {"setting": "world", "quick": chosen.quick, "notes": NOTES}
    if chosen.run is not None:
        write(chosen.json, "before", facts, rows(RunDir(chosen.run)))
        return
    if chosen.setting != "world":
        raise UsageError("--setting text: no judge of text is exact; leave out --setting")
    if chosen.quick:
        chosen.seeds = 1
    with folder(chosen.work) as work:
        base = setting(chosen, work)
        aligned = methods(base, chosen.methods, chosen.tuned)
        # One method after the other, so that an interrupted run can be read with --run.
        for name, settings in aligned.items():
            config = configuration(base, chosen, work / "run", {name: settings}, HARMFUL)
            walk(config, ("align", "score", "group", "evaluate"))
        facts |= {"methods": aligned, "align": config.align, "seeds": config.seeds}
        write(chosen.json, "before", facts, rows(RunDir(config.out)))


if __name__ == "__main__":
    main(run_benchmark)
