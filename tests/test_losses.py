"""Per-example losses and refusal margins against their definitions, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from holdfast.models.encoding import IGNORE, Encoded, collate
from holdfast.models.losses import (
    answer_losses,
    chunks,
    first_margins,
    per_example_nll,
    refusal_margin,
    refusal_tokens,
)

PAD = 0
ROWS = [
    Encoded((5, 6, 7, 8, 1), 3),
    Encoded((9, 10, 11, 1), 1),
    Encoded((4, 5, 6, 7, 8, 9, 10, 1), 6),
    Encoded((30, 12, 1), 2),
]


class WithoutLogitsToKeep(nn.Module):
    """An architecture that always projects every position to the vocabulary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)


# ------------------------------------------------------------------------------------------ margin


def margin_twin(logits: list[float], tokens: list[int]) -> float:
    """log p(S) - max log p(v), v outside S, from probabilities that are really normalized."""
    total = sum(math.exp(x) for x in logits)
    p = [math.exp(x) / total for x in logits]
    others = [p[v] for v in range(len(p)) if v not in tokens]
    return math.log(sum(p[v] for v in tokens)) - math.log(max(others))


@pytest.mark.parametrize("tokens", [[3], [0, 5], [1, 2, 4]])
def test_margin_agrees_with_its_definition(tokens: list[int]) -> None:
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    found = refusal_margin(logits, torch.tensor(tokens))
    assert found.tolist() == pytest.approx([margin_twin(row, tokens) for row in logits.tolist()])


def test_margin_by_hand() -> None:
    # p = (0.3, 0.3, 0.4): neither refusal is the likeliest token, together they are.
    logits = torch.tensor([[0.3, 0.3, 0.4]]).log()
    assert refusal_margin(logits, torch.tensor([0, 1])).item() == pytest.approx(math.log(0.6 / 0.4))
    assert refusal_margin(logits, torch.tensor([0])).item() < 0


def test_margin_leaves_the_logits_alone() -> None:
    logits = torch.randn(2, 5)
    before = logits.clone()
    refusal_margin(logits, torch.tensor([1]))
    assert torch.equal(logits, before)


def test_refusal_tokens_are_ordered_by_frequency_and_cut() -> None:
    begins = [7] * 60 + [3] * 39 + [4]
    rows = [Encoded((9, token, 1), 1) for token in begins]
    assert refusal_tokens(rows).tolist() == [7, 3]  # 99 of 100 are covered; token 4 is the tail
    assert refusal_tokens(rows, coverage=1.0).tolist() == [7, 3, 4]
    assert refusal_tokens(rows, coverage=0.5).tolist() == [7]


# ------------------------------------------------------------------------------------------- loss


def test_per_example_nll_by_hand() -> None:
    # Position 0 predicts label 1, and so on; the first label never counts.
    half, eighth = math.log(2), math.log(8)
    logits = torch.tensor([[[0.5, 0.5], [0.125, 0.875], [0.9, 0.1]]]).log()
    assert per_example_nll(logits, torch.tensor([[0, 1, 0]])).item() == pytest.approx(
        (half + eighth) / 2
    )
    assert per_example_nll(logits, torch.tensor([[0, IGNORE, 0]])).item() == pytest.approx(eighth)


def test_per_example_nll_of_a_row_without_labels_is_nan() -> None:
    losses = per_example_nll(torch.randn(2, 3, 4), torch.tensor([[1, 2, 3], [1, IGNORE, IGNORE]]))
    assert losses.isnan().tolist() == [False, True]


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_per_example_nll_is_the_models_own_loss(
    architecture: str, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model(architecture)
    batch = collate(ROWS, PAD)
    labels = batch.pop("labels")
    with torch.no_grad():
        found = per_example_nll(model(**batch).logits, labels)
        for row, loss in zip(ROWS, found.tolist(), strict=True):
            assert loss == pytest.approx(model(**collate([row], PAD)).loss.item(), abs=1e-5)
        # The model's loss of a batch is the mean over tokens, not over rows.
        counts = (labels[:, 1:] != IGNORE).sum(1)
        assert counts.tolist() == [2, 3, 2, 1]
        whole = model(**batch, labels=labels).loss.item()
        assert (found * counts).sum().item() / 8 == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_answer_losses_do_not_depend_on_the_batch(
    size: int, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model()
    with torch.no_grad():
        one_by_one = [model(**collate([row], PAD)).loss.item() for row in ROWS]
    found = answer_losses(model, ROWS, pad=PAD, batch_size=size)
    assert found.tolist() == pytest.approx(one_by_one, abs=1e-5)


# ----------------------------------------------------------------------------------- first margins


@pytest.mark.parametrize("size", [1, 2, 128])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt_neox", "opt", "no logits_to_keep"])
def test_first_margins_equal_the_unpadded_rows(
    architecture: str, size: int, make_model: Callable[..., PreTrainedModel]
) -> None:
    wrapped = architecture == "no logits_to_keep"
    model = make_model("llama" if wrapped else architecture)
    tokens = torch.tensor([8, 10])
    expected = []
    for row in ROWS:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.ids[: row.start]])).logits[0, -1]
        expected.append(margin_twin(logits.double().tolist(), tokens.tolist()))
    asked = WithoutLogitsToKeep(model) if wrapped else model
    found = first_margins(asked, ROWS, tokens, pad=PAD, batch_size=size)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert found.dtype == torch.float32


def test_chunks_keep_order_and_the_short_rest() -> None:
    assert list(chunks([3, 1, 2, 5, 4], 2)) == [[3, 1], [2, 5], [4]]
    assert list(chunks([], 2)) == []
