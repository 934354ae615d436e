"""Ranks of several estimators, averaged: by hand, and what happens to the unknown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast import plugins
from holdfast.contracts import Estimate, Estimator, Judge
from holdfast.errors import UsageError
from holdfast.estimators.attack_direction import AttackDirection
from holdfast.estimators.ensemble import Ensemble, shared_ranks
from holdfast.estimators.gradient_norm import GradientNorm
from holdfast.estimators.loss import Loss
from holdfast.examples import Example, Examples
from holdfast.judges.refusal import Refusal
from holdfast.options import Supplied

FIVE = Examples([Example(f"prompt {i}", "no") for i in range(5)], name="five")
ANY: Any = None  # members below look at no model


class Fixed(Estimator):
    """Says what its option says: after a "v" one digit per example, "x" where it is unknown."""

    digits: str = "v12345"

    def score(self, model: Any, tokenizer: Any, examples: Examples, *, seed: int) -> Estimate:
        found = [math.nan if d == "x" else float(d) for d in self.digits[1:]]
        return Estimate(np.array(found), facts={"seed": seed})


class Needy(Fixed):
    needs: ClassVar[frozenset[str]] = frozenset({"judge", "harmful"})

    harmful: Supplied[Examples | None] = None
    judge: Supplied[Judge | None] = None


ME = f"{__name__}:Fixed"


def members(*digits: str) -> str:
    return f"[{','.join(f'({ME},digits=v{d})' for d in digits)}]"


def score(spec: str, **resources: Any) -> Estimate:
    made: Ensemble = plugins.make("estimators", f"ensemble,members={spec}", **resources)
    return made.score(ANY, ANY, FIVE, seed=3)


def test_mean_of_ranks_by_hand() -> None:
    found = score(members("12345", "31524"))
    # Ranks 1 2 3 4 5 and 3 1 5 2 4, less a half, over 5; the mean of both.
    assert found.values.tolist() == pytest.approx([0.3, 0.2, 0.7, 0.5, 0.8])
    # The standard deviation of two numbers is their difference over sqrt 2; over sqrt 2 again.
    assert found.errors is not None
    assert found.errors.tolist() == pytest.approx([0.2, 0.1, 0.2, 0.2, 0.1])
    assert found.details[f"{ME},digits=v31524"].tolist() == [3, 1, 5, 2, 4]
    assert found.facts["members"] == 2
    assert found.facts[f"{ME},digits=v31524: seed"] == 3


def test_ties_share_their_mean_rank() -> None:
    found = score(members("11222", "77777"))
    # Ranks 1.5 1.5 4 4 4, and 3 for all: it cannot tell, and moves all to the middle.
    early, late = (1.5 - 0.5) / 5, (4 - 0.5) / 5
    middle = (3 - 0.5) / 5
    expected = [(early + middle) / 2] * 2 + [(late + middle) / 2] * 3
    assert found.values.tolist() == pytest.approx(expected)


def test_unknown_to_one_is_unknown_and_takes_no_rank() -> None:
    found = score(members("1x345", "51234"))
    # Without the second example: 1 2 3 4 and 4 1 2 3 of four.
    expected = [(0.5 + 3.5) / 8, math.nan, (1.5 + 0.5) / 8, (2.5 + 1.5) / 8, (3.5 + 2.5) / 8]
    assert found.values.tolist() == pytest.approx(expected, nan_ok=True)
    assert found.errors is not None
    assert np.isnan(found.errors).tolist() == [False, True, False, False, False]
    assert math.isnan(found.details[f"{ME},digits=v1x345"][1])


def test_nothing_known_to_all() -> None:
    assert np.isnan(score(members("1x3xx", "x2x45")).values).all()


@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=2, max_size=4))
def test_ranks_have_the_middle_as_mean_and_keep_the_order(table: Sequence[Sequence[int]]) -> None:
    ranks = shared_ranks({str(i): np.array(row, float) for i, row in enumerate(table)})
    assert ((ranks > 0) & (ranks < 1)).all()
    assert ranks.mean(axis=1) == pytest.approx([0.5] * len(table))
    for row, found in zip(table, ranks, strict=True):
        below = [(sum(v < x for v in row) + sum(v == x for v in row) / 2) / 6 for x in row]
        assert found.tolist() == pytest.approx(below)  # the share below, ties half


def test_a_monotone_change_of_a_member_changes_nothing() -> None:
    values = {"a": np.array([0.1, 5.0, -2.0]), "b": np.array([1.0, 1.0, 2.0])}
    changed = {"a": np.exp(values["a"]), "b": 100 * values["b"] - 7}
    np.testing.assert_array_equal(shared_ranks(values), shared_ranks(changed))


def test_the_default_members_with_what_they_need(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    made = plugins.make("estimators", "ensemble", benign=rows.benign)
    found = made.score(aligned, tokenizer, rows.safety, seed=1)
    again = made.score(aligned, tokenizer, rows.safety, seed=1)
    np.testing.assert_array_equal(found.values, again.values)
    alone = {
        "attack_direction": AttackDirection(benign=rows.benign),
        "loss": Loss(),
    }
    assert list(found.details) == list(alone)
    for name, member in alone.items():
        expected = member.score(aligned, tokenizer, rows.safety, seed=1).values
        np.testing.assert_array_equal(found.details[name], expected)
    assert found.facts["attack_direction: source"] == "mismatched"


def test_options_of_members_survive_the_command_line() -> None:
    spec = (
        "ensemble,members=[(attack_direction,variant=critical_step,rows=16),"
        "(loss,quantity=first_token),(gradient_norm,rho=0.1)]"
    )
    made = plugins.make("estimators", spec, judge=Refusal()).parts
    assert list(made) == [
        "attack_direction,variant=critical_step,rows=16",
        "loss,quantity=first_token",
        "gradient_norm,rho=0.1",
    ]
    direction, loss, gradient = made.values()
    assert direction == AttackDirection(variant="critical_step", rows=16)
    assert loss == Loss(quantity="first_token")
    assert gradient == GradientNorm(rho=0.1)


def test_members_get_what_they_ask_for_and_no_more(rows: Any) -> None:
    judge = Refusal()
    spec = (f"{__name__}:Needy", "loss")
    made = Ensemble(harmful=rows.harmful, benign=rows.benign, judge=judge, members=spec).parts
    first = made[f"{__name__}:Needy"]
    assert isinstance(first, Needy)
    assert first.harmful is rows.harmful
    assert first.judge is judge


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("loss", "members=loss must be a list of 2 or more specs"),
        ("[loss]", r"members=.loss. must be a list of 2 or more specs"),
        ("[]", r"members=.. must be a list of 2 or more specs"),
        ("[loss,loss]", r"members=.loss,loss. names 'loss' twice, which would count double"),
        ("[loss,lost]", "member 'lost': 'lost' is not one of the estimators: .*attack_direction"),
        ("[loss,(loss,q=1)]", "member 'loss,q=1': loss: q is not an option.* quantity"),
        ("[loss,'loss,quantity']", "member 'loss,quantity': 'loss,quantity': .* is not key=value"),
        (
            f"[loss,{__name__}:Needy]",
            "Needy': it needs --harmful and --judge: give it, or leave the member out",
        ),
    ],
)
def test_bad_members(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"ensemble: .*{message}"):
        score(spec)


def test_a_members_own_complaint_names_it(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    with pytest.raises(
        UsageError, match="ensemble: member 'attack_direction': .* give --base .* or --benign"
    ):
        Ensemble().score(aligned, tokenizer, rows.safety, seed=0)
    with pytest.raises(UsageError, match="ensemble: member 'loss': .* 1 cannot be ranked"):
        Ensemble(members=("loss", "gradient_norm")).score(
            aligned, tokenizer, rows.safety[:1], seed=0
        )
