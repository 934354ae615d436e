"""Answers do not depend on the batch or the order, and the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast import world
from holdfast.errors import HoldfastError, UsageError
from holdfast.models import checkpoints, encoding, generation
from holdfast.models.encoding import encode_prompts
from holdfast.models.endings import stop_tokens
from holdfast.models.generation import (
    Sampling,
    _TokenSampler,
    complete,
    generate,
    rows_at_once,
)
from holdfast.models.precision import computing_in


def slow_twin(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new: int
) -> str:
    """Greedy decoding of one prompt: no batch, no padding, no cache."""
    ids = encoding.encode_prompts(tokenizer, [prompt])[0]
    start = len(ids)
    for _ in range(new):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
        if token == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    found = world.rows("test").prompts[:8] + world.rows("benign").prompts[:8]
    assert len({len(p.split()) for p in found}) > 3
    return found


@pytest.mark.parametrize("size", [1, 5, 128])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "opt"])
def test_answers_are_those_of_one_prompt_at_a_time(
    architecture: str,
    size: int,
    prompts: list[str],
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = make_model(architecture, vocab=len(tokenizer), seed=1)
    # A random model repeats one word; larger weights make its answers differ.
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6)
    some = prompts[:3] + prompts[-3:]
    expected = [slow_twin(model, tokenizer, prompt, 5) for prompt in some]
    assert len(set(expected)) > 1
    found = generate(model, tokenizer, some, max_new_tokens=5, batch_size=size)
    assert found == expected


def test_padding_with_the_end_token_is_masked(
    make_model: Callable[..., PreTrainedModel],
    make_tokenizer: Callable[..., PreTrainedTokenizerBase],
) -> None:
    """Where the padding is also the end token, no mask could be told from the tokens."""
    words = "how do i brew tea is it hot or cold and who found the cup".split()
    tokenizer = make_tokenizer(words, pad=False)
    checkpoints.prepare_tokenizer(tokenizer, "toy")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    model = make_model(vocab=len(tokenizer), seed=2)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6)
    prompts = [" ".join(words[i : i + n]) for i, n in ((0, 2), (3, 9), (7, 1), (2, 5), (10, 4))]
    expected = [slow_twin(model, tokenizer, prompt, 6) for prompt in prompts]
    assert len(set(expected)) > 2
    assert generate(model, tokenizer, prompts, max_new_tokens=6) == expected


def test_the_worlds_base_answers_alike_whatever_batch_and_order(prompts: list[str]) -> None:
    loaded = checkpoints.load("world", device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    whole = generate(model, tokenizer, prompts, max_new_tokens=20)
    assert all(whole)
    assert len(set(whole)) > 1
    parts = generate(model, tokenizer, prompts, max_new_tokens=20, batch_size=3)
    assert parts == whole
    turned = generate(model, tokenizer, prompts[::-1], max_new_tokens=20, batch_size=5)
    assert turned[::-1] == whole
    assert whole[0] == slow_twin(model, tokenizer, prompts[0], 20)


def test_an_answer_ends_where_the_model_says_too(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Chat models end a turn at a token of their own, beside the tokenizer's end of text."""
    model = make_model(vocab=len(tokenizer))
    ids = encode_prompts(tokenizer, ["how do i brew tea"])
    whole = complete(model, tokenizer, ids, max_new_tokens=8)[0].text.split()
    stop = tokenizer.convert_tokens_to_ids(whole[3])
    model.generation_config.eos_token_id = [stop]
    assert stop_tokens(model, tokenizer) == sorted({stop, tokenizer.eos_token_id})
    found = complete(model, tokenizer, ids, max_new_tokens=8)[0].text.split()
    assert found == whole[: whole.index(whole[3]) + 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)])
def test_logits_that_are_not_finite_are_no_answer(
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    value: float,
    sampling: Sampling,
) -> None:
    model = make_model(vocab=len(tokenizer), seed=0)
    head: Any = model.get_output_embeddings()
    head.weight.data[3] = value
    with pytest.raises(HoldfastError, match="logits became nan or infinite"):
        generate(model, tokenizer, prompts[:3], max_new_tokens=2, sampling=sampling)


