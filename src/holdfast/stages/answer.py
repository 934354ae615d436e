"""Stage: let a model answer restricted prompts, and keep the answers of one verdict as rows.

An attacker's rows can be made in this way from prompts alone: a model before its alignment obliges,
and its own obliging answers are what an attack brings back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from holdfast import plugins
from holdfast.contracts import Judge, Verdict
from holdfast.errors import DataError
from holdfast.examples import Example, Examples
from holdfast.models import checkpoints
from holdfast.models.encoding import answerable
from holdfast.models.precision import computing_in
from holdfast.models.templates import frame_of
from holdfast.results.files import write_text
from holdfast.results.run_dir import Job, RunDir
from holdfast.stages.config import JudgeSpec, ModelConfig
from holdfast.stages.plugin_inputs import check_judges, judge_facts, judge_hashes
from holdfast.stages.run_models import Subject, subject
from holdfast.stages.verdicts import answer_and_judge

FOLDER = "answers"
"""Folder of the rows in the run directory."""
VERDICTS: dict[bool | None, str] = {True: "harmful", False: "safe", None: "undecided"}
"""Value of a verdict -> its name."""


class AnswerConfig(ModelConfig):
    """Options of the stage."""

    PLACES: ClassVar[frozenset[str]] = frozenset({"model", "data", "judge", "least", "name"})

    model: str
    """Model that answers: its label in the run, a directory, a GGUF file, package:NAME or a hub
    id.
    """
    data: str
    """Prompts to answer; responses in the file are not read."""
    judge: JudgeSpec = "refusal"
    """Judge of the answers."""
    keep: Literal["harmful", "safe"] = "harmful"
    """Verdict of the answers to keep."""
    least: int = Field(default=1, ge=1)
    """Smallest number of rows to keep; with fewer, the stage stops with the reason."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Maximum length of an answer in tokens."""
    name: str = ""
    """Label of the result (default: the verdict that is kept)."""

    @property
    def label(self) -> str:
        """Name of the rows within the run."""
        return self.name or self.keep


@dataclass(frozen=True)
class Answered:
    """The rows that a model's answers became.

    Attributes:
        path: Their file, which every stage can read.
        rows: Number of rows.
        left_out: Reason -> number of prompts without a row.
    """

    path: Path
    rows: int
    left_out: Mapping[str, int]


def answers_file(run: RunDir, label: str) -> Path:
    """Return the file of the rows of a label."""
    return run.path(FOLDER, f"{label}.jsonl")


def answer(config: AnswerConfig) -> Answered:
    """Let a model answer every prompt, and save the answers to keep as `answers/<name>.jsonl`.

    The rows say in `is_safe` what the judge decided, so that harmful ones are refused as alignment
    rows and safe ones as an attacker's.

    Raises:
        DataError: Fewer answers than `least` have the verdict to keep.
        UsageError: Model, prompts or judge cannot be used.
    """
    prompts = config.read_prompts(config.data)
    judge: Judge = plugins.make("judges", config.judge)
    model = subject(config.run, config.model)
    path = answers_file(config.run, config.label)
    inputs = {
        "model": model.hash,
        **judge_hashes(config.run, [config.judge], {config.judge: judge}),
    }
    settings = config.keyed_for(model.source)
    with config.run.job(
        "answer", config.label, config=settings, inputs=inputs, rows={"data": prompts}
    ) as job:
        if job.done is None:
            with computing_in(settings["precision"]):
                rows, counts = _answered(config, model, prompts, judge, job)
            job.facts |= {"model": model.label, "judge": config.judge}
            job.facts |= {"verdicts": counts, "rows": len(rows)}
            if rows.left_out:
                job.facts["left_out"] = {"answers": config.run.rows.record_left_out(rows)}
            _check_number(config, job.facts)
            _write(path, rows, safe=config.keep == "safe")
            job.outputs.append(path)
        facts = job.facts if job.done is None else job.done.facts
        _check_number(config, facts)
    left_out = facts.get("left_out", {}).get("answers", {})
    return Answered(path, facts["rows"], left_out.get("reasons", {}))


def _answered(
    config: AnswerConfig, model: Subject, prompts: Examples, judge: Judge, job: Job
) -> tuple[Examples, dict[str, int]]:
    """Return the rows to keep, and the number of answers with each verdict."""
    judges = {config.judge: judge}
    check_judges(judges)
    loaded = checkpoints.load(model.source, device=config.device)
    job.facts["template"] = frame_of(loaded.tokenizer).facts
    asked = answerable(loaded.model, loaded.tokenizer, prompts, config.max_new_tokens)
    verdicts, responses = answer_and_judge(
        loaded.model, loaded.tokenizer, asked, judges, config.max_new_tokens
    )
    if facts := judge_facts(judges):
        job.facts["judges"] = facts
    texts = [response.text for response in responses]
    name = f"{config.data}, answered by {model.label}"
    rows = _rows(asked, texts, verdicts[config.judge], config.keep, name)
    if too_long := asked.left_out[len(prompts.left_out) :]:
        rows = Examples(rows, name=name, left_out=[*too_long, *rows.left_out], ids_only=True)
    counts = {word: 0 for word in VERDICTS.values()}
    for verdict in verdicts[config.judge]:
        counts[VERDICTS[verdict.harmful]] += 1
    return rows, counts


def _rows(
    prompts: Examples, texts: Sequence[str], verdicts: Sequence[Verdict], keep: str, name: str
) -> Examples:
    """Return prompts and answers as rows; those of other verdicts are recorded as left out."""
    rows = [
        Example(row.prompt, text, {**row.provenance, "source": name})
        for row, text in zip(prompts, texts, strict=True)
    ]
    reasons = {
        position: f"answer is {VERDICTS[verdict.harmful]}"
        for position, verdict in enumerate(verdicts)
        if VERDICTS[verdict.harmful] != keep
    }
    return Examples(rows, name=name, ids_only=keep == "harmful").without(reasons)


def _check_number(config: AnswerConfig, facts: Mapping[str, Any]) -> None:
    if facts["rows"] >= config.least:
        return
    counts = ", ".join(f"{number} {word}" for word, number in facts["verdicts"].items())
    raise DataError(
        f"{config.data}: {facts['model']} gave {facts['rows']} {config.keep} answers, and at "
        f"least {config.least} are needed; by judge {config.judge} the answers are {counts}. Give "
        "more prompts, a model before its alignment, another judge, or rows of your own instead"
    )


def _write(path: Path, rows: Examples, *, safe: bool) -> None:
    lines = [
        json.dumps(
            {"prompt": row.prompt, "response": row.response, "is_safe": safe, **row.provenance},
            ensure_ascii=False,
        )
        for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{line}\n" for line in lines))
