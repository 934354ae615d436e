"""The decoding loop adds the tokens that `generate` of transformers adds, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from holdfast.models import adapters, decoding
from holdfast.models.cost import measure_cost
from holdfast.models.decoding import Decoder, attends_only, bfloat16_copy, pad_left, shared_length

ARCHITECTURES = (
    *("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "opt", "gpt_neox", "phi"),
)
VOCABULARY = 40
PAD, END, OTHER_END = 0, 1, 7
BEGINNING = [5, 9, 21, 30, 11, 8, 33, 17, 4, 26, 12, 31]


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a common beginning be computed separately even where that saves a single token."""
    monkeypatch.setattr(decoding, "LEAST_SHARED", 1)
    return


@pytest.fixture
def model_of(make_model: Callable[..., PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    """Return a builder of models whose tokens vary; a random model repeats one token."""

    def build(architecture: str = "llama", seed: int = 1) -> PreTrainedModel:
        model = make_model(architecture, vocab=VOCABULARY, seed=seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(6)
        return model

    return build


def settings_of(new_tokens: int, ends: list[int]) -> GenerationConfig:
    return GenerationConfig(
        do_sample=False,
        use_cache=True,
        pad_token_id=PAD,
        eos_token_id=ends,
        max_new_tokens=new_tokens,
    )


def rows_after(beginning: list[int], lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Return rows with a common beginning and random tokens after it."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [*beginning, *torch.randint(8, VOCABULARY, (n,), generator=generator).tolist()]
        for n in lengths
    ]


def by_generate(
    model: PreTrainedModel, settings: GenerationConfig, rows: list[list[int]]
) -> list[list[int]]:
    """Return what `generate` of transformers adds to each row alone: no padding, no common pass."""
    added = []
    for row in rows:
        output: Tensor = model.generate(  # type: ignore[operator]
            input_ids=torch.tensor([row]),
            attention_mask=torch.ones(1, len(row), dtype=torch.long),
            generation_config=settings,
        )
        added.append(output[0, len(row) :].tolist())
    return added


SETS = {
    "no common beginning": rows_after([], [3, 14, 9, 1, 6, 6]),
    "a long common beginning": rows_after(BEGINNING, [3, 14, 9, 2, 6, 6]),
    "padding longer than the beginning": rows_after(BEGINNING[:3], [2, 30, 9, 4]),
    "one token": [[5], [9], [5]],
    "one row": rows_after(BEGINNING, [4]),
    "duplicates": rows_after(BEGINNING, [4]) * 3,
    "a row that is the beginning": [BEGINNING, *rows_after(BEGINNING, [5, 1])],
}


@pytest.mark.usefixtures("sharing")
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_are_those_of_generate(
    architecture: str, name: str, model_of: Callable[..., PreTrainedModel]
) -> None:
    model = model_of(architecture)
    rows = SETS[name]
    settings = settings_of(9, [END, OTHER_END])
    assert attends_only(model)
    assert Decoder(model, settings, rows)(rows) == by_generate(model, settings, rows)


@pytest.mark.usefixtures("sharing")
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_rows_that_end_leave_the_batch(
    share: float, model_of: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half of the vocabulary as end tokens, rows end at different tokens."""
    monkeypatch.setattr(decoding, "ENDED_SHARE", share)
    model = model_of()
    rows = rows_after(BEGINNING, [3, 14, 9, 2, 6, 6, 5, 8, 10, 2, 3, 4])
    settings = settings_of(12, list(range(0, VOCABULARY, 3)))
    expected = by_generate(model, settings, rows)
    assert len(set(map(len, expected))) >= 3
    with measure_cost(model) as cost:
        assert Decoder(model, settings, rows)(rows) == expected
    longest = max(map(len, expected))
    passed = sum(len(added) - 1 for added in expected)
    # The first token of an answer comes from the pass over its prompt.
    assert passed <= cost.generated_tokens <= len(rows) * (longest - 1)
    if share == 0.01:
        assert cost.generated_tokens == passed
    if share == 1.0:
        assert cost.generated_tokens == len(rows) * (longest - 1)


@pytest.mark.usefixtures("sharing")
def test_the_common_beginning_passes_once(model_of: Callable[..., PreTrainedModel]) -> None:
    model = model_of()
    rows = rows_after(BEGINNING, [3, 14, 9, 2])
    settings = settings_of(1, [END])
    with measure_cost(model) as cost:
        decoder = Decoder(model, settings, rows)
        decoder(rows[:2])
        decoder(rows[2:])
    # The twelve tokens once; then what follows them in the longest row of each batch.
    assert cost.forward_tokens == 12 + 2 * 14 + 2 * 9
    assert cost.generated_tokens == 0


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([[1, 2, 3, 4, 5], [1, 2, 3, 9, 9, 9]], 3),
        ([[1, 2, 3, 4, 5]] * 2, 3),
        ([[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]], 2),
        ([[1, 2], [1, 2, 3]], 0),
        ([[1], [1]], 0),
        ([[2, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]], 0),
    ],
)
def test_shared_length(rows: list[list[int]], length: int) -> None:
    assert shared_length(rows) == length


@pytest.mark.usefixtures("sharing")
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "opt"])
def test_what_is_chosen_depends_on_the_row_and_not_on_its_place(
    architecture: str, model_of: Callable[..., PreTrainedModel]
) -> None:
    """Row i takes its (i + step) % 3-th most likely token, in one batch and in another."""
    model = model_of(architecture)
    rows = rows_after(BEGINNING, [3, 14, 9, 2, 6])
    settings = settings_of(8, list(range(0, VOCABULARY, 4)))

    def choosing(numbers: list[int]) -> decoding.Choose:
        def choose(logits: Tensor, places: Tensor, step: int) -> Tensor:
            ranks = (torch.tensor(numbers)[places] + step) % 3
            return logits.argsort(-1, descending=True).gather(1, ranks[:, None])[:, 0]

        return choose

    decoder = Decoder(model, settings, rows)
    together = decoder(rows, choosing([0, 1, 2, 3, 4]))
    alone = [decoder([row], choosing([i]))[0] for i, row in enumerate(rows)]
    assert together == alone
    assert len(set(map(len, together))) > 1


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.usefixtures("sharing")
def test_lora_is_in_the_passes(
    checkpointing: bool, model_of: Callable[..., PreTrainedModel]
) -> None:
    model: Any = adapters.add_lora(model_of(), 2, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(len(name)))
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)()
    model.eval()
    rows = SETS["a long common beginning"]
    settings = settings_of(6, [END])
    with model.disable_adapter():
        without = by_generate(model, settings, rows)
    expected = by_generate(model, settings, rows)
    assert expected != without
    assert attends_only(model)
    assert Decoder(model, settings, rows)(rows) == expected


def test_models_with_other_states_are_left_to_generate() -> None:
    from transformers import AutoModelForCausalLM, MambaConfig

    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=PAD
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert not attends_only(model)
    rows = rows_after(BEGINNING, [5, 5, 5])
    settings = settings_of(6, [END])
    added = Decoder(model, settings, rows)(rows)
    ends = [row[: row.index(END) + 1] if END in row else row for row in added]
    assert ends == by_generate(model, settings, rows)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        {"attention_chunk_size": 8},
        {"_attn_implementation": "flex_attention"},
    ],
)
def test_what_depends_on_the_longest_row_is_left_to_generate(
    change: dict[str, Any], model_of: Callable[..., PreTrainedModel]
) -> None:
    model = model_of()
    assert attends_only(model)
    for name, value in change.items():
        setattr(model.config, name, value)
    assert not attends_only(model)


def test_a_copy_in_bfloat16_leaves_the_model_alone(
    model_of: Callable[..., PreTrainedModel],
    weights_of: Callable[..., dict[str, Tensor]],
    same: Callable[..., bool],
) -> None:
    model = model_of()
    before = weights_of(model)
    rounded = bfloat16_copy(model)
    assert same(weights_of(model), before)
    assert {weight.dtype for weight in rounded.parameters()} == {torch.bfloat16}
    assert [b.dtype for b in rounded.buffers()] == [b.dtype for b in model.buffers()]
    for name, weight in rounded.named_parameters():
        assert torch.equal(weight, before[name].to(torch.bfloat16))


def test_tied_weights_stay_tied(make_model: Callable[..., PreTrainedModel]) -> None:
    rounded: Any = bfloat16_copy(make_model(tied=True))
    assert rounded.get_input_embeddings().weight is rounded.get_output_embeddings().weight


def test_padding_is_on_the_left() -> None:
    ids, mask = pad_left([[5, 6, 7], [8]], 2)
    assert ids.tolist() == [[5, 6, 7], [2, 2, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
