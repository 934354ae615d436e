"""Stage: where a model stands: harmful score, over-refusal and task accuracy, with every answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from holdfast import plugins
from holdfast.contracts import Judge, Task, Verdict, check_answered
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.models import checkpoints
from holdfast.results.artifacts import Counts, EvalRecord, Evaluation
from holdfast.results.files import sha256_file, sha256_json, to_json, write_text
from holdfast.runtime import progress
from holdfast.stages.config import JudgeSpecs, Models, StageConfig, TaskSpecs
from holdfast.stages.judgement import (
    check_prompts,
    count,
    hashes_of,
    judges_of,
    labelled,
    ready,
    task_accuracy,
)
from holdfast.stages.subjects import Subject, subjects

if TYPE_CHECKING:
    from holdfast.models.answers import Answer
    from holdfast.models.generation import Sampling

Rounds = dict[str, list[list[Verdict]]]
"""Judge -> for each sample its verdicts, in the prompts' order."""


class EvaluateConfig(StageConfig):
    """Options of the stage."""

    models: Models = Field(min_length=1)
    """Model to evaluate: its label in the run, or a directory or hub id."""
    test: str
    """Restricted prompts."""
    judges: JudgeSpecs = Field(default=["refusal"], min_length=1)
    """Judge of the responses."""
    over_refusal: str | None = None
    """Benign prompts that an over-cautious model refuses."""
    tasks: TaskSpecs = Field(default_factory=list)
    """Task whose test rows are asked."""
    task_rows: int = Field(default=200, ge=1)
    """Most test rows of each task."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Length of the judged answers in tokens."""
    check_rows: int = Field(default=32, ge=0)
    """Number of answers judged again under another answer's prompt, to see whether the judges look
    at the prompt; 0 checks none.
    """
    temperature: float = Field(default=0.0, ge=0)
    """Temperature of the judged answers; 0 is greedy. Tasks are always answered greedily."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Share of the probability from which sampled tokens are drawn."""
    samples: int = Field(default=1, ge=1)
    """Number of sampled answers to each prompt; harmful score and over-refusal are over all of
    them.
    """
    backend: Literal["transformers", "vllm"] = "transformers"
    """What generates: transformers, or vllm where it is installed."""
    general: list[str] = Field(default_factory=list)
    """Task of lm-evaluation-harness, where it is installed."""
    general_path: str | None = None
    """Folder of the files that describe these tasks."""
    general_rows: int = Field(default=0, ge=0)
    """Most rows of each of these tasks; 0 for all."""
    general_download: bool = False
    """Use the harness's own tasks and let it download their data."""

    def keyed(self) -> dict[str, Any]:
        """Return what decides the results, options that came later only where they are used."""
        found = super().keyed()
        later = {"temperature": 0.0, "top_p": 1.0, "samples": 1, "backend": "transformers"}
        later |= {"general": [], "general_path": None, "general_rows": 0, "general_download": False}
        later |= {"check_rows": 32}
        return {k: v for k, v in found.items() if k not in later or v != later[k]}

    def sampling(self, draw: int) -> Sampling:
        """Return how the answers number `draw` are sampled."""
        from holdfast.models.generation import Sampling

        return Sampling(self.temperature, self.top_p, self.seed, draw)


def evaluate(config: EvaluateConfig) -> list[Evaluation]:
    """Evaluate every model and save `evaluations/<label>.json` and the answers as jsonl.

    Raises:
        UsageError: Several greedy answers, which are all the same; general ability without data on
            this machine, or together with vLLM; something that is not installed.
    """
    _check(config)
    test = config.asked(config.test)
    borderline = config.asked(config.over_refusal) if config.over_refusal else None
    judges, tasks = judges_of(config.judges), tasks_of(config.tasks)
    results = []
    found = subjects(config.run, config.models)
    for done, who in enumerate(found):
        progress.report(f"evaluate {who.label}", done, len(found))
        results.append(_evaluate(config, who, test, borderline, judges, tasks))
    progress.report("evaluations", len(results), len(results))
    return results


def _evaluate(
    config: EvaluateConfig,
    who: Subject,
    test: Examples,
    borderline: Examples | None,
    judges: Mapping[str, Judge],
    tasks: Mapping[str, Task],
) -> Evaluation:
    categories = [row.provenance.get("category", "") for row in test]
    inputs = {
        "model": who.hash,
        "test": test.hash,
        **({"over_refusal": borderline.hash} if borderline else {}),
        **({"categories": sha256_json(categories)} if any(categories) else {}),
        **{f"task {name}": task.load("test").hash for name, task in tasks.items()},
        **{f"options of {name}": plugins.mark(task) for name, task in tasks.items()},
        **({"general": _folder(config.general_path)} if config.general_path else {}),
        **hashes_of(judges),
    }
    path = config.run.path("evaluations", f"{who.label}.json")
    keyed = {k: v for k, v in config.keyed().items() if k != "models"}
    with config.run.job("evaluate", who.label, config=keyed, inputs=inputs) as job:
        if job.done is None:
            ready(judges)
            answer, loaded = _answering(config, who)
            answers, verdicts = _sampled(config, answer, test, judges)
            pooled = {name: list(chain(*rounds)) for name, rounds in verdicts.items()}
            first = {name: rounds[0] for name, rounds in verdicts.items()}
            Evaluation(
                model=who.label,
                model_hash=who.hash,
                method=who.method,
                model_seed=who.seed,
                verdicts={name: count(found) for name, found in pooled.items()},
                by_category=_by_category(test, pooled),
                over_refusal=_refused(config, answer, borderline),
                tasks=_tasks(config, answer, tasks),
                exchanged=check_prompts(
                    judges, test.prompts, answers[0], first, rows=config.check_rows
                ),
                general=_general(config, loaded),
                samples=config.samples,
            ).save(path)
            records = path.with_suffix(".jsonl")
            _write_records(records, test, answers, verdicts)
            job.outputs += [path, records]
    return Evaluation.load(path)


