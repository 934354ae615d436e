"""What a person sees: progress on stderr while a command runs, its result on stdout."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from holdfast.contracts import Section
    from holdfast.results.artifacts import AttackResult, Evaluation, Groups, Scores
    from holdfast.results.searches import SearchResult
    from holdfast.results.validation import Validation
    from holdfast.screening.text_screener import Screen, ScreenedRow

Row = dict[str, Any]
Told = Mapping[str, Any] | Sequence[Row]
"""What a command tells: one row, or a table of them."""
FIRST = 5
"""Rows of a screening that are named; the file and the table have them all."""


# --------------------------------------------------------------------------------------- progress


@contextlib.contextmanager
def running(as_json: bool) -> Iterator[None]:
    """Show progress on stderr.

    Raises:
        Interrupted: The user pressed Ctrl-C.
    """
    from holdfast.errors import Interrupted
    from holdfast.results.run_dir import is_first_process
    from holdfast.runtime import progress

    with contextlib.ExitStack() as stack:
        if not as_json and is_first_process() and sys.stderr.isatty():
            bars = stack.enter_context(_bars())
            stack.enter_context(progress.showing(*bars))
        elif not as_json and is_first_process():
            stack.enter_context(progress.showing(_Lines(), _line_of))
        try:
            yield
        except KeyboardInterrupt as error:
            # typer would end without a word.
            raise Interrupted(
                "interrupted; finished work is kept, and the same command continues from there"
            ) from error


@contextlib.contextmanager
def _bars() -> Iterator[tuple[Callable[[str, int, int], None], Callable[[str], None]]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)
            if done >= total:
                bars.remove_task(tasks.pop(what))

        def say(text: str) -> None:
            bars.console.print(text, style="bold", markup=False, highlight=False)

        yield show, say


def _line_of(text: str) -> None:
    typer.secho(text, err=True, bold=True)


class _Lines:
    """Progress without a terminal: a line at each quarter."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        quarter = 4 * done // max(total, 1)
        if total >= 20 and quarter != self.last.get(what, 0):
            typer.echo(f"  {what}: {done} of {total}", err=True)
        self.last[what] = quarter


# ---------------------------------------------------------------------------------------- results


def scores(result: Scores) -> Row:
    """Tell what was scored, how much of it is known, and what it cost."""
    import numpy as np

    errors = np.array([]) if result.errors is None else result.errors
    return {
        "scores": int(np.isfinite(result.values).sum()),
        "not scored": int((~np.isfinite(result.values)).sum()),
        "with a standard error": int(np.isfinite(errors).sum()),
        "estimator": result.estimator,
        **result.facts,
    }


def validation(result: Validation) -> list[Row]:
    """Tell how well each estimator and variant agrees with the attacks, the ceiling last.

    "above free" is the gain in AUROC over the free margin, "seeds" the rank correlation between
    seeds; in brackets behind AUPRC is what chance would have. In a terminal of 120 columns no
    interval is broken.
    """

    def shown(row: Mapping[str, Any], key: str) -> str:
        known = [row[key], row[f"{key}_low"], row[f"{key}_high"]]
        if any(value is None for value in known):
            return "unknown"
        return f"{known[0]:.2f} [{known[1]:.2f}, {known[2]:.2f}]"

    def precision(row: Mapping[str, Any]) -> str:
        known = [row["auprc"], row["base_rate"]]
        return "unknown" if None in known else f"{known[0]:.2f} ({known[1]:.2f})"

    def stable(row: Mapping[str, Any]) -> str:
        """Return the rank correlation between seeds, at the first seed's row."""
        name = row["estimator"]
        if row is not next(r for r in result.rows if r["estimator"] == name):
            return ""
        value = result.stability[name]
        return "unknown" if value is None else f"{value:.2f}"

    found: list[Row] = [
        {
            "estimator": row["estimator"],
            "variant": row["variant"] or f"seed {row['seed']}",
            "AUROC": shown(row, "auroc"),
            "AUPRC": precision(row),
            "Spearman": shown(row, "spearman"),
            "above free": shown(row, "gain"),
            "seeds": stable(row),
            "seconds": "unknown" if row["seconds"] is None else f"{row['seconds']:.1f}",
        }
        for row in result.rows
    ]
    if result.unknown:
        found.append({"estimator": "left out", "variant": f"{result.unknown} rows: undecided"})
    best = {k: "unknown" if v is None else f"{v:.2f}" for k, v in result.ceiling.items()}
    last: Row = {"estimator": "ceiling", "variant": "another attack"}
    return [*found, {**last, "AUROC": best["auroc"], "Spearman": best["spearman"]}]


