"""The judges of a stage: what they are called, what they read, and whether they read the prompt."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from holdfast import plugins
from holdfast.contracts import Judge, Task, Verdict, check_answered
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.results.artifacts import Counts
from holdfast.screening.pairing import exchanged
from holdfast.specs import parse

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.models.answers import Answer

logger = logging.getLogger(__name__)

FEW = 8
"""Answers below which unchanged verdicts say nothing."""


def judges_of(specs: Sequence[str]) -> dict[str, Judge]:
    """Build judges by what they are called: their name, or all of the spec if two share a name.

    Raises:
        UsageError: An unknown judge or option, or the same judge twice.
    """
    return {label: plugins.make("judges", spec) for label, spec in labelled("judge", specs).items()}


def labelled(kind: str, specs: Sequence[str]) -> dict[str, str]:
    """Return label -> spec: the plug-in's name, or all of the spec where two share a name.

    Raises:
        UsageError: The same spec twice.
    """
    names = [parse(spec).name for spec in specs]
    labels = [s if names.count(n) > 1 else n for s, n in zip(specs, names, strict=True)]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise UsageError(f"{kind} {twice[0]!r} is given twice; leave one out")
    return dict(zip(labels, specs, strict=True))


def ready(judges: Mapping[str, Judge]) -> None:
    """Have judges say what is wrong with their options before a model is asked anything.

    Raises:
        UsageError: As their `judge` does.
    """
    for judge in judges.values():
        judge.judge([], [])


def hashes_of(judges: Mapping[str, Judge]) -> dict[str, str]:
    """Return the hash of what each judge reads, and of its options, for the inputs of a step."""
    read = {f"judge {name}": judge.hash for name, judge in judges.items()}
    options = {f"options of judge {name}": plugins.mark(judge) for name, judge in judges.items()}
    return {name: digest for name, digest in read.items() if digest} | options


def check_prompts(
    judges: Mapping[str, Judge],
    prompts: Sequence[str],
    responses: Sequence[str],
    verdicts: Mapping[str, Sequence[Verdict]],
    *,
    rows: int,
) -> dict[str, dict[str, int]]:
    """Show every judge some answers under other prompts, and warn if a reader of prompts is blind.

    Args:
        judges: By name.
        prompts: (n,) as they were shown to the judges.
        responses: (n,).
        verdicts: What each judge said, (n,) each.
        rows: At most so many answers; 0 checks nothing.

    Returns:
        Judge -> "changed" verdicts, of "n", and whether it "reads" prompts by its own account.
    """
    found = {}
    if rows and len(set(prompts)) < 2 <= len(prompts):
        logger.warning(
            "all %d prompts are the same text; is the column of the prompts the right one?",
            len(prompts),
        )
    for name, judge in judges.items() if rows else ():
        after = exchanged(judge, prompts, responses, verdicts[name], rows=rows)
        found[name] = {"changed": after.changed, "n": after.n, "reads": int(judge.reads_prompt)}
        if judge.reads_prompt and after.n >= FEW and not after.changed:
            logger.warning(
                "judge %s: none of %d verdicts changed when the answers stood under other "
                "prompts; is it shown the prompt that was asked?",
                name,
                after.n,
            )
    return found


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
    from holdfast.models.generation import generate

    texts = prompts.prompts if asked is None else asked
    answers = generate(model, tokenizer, texts, max_new_tokens=max_new_tokens)
    found = {name: judge.judge(prompts.prompts, answers) for name, judge in judges.items()}
    for name, verdicts in found.items():
        check_answered(name, verdicts)
    return found, answers


def marked_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Return one letter for each verdict: h harmful, s safe, u undecided."""
    return "".join({True: "h", False: "s", None: "u"}[v.harmful] for v in verdicts)


def count(verdicts: Sequence[Verdict]) -> Counts:
    """Count verdicts."""
    harmful = sum(v.harmful is True for v in verdicts)
    safe = sum(v.harmful is False for v in verdicts)
    return Counts(harmful, safe, len(verdicts) - harmful - safe)


def task_accuracy(answer: Answer, task: Task, rows: Examples) -> tuple[float, int, int]:
    """Return mean score, rows and unparsable answers; an unparsable answer scores 0."""
    from holdfast.models.generation import GREEDY

    answers = answer(rows.prompts, task.max_new_tokens, GREEDY)
    scores = [task.score(a, row.response) for a, row in zip(answers, rows, strict=True)]
    unparsable = sum(map(math.isnan, scores))
    total = sum(0.0 if math.isnan(s) else s for s in scores)
    return (total / len(scores) if scores else math.nan), len(scores), unparsable
