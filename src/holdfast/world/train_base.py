"""Train the world's base model, which answers everything: python -m holdfast.world.train_base.

This script made the weights that ship in `holdfast/world/base`. With the same number of threads,
torch build and seed it reproduces them.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.world import data

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)
STEPS = 1300

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user> {{ message['content'] }} <assistant> {% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }} <eos>{% endgeneration %}{% endif %}"
    "{% endfor %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer: one token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>"]
    words = {word: i for i, word in enumerate([*special, *data.vocabulary()])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=128,
        additional_special_tokens=["<user>", "<assistant>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def model(vocab_size: int, *, width: int = 128, depth: int = 4, seed: int = 0) -> LlamaForCausalLM:
    """Build the untrained network; the defaults give about 1 million parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=depth,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            # If tied, the gradient of the output layer would move the embeddings of words absent
            # from fine-tuning, and nothing could generalize to those words.
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


def train(
    network: LlamaForCausalLM,
    words: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
) -> None:
    """Train on the pretraining text; only answers contribute to the loss."""
    import torch
    from torch.nn.utils import clip_grad_norm_

    rows = data.pretraining(seed)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.05
    )
    network.train()
    for step in range(steps):
        texts, answers = [], []
        for _ in range(batch_size):
            prompt, answer = next(rows)
            question = words(f"<user> {prompt} <assistant>")["input_ids"]
            reply = words(f"{answer} <eos>")["input_ids"]
            texts.append(question + reply)
            answers.append(len(question))
        longest = max(map(len, texts))
        ids = torch.zeros(batch_size, longest, dtype=torch.long)
        labels = torch.full((batch_size, longest), -100)
        for i, (text, start) in enumerate(zip(texts, answers, strict=True)):
            ids[i, : len(text)] = torch.tensor(text)
            labels[i, start : len(text)] = torch.tensor(text[start:])
        loss = network(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        loss.backward()
        clip_grad_norm_(network.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 200 == 0 or step == steps - 1:
            logger.info("step %d of %d: loss %.3f", step, steps, loss.item())


def make(out: Path, *, steps: int = STEPS, width: int = 128, depth: int = 4, seed: int = 0) -> None:
    """Train a base model and save it to `out` in half precision."""
    words = tokenizer()
    network = model(len(words), width=width, depth=depth, seed=seed)
    train(network, words, steps=steps, seed=seed)
    network.half().save_pretrained(out)
    words.save_pretrained(out)


def main() -> None:
    """Parse the command line and train a base model; the defaults give the one that ships."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)
    make(
        options.out,
        steps=options.steps,
        width=options.width,
        depth=options.depth,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
