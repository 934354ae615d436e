"""The output layer at chosen positions gives the logits, losses and gradients of the whole pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from holdfast.models import adapters, head_loss
from holdfast.models.encoding import IGNORE
from holdfast.models.head_loss import (
    answer_loss,
    answer_loss_and_logits,
    loss_and_logits_of_one_pass,
    readout_of,
)
from holdfast.models.heads import (
    has_own_loss,
    logits_at,
    output_layer,
    predicting,
    reading_at,
    with_columns,
)

Make = Callable[..., PreTrainedModel]
ARCHITECTURES = ["llama", "qwen3", "mistral", "gemma2", "gemma3_text", "opt", "gpt_neox", "phi"]
CPU = torch.device("cpu")


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three rows of 9, 7 and 5 tokens with answers of 4, 2 and 3."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 32, (3, 9), generator=generator)
    labels = torch.full((3, 9), IGNORE)
    mask = torch.ones(3, 9, dtype=torch.long)
    for row, (start, end) in enumerate([(5, 9), (5, 7), (2, 5)]):
        labels[row, start:end] = ids[row, start:end]
        mask[row, end:] = 0
        ids[row, end:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def scaled(name: str) -> PreTrainedModel:
    """Return a model that scales its logits after the output layer."""
    shape = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    own: dict[str, Any] = {"cohere": {"logit_scale": 0.25}, "granite": {"logits_scaling": 4.0}}
    config = transformers.AutoConfig.for_model(name, **shape, **own[name])
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_same(model: Any, batch: dict[str, torch.Tensor]) -> None:
    model.double()
    theirs = model(**batch).loss.double()
    expected = gradients(model, theirs)
    ours = answer_loss(model, batch)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    found = gradients(model, ours)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        # transformers computes the loss in float32, whatever the weights.
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradient_are_those_of_transformers(
    make_model: Make, batch: dict[str, torch.Tensor], architecture: str, *, tied: bool
) -> None:
    check_same(make_model(architecture, tied=tied), batch)


@pytest.mark.parametrize("name", ["cohere", "granite"])
def test_logits_that_are_scaled_after_the_layer(name: str, batch: dict[str, torch.Tensor]) -> None:
    check_same(scaled(name), batch)


@pytest.mark.parametrize("kind", ["lora", "checkpointing"])
def test_adapters_and_checkpointing(
    make_model: Make, batch: dict[str, torch.Tensor], kind: str
) -> None:
    model: Any = make_model()
    if kind == "lora":
        model = adapters.add_lora(model, 2, seed=0)
    else:
        model.activation_checkpointing_enable()
        model.train()
    check_same(model, batch)


def test_only_the_positions_pass_through_the_layer(
    make_model: Make, batch: dict[str, torch.Tensor]
) -> None:
    model = make_model()
    shapes = []
    output_layer(model).register_forward_hook(
        lambda layer, inputs, output: shapes.append(tuple(output.shape))
    )
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits_at(model, inputs, predicting(batch["labels"]))
    model(**batch)
    assert shapes == [(1, 9, 32), (3, 9, 32)]  # 4 + 2 + 3 answer tokens; afterwards all again


def test_logits_come_row_by_row(make_model: Make, batch: dict[str, torch.Tensor]) -> None:
    model = make_model()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    mask = predicting(batch["labels"])
    assert mask.nonzero().tolist() == [
        [0, 4],
        [0, 5],
        [0, 6],
        [0, 7],
        [1, 4],
        [1, 5],
        [2, 1],
        [2, 2],
        [2, 3],
    ]
    with torch.no_grad():
        torch.testing.assert_close(logits_at(model, inputs, mask), model(**inputs).logits[mask])


def test_a_model_that_names_no_output_layer_is_read_afterwards(
    batch: dict[str, torch.Tensor],
) -> None:
    logits = torch.arange(3 * 9 * 2.0).view(3, 9, 2)
    mask = predicting(batch["labels"])
    with reading_at(nn.Identity(), mask) as read:
        assert read(logits).tolist() == logits[mask].tolist()


def test_another_position_of_each_row_is_found_among_those_read() -> None:
    mask = torch.tensor([[False, True, True], [False, False, False], [True, False, True]])
    extended, places = with_columns(mask, torch.tensor([2, 0, 1]))
    assert extended.tolist() == [[False, True, True], [True, False, False], [True, True, True]]
    assert places.tolist() == [1, 2, 4]


def test_mixtures_of_experts_keep_their_own_loss(make_model: Make) -> None:
    model: Any = make_model()
    assert not has_own_loss(model)
    model.config.output_router_logits = True
    assert has_own_loss(model)


def test_a_divisor_replaces_the_number_of_tokens(
    make_model: Make, batch: dict[str, torch.Tensor]
) -> None:
    model = make_model()
    mean = float(answer_loss(model, batch).detach())
    assert float(answer_loss(model, batch, 18).detach()) == pytest.approx(mean * 9 / 18)


# ------------------------------------------------------------------------------- loss in blocks


@pytest.mark.parametrize("name", ["cohere", "granite"])
def test_scales_are_part_of_the_readout(name: str, batch: dict[str, torch.Tensor]) -> None:
    model = scaled(name)
    answer_loss(model, batch)
    readout = readout_of(model)
    assert readout is not None
    assert readout.scale == 0.25  # Granite divides by 4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_of_two_positions_add_up_to_the_whole(
    make_model: Make,
    batch: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
) -> None:
    model = make_model(architecture)
    monkeypatch.setattr(head_loss, "BLOCK_BYTES", 2 * 4 * 32)  # two positions of 32 words
    check_same(model, batch)
    assert readout_of(model) is not None
    check_same(model, batch)  # the output layer runs in the first pass only


def test_a_layer_with_code_of_its_own_is_read_by_the_model(
    make_model: Make, batch: dict[str, torch.Tensor]
) -> None:
    class Doubled(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(states)

    model: Any = make_model()
    model.lm_head.__class__ = Doubled
    check_same(model, batch)
    assert readout_of(model) is None
    check_same(model, batch)


def test_what_a_model_does_to_its_logits_unannounced_is_noticed(
    make_model: Make, batch: dict[str, torch.Tensor]
) -> None:
    model: Any = make_model()
    model.lm_head.register_forward_hook(lambda layer, inputs, logits: 2 * logits)
    check_same(model, batch)
    assert readout_of(model) is None
    check_same(model, batch)


def test_float16_is_left_to_the_model(make_model: Make, batch: dict[str, torch.Tensor]) -> None:
    model = make_model().half()
    answer_loss(model, batch)
    assert readout_of(model) is None


def test_frozen_output_layers_get_no_gradient(
    make_model: Make, batch: dict[str, torch.Tensor]
) -> None:
    model: Any = make_model()
    model.lm_head.weight.requires_grad_(False)
    check_same(model, batch)
    assert model.lm_head.weight.grad is None


def test_bfloat16_agrees_with_the_loss_of_transformers_under_autocast(
    make_model: Make, batch: dict[str, torch.Tensor]
) -> None:
    model = make_model(width=64)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = model(**batch).loss
    expected = gradients(model, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        ours = answer_loss(model, batch)
    assert readout_of(model) is not None
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-3)
    for name, gradient in gradients(model, ours).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0.05, atol=2e-4)


def test_first_logits_come_with_the_loss(make_model: Make, batch: dict[str, torch.Tensor]) -> None:
    model = make_model("gemma2")
    columns = torch.tensor([4, 0, 3])
    loss, logits = answer_loss_and_logits(model, batch, columns, 18)
    with torch.no_grad():
        whole = model(**batch)
    assert float(loss.detach()) == pytest.approx(float(whole.loss) / 2, rel=1e-5)
    expected = whole.logits[torch.arange(3), columns]
    torch.testing.assert_close(logits.detach(), expected, rtol=1e-4, atol=1e-5)


def loss_in_full(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute the loss in a way that answer_loss knows nothing of."""
    states = model.get_decoder()(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    return states.square().mean()


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "opt"])
def test_logits_come_from_the_pass_of_another_loss(
    architecture: str, make_model: Make, batch: dict[str, torch.Tensor]
) -> None:
    model = make_model(architecture).double()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    mask, _ = with_columns(torch.zeros(3, 9, dtype=torch.bool), torch.tensor([4, 0, 3]))
    passes: list[int] = []
    model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    expected = gradients(model, loss_in_full(model, batch) + logits_at(model, inputs, mask).sum())
    taken = []
    for _ in range(2):
        passes.clear()
        loss, logits = loss_and_logits_of_one_pass(
            model, lambda: loss_in_full(model, batch), inputs, mask
        )
        found = gradients(model, loss + logits.sum())
        taken.append((len(passes), found))
        torch.testing.assert_close(logits.detach(), logits_at(model, inputs, mask).detach())
        for name, gradient in found.items():
            # Norms compute in float32, whatever the weights.
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)
    (first, at_first), (second, later) = taken
    assert (first, second) == (2, 1)
    assert all(torch.equal(at_first[name], later[name]) for name in at_first)


def test_with_dropout_logits_take_a_pass_of_their_own_and_the_check_draws_nothing(
    make_model: Make, batch: dict[str, torch.Tensor]
) -> None:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    mask = predicting(batch["labels"])
    model = make_model("opt", dropout=0.3).train()
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        loss_and_logits_of_one_pass(model, lambda: loss_in_full(model, batch), inputs, mask)
        drawn.append(float(torch.rand(1)))
    torch.manual_seed(0)
    loss_in_full(model, batch)
    logits_at(model, inputs, mask)
    assert drawn == [float(torch.rand(1))] * 2


def test_the_first_pass_gives_the_same_bits_as_later_ones(
    make_model: Make, batch: dict[str, torch.Tensor]
) -> None:
    """A run that is resumed begins with a first pass where the uninterrupted one had a later."""
    model = make_model("gemma2")
    first = gradients(model, answer_loss(model, batch))
    later = gradients(model, answer_loss(model, batch))
    assert first.keys() == later.keys()
    assert all(torch.equal(first[name], later[name]) for name in first)
