"""The command line: one command per stage, and `run`, `demo` and `verify` over all of them."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from holdfast.stages.pipeline import Call

app = typer.Typer(
    help="Keep a language model's safety alignment through fine-tuning.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str, typer.Option("--model", help="world, a model directory, a hub id, or a label of the run.")
]
Models = Annotated[
    list[str],
    typer.Option("--model", help="Label of the run, directory or hub id. May be repeated."),
]
Data = Annotated[
    str, typer.Option("--data", help="Alignment rows: a file, a hub data set, or world:alignment.")
]
Out = Annotated[Path, typer.Option("--out", help="The run directory.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of whatever is random.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Columns = Annotated[
    str,
    typer.Option("--columns", help="Column mapping, e.g. prompt=question,response=answer."),
]
DropInvalid = Annotated[
    bool, typer.Option("--drop-invalid", help="Drop empty and repeated rows instead of stopping.")
]
Limit = Annotated[
    int | None, typer.Option("--limit", help="Read only the first rows of every file.")
]
Benign = Annotated[str | None, typer.Option("--benign", help="Ordinary rows.")]
Harmful = Annotated[str | None, typer.Option("--harmful", help="Harmful rows.")]
Judges = Annotated[
    list[str] | None,
    typer.Option("--judge", help="Judge and options; may be repeated. Default: refusal."),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="Option of the method, e.g. rho=0.4. May be repeated."),
]


@app.command(
    epilog="Example: holdfast score --model runs/a/models/sft-s0 --data rows.jsonl --out runs/a"
)
def score(  # noqa: D417
    model: Model,
    data: Data,
    out: Out,
    estimator: Annotated[
        str, typer.Option("--estimator", help="Name and options: attack_direction, forget_count.")
    ] = "attack_direction",
    benign: Benign = None,
    harmful: Harmful = None,
    judge: Annotated[str, typer.Option("--judge", help="For forget_count.")] = "refusal",
    name: Annotated[str, typer.Option("--name", help="Label of the scores.")] = "",
    seed: Seed = 0,
    device: Device = "auto",
    columns: Columns = "",
    drop_invalid: DropInvalid = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Score how vulnerable every alignment example is in an aligned model."""
    with _stage(as_json):
        from holdfast.stages.score import ScoreConfig
        from holdfast.stages.score import score as stage

        scores = stage(
            ScoreConfig(
                model=model,
                data=data,
                out=out,
                estimator=estimator,
                benign=benign,
                harmful=harmful,
                judge=judge,
                name=name,
                seed=seed,
                device=device,
                columns=_mapping(columns, "--columns"),
                drop_invalid=drop_invalid,
                limit=limit,
            )
        )
    _tell(as_json, {"scores": len(scores.ids), "estimator": scores.estimator, **scores.facts})


