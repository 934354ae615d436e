"""The adapter to vLLM, with a stand-in that has the part of its interface that is used."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from holdfast.errors import UsageError
from holdfast.models import checkpoints, encoding
from holdfast.models.answers import answer_with_transformers, answer_with_vllm
from holdfast.models.generation import GREEDY, Sampling, generate


@dataclass(frozen=True)
class SamplingParams:
    """vLLM's, those fields that the adapter sets."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop_token_ids: list[int]


class LLM:
    """Answers every prompt with its own last tokens and the end token."""

    made: list[dict[str, Any]] = []
    asked: list[Any] = []

    def __init__(self, **options: Any) -> None:
        self.made.append(options)

    def generate(self, prompts: Any, sampling_params: Any, *, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        assert len(prompts) == len(sampling_params)
        self.asked.append((prompts, sampling_params))
        found = []
        for prompt, how in zip(prompts, sampling_params, strict=True):
            ids = [*prompt["prompt_token_ids"][-how.max_tokens :], 1]
            found.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids))]))
        return found


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    LLM.made.clear()
    LLM.asked.clear()
    return LLM


def test_prompts_go_as_the_tokens_that_transformers_gets(vllm: type[LLM]) -> None:
    prompts = ["is tea safe", "how do i brew tea"]
    answer = answer_with_vllm("world")
    answers = answer(prompts, 2, GREEDY)
    tokenizer = checkpoints.tokenizer_of("world")
    ids = encoding.encode_prompts(tokenizer, prompts)
    (asked, how), options = vllm.asked[0], vllm.made[0]
    assert [a["prompt_token_ids"] for a in asked] == ids
    texts = [tokenizer.decode(i[-2:], skip_special_tokens=True).strip() for i in ids]
    assert [a.text for a in answers] == texts
    assert [(h.temperature, h.max_tokens) for h in how] == [(0.0, 2)] * 2
    assert [h.stop_token_ids for h in how] == [[tokenizer.eos_token_id]] * 2
    assert options["trust_remote_code"] is False
    assert options["generation_config"] == "vllm"
    assert Path(options["model"]).is_dir()
    assert answer([], 2, GREEDY) == []


def test_each_prompt_has_a_seed_of_its_own(vllm: type[LLM]) -> None:
    answer, sampling = answer_with_vllm("world"), Sampling(temperature=0.7, top_p=0.9, seed=3)
    answer(["a b", "c"], 4, sampling)
    answer(["c"], 4, sampling)
    first, second = (how for _, how in vllm.asked)
    assert first[0].seed != first[1].seed
    assert first[1] == second[0]
    assert (second[0].temperature, second[0].top_p) == (0.7, 0.9)


def test_an_adapter_is_refused(vllm: type[LLM], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="needs a merged model, but this is an adapter"):
        answer_with_vllm(str(tmp_path))


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match=r"pip install holdfast\[vllm\]"):
        answer_with_vllm("world")


def test_transformers_is_generate() -> None:
    loaded = checkpoints.load("world", device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    answer = answer_with_transformers(model, tokenizer)
    expected = generate(model, tokenizer, ["is tea safe"], max_new_tokens=5)
    assert [a.text for a in answer(["is tea safe"], 5, GREEDY)] == expected
