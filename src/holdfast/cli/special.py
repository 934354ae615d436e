"""The commands that are no stage: whole runs, checks of a run, judges of one's own, plug-ins."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import show

app = typer.Typer()

Seed = Annotated[int, typer.Option("--seed", help="Seed of whatever is random.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]


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
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="So many processes at the same time.")
    ] = 1,
    scheduler: Annotated[
        str, typer.Option("--scheduler", help="Address of a running dask cluster to do it.")
    ] = "",
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote",
            help="The cluster may be on another machine, over a network that you trust.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the stages and stop.")] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say what is to be done, its hours and memory.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Walk all stages of a configuration; what is finished is not done again."""
    with show.running(as_json):
        from holdfast.cli.options import pair
        from holdfast.stages import pipeline

        loaded = pipeline.load(config, dict(pair("--set", text) for text in setting or []))
        update = {k: v for k, v in {"out": out, "seeds": seed}.items() if v}
        loaded = loaded.model_copy(update=update)
        if dry_run:
            calls = pipeline.plan(loaded)
            show.tell(as_json, [{"stage": call.stage, "name": call.name} for call in calls])
            return
        if estimate:
            from holdfast.stages.forecast import estimate as estimated

            show.tell(as_json, estimated(pipeline.plan(loaded), jobs=jobs).as_dict())
            return
        path = pipeline.run(loaded, jobs=jobs, scheduler=scheduler, allow_remote=allow_remote)
    show.end_of_run(as_json, loaded.out, path)


@app.command(epilog="Example: holdfast demo --out demo-out")
def demo(
    out: Annotated[Path, typer.Option("--out", help="The run directory.")] = Path("demo-out"),
    seed: Seed = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="So many processes at the same time.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Walk the whole road on the embedded world, in minutes, without a GPU."""
    with show.running(as_json):
        from holdfast.stages import pipeline
        from holdfast.stages.demo import configuration

        config = configuration(out, seed=seed, device=device)
        path = pipeline.run(config, jobs=jobs)
    show.end_of_run(as_json, out, path)


@app.command(epilog="Example: holdfast verify runs/a")
def verify(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    as_json: Json = False,
) -> None:
    """Recompute every hash of a run and name what was changed."""
    with show.running(as_json):
        from holdfast.errors import UsageError
        from holdfast.results.run_dir import RunDir

        directory = RunDir(run_directory)
        entries = directory.entries()
        if not entries:
            raise UsageError(f"{run_directory}: not a run directory (no manifest)")
        problems = directory.verify()
        failed = [f"{one.stage} {one.name}: {one.reason}" for one in directory.failures()]
    files = sum(len(entry.outputs) for entry in entries)
    told = {"files": files, "changed": problems, "failed": failed, "digest": directory.digest}
    show.tell(as_json, told)
    if problems:
        raise typer.Exit(1)


@app.command(epilog="Example: holdfast train-judge --data labelled.jsonl --out judges/mine")
def train_judge(
    data: Annotated[
        Path, typer.Option("--data", help="Rows with prompt, response and label or is_safe.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory of the judge.")],
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a judge of answers from labelled rows; no download, no pickle."""
    with show.running(as_json):
        from dataclasses import asdict

        from holdfast.judges.classifier import read_labelled, train_classifier

        made = asdict(train_classifier(read_labelled(data), out, seed=seed))
    show.tell(as_json, {"judge": f"classifier,path={out}", **made})


@app.command(epilog="Example: holdfast plugins estimators attack_direction")
def plugins(
    kind: Annotated[
        str | None,
        typer.Argument(help="estimators, methods, guards, judges, tasks, poisons or analyses."),
    ] = None,
    name: Annotated[
        str | None, typer.Argument(help="A plug-in: its name, or package.module:Class.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the kinds of plug-ins, the plug-ins of a kind, or the options of a plug-in."""
    with show.running(as_json):
        from holdfast.cli import reference

        if kind is None:
            show.tell(as_json, reference.kinds())
        elif name is None:
            show.tell(as_json, reference.listing(kind))
        elif as_json:
            show.tell(as_json, reference.details(kind, name))
        else:
            show.page(reference.page(kind, name))


@app.command(epilog="Example: holdfast power --share 0.1 --difference 0.03 --agreement 0.9")
def power(
    share: Annotated[float, typer.Option("--share", help="The first model's share.")],
    difference: Annotated[
        float | None, typer.Option("--difference", help="The second's minus the first's.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Prompts that there are.")] = None,
    agreement: Annotated[
        float | None,
        typer.Option("--agreement", help="Share of prompts judged alike, if both are asked them."),
    ] = None,
    chance: Annotated[float, typer.Option("--power", help="Probability of seeing it.")] = 0.8,
    level: Annotated[float, typer.Option("--level", help="Confidence level.")] = 0.95,
    as_json: Json = False,
) -> None:
    """Say how many prompts a difference needs, or which difference so many prompts show."""
    with show.running(as_json):
        from holdfast.errors import UsageError
        from holdfast.stats.power import prompts_needed, smallest_difference

        if (difference is None) == (n is None):
            raise UsageError("give either --difference or --n")
        told: show.Row
        options = {"power": chance, "level": level, "agreement": agreement}
        if difference is not None:
            found = prompts_needed(share, difference, **options)  # type: ignore[arg-type]
            told = {"share": share, "difference": difference, "prompts for each model": found}
        else:
            seen = smallest_difference(share, n or 0, **options)  # type: ignore[arg-type]
            shown = "none would be seen" if math.isnan(seen) else round(seen, 4)
            told = {"share": share, "prompts for each model": n or 0, "difference": shown}
    show.tell(as_json, told)
