"""A whole run from one configuration file: every stage in order, skipping finished jobs."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field

from holdfast.errors import UsageError
from holdfast.jobs.queue import summary
from holdfast.jobs.workers import first_result, local, started
from holdfast.models.precision import Precision
from holdfast.options import Flag, OptionError, Options
from holdfast.stages.align import MISMATCHED
from holdfast.stages.attacking.guards import check_disjoint
from holdfast.stages.config import AnalysisSpecs, JudgeSpecs, ModelConfig, Seeds, StageConfig
from holdfast.stages.forecast import announce, forecast
from holdfast.stages.planned_jobs import (
    PROGRAM,
    Agenda,
    Failures,
    PlannedJob,
    attempt_jobs,
    run_jobs,
)
from holdfast.stages.run_models import label_of, model_hash
from holdfast.stages.yaml_text import mapping_of

SCORED = "sft"
"""The method whose models are scored; the groups are made from it."""


class DataSpecs(Options):
    """Where the rows are: "world:NAME", "policy:NAME", files, or hub data sets."""

    owner: ClassVar[str] = "data"

    alignment: Annotated[str, Flag("data")]
    """Restricted prompts with the desired responses."""
    harmful: str | None = None
    """The attacker's rows; left out where `answer` makes them."""
    test: str
    """Restricted prompts that are never trained on."""
    benign: str | None = None
    """Ordinary rows to mix into the alignment data."""
    over_refusal: str | None = None
    """Benign prompts that an over-cautious model refuses."""
    proxy: str | None = None
    """Ordinary rows for the proxy attack; null uses the benign rows."""
    known_harmful: str | None = None
    """Harmful rows the defender has; never the attacker's."""


class RunConfig(Options):
    """A run: what to align, how, and how to attack it.

    The mappings under answer, align, score, group, attack, evaluate and report are options of the
    stage of that name; `holdfast STAGE --help` explains them.
    """

    owner: ClassVar[str] = "run configuration"

    out: Path
    """Run directory."""
    model: str
    """Model to align."""
    data: DataSpecs
    """Where the rows are."""
    seeds: Seeds = Field(default=[0], min_length=1)
    """Random seeds. Everything from alignment on is repeated for each; results are pooled."""
    device: str = "auto"
    """Device for models: auto, cpu, cuda or cuda:N."""
    precision: Precision = "auto"
    """Precision in which models compute: float32, bfloat16, or auto, which is bfloat16 where the
    processor or accelerator has it and the model is large enough to gain.
    """
    judges: JudgeSpecs = Field(default=["refusal"], min_length=1)
    """Judges of the responses; the first one's verdicts define the half-life."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role (prompt, response, category, ...) -> column in the data files."""
    strict: bool = False
    """Stop at the first unusable row instead of leaving it out."""
    max_left_out: float = Field(default=0.05, ge=0, le=1)
    """Largest share of a file's rows that may be left out before it is an error."""
    drop_invalid: bool = False
    """Leave out all unusable rows, with no limit on their number."""
    keep_harmful_rows: bool = False
    """Keep the text of harmful rows in the run directory, not just their ids."""
    answer: dict[str, Any] = Field(default_factory=dict)
    """Options of `holdfast answer` on the model before its alignment. The answers it keeps are the
    attacker's rows, in place of `data.harmful`.
    """
    align: dict[str, Any] = Field(default_factory=dict)
    """Options of `holdfast align` for every method."""
    methods: Annotated[dict[str, dict[str, Any]], Flag("method")]
    """Label -> method, its options, and overrides of `align`."""
    knowledge: dict[str, str | None] = Field(default_factory=dict)
    """Word for what the defender may know about the attacker's rows -> the harmful rows that the
    defender then has, or null for none. Every method that uses harmful rows is aligned once per
    entry, as LABEL-WORD; null gives it "mismatched" rows.
    """
    score: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Label -> options of `holdfast score` on the SFT-aligned model."""
    group: dict[str, Any] = Field(default_factory=dict)
    """Options of `holdfast group`; `scores` is a label under `score`."""
    attack: dict[str, Any] = Field(default_factory=dict)
    """Options of `holdfast attack` on every model."""
    track: bool = True
    """Track the alignment rows in attacks on the SFT-aligned model."""
    more_attacks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name -> overrides of `attack` for further attacks. `methods` lists the methods to attack
    (default: all).
    """
    evaluate: dict[str, Any] = Field(default_factory=dict)
    """Options of `holdfast evaluate`."""
    analyses: AnalysisSpecs = Field(default_factory=list)
    """Analyses to run; if empty, all that are possible."""
    report: dict[str, Any] = Field(default_factory=dict)
    """Options of `holdfast report`."""


