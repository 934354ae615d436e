"""Stage: measure harmful score, over-refusal and task accuracy of models, and save the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from holdfast import plugins
from holdfast.contracts import MOST_UNDECIDED, Judge, Task, Verdict, check_decided, judge_responses
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.models import checkpoints
from holdfast.models.encoding import answerable
from holdfast.models.precision import computing, computing_in
from holdfast.models.templates import frame_of
from holdfast.results.artifacts import Counts, EvalRecord, Evaluation
from holdfast.results.contents import content_hash, existing
from holdfast.results.files import sha256_json, to_json, write_text
from holdfast.results.run_dir import Job, RunDir
from holdfast.results.sources import Sources
from holdfast.runtime import progress
from holdfast.stages.config import JudgeSpecs, ModelConfig, Models, TaskSpecs
from holdfast.stages.plugin_inputs import (
    RunTask,
    check_judges,
    judge_facts,
    judge_hashes,
    judges_of,
    tasks_of,
)
from holdfast.stages.run_models import Subject, subjects
from holdfast.stages.verdicts import count, exchanged_verdicts, task_accuracy

if TYPE_CHECKING:
    from holdfast.models.answers import Answer
    from holdfast.models.generation import Sampling
    from holdfast.rows.thoughts import Response

Rounds = dict[str, list[list[Verdict]]]
"""Judge -> for each sample its verdicts, in the prompts' order."""


class EvaluateConfig(ModelConfig):
    """Options of the stage."""

    PLACES: ClassVar[frozenset[str]] = frozenset(
        {"models", "test", "judges", "over_refusal", "tasks", "general_path", "most_undecided"}
    )

    models: Models = Field(min_length=1)
    """Model to evaluate: its label in the run, a directory, a GGUF file, package:NAME or
    a hub id. LABEL=DIRECTORY gives it a label.
    """
    test: str
    """Restricted prompts."""
    judges: JudgeSpecs = Field(default=["refusal"], min_length=1)
    """Judge of the responses."""
    over_refusal: str | None = None
    """Benign prompts that an over-cautious model refuses."""
    tasks: TaskSpecs = Field(default_factory=list)
    """Task to measure accuracy on, with its test rows."""
    task_rows: int = Field(default=200, ge=1)
    """Maximum number of test rows per task."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Maximum length of the judged answers, in tokens."""
    check_rows: int = Field(default=32, ge=0)
    """Number of answers to judge again under a different prompt, to check that the judges read the
    prompt; 0 skips the check.
    """
    most_undecided: float = Field(default=MOST_UNDECIDED, ge=0, le=1)
    """Largest share of undecided verdicts of a judge; with more, the stage stops with the reason.
    With 1 it never stops, and a harmful score without any decided verdict is unknown.
    """
    temperature: float = Field(default=0.0, ge=0)
    """Temperature of the judged answers; 0 is greedy. Tasks are always answered greedily."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling threshold: sample from the top tokens with this total probability."""
    samples: int = Field(default=1, ge=1)
    """Number of sampled answers per prompt; harmful score and over-refusal pool all of them."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """Generation backend: transformers, or vllm if installed."""
    general: list[str] = Field(default_factory=list)
    """Task of lm-evaluation-harness to run, if installed."""
    general_path: str | None = None
    """Folder with the harness's task files for --general."""
    general_rows: int = Field(default=0, ge=0)
    """Maximum number of rows per --general task; 0 uses all."""
    general_download: bool = False
    """Use the harness's built-in tasks and let it download their data."""

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
    borderline = None
    if config.over_refusal:
        borderline = config.read_prompts(config.over_refusal, use="harmless prompts")
    material = _Material(
        test=config.read_prompts(config.test),
        borderline=borderline,
        judges=judges_of(config.judges),
        tasks=tasks_of(config.run, config.tasks),
    )
    results: list[Evaluation] = []
    models = subjects(config.run, config.models)
    for model in models:
        progress.report(f"evaluate {model.label}", len(results), len(models))
        results.append(_evaluation(config, model, material))
    progress.report("evaluations", len(results), len(results))
    return results


@dataclass(frozen=True)
class Questions:
    """What a model is asked, and who judges it.

    Attributes:
        test: Restricted prompts.
        borderline: Benign prompts that an over-cautious model refuses; None if not asked.
        judges: By label.
        tasks: By label.
    """

    test: Examples
    borderline: Examples | None
    judges: Mapping[str, Judge]
    tasks: Mapping[str, Task]


@dataclass(frozen=True)
class _Material(Questions):
    """What all evaluations of a command share."""

    tasks: Mapping[str, RunTask]

    @property
    def rows(self) -> dict[str, Examples]:
        """The rows of a job."""
        rows = {f"task {label}": task.load("test") for label, task in self.tasks.items()}
        rows["test"] = self.test
        if self.borderline:
            rows["over_refusal"] = self.borderline
        return rows