def _folder(path: str) -> str:
    """Hash the files that describe tasks, and what lies beside them."""
    files = sorted(file for file in Path(path).rglob("*") if file.is_file())
    return sha256_json([[str(f.relative_to(path)), sha256_file(f)] for f in files])


def _check(config: EvaluateConfig) -> None:
    if config.samples > 1 and not config.temperature:
        raise UsageError(
            f"samples={config.samples} with temperature 0: greedy answers to a prompt are all the "
            "same; set a temperature, e.g. 1, or leave out samples"
        )
    if config.general and config.backend != "transformers":
        raise UsageError("general needs the backend transformers; evaluate it in a run of its own")
    if config.general and config.general_path is None and not config.general_download:
        raise UsageError(
            f"general {config.general[0]!r}: give general_path, a folder of task files whose data "
            "are on this machine, or set general_download to let the harness fetch its own"
        )
    if config.general:
        from holdfast.models.lm_eval import known

        known(config.general, config.general_path)


def _answering(config: EvaluateConfig, who: Subject) -> tuple[Answer, checkpoints.Loaded | None]:
    from holdfast.models.answers import with_transformers, with_vllm

    if config.backend == "vllm":
        return with_vllm(who.source), None
    loaded = checkpoints.load(who.source, device=config.device)
    return with_transformers(loaded.model, loaded.tokenizer), loaded


def _by_category(
    test: Examples, verdicts: Mapping[str, Sequence[Verdict]]
) -> dict[str, dict[str, Counts]]:
    samples = len(next(iter(verdicts.values()))) // max(1, len(test))
    categories = [row.provenance.get("category", "unknown") for row in test] * samples
    return {
        category: {
            name: count([v for v, c in zip(found, categories, strict=True) if c == category])
            for name, found in verdicts.items()
        }
        for category in sorted(set(categories))
    }


def _refused(config: EvaluateConfig, answer: Answer, borderline: Examples | None) -> Counts | None:
    if borderline is None:
        return None
    judge: Judge = plugins.make("judges", "refusal,others_harmful=false")
    _, found = _sampled(config, answer, borderline, {"refusal": judge})
    return count(list(chain(*found["refusal"])))


def _tasks(
    config: EvaluateConfig, answer: Answer, tasks: Mapping[str, Task]
) -> dict[str, dict[str, float]]:
    found = {}
    for label, task in tasks.items():
        rows = task.load("test")[: config.task_rows]
        accuracy, n, unparsable = task_accuracy(answer, task, rows)
        found[label] = {"accuracy": accuracy, "n": n, "unparsable": unparsable}
    return found


def tasks_of(specs: Sequence[str]) -> dict[str, Task]:
    """Build tasks by what they are called: their name, or all of the spec if two share a name.

    Raises:
        UsageError: An unknown task or option, or the same task twice.
    """
    return {label: plugins.make("tasks", spec) for label, spec in labelled("task", specs).items()}


def _general(
    config: EvaluateConfig, loaded: checkpoints.Loaded | None
) -> dict[str, dict[str, dict[str, float]]]:
    if not config.general or loaded is None:
        return {}
    from holdfast.models.lm_eval import general

    return general(
        loaded.model,
        loaded.tokenizer,
        config.general,
        folder=config.general_path,
        rows=config.general_rows or None,
    )


def _write_records(
    path: Path, test: Examples, answers: Sequence[Sequence[str]], verdicts: Rounds
) -> None:
    lines = []
    for sample, said in enumerate(answers):
        for i, (row, text) in enumerate(zip(test, said, strict=True)):
            found = {name: rounds[sample][i] for name, rounds in verdicts.items()}
            record = EvalRecord(
                id=row.id,
                prompt=row.prompt,
                response=text,
                verdicts={
                    name: {"harmful": v.harmful, "score": v.score, "reason": v.reason}
                    for name, v in found.items()
                },
                category=row.provenance.get("category", ""),
                sample=sample,
            )
            lines.append(json.dumps(to_json(asdict(record)), ensure_ascii=False))
    write_text(path, "\n".join(lines) + "\n")


def _sampled(
    config: EvaluateConfig, answer: Answer, prompts: Examples, judges: Mapping[str, Judge]
) -> tuple[list[list[str]], Rounds]:
    answers: list[list[str]] = []
    verdicts: Rounds = {name: [] for name in judges}
    for draw in range(config.samples):
        said = answer(prompts.prompts, config.max_new_tokens, config.sampling(draw))
        answers.append(said)
        for name, judge in judges.items():
            verdicts[name].append(judge.judge(prompts.prompts, said))
            check_answered(name, verdicts[name][-1])
    return answers, verdicts
