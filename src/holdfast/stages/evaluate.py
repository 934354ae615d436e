"""Stage: where a model stands: harmful score, over-refusal and task accuracy, with every answer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from holdfast import models, plugins, progress
from holdfast.artifacts import Counts, EvalRecord, Evaluation, to_json, write_text
from holdfast.contracts import Judge, Task, Verdict
from holdfast.examples import Examples
from holdfast.stages.config import StageConfig
from holdfast.stages.judging import check_prompts, hashes_of, judges_of, ready
from holdfast.stages.subjects import Subject, subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class EvaluateConfig(StageConfig):
    """Options of the stage.

    Attributes:
        models: Models of the run by label, or others by directory or hub id.
        test: Restricted prompts.
        judges: Names and options.
        over_refusal: Benign prompts that an over-careful model refuses.
        tasks: Tasks whose test rows are asked.
        task_rows: At most so many of them.
        max_new_tokens: Length of the judged answers.
        check_rows: Answers that are judged again under another's prompt, to see that the judges
            look at it; 0 for none.
    """

    models: list[str] = Field(min_length=1)
    test: str
    judges: list[str] = Field(default=["refusal"], min_length=1)
    over_refusal: str | None = None
    tasks: list[str] = Field(default_factory=list)
    task_rows: int = Field(default=200, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)
    check_rows: int = Field(default=32, ge=0)

    def keyed(self) -> dict[str, Any]:
        """Return what decides the results, options that came later only where they are used."""
        found = super().keyed()
        return {k: v for k, v in found.items() if (k, v) != ("check_rows", 32)}


def evaluate(config: EvaluateConfig) -> list[Evaluation]:
    """Evaluate every model and save `evaluations/<label>.json` and the answers as jsonl."""
    test = config.read(config.test, needs_response=False)
    borderline = (
        config.read(config.over_refusal, needs_response=False) if config.over_refusal else None
    )
    judges = judges_of(config.judges)
    results = []
    for done, name in enumerate(config.models):
        who = subject(config.run, name)
        progress.report(f"evaluate {who.label}", done, len(config.models))
        results.append(_evaluate(config, who, test, borderline, judges))
    progress.report("evaluations", len(results), len(results))
    return results


def _evaluate(
    config: EvaluateConfig,
    who: Subject,
    test: Examples,
    borderline: Examples | None,
    judges: Mapping[str, Judge],
) -> Evaluation:
    inputs = {
        "model": who.hash,
        "test": test.hash,
        **({"over_refusal": borderline.hash} if borderline else {}),
        **hashes_of(judges),
    }
    path = config.run.path("evaluations", f"{who.label}.json")
    keyed = {k: v for k, v in config.keyed().items() if k != "models"}
    with config.run.step("evaluate", who.label, config=keyed, inputs=inputs) as step:
        if step.done is None:
            ready(judges)
            loaded = models.load(who.source, device=config.device)
            model, tokenizer = loaded.model, loaded.tokenizer
            verdicts, answers = ask(model, tokenizer, test, judges, config.max_new_tokens)
            Evaluation(
                model=who.label,
                model_hash=who.hash,
                method=who.method,
                model_seed=who.seed,
                verdicts={name: count(v) for name, v in verdicts.items()},
                by_category=_by_category(test, verdicts),
                over_refusal=_refused(config, model, tokenizer, borderline),
                tasks=_tasks(config, model, tokenizer),
                exchanged=check_prompts(
                    judges, test.prompts, answers, verdicts, rows=config.check_rows
                ),
            ).save(path)
            records = path.with_suffix(".jsonl")
            _write_records(records, test, answers, verdicts)
            step.outputs += [path, records]
    return Evaluation.load(path)


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Examples,
    judges: Mapping[str, Judge],
    max_new_tokens: int,
    *,
    asked: Sequence[str] | None = None,
) -> tuple[dict[str, list[Verdict]], list[str]]:
    """Ask every prompt once and let every judge see prompt and answer.

    Args:
        model: Asked.
        tokenizer: Its tokenizer.
        prompts: What the judges see.
        judges: By name.
        max_new_tokens: Length of the answers.
        asked: What the model sees in place of the prompts, one each.
    """
    from holdfast.generate import generate

    texts = prompts.prompts if asked is None else asked
    answers = generate(model, tokenizer, texts, max_new_tokens=max_new_tokens)
    return {name: j.judge(prompts.prompts, answers) for name, j in judges.items()}, answers


def count(verdicts: Sequence[Verdict]) -> Counts:
    """Count verdicts."""
    harmful = sum(v.harmful is True for v in verdicts)
    safe = sum(v.harmful is False for v in verdicts)
    return Counts(harmful, safe, len(verdicts) - harmful - safe)


def task_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, rows: Examples
) -> tuple[float, int, int]:
    """Return mean score, rows and unparsable answers; an unparsable answer scores 0."""
    from holdfast.generate import generate

    answers = generate(model, tokenizer, rows.prompts, max_new_tokens=task.max_new_tokens)
    scores = [task.score(a, row.response) for a, row in zip(answers, rows, strict=True)]
    unparsable = sum(map(math.isnan, scores))
    total = sum(0.0 if math.isnan(s) else s for s in scores)
    return (total / len(scores) if scores else math.nan), len(scores), unparsable


def _by_category(
    test: Examples, verdicts: Mapping[str, Sequence[Verdict]]
) -> dict[str, dict[str, Counts]]:
    categories = [row.provenance.get("category", "unknown") for row in test]
    return {
        category: {
            name: count([v for v, c in zip(found, categories, strict=True) if c == category])
            for name, found in verdicts.items()
        }
        for category in sorted(set(categories))
    }


def _refused(
    config: EvaluateConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    borderline: Examples | None,
) -> Counts | None:
    if borderline is None:
        return None
    judge: Judge = plugins.make("judges", "refusal,others_harmful=false")
    found, _ = ask(model, tokenizer, borderline, {"refusal": judge}, config.max_new_tokens)
    return count(found["refusal"])


def _tasks(
    config: EvaluateConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, dict[str, float]]:
    found = {}
    for spec in config.tasks:
        task: Task = plugins.make("tasks", spec)
        rows = task.load("test")[: config.task_rows]
        accuracy, n, unparsable = task_accuracy(model, tokenizer, task, rows)
        found[plugins.parse(spec)[0]] = {"accuracy": accuracy, "n": n, "unparsable": unparsable}
    return found


def _write_records(
    path: Path,
    test: Examples,
    answers: Sequence[str],
    verdicts: Mapping[str, Sequence[Verdict]],
) -> None:
    lines = []
    for i, (row, answer) in enumerate(zip(test, answers, strict=True)):
        record = EvalRecord(
            id=row.id,
            prompt=row.prompt,
            response=answer,
            verdicts={
                name: {"harmful": v[i].harmful, "score": v[i].score, "reason": v[i].reason}
                for name, v in verdicts.items()
            },
            category=row.provenance.get("category", ""),
        )
        lines.append(json.dumps(to_json(asdict(record)), ensure_ascii=False))
    write_text(path, "\n".join(lines) + "\n")
