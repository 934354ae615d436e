"""Answering prompts with transformers or with vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from holdfast.errors import UsageError
from holdfast.models.checkpoints import resolve, tokenizer_of
from holdfast.models.encoding import encode_prompts
from holdfast.models.endings import stop_tokens_of
from holdfast.models.templates import frame_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.models.generation import Sampling
    from holdfast.rows.thoughts import Response

    Answer = Callable[[Sequence[str], int, Sampling], list[Response]]
    """Maps prompts, the maximum answer length in tokens and the sampling to responses, in order."""


def answer_with_transformers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Answer:
    """Return a function that answers prompts with a loaded model."""
    from holdfast.models.generation import respond

    def answer(prompts: Sequence[str], max_new_tokens: int, sampling: Sampling) -> list[Response]:
        return respond(model, tokenizer, prompts, max_new_tokens=max_new_tokens, sampling=sampling)

    return answer


def answer_with_vllm(source: str) -> Answer:
    """Return a function that answers prompts with vLLM, which must be installed.

    vLLM gets the same prompt and end tokens as transformers. Its answers depend on its kernels:
    they may differ from those of transformers and, in half precision, between batches.

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
    from holdfast.models.generation import decode_responses, report_unfinished

    tokenizer = tokenizer_of(source)
    ends = stop_tokens_of(path, tokenizer)
    # generation_config="vllm" ignores the sampling defaults stored with the model.
    engine: Any = vllm.LLM(
        model=str(path), trust_remote_code=False, generation_config="vllm", seed=0
    )

    def answer(prompts: Sequence[str], max_new_tokens: int, sampling: Sampling) -> list[Response]:
        parameters = [
            vllm.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=max_new_tokens,
                seed=sampling.prompt_seed(prompt),
                stop_token_ids=ends,
            )
            for prompt in prompts
        ]
        inputs = [{"prompt_token_ids": ids} for ids in encode_prompts(tokenizer, prompts)]
        outputs = engine.generate(inputs, parameters, use_tqdm=False) if inputs else []
        answer_ids = [list(output.outputs[0].token_ids) for output in outputs]
        opened = frame_of(tokenizer).opened
        responses = decode_responses(tokenizer, answer_ids, opened=opened)
        report_unfinished(responses, max_new_tokens)
        return responses

    return answer
