"""llama.cpp through llama-cpp-python: the model's 4-bit file, one prompt after the other."""

from __future__ import annotations

from typing import Any

import measuring
from llama_cpp import Llama
from measuring import Result, Task


def answers(task: Task) -> Result:
    """Time the answers to all prompts; a prefix shared with the last prompt is not read again."""
    prompts = measuring.read_prompts(task)
    longest = max(len(prompt["ids"]) for prompt in prompts)
    model = Llama(
        task["gguf"],
        n_ctx=longest + task["new_tokens"] + 8,
        n_threads=task["threads"],
        n_threads_batch=task["threads"],
        verbose=False,
    )

    def answer(prompts: list[dict[str, Any]], new_tokens: int) -> list[str]:
        completions = [
            model.create_completion(prompt["ids"], max_tokens=new_tokens, temperature=0.0)
            for prompt in prompts
        ]
        return [completion["choices"][0]["text"] for completion in completions]

    return measuring.timed_answers(answer, task)


if __name__ == "__main__":
    measuring.main({"answers": answers})
