"""Prints progress to stderr while a command runs, and its result to stdout."""

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
    from holdfast.stages.answer import Answered

Row = dict[str, Any]
Output = Mapping[str, Any] | Sequence[Row]
"""What a command prints: one row, or a table of rows."""
FIRST = 5
"""Number of screened rows printed; the files hold them all."""


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
            stack.enter_context(progress.showing(_Lines(), _print_line))
        try:
            yield
        except KeyboardInterrupt as error:
            # typer would exit without a message.
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

        def print_line(text: str) -> None:
            bars.console.print(text, style="bold", markup=False, highlight=False)

        yield show, print_line


def _print_line(text: str) -> None:
    typer.secho(text, err=True, bold=True)


class _Lines:
    """Prints progress without a terminal: one line per quarter."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        quarter = 4 * done // max(total, 1)
        if total >= 20 and quarter != self.last.get(what, 0):
            typer.echo(f"  {what}: {done} of {total}", err=True)
        self.last[what] = quarter


# ---------------------------------------------------------------------------------------- results


def scores(result: Scores) -> Row:
    """Return how many rows were scored, with which estimator, and its facts."""
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
    """Return how well each estimator and variant agrees with the attacks, the ceiling last.

    "above free" is the gain in AUROC over the free margin, "seeds" the rank correlation between
    seeds; the number in brackets after AUPRC is that of a random order. No interval is wrapped in
    a terminal of 120 columns.
    """

    def with_interval(row: Mapping[str, Any], key: str) -> str:
        value = row[key]
        low = row[f"{key}_low"]
        high = row[f"{key}_high"]
        if value is None or low is None or high is None:
            return "unknown"
        return f"{value:.2f} [{low:.2f}, {high:.2f}]"

    def precision(row: Mapping[str, Any]) -> str:
        value = row["auprc"]
        chance = row["base_rate"]
        if value is None or chance is None:
            return "unknown"
        return f"{value:.2f} ({chance:.2f})"

    def seed_correlation(row: Mapping[str, Any]) -> str:
        """Return the rank correlation between seeds, in the estimator's first row only."""
        name = row["estimator"]
        if row is not next(r for r in result.rows if r["estimator"] == name):
            return ""
        value = result.stability[name]
        return "unknown" if value is None else f"{value:.2f}"

    rows: list[Row] = [
        {
            "estimator": row["estimator"],
            "variant": row["variant"] or f"seed {row['seed']}",
            "AUROC": with_interval(row, "auroc"),
            "AUPRC": precision(row),
            "Spearman": with_interval(row, "spearman"),
            "above free": with_interval(row, "gain"),
            "seeds": seed_correlation(row),
            "seconds": "unknown" if row["seconds"] is None else f"{row['seconds']:.1f}",
        }
        for row in result.rows
    ]
    if result.unknown:
        rows.append({"estimator": "left out", "variant": f"{result.unknown} rows: undecided"})
    ceiling = {k: "unknown" if v is None else f"{v:.2f}" for k, v in result.ceiling.items()}
    rows.append(
        {
            "estimator": "ceiling",
            "variant": "another attack",
            "AUROC": ceiling["auroc"],
            "Spearman": ceiling["spearman"],
        }
    )
    return rows


def screened(result: Screen) -> Row:
    """Return how the new rows were placed, the most vulnerable of them, and the caveats."""
    notes = Counter(note for row in result.rows for note in row.note.split("; ") if note)
    probe = {"probe agrees with the scores": result.facts["agreement"]} if result.facts else {}
    return {
        "rows": len(result.rows),
        **{f"placed by {basis}": n for basis, n in result.counts.items()},
        "most vulnerable": [_placed(i, row) for i, row in result.ranked[:FIRST]],
        "notes": [f"{n} of {len(result.rows)}: {note}" for note, n in notes.most_common()],
        **probe,
        "accuracy": [str(check) for check in result.accuracy],
    }


def _placed(position: int, row: ScreenedRow) -> str:
    if math.isnan(row.rank):
        return f"row {position + 1}: unknown"
    chance = "" if math.isnan(row.vulnerable) else f", {row.vulnerable:.0%} likely vulnerable"
    note = f"; {row.note}" if row.note else ""
    return f"row {position + 1}: rank {row.rank:.2f} [{row.low:.2f}, {row.high:.2f}]{chance}{note}"


def groups(result: Groups) -> Row:
    """Return the sizes of the groups and the rule, which states its own reason."""
    facts = {key: value for key, value in result.facts.items() if key != "reason"}
    unsure = {} if "too_close_to_call" in facts else {"too_close_to_call": "unknown"}
    return {**result.sizes, "rule": result.rule, **facts, **unsure}


