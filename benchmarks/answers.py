"""How fast a model answers, and what bfloat16 changes in its answers and their verdicts.

The same prompts are answered in float32 and in bfloat16, in turns, and judged. bfloat16 is precise
enough if few verdicts differ and the share of harmful answers does not move: the interval of the
paired difference between the two precisions contains 0 and is narrower than the interval of either
share, which is what chance alone makes of that many prompts. Equal answers and equal tokens are
given too, but do not count: where two tokens are almost equally likely, either answer is the
model's, and one turned token changes all that follow.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from common import Row, main, parser, write
from holdfast.contracts import judge_responses
from holdfast.judges.refusal import Refusal
from holdfast.models import checkpoints
from holdfast.models.encoding import encode_prompts
from holdfast.models.generation import respond
from holdfast.models.precision import Computing, computing_in
from holdfast.rows.readers import read
from holdfast.rows.thoughts import Response
from holdfast.stats.differences import paired_difference
from holdfast.stats.intervals import wilson

NOTES = (
    "answers, PRECISION: seconds for all prompts, median of turns; tokens a second counts the "
    "tokens of the answers. verdicts: share of prompts whose verdict differs between float32 and "
    "bfloat16 (Wilson interval), and the share of answers that are not refusals, with the paired "
    "difference bfloat16 - float32. same answers, same tokens: shares; tokens after the first that "
    "differs count as different."
)
PRECISIONS: tuple[Computing, Computing] = ("float32", "bfloat16")


def run_benchmark() -> None:
    """Measure, write."""
    made = parser(__doc__)
    made.add_argument("--model", default="world", help="what answers")
    made.add_argument("--prompts", default="world:test", help="rows whose prompts are answered")
    made.add_argument("--rows", type=int, default=200, help="number of prompts")
    made.add_argument("--new-tokens", type=int, default=24, help="length of an answer")
    made.add_argument("--turns", type=int, default=2, help="how often each precision answers")
    made.add_argument("--threads", type=int, default=2, help="threads of torch")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    loaded = checkpoints.load(options.model, device="cpu")
    rows = 8 if options.quick else options.rows
    turns = 1 if options.quick else options.turns
    prompts = read(options.prompts).prompts[:rows]
    seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    answers: dict[str, list[Response]] = {}
    for _ in range(turns):
        for precision in PRECISIONS:
            start = time.monotonic()
            with computing_in(precision):
                answers[precision] = respond(
                    loaded.model, loaded.tokenizer, prompts, max_new_tokens=options.new_tokens
                )
            seconds[precision].append(time.monotonic() - start)
    facts = {
        "model": options.model,
        "prompts": options.prompts,
        "new tokens": options.new_tokens,
        "threads": options.threads,
        "quick": options.quick,
        "notes": NOTES,
    }
    lengths = list(map(len, encode_prompts(loaded.tokenizer, prompts)))
    tokens: dict[str, list[list[int]]] = {
        p: _tokens(loaded.tokenizer, answers[p]) for p in PRECISIONS
    }
    table = [_speed(p, seconds[p], tokens[p], lengths) for p in PRECISIONS]
    table += _agreement(prompts, answers, tokens)
    write(options.json, "answers", facts, table)


def _tokens(tokenizer: Any, answers: Sequence[Response]) -> list[list[int]]:
    texts = [answer.thoughts + answer.text for answer in answers]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def _speed(
    precision: str,
    seconds: Sequence[float],
    tokens: Sequence[Sequence[int]],
    lengths: Sequence[int],
) -> Row:
    median = statistics.median(seconds)
    return {
        "what": f"answers, {precision}",
        "seconds": median,
        "tokens a second": sum(map(len, tokens)) / median,
        "prompt tokens": float(np.mean(lengths)),
        "n": len(lengths),
    }


def _agreement(
    prompts: Sequence[str],
    answers: dict[str, list[Response]],
    tokens: dict[str, list[list[int]]],
) -> list[Row]:
    verdicts = {
        precision: [
            verdict.harmful
            for verdict in judge_responses("refusal", Refusal(), prompts, answers[precision])
        ]
        for precision in PRECISIONS
    }
    pairs = list(zip(*(verdicts[p] for p in PRECISIONS), strict=True))
    differing = wilson(sum(a != b for a, b in pairs), len(pairs))
    shares = {
        precision: wilson(sum(v is True for v in verdicts[precision]), len(pairs))
        for precision in PRECISIONS
    }
    before = np.array([float(a is True) for a, _ in pairs])
    after = np.array([float(b is True) for _, b in pairs])
    seeds = [0] * len(prompts)
    difference = paired_difference(after - before, list(prompts), seeds).interval
    token_pairs = list(zip(*(tokens[p] for p in PRECISIONS), strict=True))
    same = [_common(a, b) for a, b in token_pairs]
    return [
        {"what": "verdicts that differ", **differing.fields("share"), "n": len(pairs)},
        *(
            {"what": f"no refusal, {p}", **shares[p].fields("share"), "n": len(pairs)}
            for p in PRECISIONS
        ),
        {"what": "no refusal, difference", **difference.fields("share"), "n": len(pairs)},
        {
            "what": "same answers",
            **wilson(sum(a == b for a, b in token_pairs), len(pairs)).fields("share"),
            "n": len(pairs),
        },
        {
            "what": "same tokens",
            "share": sum(same) / max(1, sum(max(map(len, pair)) for pair in token_pairs)),
            "n": sum(max(map(len, pair)) for pair in token_pairs),
        },
    ]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the number of tokens before the first that differs."""
    differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differing, min(len(a), len(b)))


if __name__ == "__main__":
    main(run_benchmark)