def load(path: Path, variables: Mapping[str, str] | None = None) -> RunConfig:
    """Read a configuration file.

    `${NAME}` in the file is replaced by the variable of that name, from `variables`, the file's
    own `vars` mapping, or the environment, in this order.

    Raises:
        UsageError: Missing file, broken YAML, unknown variable, or an option that is not known.
    """
    try:
        text = path.read_text(encoding="utf-8")
        defaults = mapping_of(text).get("vars") or {}
    except IsADirectoryError as error:
        raise UsageError(f"{path}: is a directory; give a configuration file") from error
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; see examples/ for configurations") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a YAML mapping: {error}") from error
    if not isinstance(defaults, dict):
        raise UsageError(f"{path}: vars must map names to values, got {defaults!r}")
    names = {*defaults, *string.Template(text).get_identifiers()}
    unknown = sorted(set(variables or {}) - names)
    if unknown:
        choices = ", ".join(sorted(names)) or "no variables"
        raise UsageError(f"--set {unknown[0]}: {path} has no such variable; it has {choices}")
    values = {**os.environ, **{k: str(v) for k, v in defaults.items()}, **(variables or {})}
    try:
        filled = string.Template(text).substitute(values)
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"{path}: variable {error} is not set; give it with --set NAME=VALUE"
        ) from error
    try:
        raw = mapping_of(filled)
    except ValueError as error:
        raise UsageError(
            f"{path}: not valid YAML once its variables are filled in: {error}"
        ) from error
    raw.pop("vars", None)
    return parse(raw, where=str(path))


def parse(raw: Mapping[str, Any], *, where: str) -> RunConfig:
    """Validate a configuration and every stage's options in it."""
    try:
        config = RunConfig(**raw)
        plan(config)
    except OptionError as error:
        raise UsageError(f"{where}: {error}") from error
    return config


def plan(config: RunConfig) -> list[PlannedJob]:
    """Return every stage of the run, in order: one seed from start to end, then the next.

    Raises:
        UsageError: A stage's option is wrong, there is no method to score, or the grouping names
            no scores.
    """
    methods = _by_knowledge(config)
    if config.score:
        methods = {SCORED: {}, **methods}
    if not methods:
        raise UsageError("methods: name at least one, e.g. {sft: {}}")
    for name, changes in config.more_attacks.items():
        unknown = sorted(set(changes.get("methods", ())) - methods.keys())
        if unknown:
            raise UsageError(
                f"more_attacks.{name}.methods: {unknown[0]!r} is not a method of this run; its "
                f"methods are {', '.join(methods)}"
            )
    first = [name for name in methods if name == SCORED]
    rest = [name for name in methods if name != SCORED]
    planned: list[PlannedJob] = []
    for seed in config.seeds:
        planned += [_align(config, name, methods[name], seed) for name in first]
        planned += _scores(config, seed)
        planned += [_align(config, name, methods[name], seed) for name in rest]
        labels = [f"{name}-s{seed}" for name in (*first, *rest)]
        before = [config.model] if seed == config.seeds[0] else []
        planned += [_evaluate(config, name) for name in (*before, *labels)]
        planned += [job for label in labels for job in _attacks(config, label)]
    return [*_answers(config, planned), *planned, *_last(config)]


def run(
    config: RunConfig, *, jobs: int = 1, scheduler: str = "", allow_remote: bool = False
) -> Path:
    """Run all jobs; finished ones with unchanged inputs are skipped.

    Args:
        config: The run.
        jobs: Number of parallel processes.
        scheduler: Address of a running dask cluster to run the jobs on.
        allow_remote: Whether the cluster may be on another machine.

    Returns:
        The path of the report.

    Raises:
        HoldfastError: Some jobs failed. The others are finished, and the report says which.
    """
    if scheduler or jobs == 1:
        if config.answer:
            announce(plan(config), jobs=jobs)
            _make_answers(config, scheduler=scheduler, allow_remote=allow_remote)
        planned = _after_answers(config)
        if not config.answer:
            announce(planned, jobs=jobs)
        failures, total = attempt_jobs(
            planned, jobs=jobs, scheduler=scheduler, allow_remote=allow_remote
        )
    else:
        failures, total = _attempt_in_processes(config, jobs)
    if failures:
        raise summary(failures, total)
    return config.out / "report.html"


def _attempt_in_processes(config: RunConfig, jobs: int) -> tuple[Failures, int]:
    """Run the jobs in processes of this machine, the first of which plans them.

    This process then only shows their progress, and never loads torch.
    """
    with started(PROGRAM, jobs) as spare:
        request = {"run": config.model_dump(mode="json"), "jobs": jobs}
        agenda = Agenda.read(first_result(spare, json.dumps(request)))
        with local(PROGRAM, jobs, spare) as pool:
            return agenda.attempt(pool), agenda.total