def _evaluation(config: EvaluateConfig, model: Subject, material: _Material) -> Evaluation:
    path = config.run.path("evaluations", f"{model.label}.json")
    inputs = _inputs(config, model, material)
    settings = _settings(config, model)
    with config.run.job(
        "evaluate", model.label, config=settings, inputs=inputs, rows=material.rows
    ) as job:
        if job.done is None:
            check_judges(material.judges)
            answer, loaded = _answering(config, model)
            tokenizer = loaded.tokenizer if loaded else checkpoints.tokenizer_of(model.source)
            job.facts["template"] = frame_of(tokenizer).facts
            material = _answerable(config, material, loaded, job)
            with computing_in(settings.get("precision", "float32")):
                evaluation, responses, verdicts = measured(config, model, material, answer)
            precision = settings.get("precision", "")
            general = _general(config, loaded)
            replace(evaluation, general=general, precision=precision).save(path)
            if facts := judge_facts(material.judges):
                job.facts["judges"] = facts
            records = path.with_suffix(".jsonl")
            _write_records(records, material.test, responses, verdicts)
            job.facts["thoughts"] = _thoughts(responses)
            job.outputs += [path, records]
    return Evaluation.load(path)


def _settings(config: EvaluateConfig, model: Subject) -> dict[str, Any]:
    """Return the options of a job's key; vLLM has a precision of its own."""
    return config.keyed() if config.backend == "vllm" else config.keyed_for(model.source)


def _thoughts(responses: Sequence[Sequence[Response]]) -> dict[str, int]:
    """Count responses with thoughts, and those that end inside them."""
    pooled = list(chain(*responses))
    return {
        "responses": len(pooled),
        "with_thoughts": sum(bool(response.thoughts) for response in pooled),
        "unfinished": sum(response.unfinished for response in pooled),
    }


def _answerable(
    config: EvaluateConfig, material: _Material, loaded: checkpoints.Loaded | None, job: Job
) -> _Material:
    """Return the material without prompts that are too long to be answered; record these."""
    if loaded is None:
        return material
    changes: dict[str, Examples] = {}
    for label, prompts in {"test": material.test, "borderline": material.borderline}.items():
        used = prompts and answerable(
            loaded.model, loaded.tokenizer, prompts, config.max_new_tokens
        )
        if prompts and used and len(used) < len(prompts):
            changes[label] = used
    job.facts["left_out"] = {
        label: config.run.rows.record_left_out(used) for label, used in changes.items()
    }
    return replace(
        material,
        test=changes.get("test", material.test),
        borderline=changes.get("borderline", material.borderline),
    )


def _inputs(config: EvaluateConfig, model: Subject, material: _Material) -> dict[str, str]:
    inputs = {"model": model.hash, **judge_hashes(config.run, config.judges, material.judges)}
    categories = [row.provenance.get("category", "") for row in material.test]
    if any(categories):
        # The rows' own hash covers their texts only.
        inputs["categories"] = sha256_json(categories)
    for label, task in material.tasks.items():
        inputs[f"options of {label}"] = task.options_hash
    if config.general_path:
        inputs["general"] = _general_hash(config.run, config.general_path)
    return inputs


def _general_hash(run: RunDir, folder: str) -> str:
    """Hash the files that describe general tasks, and what is beside them."""

    def find() -> dict[str, str]:
        path = existing(folder)
        if path is None:
            raise UsageError(f"general_path {folder}: no such folder")
        return {"hash": content_hash(path)}

    return Sources(run).contents("general tasks", folder, find)["hash"]


def measured(
    config: EvaluateConfig, model: Subject, questions: Questions, answer: Answer
) -> tuple[Evaluation, list[list[Response]], Rounds]:
    """Return where a model stands, without general ability, with its responses and verdicts."""
    responses, verdicts = _sampled(config, answer, questions.test, questions.judges)
    for name, rounds in verdicts.items():
        check_decided(name, list(chain(*rounds)), config.most_undecided)
    pooled = {name: list(chain(*rounds)) for name, rounds in verdicts.items()}
    first = {name: rounds[0] for name, rounds in verdicts.items()}
    evaluation = Evaluation(
        model=model.label,
        model_hash=model.hash,
        method=model.method,
        model_seed=model.seed,
        verdicts={name: count(of_judge) for name, of_judge in pooled.items()},
        by_category=_by_category(questions.test, pooled),
        over_refusal=_refused(config, answer, questions.borderline),
        tasks=_tasks(config, answer, questions.tasks),
        exchanged=exchanged_verdicts(
            questions.judges,
            questions.test.prompts,
            [response.text for response in responses[0]],
            first,
            rows=config.check_rows,
        ),
        samples=config.samples,
        precision=computing(),
    )
    return evaluation, responses, verdicts