def test_a_prompt_that_is_too_long(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_model(vocab=len(tokenizer))  # a context of 128
    prompts = ["tea", "tea " * 110]
    # <user>, 110 words, <assistant>: 112 tokens, and 17 more do not fit.
    with pytest.raises(
        UsageError, match=r"prompt 2 of 2 has 112 tokens; with 17 new ones.* 128.*max_new_tokens"
    ):
        generate(model, tokenizer, prompts, max_new_tokens=17)
    assert len(generate(model, tokenizer, prompts, max_new_tokens=16)) == 2


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back(
    training: bool,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model("opt", vocab=len(tokenizer), dropout=0.5)
    model.train(training)
    first = generate(model, tokenizer, ["is tea safe"], max_new_tokens=4)
    assert model.training is training
    assert generate(model, tokenizer, ["is tea safe"], max_new_tokens=4) == first

    def boom(**kwargs: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(model, "forward", boom)
    with pytest.raises(RuntimeError, match="boom"):
        generate(model, tokenizer, ["is tea safe"])
    assert model.training is training


def test_no_prompts_give_no_answers(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    assert generate(make_model(vocab=len(tokenizer)), tokenizer, []) == []


# --------------------------------------------------------------------------------------- sampled


def sampled_twin(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    new: int,
    sampling: Sampling,
) -> str:
    """Draw one prompt's answer token by token: no batch, no padding, no cache."""
    ids = encoding.encode_prompts(tokenizer, [prompt])[0]
    start = len(ids)
    for number in sampling.uniforms(prompt, new):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        share = (logits / sampling.temperature).softmax(-1).tolist()
        kept: list[int] = []
        mass = 0.0
        for token in sorted(range(len(share)), key=lambda i: -share[i]):
            kept.append(token)
            mass += share[token]
            if mass >= sampling.top_p:
                break
        left = number * mass
        for token in sorted(kept):
            left -= share[token]
            if left < 0:
                break
        ids.append(token)
        if token == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


@pytest.mark.parametrize(("top_p", "temperature"), [(1.0, 1.5), (0.8, 1.5), (0.8, 0.1)])
def test_sampled_answers_are_those_of_one_prompt_at_a_time(
    top_p: float,
    temperature: float,
    prompts: list[str],
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = make_model(vocab=len(tokenizer), seed=1)
    # A random model is flat: 0.8 takes most of its tokens, when it is cold only a few.
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=4)
    some = prompts[:3] + prompts[-3:]
    expected = [sampled_twin(model, tokenizer, prompt, 6, sampling) for prompt in some]
    assert len(set(expected)) == len(some)
    for size in (1, 4, 128):
        found = generate(
            model, tokenizer, some, max_new_tokens=6, batch_size=size, sampling=sampling
        )
        assert found == expected


def test_a_sampled_answer_belongs_to_its_prompt_seed_and_draw(prompts: list[str]) -> None:
    loaded = checkpoints.load("world", device="cpu")

    def answers(asked: list[str], **how: float) -> list[str]:
        sampling = Sampling(temperature=2.0, **how)  # type: ignore[arg-type]
        return generate(loaded.model, loaded.tokenizer, asked, max_new_tokens=12, sampling=sampling)

    state = torch.get_rng_state()
    first = answers(prompts)
    assert torch.equal(torch.get_rng_state(), state)
    assert answers(prompts[::-1])[::-1] == first
    assert answers([prompts[3]]) == [first[3]]
    assert answers([prompts[3], prompts[3]]) == [first[3]] * 2
    others = [answers(prompts, seed=1), answers(prompts, draw=1)]
    assert first not in others
    assert others[0] != others[1]


def test_drawn_tokens_have_the_models_probabilities(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_model(vocab=len(tokenizer), seed=3)
    ids = encoding.encode_prompts(tokenizer, ["is tea safe"])
    with torch.no_grad():
        share = model(input_ids=torch.tensor(ids)).logits[0, -1].double().softmax(-1)
    likeliest = int(share.argmax())
    uniforms = torch.rand(20000, 1, generator=torch.Generator().manual_seed(0)).double()
    draw = _TokenSampler(uniforms, Sampling(temperature=1.0))
    scores = share.log().float().expand(20000, -1)
    drawn = draw(scores, torch.arange(20000), 0)
    hits = float((drawn == likeliest).double().mean())
    p = float(share[likeliest])
    assert abs(hits - p) < 4 * (p * (1 - p) / 20000) ** 0.5


def test_a_low_temperature_is_greedy(prompts: list[str]) -> None:
    loaded = checkpoints.load("world", device="cpu")
    cold = Sampling(temperature=1e-4)
    found = generate(loaded.model, loaded.tokenizer, prompts, max_new_tokens=12, sampling=cold)
    assert found == generate(loaded.model, loaded.tokenizer, prompts, max_new_tokens=12)


@pytest.mark.parametrize("how", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampling_out_of_range(how: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must not be negative, and top_p must be above 0"):
        Sampling(**how)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- batches, precision


def test_batches_are_equal_and_fit_the_memory(
    make_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(vocab=100)
    assert rows_at_once(model, 200, 60, 128) == 100
    assert rows_at_once(model, 7, 60, 128) == 7
    # 2 layers x (keys + values) x 16 numbers, and 4 x 32 + 4 x 16 of activations, 4 bytes each,
    # for 10 tokens; logits of 100 tokens in 4 and 8 bytes.
    row = 10 * (64 + 192) * 4 + 100 * 12
    monkeypatch.setattr(generation, "BATCH_BYTES", 3 * row)
    assert rows_at_once(model, 9, 10, 128) == 3
    monkeypatch.setattr(generation, "BATCH_BYTES", 3 * row - 1)
    assert rows_at_once(model, 9, 10, 128) == 2
    monkeypatch.setattr(generation, "BATCH_BYTES", 1)
    assert rows_at_once(model, 9, 10, 128) == 1


def test_answers_in_bfloat16_are_those_of_a_rounded_model(
    prompts: list[str],
    weights_of: Callable[..., dict[str, torch.Tensor]],
    same: Callable[..., bool],
) -> None:
    loaded = checkpoints.load("world", device="cpu")
    rounded = checkpoints.load("world", device="cpu").model
    for weight in rounded.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    before = weights_of(loaded.model)
    loaded.model.train()
    with computing_in("bfloat16"), torch.autocast("cpu", torch.bfloat16):
        answers = generate(loaded.model, loaded.tokenizer, prompts, max_new_tokens=12)
    assert loaded.model.training
    assert same(weights_of(loaded.model), before)
    assert answers == generate(rounded, loaded.tokenizer, prompts, max_new_tokens=12)


def test_float32_answers_do_not_use_an_autocast_around_them(prompts: list[str]) -> None:
    loaded = checkpoints.load("world", device="cpu")
    expected = generate(loaded.model, loaded.tokenizer, prompts, max_new_tokens=12)
    dtypes = set()
    loaded.model.lm_head.register_forward_hook(lambda m, i, output: dtypes.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert generate(loaded.model, loaded.tokenizer, prompts, max_new_tokens=12) == expected
    assert dtypes == {torch.float32}