@app.command(epilog="Example: holdfast group --data rows.jsonl --out runs/a --rule otsu")
def group(
    data: Data,
    out: Out,
    scores: Annotated[str | None, typer.Option("--scores", help="Which scores of the run.")] = None,
    rule: Annotated[str, typer.Option("--rule", help="positive, quantile or otsu.")] = "otsu",
    quantile: Annotated[
        float, typer.Option("--quantile", help="Share that counts as invulnerable.")
    ] = 0.6,
    name: Annotated[str, typer.Option("--name", help="Label of the groups.")] = "",
    seed: Seed = 0,
    device: Device = "auto",
    columns: Columns = "",
    drop_invalid: DropInvalid = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Split the scored examples into an invulnerable and a vulnerable group."""
    with _stage(as_json):
        from holdfast.stages.group import GroupConfig
        from holdfast.stages.group import group as stage

        groups = stage(
            GroupConfig(
                data=data,
                out=out,
                scores=scores,
                rule=rule,
                quantile=quantile,
                name=name,
                seed=seed,
                device=device,
                columns=_mapping(columns, "--columns"),
                drop_invalid=drop_invalid,
                limit=limit,
            )
        )
    _tell(as_json, {**groups.sizes, "rule": groups.rule, **groups.facts})


@app.command(
    epilog="Example: holdfast align --model base --data rows.jsonl --benign alpaca.jsonl "
    "--method vaa --option rho=0.4 --out runs/a"
)
def align(
    model: Model,
    data: Data,
    out: Out,
    method: Annotated[str, typer.Option("--method", help="sft, vaa, or module:Class.")] = "sft",
    option: Options = None,
    benign: Benign = None,
    harmful: Harmful = None,
    groups: Annotated[str | None, typer.Option("--groups", help="Which groups of the run.")] = None,
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over all rows.")] = 3.0,
    learning_rate: Annotated[float, typer.Option("--lr", help="Of AdamW, constant.")] = 5e-4,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows per step.")] = 16,
    max_length: Annotated[int, typer.Option("--max-length", help="Tokens kept per row.")] = 256,
    lora_rank: Annotated[
        int, typer.Option("--lora-rank", help="Rank of LoRA adapters; 0 trains all weights.")
    ] = 0,
    name: Annotated[str, typer.Option("--name", help="Label of the model.")] = "",
    seed: Seed = 0,
    device: Device = "auto",
    columns: Columns = "",
    drop_invalid: DropInvalid = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Align a model with a method."""
    with _stage(as_json):
        from holdfast.stages.align import AlignConfig
        from holdfast.stages.align import align as stage

        path = stage(
            AlignConfig(
                model=model,
                data=data,
                out=out,
                method=method,
                options=_options(option),
                benign=benign,
                harmful=harmful,
                groups=groups,
                epochs=epochs,
                learning_rate=learning_rate,
                batch_size=batch_size,
                max_length=max_length,
                lora_rank=lora_rank,
                name=name,
                seed=seed,
                device=device,
                columns=_mapping(columns, "--columns"),
                drop_invalid=drop_invalid,
                limit=limit,
            )
        )
    _tell(as_json, {"model": str(path)})


@app.command(
    epilog="Example: holdfast attack --model sft-s0 --task sst2,train=train.tsv,test=dev.tsv "
    "--harmful pool.jsonl --test prompts.jsonl --out runs/a"
)
def attack(
    model: Models,
    task: Annotated[
        list[str], typer.Option("--task", help="Downstream task and options; may be repeated.")
    ],
    harmful: Annotated[str, typer.Option("--harmful", help="The attacker's rows.")],
    test: Annotated[str, typer.Option("--test", help="Restricted prompts asked on the way.")],
    out: Out,
    judge: Judges = None,
    poison_ratio: Annotated[
        list[float] | None, typer.Option("--poison-ratio", help="Harmful share; default 0.1.")
    ] = None,
    learning_rate: Annotated[
        list[float] | None, typer.Option("--lr", help="Of AdamW; default 1e-4.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Optimizer steps.")] = 100,
    every: Annotated[int, typer.Option("--every", help="Steps between checkpoints.")] = 10,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows per step.")] = 16,
    rows: Annotated[int, typer.Option("--rows", help="Fine-tuning rows in all.")] = 400,
    max_length: Annotated[int, typer.Option("--max-length", help="Tokens kept per row.")] = 256,
    lora_rank: Annotated[
        int, typer.Option("--lora-rank", help="Rank of the attacker's LoRA; 0 trains all weights.")
    ] = 0,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Length of the judged answers.")
    ] = 32,
    track: Annotated[
        str | None, typer.Option("--track", help="Alignment rows to watch for forgetting.")
    ] = None,
    save_models: Annotated[
        bool, typer.Option("--save-models", help="Keep the attacked models.")
    ] = False,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Draw of the rows; may be repeated.")
    ] = None,
    device: Device = "auto",
    columns: Columns = "",
    drop_invalid: DropInvalid = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Fine-tune models on a task with harmful rows mixed in, and measure how long they hold."""
    with _stage(as_json):
        from holdfast.stages.attack import AttackConfig
        from holdfast.stages.attack import attack as stage

        results = stage(
            AttackConfig(
                models=model,
                tasks=task,
                harmful=harmful,
                test=test,
                out=out,
                judges=judge or ["refusal"],
                poison_ratios=poison_ratio or [0.1],
                learning_rates=learning_rate or [1e-4],
                seeds=seed or [0],
                steps=steps,
                every=every,
                batch_size=batch_size,
                rows=rows,
                max_length=max_length,
                lora_rank=lora_rank,
                max_new_tokens=max_new_tokens,
                track=track,
                save_models=save_models,
                device=device,
                columns=_mapping(columns, "--columns"),
                drop_invalid=drop_invalid,
                limit=limit,
            )
        )
    _tell(as_json, [_attack_row(result) for result in results])


@app.command(
    epilog="Example: holdfast evaluate --model sft-s0 --test prompts.jsonl --judge refusal "
    "--over-refusal xstest.jsonl --out runs/a"
)
def evaluate(
    model: Models,
    test: Annotated[str, typer.Option("--test", help="Restricted prompts.")],
    out: Out,
    judge: Judges = None,
    over_refusal: Annotated[
        str | None, typer.Option("--over-refusal", help="Benign prompts that might be refused.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Task and options; may be repeated.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Length of the judged answers.")
    ] = 32,
    seed: Seed = 0,
    device: Device = "auto",
    columns: Columns = "",
    drop_invalid: DropInvalid = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Measure harmful score, over-refusal and task accuracy of models, with intervals."""
    with _stage(as_json):
        from holdfast.stages.evaluate import EvaluateConfig
        from holdfast.stages.evaluate import evaluate as stage

        results = stage(
            EvaluateConfig(
                models=model,
                test=test,
                out=out,
                judges=judge or ["refusal"],
                over_refusal=over_refusal,
                tasks=task or [],
                max_new_tokens=max_new_tokens,
                seed=seed,
                device=device,
                columns=_mapping(columns, "--columns"),
                drop_invalid=drop_invalid,
                limit=limit,
            )
        )
    _tell(as_json, [_evaluation_row(result) for result in results])