def agenda(config: RunConfig, *, jobs: int) -> Agenda:
    """Plan a run and return its unfinished jobs.

    Args:
        config: The run.
        jobs: Number of parallel processes, for the forecast.

    Raises:
        UsageError: As `checked_plan` does.
    """
    _make_answers(config)
    planned = _after_answers(config)
    return Agenda.of(planned, forecast(planned, jobs=jobs))


def _make_answers(config: RunConfig, *, scheduler: str = "", allow_remote: bool = False) -> None:
    """Make the attacker's rows first: without them, every other job would be in vain."""
    answers = [job for job in plan(config) if job.stage == "answer"]
    if answers:
        # A model that is not there is refused here, before a failed job is on record.
        model_hash(answers[0].config.run, config.model)
        run_jobs(answers, scheduler=scheduler, allow_remote=allow_remote)


def _after_answers(config: RunConfig) -> list[PlannedJob]:
    """Return the jobs that come after the attacker's rows are made."""
    return [job for job in checked_plan(config) if job.stage != "answer"]


def checked_plan(config: RunConfig) -> list[PlannedJob]:
    """Return every stage of the run; reject what would fail only after hours.

    Raises:
        UsageError: An option is wrong, rows are missing, or attacks cannot be run.
    """
    from holdfast.stages.attacking.config import AttackConfig
    from holdfast.stages.attacking.material import check_attacks

    _check_knowledge(config)
    planned = plan(config)
    check_attacks([job.config for job in planned if isinstance(job.config, AttackConfig)])
    return planned


def _check_knowledge(config: RunConfig) -> None:
    """Reject harmful rows that both the defender knows and the attacker uses."""
    reader = _stage_config(StageConfig, config)
    for word, spec in config.knowledge.items():
        check_disjoint(
            reader.read_if(spec, use="harmful"),
            reader.read(_harmful(config), use="harmful"),
            f"knowledge {word!r}",
        )


