"""Functions in memory: the stages' numbers without a run, and models left as they were."""

from __future__ import annotations

import copy
import doctest
import inspect
import math
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import holdfast as h
from holdfast import in_memory
from holdfast.errors import DataError, UsageError
from holdfast.examples import Examples
from holdfast.rows.memory import examples_of

FUNCTIONS = ("score", "group", "attack", "evaluate")


def records(examples: Examples) -> list[dict[str, str]]:
    return [{"prompt": row.prompt, "response": row.response} for row in examples]


@pytest.mark.parametrize(
    "form",
    [
        lambda rows: Examples(rows),
        records,
        lambda rows: Dataset.from_list(records(rows)),
        lambda rows: pd.DataFrame(records(rows)),
        lambda rows: [{"instruction": r.prompt, "output": r.response} for r in rows],
        lambda rows: [{"prompt": r.prompt, "completion": r.response} for r in rows],
        lambda rows: [
            {
                "messages": [
                    {"role": "user", "content": r.prompt},
                    {"role": "assistant", "content": r.response},
                ]
            }
            for r in rows
        ],
    ],
    ids=["examples", "dicts", "dataset", "frame", "alpaca", "completion", "messages"],
)
def test_rows_of_every_form_are_the_same_rows(form: Callable[[Any], Any], rows: Any) -> None:
    assert examples_of(form(rows.safety)).ids == rows.safety.ids


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "rows: there are no rows; give at least one"),
        (Dataset.from_list([]), "there are no rows"),
        (Examples([]), "there are no rows"),
        ([{"text": "a"}], "no column for prompt"),
        (["a"], "row 1 is 'a'; give dicts"),
        ("data.jsonl", r"'data.jsonl' is text; read a file with holdfast.read"),
    ],
    ids=["list", "dataset", "examples", "column", "texts", "path"],
)
def test_unusable_rows_are_one_message(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        examples_of(given)


@pytest.fixture
def unchanged(weights_of: Any, same: Any) -> Callable[[PreTrainedModel], Callable[[], bool]]:
    """Return a recorder of a model and the generators, which then compares them."""

    def state(model: PreTrainedModel) -> Any:
        modes = [module.training for module in model.modules()]
        trained = [parameter.requires_grad for parameter in model.parameters()]
        numpy_state = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
        return modes, trained, random.getstate(), numpy_state, torch.get_rng_state().tolist()

    def record(model: PreTrainedModel) -> Callable[[], bool]:
        weights, before = weights_of(model), state(model)
        return lambda: same(weights_of(model), weights) and state(model) == before

    return record


def test_scores_and_groups(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any, unchanged: Any
) -> None:
    aligned.train()
    check = unchanged(aligned)
    scores = h.score(aligned, tokenizer, records(rows.safety), estimator="loss", seed=3)
    assert check()
    assert scores.ids == rows.safety.ids
    groups = h.group(scores, rows.safety, rule="quantile", quantile=0.5)
    assert sum(groups.sizes.values()) == len(rows.safety)
    assert groups.labels[int(np.argmax(scores.values))] == 1  # the largest loss is vulnerable


def test_an_attack_has_a_half_life_with_its_interval(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any, unchanged: Any
) -> None:
    check = unchanged(aligned)
    settings: dict[str, Any] = {"steps": 40, "every": 10, "poison_ratio": 0.5, "batch_size": 8}
    result = h.attack(
        aligned,
        tokenizer,
        records(rows.benign),
        harmful=rows.obliging,
        test=[{"prompt": "other " + prompt} for prompt in rows.planted.prompts],
        learning_rate=5e-3,
        **settings,
    )
    assert check()
    assert [point.step for point in result.points] == [0, 10, 20, 30, 40]
    assert result.attack.rows == 8  # four harmful rows are half of them
    life = result.half_life
    assert life.reached or life.censored
    assert str(life)
    again = h.attack(
        aligned,
        tokenizer,
        records(rows.benign),
        harmful=rows.obliging,
        test=[{"prompt": "other " + prompt} for prompt in rows.planted.prompts],
        learning_rate=5e-3,
        **settings,
    )
    assert [p.marks for p in again.points] == [p.marks for p in result.points]


def test_an_evaluation_counts_every_prompt(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any, unchanged: Any
) -> None:
    check = unchanged(aligned)
    evaluation = h.evaluate(
        aligned, tokenizer, rows.safety, judge=["refusal", "world"], over_refusal=rows.benign
    )
    assert check()
    assert {name: counts.n for name, counts in evaluation.verdicts.items()} == {
        "refusal": 24,
        "world": 24,
    }
    assert evaluation.over_refusal is not None
    assert evaluation.over_refusal.n == 32


def test_the_number_of_rows_is_a_setting_of_the_attack(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    prompts = rows.safety[:2]
    result = h.attack(aligned, tokenizer, rows.benign, test=prompts, steps=1, rows=16)
    assert result.attack.rows == 16


def test_a_grouping_needs_scores(rows: Any) -> None:
    wrong: Any = "x"
    with pytest.raises(UsageError, match="scores='x' are not scores; make them with holdfast.sc"):
        h.group(wrong, rows.safety)


def test_what_does_not_go_together_is_one_message(
    make_model: Any, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    small, fitting = make_model(vocab=8), make_model(vocab=len(tokenizer))
    with pytest.raises(UsageError, match="the model embeds only ids 0 to 7; use the token"):
        h.evaluate(small, tokenizer, rows.safety)
    with pytest.raises(UsageError, match="either the customer's rows or task=..., and not both"):
        h.attack(fitting, tokenizer, test=rows.safety)
    with pytest.raises(UsageError, match=r"attack: stepps is not an option\. Did you mean steps"):
        h.attack(fitting, tokenizer, rows.benign, test=rows.safety, stepps=3)
    with pytest.raises(UsageError, match="'refusel' is not one of the judges"):
        h.evaluate(fitting, tokenizer, rows.safety, judge="refusel")
    unloaded: Any = "world"
    with pytest.raises(UsageError, match="model='world' is not a loaded model; load it with Auto"):
        h.evaluate(unloaded, tokenizer, rows.safety)
    with pytest.raises(UsageError, match="tokenizer='world' is not a loaded tokenizer; load it"):
        h.evaluate(fitting, unloaded, rows.safety)


def test_a_model_that_generates_no_text_is_one_short_message(
    make_model: Any, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    model = make_model(vocab=len(tokenizer))
    wrapped: Any = torch.nn.DataParallel(model)
    for wrong, message in (
        (model.model, "model=LlamaModel is not a causal language model"),
        (wrapped, "model=DataParallel is not a loaded model"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            h.evaluate(wrong, tokenizer, rows.safety)
        with pytest.raises(UsageError, match=message):
            h.score(wrong, tokenizer, rows.safety, estimator="loss")
        assert len(str(caught.value)) < 200


def test_a_configuration_that_returns_tuples_changes_nothing(
    make_model: Any, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    model = make_model(vocab=len(tokenizer))
    expected = h.score(model, tokenizer, rows.safety, estimator="loss").values
    model.config.return_dict = False
    scores = h.score(model, tokenizer, rows.safety, estimator="loss").values
    assert scores.tolist() == expected.tolist()
    assert model.config.return_dict is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"poison_ratio": 10}, "poison_ratio=10 must be a number from 0 to 1: 10 % is 0.1"),
        ({"steps": 0}, "steps=0 must be a whole number, at least 1"),
        ({"steps": 2.5}, "steps=2.5 must be a whole number"),
        ({"learning_rate": math.nan}, "learning_rate=nan must be a number"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be a number, above 0"),
        ({"seed": -1}, "seed=-1 must be a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed=4294967296 must be a whole number from 0 to 4294967295"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number, at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be a whole number, at least 1"),
        ({"guard": "nope"}, "'nope' is not one of the guards"),
        ({"poison": "nope"}, "'nope' is not one of the poisons"),
        ({"schedule": "nope"}, "schedule='nope' must be one of"),
        ({"judge": "nope"}, "'nope' is not one of the judges"),
        ({"every": 0}, "every=0 must be a whole number, at least 1"),
    ],
)
def test_bad_settings_of_an_attack_are_one_message(
    settings: dict[str, Any],
    message: str,
    make_model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    unchanged: Any,
) -> None:
    model = make_model(vocab=len(tokenizer))
    check = unchanged(model)
    with pytest.raises(UsageError, match=re.escape(message)):
        h.attack(model, tokenizer, rows.benign, test=rows.safety, **settings)
    assert check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be a whole number, at least 1"),
        ({"judge": []}, "name at least one judge"),
        ({"judge": ["refusal", "refusal"]}, "refusal"),
        ({"tasks": ["nope"]}, "'nope' is not one of the tasks"),
        ({"tasks": ["world_topic", "world_topic"]}, "world_topic"),
        ({"test": []}, "test"),
    ],
)
def test_bad_settings_of_an_evaluation_are_one_message(
    settings: dict[str, Any],
    message: str,
    make_model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
) -> None:
    with pytest.raises(h.HoldfastError, match=message):
        h.evaluate(make_model(vocab=len(tokenizer)), tokenizer, **{"test": rows.safety, **settings})


def test_the_errors_are_public() -> None:
    assert issubclass(h.UsageError, h.HoldfastError)
    assert issubclass(h.DataError, h.HoldfastError)
    assert issubclass(h.TrainingError, h.HoldfastError)


# ---------------------------------------------------------------------------------- public names


def test_every_public_name_is_documented() -> None:
    for name in h.__all__:
        assert inspect.getdoc(getattr(h, name)), name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_examples_of_the_functions_run(
    name: str, aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    harmful = Examples(rows.harmful[:8], name="harmful")
    scores = h.score(copy.deepcopy(aligned), tokenizer, rows.safety, estimator="loss")
    names: dict[str, Any] = {"h": h, "model": aligned, "tokenizer": tokenizer, "scores": scores}
    names |= {"safety": records(rows.safety), "benign": records(rows.benign), "harmful": harmful}
    names |= {"prompts": records(rows.planted)}
    (example,) = doctest.DocTestFinder(recurse=False).find(
        getattr(in_memory, name), name, globs=names
    )
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