@app.command(epilog="Example: holdfast analyze --out runs/a --analysis overlap")
def analyze(
    out: Out,
    analysis: Annotated[
        list[str] | None,
        typer.Option("--analysis", help="Name and options; all that are possible by default."),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say what the results of a run mean."""
    with _stage(as_json):
        from holdfast.stages.analyze import AnalyzeConfig
        from holdfast.stages.analyze import analyze as stage

        config = AnalyzeConfig(out=out, analyses=analysis or [], seed=seed, device=device)
        sections = stage(config)
    _tell(as_json, [{"section": s.title, "findings": list(s.findings)} for s in sections])


@app.command(epilog="Example: holdfast report --out runs/a --language ja")
def report(
    out: Out,
    title: Annotated[str, typer.Option("--title", help="Heading of the report.")] = "",
    language: Annotated[str, typer.Option("--language", help="en or ja.")] = "en",
    show_harmful: Annotated[
        bool, typer.Option("--show-harmful", help="Show harmful answers; withheld otherwise.")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write the report of a run: one HTML file."""
    with _stage(as_json):
        from holdfast.stages.report import ReportConfig
        from holdfast.stages.report import report as stage

        settings = {"title": title} if title else {}
        path = stage(
            ReportConfig.model_validate(
                {
                    "out": out,
                    "language": language,
                    "show_harmful": show_harmful,
                    "seed": seed,
                    "device": device,
                    **settings,
                }
            )
        )
    _tell(as_json, {"report": str(path)})


@app.command(epilog="Example: holdfast run examples/real_text.yaml --set SHARED=data --out runs/a")
def run(
    config: Annotated[Path, typer.Argument(help="A configuration file.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Run directory, instead of the file's.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Value of a ${NAME} in the file: NAME=VALUE.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Seeds, instead of the file's; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the stages and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Walk all stages of a configuration; what is finished is not done again."""
    with _stage(as_json):
        from holdfast.stages import pipeline

        loaded = pipeline.load(config, dict(_pair(s, "--set") for s in setting or []))
        update = {k: v for k, v in {"out": out, "seeds": seed}.items() if v}
        loaded = loaded.model_copy(update=update)
        if dry_run:
            calls = pipeline.plan(loaded)
        else:
            path = pipeline.run(loaded, before=_announce(as_json, pipeline.plan(loaded)))
    if dry_run:
        _tell(as_json, [{"stage": call.stage, "name": call.name} for call in calls])
    else:
        _finish(as_json, loaded.out, path)


@app.command(epilog="Example: holdfast demo --out demo-out")
def demo(
    out: Out = Path("demo-out"),
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Walk the whole road on the embedded world, in minutes, without a GPU."""
    with _stage(as_json):
        from holdfast.stages import pipeline
        from holdfast.stages.demo import configuration

        config = configuration(out, seed=seed, device=device)
        path = pipeline.run(config, before=_announce(as_json, pipeline.plan(config)))
    _finish(as_json, out, path)


@app.command(epilog="Example: holdfast verify runs/a")
def verify(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    as_json: Json = False,
) -> None:
    """Recompute every hash of a run and name what was changed."""
    with _stage(as_json):
        from holdfast.artifacts import RunDir
        from holdfast.errors import UsageError

        directory = RunDir(run_directory)
        entries = directory.entries()
        if not entries:
            raise UsageError(f"{run_directory}: not a run directory (no manifest)")
        problems = directory.verify()
    files = sum(len(entry.outputs) for entry in entries)
    _tell(as_json, {"files": files, "changed": problems, "digest": directory.digest})
    if problems:
        raise typer.Exit(1)


@app.command(
    name="train-judge",
    epilog="Example: holdfast train-judge --data labelled.jsonl --out judges/mine",
)
def train_judge(
    data: Annotated[
        Path, typer.Option("--data", help="Rows with prompt, response and label or is_safe.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory of the judge.")],
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a judge of answers from labelled rows; no download, no pickle."""
    with _stage(as_json):
        from dataclasses import asdict

        from holdfast.judges.classifier import read_labelled, train_classifier

        made = asdict(train_classifier(read_labelled(data), out, seed=seed))
    _tell(as_json, {"judge": f"classifier,path={out}", **made})


@app.command()
def plugins(
    kind: Annotated[str, typer.Argument(help="estimators, methods, judges, tasks or analyses.")],
    as_json: Json = False,
) -> None:
    """List the plug-ins of a kind, with their first line of documentation."""
    with _stage(as_json):
        from holdfast import plugins as lookup
        from holdfast.errors import UsageError

        if kind not in lookup.KINDS:
            raise UsageError(f"{kind!r} is none of {', '.join(lookup.KINDS)}")
        found = [
            {"name": name, "what": (lookup.find(kind, name).__doc__ or "").splitlines()[0]}
            for name in lookup.available(kind)
        ]
    _tell(as_json, found)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"holdfast {version('holdfast')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show log messages.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s"
    )


def main() -> None:
    """Run the command line; every error is one message and an exit code.

    0 is success, 1 a failure while running, 2 a command, option or input that must be changed,
    130 an interruption.
    """
    from holdfast.errors import HoldfastError

    try:
        app(standalone_mode=True)
    except HoldfastError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(
            f"{where}{error.strerror or error}; what is finished is kept: mend this and give the "
            "same command again",
            1,
        )


def _fail(message: str, code: int) -> None:
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("[bold red]error[/]", end=" ")
    console.print(message, markup=False)
    sys.exit(code)


@contextlib.contextmanager
def _stage(as_json: bool) -> Iterator[None]:
    """Show progress on stderr, and turn a wrong option into a usage error."""
    from pydantic import ValidationError

    from holdfast import progress
    from holdfast.errors import Interrupted, UsageError

    with contextlib.ExitStack() as stack:
        if not as_json and sys.stderr.isatty():
            stack.enter_context(progress.showing(stack.enter_context(_bars())))
        elif not as_json:
            stack.enter_context(progress.showing(_Lines()))
        try:
            yield
        except ValidationError as error:
            from holdfast.stages.pipeline import explain

            raise UsageError(explain(error)) from error
        except KeyboardInterrupt as error:
            # typer would end without a word.
            raise Interrupted(
                "interrupted; what is finished is kept, and the same command goes on from there"
            ) from error


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)
            if done >= total:
                bars.remove_task(tasks.pop(what))

        yield show


class _Lines:
    """Progress without a terminal: a line at each quarter."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        quarter = 4 * done // max(total, 1)
        if total >= 20 and quarter != self.last.get(what, 0):
            typer.echo(f"  {what}: {done} of {total}", err=True)
        self.last[what] = quarter


def _announce(as_json: bool, calls: list[Call]) -> Callable[[Call], None]:
    state = {"done": 0}

    def announce(call: Call) -> None:
        state["done"] += 1
        if not as_json:
            text = f"[{state['done']}/{len(calls)}] {call.stage} {call.name}"
            typer.secho(text, err=True, bold=True)

    return announce


def _finish(as_json: bool, out: Path, path: Path) -> None:
    """Print the table that a run ends with, and where its report is."""
    from holdfast.artifacts import AttackResult, Evaluation, RunDir

    directory = RunDir(out)
    evaluations = [Evaluation.load(directory.result(e)) for e in directory.entries("evaluate")]
    attacks = [AttackResult.load(directory.result(e)) for e in directory.entries("attack")]
    if as_json:
        rows = [_evaluation_row(e) for e in evaluations]
        hits = [_attack_row(a) for a in attacks]
        _tell(True, {"evaluations": rows, "attacks": hits, "report": str(path)})
        return
    _tell(False, [_summary_row(e, [a for a in attacks if a.model == e.model]) for e in evaluations])
    typer.echo("HS: harmful score. Half-life: attack steps until half of all answers are harmful.")
    typer.echo(f"Report: {path}")


def _summary_row(evaluation: Any, attacks: list[Any]) -> dict[str, Any]:
    """Return a line of the table that a run ends with."""
    judge, counts = next(iter(evaluation.verdicts.items()))
    refused = evaluation.over_refusal
    row: dict[str, Any] = {
        "model": evaluation.model,
        f"HS ({judge})": f"{counts.harmful_score:.3f}",
        "over-refusal": "" if refused is None else f"{refused.safe / refused.n:.3f}",
    }
    for found in attacks:
        told = _attack_row(found)
        name = f"{told['task'].removeprefix('world_')} {told['poison']} lr {told['lr']}"
        name += f" draw {told['draw']}" if told["draw"] else ""
        row[f"half-life: {name}"] = f"{told['half-life (steps)']} (FA {told['task accuracy']})"
    return row


def _evaluation_row(result: Any) -> dict[str, Any]:
    from holdfast.stats import wilson

    row: dict[str, Any] = {"model": result.model}
    for name, counts in result.verdicts.items():
        row[f"HS ({name})"] = str(wilson(counts.harmful, counts.n))
        row[f"undecided ({name})"] = counts.undecided
    if result.over_refusal is not None:
        row["over-refusal"] = str(wilson(result.over_refusal.safe, result.over_refusal.n))
    for task, facts in result.tasks.items():
        row[task] = f"{facts['accuracy']:.2f}"
    return row


def _attack_row(result: Any) -> dict[str, Any]:
    last = result.points[-1]
    counts = last.verdicts[result.judge]
    steps = f">{last.step}" if result.censored else f"{result.half_life:.0f}"
    return {
        "model": result.model,
        "task": str(result.attack["task"]).partition(",")[0],
        "poison": f"{result.attack['poison_ratio']:.0%}",
        "lr": f"{result.attack['learning_rate']:g}",
        "draw": result.attack["seed"],
        "HS before": f"{result.points[0].verdicts[result.judge].harmful_score:.2f}",
        "HS after": f"{counts.harmful_score:.2f}",
        "undecided": counts.undecided,
        "half-life (steps)": steps,
        "task accuracy": f"{last.accuracy:.2f}",
    }


def _tell(as_json: bool, value: Any) -> None:
    """Print a result on stdout: JSON, or a table."""
    from holdfast.artifacts import to_json

    if as_json:
        typer.echo(json.dumps(to_json(value), ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    rows = value if isinstance(value, list) else None
    table = Table(show_header=rows is not None, header_style="bold")
    if rows is None:
        for key, item in value.items():
            table.add_row(str(key), _shown(item))
    else:
        names = list(dict.fromkeys(key for row in rows for key in row))
        for name in names:
            table.add_column(name)
        for row in rows:
            table.add_row(*(_shown(row.get(name, "")) for name in names))
    console.print(table)


def _shown(value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, list):
        return escape("\n".join(map(str, value)))
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _pair(text: str, option: str) -> tuple[str, str]:
    from holdfast.errors import UsageError

    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"{option} {text!r} must be NAME=VALUE")
    return key, value


def _mapping(text: str, option: str) -> dict[str, str]:
    return dict(_pair(part, option) for part in text.split(",")) if text else {}


def _options(pairs: list[str] | None) -> dict[str, Any]:
    import yaml

    found = dict(_pair(pair, "--option") for pair in pairs or [])
    # YAML 1.1 reads 1e-3 as a string.
    return {key: _number(yaml.safe_load(value)) for key, value in found.items()}


def _number(value: Any) -> Any:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value
