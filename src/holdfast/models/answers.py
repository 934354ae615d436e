"""Answers to prompts, by the model in this process or by vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from holdfast.errors import UsageError
from holdfast.models.checkpoints import resolve, tokenizer_of
from holdfast.models.encoding import encode_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.models.generation import Sampling

    Answer = Callable[[Sequence[str], int, Sampling], list[str]]
    """Called with prompts, the longest answer in tokens and the sampling; answers in order."""


def answer_with_transformers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Answer:
    """Return a function that answers with a loaded model."""
    from holdfast.models.generation import generate

    def answer(prompts: Sequence[str], max_new_tokens: int, sampling: Sampling) -> list[str]:
        return generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens, sampling=sampling)

    return answer


def answer_with_vllm(source: str) -> Answer:
    """Return a function that answers with vLLM, which must be installed.

    Prompts are given as the same tokens as to transformers. Texts depend on vLLM's kernels and may
    differ from those of transformers and, in half precision, from one batch to another.

    Args:
        source: "world", a directory, or a hub id.

    Raises:
        UsageError: vLLM is not installed, or the directory holds an adapter only.
    """
    try:
        import vllm
    except ModuleNotFoundError as error:
        raise UsageError(
            f"backend 'vllm': module {error.name!r} is not installed; "
            "pip install holdfast[vllm], or leave the backend at transformers"
        ) from error
    path = resolve(source)
    if (path / "adapter_config.json").is_file():
        raise UsageError(
            f"{source}: backend 'vllm' takes merged models, and this is an adapter; merge and save "
            "it, or leave the backend at transformers"
        )
    tokenizer = tokenizer_of(source)
    # generation_config "vllm": the sampling defaults stored with the model are not used.
    engine: Any = vllm.LLM(
        model=str(path), trust_remote_code=False, generation_config="vllm", seed=0
    )

    def answer(prompts: Sequence[str], max_new_tokens: int, sampling: Sampling) -> list[str]:
        parameters = [
            vllm.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=max_new_tokens,
                seed=sampling.number(prompt),
            )
            for prompt in prompts
        ]
        inputs = [{"prompt_token_ids": ids} for ids in encode_prompts(tokenizer, prompts)]
        outputs = engine.generate(inputs, parameters, use_tqdm=False) if inputs else []
        answers = [list(output.outputs[0].token_ids) for output in outputs]
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]

    return answer