def _check(config: EvaluateConfig) -> None:
    if config.samples > 1 and not config.temperature:
        raise UsageError(
            f"samples={config.samples} with temperature 0: all greedy answers to a prompt are the "
            "same; set a temperature, e.g. 1, or leave out samples"
        )
    if config.general and config.backend != "transformers":
        raise UsageError("general needs the backend transformers; evaluate it in a separate run")
    if config.general and config.general_path is None and not config.general_download:
        raise UsageError(
            f"general {config.general[0]!r}: give general_path, a folder of task files whose data "
            "are on this machine, or set general_download to let the harness fetch its own"
        )
    if config.general:
        from holdfast.models.lm_eval import task_manager

        task_manager(config.general, config.general_path)


def _answering(config: EvaluateConfig, model: Subject) -> tuple[Answer, checkpoints.Loaded | None]:
    from holdfast.models.answers import answer_with_transformers, answer_with_vllm

    if config.backend == "vllm":
        return answer_with_vllm(model.source), None
    loaded = checkpoints.load(model.source, device=config.device)
    return answer_with_transformers(loaded.model, loaded.tokenizer), loaded


def _by_category(
    test: Examples, verdicts: Mapping[str, Sequence[Verdict]]
) -> dict[str, dict[str, Counts]]:
    samples = len(next(iter(verdicts.values()))) // max(1, len(test))
    categories = [row.provenance.get("category", "unknown") for row in test] * samples
    return {
        category: {
            name: count([v for v, c in zip(of_judge, categories, strict=True) if c == category])
            for name, of_judge in verdicts.items()
        }
        for category in sorted(set(categories))
    }


def _refused(config: EvaluateConfig, answer: Answer, borderline: Examples | None) -> Counts | None:
    if borderline is None:
        return None
    judge: Judge = plugins.make("judges", "refusal,others_harmful=false")
    responses, verdicts = _sampled(config, answer, borderline, {"refusal": judge})
    pooled = zip(chain(*responses), chain(*verdicts["refusal"]), strict=True)
    # Where the thoughts do not end, it is unknown whether a refusal would follow.
    answered = [verdict for response, verdict in pooled if not response.unfinished]
    return count(answered) if answered else None


def _tasks(
    config: EvaluateConfig, answer: Answer, tasks: Mapping[str, Task]
) -> dict[str, dict[str, float]]:
    results = {}
    for label, task in tasks.items():
        rows = task.load("test")[: config.task_rows]
        accuracy, n, unparsable = task_accuracy(answer, task, rows)
        results[label] = {"accuracy": accuracy, "n": n, "unparsable": unparsable}
    return results


def _general(
    config: EvaluateConfig, loaded: checkpoints.Loaded | None
) -> dict[str, dict[str, dict[str, float]]]:
    if not config.general or loaded is None:
        return {}
    from holdfast.models.lm_eval import evaluate_general

    return evaluate_general(
        loaded.model,
        loaded.tokenizer,
        config.general,
        folder=config.general_path,
        rows=config.general_rows or None,
    )


def _write_records(
    path: Path, test: Examples, responses: Sequence[Sequence[Response]], verdicts: Rounds
) -> None:
    lines = []
    for sample, of_sample in enumerate(responses):
        for i, (row, response) in enumerate(zip(test, of_sample, strict=True)):
            of_judges = {name: rounds[sample][i] for name, rounds in verdicts.items()}
            record = EvalRecord(
                id=row.id,
                prompt=row.prompt,
                response=response.text,
                verdicts={
                    name: {"harmful": v.harmful, "score": v.score, "reason": v.reason}
                    | ({"said": v.said} if v.said else {})
                    for name, v in of_judges.items()
                },
                category=row.provenance.get("category", ""),
                sample=sample,
                thoughts=response.thoughts,
            )
            lines.append(json.dumps(to_json(asdict(record)), ensure_ascii=False))
    write_text(path, "\n".join(lines) + "\n")


def _sampled(
    config: EvaluateConfig, answer: Answer, prompts: Examples, judges: Mapping[str, Judge]
) -> tuple[list[list[Response]], Rounds]:
    responses: list[list[Response]] = []
    verdicts: Rounds = {name: [] for name in judges}
    for draw in range(config.samples):
        of_sample = answer(prompts.prompts, config.max_new_tokens, config.sampling(draw))
        responses.append(of_sample)
        for name, judge in judges.items():
            verdicts[name].append(judge_responses(name, judge, prompts.prompts, of_sample))
    return responses, verdicts
