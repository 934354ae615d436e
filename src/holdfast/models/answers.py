"""Answering prompts with transformers or with vLLM."""

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
    """Maps prompts, the maximum answer length in tokens and the sampling to answers, in order."""


def answer_with_transformers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Answer:
    """Return a function that answers prompts with a loaded model."""
    from holdfast.models.generation import generate

    def answer(prompts: Sequence[str], max_new_tokens: int, sampling: Sampling) -> list[str]:
        return generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens, sampling=sampling)

    return answer


def answer_with_vllm(source: str) -> Answer:
    """Return a function that answers prompts with vLLM, which must be installed.

    vLLM gets the same prompt tokens as transformers. Its answers depend on its kernels: they may
    differ from those of transformers and, in half precision, between batches.

    Args:
        source: "world", a directory, or a hub id.

    Raises:
        UsageError: vLLM is not installed, or the directory holds only an adapter.
    """
    try:
        import vllm
    except ModuleNotFoundError as error:
        raise UsageError(
            f"backend 'vllm': module {error.name!r} is not installed; "
            "run pip install holdfast[vllm], or use backend transformers"
        ) from error
    path = resolve(source)
    if (path / "adapter_config.json").is_file():
        raise UsageError(
            f"{source}: backend 'vllm' needs a merged model, but this is an adapter; merge and "
            "save it, or use backend transformers"
        )
    tokenizer = tokenizer_of(source)
    # generation_config="vllm" ignores the sampling defaults stored with the model.
    engine: Any = vllm.LLM(
        model=str(path), trust_remote_code=False, generation_config="vllm", seed=0
    )

    def answer(prompts: Sequence[str], max_new_tokens: int, sampling: Sampling) -> list[str]:
        parameters = [
            vllm.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=max_new_tokens,
                seed=sampling.prompt_seed(prompt),
            )
            for prompt in prompts
        ]
        inputs = [{"prompt_token_ids": ids} for ids in encode_prompts(tokenizer, prompts)]
        outputs = engine.generate(inputs, parameters, use_tqdm=False) if inputs else []
        answer_ids = [list(output.outputs[0].token_ids) for output in outputs]
        texts = tokenizer.batch_decode(answer_ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    return answer