def sections(results: Sequence[Section]) -> list[Row]:
    """Return the findings of the analyses."""
    return [{"section": s.title, "findings": list(s.findings)} for s in results]


def answered(result: Answered) -> Row:
    """Return how many answers became rows, and where they are."""
    reasons = [f"{number}: {reason}" for reason, number in result.left_out.items()]
    return {"rows": result.rows, "left out": reasons, "file": str(result.path)}


def aligned(path: Path) -> Row:
    """Return where the model was saved."""
    return {"model": str(path)}


def report(path: Path) -> Row:
    """Return where the report was written."""
    return {"report": str(path)}


def attacks(results: Sequence[AttackResult]) -> list[Row]:
    """Return how long the models held."""
    return [attack(result) for result in results]


def evaluations(results: Sequence[Evaluation]) -> list[Row]:
    """Return the scores of the models."""
    return [evaluation(result) for result in results]


def searches(results: Sequence[SearchResult]) -> list[Row]:
    """Return the worst attack found on each model."""
    return [adapted(result) for result in results]


def evaluation(result: Evaluation) -> Row:
    """Return the scores of a model."""
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
    """Return how long a model held."""
    from holdfast.results.lives import REFUSAL_HALF_LIFE, life_until

    last = result.points[-1]
    counts = last.verdicts[result.judge]
    return {
        "model": result.model,
        "attack": result.attack.label,
        "steps": last.step,
        "HS before": result.points[0].verdicts[result.judge].text,
        "HS after": counts.text,
        "undecided": counts.undecided,
        "half-life (steps)": str(result.half_life),
        "refuses (steps)": str(life_until(result, REFUSAL_HALF_LIFE)),
        "task accuracy": f"{last.accuracy:.2f}",
    }


def adapted(result: SearchResult) -> Row:
    """Return the worst attack found on a model."""
    worst = result.worst
    row: Row = {"model": result.model, "trials": len(result.trials)}
    if worst is None:
        above_floor = any(trial.above_floor for trial in result.trials)
        reason = "the judge decided nothing" if above_floor else "no trial kept the floor"
        return {**row, "worst HS": f"unknown: {reason}"}
    return {
        **row,
        "worst HS": str(worst.counts.interval),
        "task accuracy": f"{worst.accuracy:.2f}",
        "clean": f"{result.clean_accuracy:.2f}",
        "attack": ", ".join(f"{name} {value}" for name, value in worst.settings.items()),
    }


def end_of_run(as_json: bool, out: Path, page: Path) -> None:
    """Print the summary of a run and where its report is."""
    from holdfast.results.artifacts import AttackResult, Evaluation
    from holdfast.results.run_dir import RunDir

    directory = RunDir(out)
    models = [Evaluation.load(directory.result(e)) for e in directory.entries("evaluate")]
    results = [AttackResult.load(directory.result(e)) for e in directory.entries("attack")]
    if as_json:
        summary = {
            "evaluations": evaluations(models),
            "attacks": attacks(results),
            "report": str(page),
        }
        print_output(True, summary)
        return
    rows = [_summary(e, [a for a in results if a.model == e.model]) for e in models]
    print_output(False, rows)
    typer.echo("HS: harmful score. Half-life: attack steps until half of all answers are harmful.")
    typer.echo("Refuses: attack steps until half of all answers are no longer refusals.")
    typer.echo(f"Report: {page}")


def _summary(result: Evaluation, attacks: Sequence[AttackResult]) -> Row:
    """Return a model's row in the summary of a run."""
    from holdfast.results.attacks import table_names
    from holdfast.results.lives import REFUSAL_HALF_LIFE, life_until

    judge, counts = next(iter(result.verdicts.items()))
    refused = result.over_refusal
    row: Row = {
        "model": result.model,
        f"HS ({judge})": "unknown" if not counts.decided else f"{counts.harmful_score:.3f}",
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


def print_output(as_json: bool, output: Output) -> None:
    """Print a result to stdout as JSON or as a table; of several processes, one prints."""
    from holdfast.results.files import to_json
    from holdfast.results.run_dir import is_first_process

    if not is_first_process():
        return

    if as_json:
        typer.echo(json.dumps(to_json(output), ensure_ascii=False))
        return
    from rich.console import Console
    from rich.measure import Measurement

    # Without a terminal, rich would wrap at 80 columns.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = _facts(output) if isinstance(output, Mapping) else _table(output)
    width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    if width > console.width:
        table.padding = 0  # rather than wrapping numbers
    console.print(table)


def page(parts: Iterable[RenderableType]) -> None:
    """Print texts and tables, wrapped at the terminal's width, or at 80 columns without one."""
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
