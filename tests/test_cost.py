"""The meter counts what goes through a model, and nothing once the block is left."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.models.cost import count_tokens, measure_cost
from holdfast.models.encoding import encode_prompts
from holdfast.models.generation import generate


@pytest.fixture
def model(make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return make_model()


IDS = torch.arange(2, 14).reshape(3, 4)


def test_tokens_with_and_without_gradients(model: PreTrainedModel) -> None:
    with measure_cost(model) as cost:
        model(input_ids=IDS)
        with torch.no_grad():
            model(IDS)
    assert (cost.forward_tokens, cost.backward_tokens, cost.generated_tokens) == (24, 12, 0)
    assert cost.seconds > 0
    assert cost.processor_seconds > 0


def test_generated_tokens(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_model(vocab=len(tokenizer))
    with torch.no_grad():  # a logit of 0 is never the greatest of hundreds: no answer ends early
        model.lm_head.weight[tokenizer.eos_token_id] = 0
    prompts = ["to brew", "to brew tea"]
    with measure_cost(model) as cost:
        generate(model, tokenizer, prompts, max_new_tokens=5)
    # The first of five tokens comes from the prompts' pass, which pads to the longer one.
    assert cost.generated_tokens == 2 * 4
    longest = max(len(ids) for ids in encode_prompts(tokenizer, prompts))
    assert cost.forward_tokens == 2 * longest + 2 * 4
    assert cost.backward_tokens == 0


def test_copies_made_inside_count_and_later_calls_do_not(model: PreTrainedModel) -> None:
    with measure_cost(model) as cost:
        other = copy.deepcopy(model)
        other(input_ids=IDS)
    assert cost.forward_tokens == 12
    model(input_ids=IDS)
    assert cost.forward_tokens == 12
    assert not model._forward_pre_hooks


def test_another_model_counts_where_it_is_asked(model: PreTrainedModel) -> None:
    other, ids = copy.deepcopy(model), torch.ones(2, 3, dtype=torch.long)
    with measure_cost(model) as cost:
        other(ids)
        with count_tokens(other), torch.no_grad():
            other(ids)
        other(ids)
    assert (cost.forward_tokens, cost.backward_tokens) == (6, 0)
    with count_tokens(other):  # nobody counts
        other(ids)
    assert cost.forward_tokens == 6


def test_the_hook_goes_when_the_work_fails(model: PreTrainedModel) -> None:
    with pytest.raises(RuntimeError, match="boom"), measure_cost(model):
        raise RuntimeError("boom")
    assert not model._forward_pre_hooks


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell the peak")
def test_the_peak_of_memory(model: PreTrainedModel) -> None:
    with measure_cost(model) as cost:
        held = torch.ones(200 * 2**20 // 4)  # 200 MiB, touched; other memory may be freed meanwhile
        del held
    if math.isnan(cost.peak_bytes):
        pytest.skip("this process may not reset its high-water mark")
    assert cost.peak_bytes >= 175 * 2**20