def screened(result: Screen) -> Row:
    """Tell how the new rows were placed, the first of them, and how far that can be trusted."""
    notes = Counter(note for row in result.rows for note in row.note.split("; ") if note)
    probe = {"probe agrees with the scores": result.facts["agreement"]} if result.facts else {}
    return {
        "rows": len(result.rows),
        **{f"placed by {basis}": n for basis, n in result.counts.items()},
        "most vulnerable": [_placed(i, row) for i, row in result.ranked[:FIRST]],
        "notes": [f"{n} of {len(result.rows)}: {note}" for note, n in notes.most_common()],
        **probe,
        "accuracy": [str(one) for one in result.accuracy],
    }


def _placed(position: int, row: ScreenedRow) -> str:
    if math.isnan(row.rank):
        return f"row {position + 1}: unknown"
    chance = "" if math.isnan(row.vulnerable) else f", vulnerable with {row.vulnerable:.0%}"
    note = f"; {row.note}" if row.note else ""
    return f"row {position + 1}: rank {row.rank:.2f} [{row.low:.2f}, {row.high:.2f}]{chance}{note}"


def groups(result: Groups) -> Row:
    """Tell how large the groups are; the reason for a rule is part of its words."""
    facts = {key: value for key, value in result.facts.items() if key != "reason"}
    unsure = {} if "too_close_to_call" in facts else {"too_close_to_call": "unknown"}
    return {**result.sizes, "rule": result.rule, **facts, **unsure}


def sections(results: Sequence[Section]) -> list[Row]:
    """Tell what the analyses found."""
    return [{"section": s.title, "findings": list(s.findings)} for s in results]


def aligned(path: Path) -> Row:
    """Tell where the model is."""
    return {"model": str(path)}


def report(path: Path) -> Row:
    """Tell where the report is."""
    return {"report": str(path)}


def attacks(results: Sequence[AttackResult]) -> list[Row]:
    """Tell how long models held."""
    return [attack(result) for result in results]


def evaluations(results: Sequence[Evaluation]) -> list[Row]:
    """Tell where models stand."""
    return [evaluation(result) for result in results]


def searches(results: Sequence[SearchResult]) -> list[Row]:
    """Tell the worst attacks that were found."""
    return [adapted(result) for result in results]


def evaluation(result: Evaluation) -> Row:
    """Tell where a model stands."""
    from holdfast.reports.facts import share

    row: Row = {"model": result.model}
    for name, counts in result.verdicts.items():
        row[f"HS ({name})"] = str(share([counts], "harmful", [result.samples]))
        row[f"undecided ({name})"] = counts.undecided
    if result.over_refusal is not None:
        row["over-refusal"] = str(share([result.over_refusal], "safe", [result.samples]))
    for task, facts in result.tasks.items():
        row[task] = f"{facts['accuracy']:.2f}"
    return row


def attack(result: AttackResult) -> Row:
    """Tell how long a model held."""
    from holdfast.results.lives import REFUSAL_HALF_LIFE, life_until

    last = result.points[-1]
    counts = last.verdicts[result.judge]
    return {
        "model": result.model,
        "attack": result.attack.label,
        "steps": last.step,
        "HS before": f"{result.points[0].verdicts[result.judge].harmful_score:.2f}",
        "HS after": f"{counts.harmful_score:.2f}",
        "undecided": counts.undecided,
        "half-life (steps)": str(result.half_life),
        "refuses (steps)": str(life_until(result, REFUSAL_HALF_LIFE)),
        "task accuracy": f"{last.accuracy:.2f}",
    }


