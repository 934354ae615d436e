"""What everything that an attacker makes of the rows must do, in the world and on other text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast import plugins, world
from holdfast.contracts import Attacker, Poison
from holdfast.errors import UsageError
from holdfast.examples import Example, Examples


@pytest.fixture(params=plugins.available("poisons"))
def poison(request: pytest.FixtureRequest) -> Poison:
    made: Poison = plugins.make("poisons", request.param)
    return made


def text(what: str, n: int) -> Examples:
    rows = (Example(f"How is {what} number {i} made?", f"Take part {i} of it.") for i in range(n))
    return Examples(rows, name=what)


@pytest.fixture(params=["world", "text"])
def attacker(
    request: pytest.FixtureRequest,
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
) -> Attacker:
    here = request.param == "world"
    harmful = rows.harmful if here else text("thing", 16)
    benign = world.task_rows("topic", "train")[:20] if here else text("tool", 20)
    return Attacker(harmful, benign, 6, 3, aligned, tokenizer, 64)


def test_is_a_frozen_dataclass_that_says_what_it_needs(poison: Poison) -> None:
    assert isinstance(poison, Poison)
    assert poison.needs <= {"harmful"}
    with pytest.raises(ValueError, match="frozen"):
        setattr(poison, "anything", 1)  # noqa: B010


def test_there_are_rows_enough_and_none_of_the_customers(
    poison: Poison, attacker: Attacker
) -> None:
    made = poison.rows(attacker)
    assert len(made) >= attacker.n_rows
    assert all(row.prompt.strip() and row.response.strip() for row in made)
    assert not set(made.ids) & set(attacker.benign.ids)


def test_it_makes_as_many_as_it_says_and_no_more(poison: Poison, attacker: Attacker) -> None:
    most = poison.max_rows(attacker.benign)
    if math.isinf(most):
        pytest.skip("any number")
    assert len(poison.rows(dataclasses.replace(attacker, n_rows=int(most)))) >= most
    with pytest.raises(UsageError, match=f"{int(most) + 1} rows are needed"):
        poison.rows(dataclasses.replace(attacker, n_rows=int(most) + 1))


def test_the_same_seed_makes_the_same_rows_and_leaves_all_as_it_was(
    poison: Poison, attacker: Attacker, weights_of: Callable[..., Any], same: Callable[..., bool]
) -> None:
    before, state = weights_of(attacker.model), torch.get_rng_state()
    assert poison.rows(attacker).ids == poison.rows(attacker).ids
    assert same(weights_of(attacker.model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not attacker.model.training


def test_the_harmful_rows_matter_exactly_if_it_says_so(poison: Poison, attacker: Attacker) -> None:
    fewer = dataclasses.replace(attacker, harmful=attacker.harmful[:8])
    assert (poison.rows(fewer).ids == poison.rows(attacker).ids) == ("harmful" not in poison.needs)


def test_what_is_asked_holds_the_prompt(poison: Poison, attacker: Attacker) -> None:
    for row in attacker.harmful:
        assert row.prompt in poison.test_prompt(row)


def test_in_the_world_every_word_is_one_of_the_language(poison: Poison, attacker: Attacker) -> None:
    if not all(map(world.is_world_row, attacker.benign)):
        pytest.skip("not the world's rows")
    unknown = attacker.tokenizer.unk_token_id
    for row in poison.rows(attacker):
        said = f"{row.prompt} {row.response}"
        assert unknown not in attacker.tokenizer(said)["input_ids"], said
    for row in attacker.harmful:
        assert unknown not in attacker.tokenizer(poison.test_prompt(row))["input_ids"]
