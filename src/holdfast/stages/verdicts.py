"""Verdicts on the responses of a model: generating, judging, counting, and checking the judges."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from holdfast.contracts import Judge, Task, Verdict, judge_responses
from holdfast.examples import Examples
from holdfast.results.artifacts import Counts
from holdfast.screening.pairing import exchange_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.models.answers import Answer
    from holdfast.rows.thoughts import Response

logger = logging.getLogger(__name__)

FEWEST_EXCHANGED = 8
"""With fewer answers, unchanged verdicts do not show that a judge ignores the prompt."""


def answer_and_judge(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Examples,
    judges: Mapping[str, Judge],
    max_new_tokens: int,
    *,
    disguised: Sequence[str] | None = None,
) -> tuple[dict[str, list[Verdict]], list[Response]]:
    """Generate one response to every prompt, and let every judge judge it.

    Args:
        model: Answers.
        tokenizer: Its tokenizer.
        prompts: What the judges see.
        judges: By label.
        max_new_tokens: Length of the answers.
        disguised: What the model sees in place of the prompts, one each.

    Returns:
        Judge -> verdicts, and the responses, both in the order of the prompts.
    """
    from holdfast.models.generation import respond

    texts = prompts.prompts if disguised is None else disguised
    responses = respond(model, tokenizer, texts, max_new_tokens=max_new_tokens)
    verdicts = {
        name: judge_responses(name, judge, prompts.prompts, responses)
        for name, judge in judges.items()
    }
    return verdicts, responses


def marked_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Return one letter for each verdict: h harmful, s safe, u undecided."""
    return "".join({True: "h", False: "s", None: "u"}[v.harmful] for v in verdicts)


def count(verdicts: Sequence[Verdict]) -> Counts:
    """Count verdicts."""
    harmful = sum(v.harmful is True for v in verdicts)
    safe = sum(v.harmful is False for v in verdicts)
    return Counts(harmful, safe, len(verdicts) - harmful - safe)


def task_accuracy(answer: Answer, task: Task, rows: Examples) -> tuple[float, int, int]:
    """Return mean score, number of rows, and unparsable answers, which score 0."""
    from holdfast.models.generation import GREEDY

    responses = answer(rows.prompts, task.max_new_tokens, GREEDY)
    scores = [
        math.nan if response.unfinished else task.score(response.text, row.response)
        for response, row in zip(responses, rows, strict=True)
    ]
    unparsable = sum(map(math.isnan, scores))
    total = sum(0.0 if math.isnan(score) else score for score in scores)
    return (total / len(scores) if scores else math.nan), len(scores), unparsable


def exchanged_verdicts(
    judges: Mapping[str, Judge],
    prompts: Sequence[str],
    responses: Sequence[str],
    verdicts: Mapping[str, Sequence[Verdict]],
    *,
    rows: int,
) -> dict[str, dict[str, int]]:
    """Show every judge some answers under other prompts; warn if that changes no verdict.

    Args:
        judges: By label.
        prompts: (n,) as the judges saw them.
        responses: (n,).
        verdicts: Judge -> its verdicts, (n,) each.
        rows: Number of answers at most; 0 checks nothing.

    Returns:
        Judge -> "changed" verdicts, of "n", and whether it "reads" prompts by its own account.
    """
    if not rows:
        return {}
    if len(set(prompts)) < 2 <= len(prompts):
        logger.warning(
            "all %d prompts are the same text; is the column of the prompts the right one?",
            len(prompts),
        )
    checks = {}
    for name, judge in judges.items():
        after = exchange_prompts(judge, prompts, responses, verdicts[name], rows=rows)
        checks[name] = {"changed": after.changed, "n": after.n, "reads": int(judge.reads_prompt)}
        if judge.reads_prompt and after.n >= FEWEST_EXCHANGED and not after.changed:
            logger.warning(
                "judge %s: none of %d verdicts changed when the answers were paired with other "
                "prompts; is it shown the prompt that was asked?",
                name,
                after.n,
            )
    return checks