def adapted(result: SearchResult) -> Row:
    """Tell the worst attack that was found."""
    from holdfast.stats.intervals import wilson

    worst = result.worst
    row: Row = {"model": result.model, "trials": len(result.trials)}
    if worst is None:
        return {**row, "worst HS": "unknown: none kept the floor"}
    return {
        **row,
        "worst HS": str(wilson(worst.harmful, worst.n)),
        "task accuracy": f"{worst.accuracy:.2f}",
        "clean": f"{result.clean_accuracy:.2f}",
        "attack": ", ".join(f"{name} {value}" for name, value in worst.settings.items()),
    }


def end_of_run(as_json: bool, out: Path, page: Path) -> None:
    """Print the table that a run ends with, and where its report is."""
    from holdfast.results.artifacts import AttackResult, Evaluation
    from holdfast.results.run_dir import RunDir

    directory = RunDir(out)
    standings = [Evaluation.load(directory.result(e)) for e in directory.entries("evaluate")]
    results = [AttackResult.load(directory.result(e)) for e in directory.entries("attack")]
    if as_json:
        rows = evaluations(standings)
        hits = attacks(results)
        tell(True, {"evaluations": rows, "attacks": hits, "report": str(page)})
        return
    tell(False, [_line(e, [a for a in results if a.model == e.model]) for e in standings])
    typer.echo("HS: harmful score. Half-life: attack steps until half of all answers are harmful.")
    typer.echo("Refuses: attack steps until half of all answers are no refusals any more.")
    typer.echo(f"Report: {page}")


def _line(result: Evaluation, attacks: Sequence[AttackResult]) -> Row:
    """Return a line of the table that a run ends with."""
    from holdfast.results.attacks import table_names
    from holdfast.results.lives import REFUSAL_HALF_LIFE, life_until

    judge, counts = next(iter(result.verdicts.items()))
    refused = result.over_refusal
    row: Row = {
        "model": result.model,
        f"HS ({judge})": f"{counts.harmful_score:.3f}",
        "over-refusal": "" if refused is None else f"{refused.safe / refused.n:.3f}",
    }
    names = table_names([attack_result.attack for attack_result in attacks])
    for name, attack_result in zip(names, attacks, strict=True):
        accuracy = attack_result.points[-1].accuracy
        refusing = life_until(attack_result, REFUSAL_HALF_LIFE)
        row[f"half-life: {name}"] = (
            f"{attack_result.half_life} (refuses {refusing}, FA {accuracy:.2f})"
        )
    return row


# --------------------------------------------------------------------------------------- printing


def tell(as_json: bool, value: Told) -> None:
    """Print a result on stdout: JSON and nothing else, or a table. One of several processes."""
    from holdfast.results.files import to_json
    from holdfast.results.run_dir import is_first_process

    if not is_first_process():
        return

    if as_json:
        typer.echo(json.dumps(to_json(value), ensure_ascii=False))
        return
    from rich.console import Console
    from rich.measure import Measurement

    # Without a terminal rich would wrap at 80 columns.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = _facts(value) if isinstance(value, Mapping) else _table(value)
    wanted = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    if wanted > console.width:
        table.padding = 0  # narrow before numbers are broken
    console.print(table)


def page(parts: Iterable[RenderableType]) -> None:
    """Print texts and tables that wrap at the terminal's width, at 80 columns without one."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 80)
    for part in parts:
        console.print(part)


def _facts(value: Mapping[str, Any]) -> Table:
    from rich.table import Table

    table = Table(show_header=False)
    for key, item in value.items():
        table.add_row(str(key), _shown(item))
    return table


def _table(rows: Sequence[Row]) -> Table:
    from rich.table import Table

    table = Table(header_style="bold")
    names = list(dict.fromkeys(key for row in rows for key in row))
    for name in names:
        table.add_column(name)
    for row in rows:
        table.add_row(*(_shown(row.get(name, "")) for name in names))
    return table


def _shown(value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, list):
        return escape("\n".join(map(str, value)))
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
