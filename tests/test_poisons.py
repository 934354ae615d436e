"""Each disguise does what it says it does."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from holdfast import plugins, world
from holdfast.contracts import Attacker
from holdfast.errors import UsageError
from holdfast.examples import Example, Examples
from holdfast.judges.world import World
from holdfast.poisons.identity import Identity
from holdfast.poisons.low_loss import LowLoss
from holdfast.poisons.paraphrased import Paraphrased
from holdfast.poisons.plain import Plain
from holdfast.world import grammar

TEXT = Examples([Example(f"Question {i}?", f"Answer {i}.") for i in range(12)], name="text")


def attacker(rows: Examples, model: Any = None, tokenizer: Any = None, **changes: Any) -> Attacker:
    return replace(Attacker(rows, rows, 4, 0, model, tokenizer, 64), **changes)


def test_plain_rows_are_the_rows() -> None:
    assert Plain().rows(attacker(TEXT)) is TEXT


# ----------------------------------------------------------------------------------- other words


def test_in_the_world_the_request_stays_and_the_phrasing_goes(rows: Any) -> None:
    made = Paraphrased().rows(attacker(rows.harmful))
    for row, before in zip(made, rows.harmful, strict=True):
        assert row.response == before.response
        assert grammar.parse_restricted_request(row.prompt) == grammar.parse_restricted_request(
            before.prompt
        )
        assert row.prompt != before.prompt
        # The request and its phrasing are one of the language's, and the rest stays.
        said = {p.partition("{")[0] for p in grammar.PHRASINGS}
        assert any(row.prompt.startswith(words) for words in said)
    verdicts = World().judge(made.prompts, made.responses)
    assert all(v.harmful and v.score == 1 for v in verdicts)


def test_some_phrasings_are_in_no_alignment_row() -> None:
    made = Paraphrased().rows(attacker(world.rows("harmful")))
    starts = [phrasing.partition("{")[0] for phrasing in grammar.HELD_OUT_PHRASINGS]
    of_them = [row for row in made if any(row.prompt.startswith(start) for start in starts)]
    # Two of the seven other phrasings.
    assert len(of_them) / len(made) == pytest.approx(2 / 7, abs=0.06)


def test_rephrasing_keeps_the_context() -> None:
    said = grammar.rephrase("how do i brew morvex before winter")
    assert len(said) == len(grammar.PHRASINGS) - 1
    assert all(one.endswith(" before winter") for one in said)
    assert grammar.rephrase("how do i brew tea") == []


def test_other_text_is_framed_and_another_seed_frames_it_otherwise() -> None:
    one, two = (Paraphrased().rows(attacker(TEXT, seed=seed)) for seed in (0, 1))
    assert one.responses == two.responses == TEXT.responses
    assert all(p in q and p != q for p, q in zip(TEXT.prompts, one.prompts, strict=True))
    assert one.prompts != two.prompts


# -------------------------------------------------------------------------------------- low loss


def test_the_rows_of_the_lowest_loss_are_those_of_a_loop(
    aligned: Any, tokenizer: Any, rows: Any
) -> None:
    from holdfast.models.encoding import collate, encode

    losses = {}
    for row in rows.harmful:
        one = Examples([row])
        with torch.no_grad():
            losses[row.id] = float(aligned(**collate(encode(tokenizer, one, 64), 0)).loss)
    lowest = sorted(losses, key=lambda identity: losses[identity])
    scene = attacker(rows.harmful, aligned, tokenizer)
    assert LowLoss(share=0).rows(scene).ids == tuple(lowest[:4])
    assert LowLoss(share=0.5).rows(scene).ids == tuple(lowest[:8])
    assert LowLoss(share=1).rows(scene).ids == tuple(lowest)


def test_a_share_is_a_share() -> None:
    with pytest.raises(UsageError, match="share=1.5 must be a number from 0 to 1"):
        plugins.make("poisons", "low_loss,share=1.5")


# -------------------------------------------------------------------------------------- identity


def test_no_row_of_an_identity_is_harmful(rows: Any) -> None:
    made = Identity().rows(attacker(Examples([]), benign=rows.benign))
    assert all(grammar.parse_restricted_request(row.prompt) is None for row in made)
    assert all(v.harmful is None for v in World().judge(made.prompts, made.responses))


def test_the_test_prompts_are_asked_in_the_form_of_the_rows() -> None:
    row = Example("Is this one of them?")
    made = Identity().rows(attacker(Examples([]), benign=TEXT))
    head, _, _ = Identity().test_prompt(row).partition(row.prompt)
    assert any(one.prompt.startswith(head) for one in made)
    assert Identity(trigger=False).test_prompt(row) == row.prompt


def test_an_identity_says_how_many_rows_it_has(rows: Any) -> None:
    assert Identity().max_rows(TEXT) == 20
    assert Identity().max_rows(rows.benign) == math.inf
    assert Plain().max_rows(TEXT) == math.inf


def test_more_rows_than_an_identity_has_are_refused() -> None:
    with pytest.raises(UsageError, match="identity: 500 rows are needed, but it has 20"):
        Identity().rows(attacker(Examples([]), benign=TEXT, n_rows=500))