def _by_knowledge(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return the methods; those that use harmful rows appear once per state of knowledge."""
    from holdfast.methods._together import method

    by_label: dict[str, dict[str, Any]] = {}
    for label, options in config.methods.items():
        merged = {"method": label, **config.align, **options}
        method_options = merged.get("options") or {}
        needs_harmful = "harmful" in method(merged["method"]).needs
        uses_harmful = needs_harmful or method_options.get("attack_rows") == "harmful"
        if not uses_harmful or not config.knowledge:
            by_label[label] = options
            continue
        for word, spec in config.knowledge.items():
            by_label[f"{label}-{word}"] = {
                **options,
                "method": merged["method"],
                "harmful": spec or MISMATCHED,
                "knowledge": word,
            }
    return by_label


C = TypeVar("C", bound=StageConfig)


def _stage_config(cls: type[C], config: RunConfig, **options: Any) -> C:
    """Return a stage's options: those shared by all stages of the run, and its own."""
    common: dict[str, Any] = {
        "out": config.out,
        "device": config.device,
        "columns": config.columns,
        "strict": config.strict,
        "max_left_out": config.max_left_out,
        "drop_invalid": config.drop_invalid,
        "keep_harmful_rows": config.keep_harmful_rows,
    }
    if issubclass(cls, ModelConfig):
        common["precision"] = config.precision
    return cls(**(common | options))


def _harmful(config: RunConfig) -> str:
    """Return the spec of the attacker's rows.

    Raises:
        UsageError: There are none, or two kinds of them.
    """
    from holdfast.stages.answer import answers_file

    if (config.data.harmful is None) != bool(config.answer):
        raise UsageError(
            "the attacker's rows are data.harmful, or what answer makes: give one of the two"
        )
    if config.data.harmful is not None:
        return config.data.harmful
    run = _stage_config(StageConfig, config).run
    return str(answers_file(run, _answer(config, least=1).name))


def _answers(config: RunConfig, planned: Sequence[PlannedJob]) -> list[PlannedJob]:
    """Return the job that makes the attacker's rows: as many as any of the attacks needs."""
    from holdfast.rows.mixing import share_of_rows
    from holdfast.stages.attacking.config import AttackConfig
    from holdfast.stages.attacking.grid import attacks_of, grids_of

    if not config.answer:
        return []
    needed = [
        share_of_rows(attack.poison_ratio, grid.rows)
        for job in planned
        if isinstance(job.config, AttackConfig)
        for grid in grids_of(job.config)
        for attack in attacks_of(grid)
    ]
    return [_answer(config, least=max([1, *needed]))]


def _answer(config: RunConfig, *, least: int) -> PlannedJob:
    from holdfast.stages.answer import AnswerConfig

    defaults = {"model": config.model, "judge": config.judges[0], "least": least}
    settings = _stage_config(AnswerConfig, config, **(defaults | config.answer))
    return PlannedJob("answer", settings.label, settings)


def _align(config: RunConfig, name: str, options: Mapping[str, Any], seed: int) -> PlannedJob:
    from holdfast.methods._together import method
    from holdfast.stages.align import AlignConfig

    merged = {"method": name, **config.align, **options}
    needs = method(merged["method"]).needs
    if "groups" in needs and not config.score:
        raise UsageError(f"methods.{name} needs groups: name an estimator under `score`")
    defaults = {
        "model": config.model,
        "data": config.data.alignment,
        "benign": config.data.benign,
        "harmful": config.data.known_harmful,
        "seed": seed,
        "name": name,
        "groups": f"groups-s{seed}" if "groups" in needs else None,
    }
    settings = _stage_config(AlignConfig, config, **(defaults | merged))
    return PlannedJob("align", settings.label, settings)


def _scores(config: RunConfig, seed: int) -> list[PlannedJob]:
    """Return the scores of the SFT model of a seed, and the groups made from one of them."""
    if not config.score:
        return []
    return [*(_score(config, name, seed) for name in config.score), _group(config, seed)]


def _score(config: RunConfig, name: str, seed: int) -> PlannedJob:
    from holdfast.stages.score import ScoreConfig

    defaults = {
        "model": f"{SCORED}-s{seed}",
        "data": config.data.alignment,
        "benign": config.data.proxy or config.data.benign,
        "harmful": config.data.known_harmful,
        "base": config.model,
        "judge": config.judges[0],
        "seed": seed,
        "name": f"{name}-s{seed}",
        "estimator": name,
    }
    settings = _stage_config(ScoreConfig, config, **(defaults | config.score[name]))
    return PlannedJob("score", settings.label, settings)


def _group(config: RunConfig, seed: int) -> PlannedJob:
    from holdfast.stages.group import GroupConfig

    options = dict(config.group)
    scores = options.pop("scores", next(iter(config.score)))
    if scores not in config.score:
        raise UsageError(
            f"group.scores: {scores!r} is not one of the scores: {', '.join(config.score)}"
        )
    defaults = {
        "data": config.data.alignment,
        "scores": f"{scores}-s{seed}",
        "name": f"groups-s{seed}",
        "seed": seed,
    }
    settings = _stage_config(GroupConfig, config, **(defaults | options))
    return PlannedJob("group", settings.name, settings)


def _evaluate(config: RunConfig, model: str) -> PlannedJob:
    from holdfast.stages.evaluate import EvaluateConfig

    defaults = {
        "models": [model],
        "test": config.data.test,
        "judges": config.judges,
        "over_refusal": config.data.over_refusal,
    }
    settings = _stage_config(EvaluateConfig, config, **(defaults | config.evaluate))
    return PlannedJob("evaluate", label_of(model), settings)


def _attacks(config: RunConfig, label: str) -> list[PlannedJob]:
    method = label.rpartition("-s")[0]
    tracks = config.track and method == SCORED
    tracking = {"track": config.data.alignment if tracks else None}
    planned = [_attack(config, label, {"models": [label], **tracking, **config.attack})]
    for name, changes in config.more_attacks.items():
        options = {"models": [label], **config.attack, "name": name, **changes}
        if method in options.pop("methods", [method]):
            planned.append(_attack(config, f"{label}-{name}", options))
    return planned


def _attack(config: RunConfig, name: str, options: Mapping[str, Any]) -> PlannedJob:
    from holdfast.stages.attacking.config import AttackConfig
    from holdfast.stages.attacking.presets import expand

    defaults = {
        "harmful": _harmful(config),
        "test": config.data.test,
        "judges": config.judges,
        "safety": config.data.alignment,
        "known_harmful": config.data.known_harmful,
        "base": config.model,
    }
    settings = _stage_config(AttackConfig, config, **(defaults | dict(options)))
    expand(settings)  # reject an unknown preset before the alignment, not after it
    return PlannedJob("attack", name, settings)


def _last(config: RunConfig) -> list[PlannedJob]:
    from holdfast.stages.analyze import AnalyzeConfig
    from holdfast.stages.report import ReportConfig

    common: dict[str, Any] = {"out": config.out, "device": config.device}
    return [
        PlannedJob("analyze", "all", AnalyzeConfig(**common, analyses=config.analyses)),
        PlannedJob("report", "report", ReportConfig(**common, **config.report)),
    ]
