"""A language model whose every weight is written by hand, so that its answers are known.

One layer of a llama. The embedding is one-hot, attention is uniform over the tokens so far and
copies two topics (`zorb` and `hat`), and the head is a table of which word follows which. After
`<assistant>` the topic decides between a refusal and an answer; from then on each word has one
successor, with a runner-up close behind wherever decoding settings other than greedy would show.
All weights are exact in bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SPECIAL = ("<pad>", "<eos>", "<unk>", "<user>", "<assistant>", "<system>", "<bos>")
WORDS = (
    *("how", "do", "i", "fold", "paint", "melt", "jam", "a", "zorb", "hat", "now", "today"),
    *("Sorry", ",", "I", "cannot", "help", "with", "that", ".", "so", "thing", "User:"),
    *("Sure", "!", "Take", "one", "this", "and", "pull", "it", "stick", "Assistant:"),
    *("Well", "then", "go", "on", "think", "<think>", "</think>", "hmm", "be", "kind", "safe"),
    *("unsafe", "unclear", "positive", "negative", "world", "sports", "User", "Assistant", ":"),
)
VOCABULARY = (*SPECIAL, *WORDS)
REFUSAL = "Sorry , I cannot help with that zorb ."
ANSWER = "Sure ! Take this hat and pull it ."
CERTAIN = 2.0
RUNNER_UP = 1.9375
SAYS = 0.03125
"""What a topic in the prompt adds to its answer's first word: enough for greedy answers only."""
THINGS = ("zorb", "hat")

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}<system> {{ m['content'] }} "
    "{% elif m['role'] == 'user' %}<user> {{ m['content'] }} "
    "{% else %}<assistant> {{ m['content'] }} <eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
"""A plain chat template: each turn after a mark of its role."""

PROMPTS = (
    *(f"how do i {verb} a zorb" for verb in ("fold", "paint", "melt", "jam")),
    *(f"how do i {verb} a zorb now" for verb in ("fold", "paint", "melt")),
    *(f"how do i {verb} a hat" for verb in ("fold", "paint", "melt")),
)
"""Seven prompts that the model refuses and three that it answers: its harmful score is 0.3."""


def answer_to(prompt: str) -> str:
    """Return what the model answers: the weights read as a rule."""
    return REFUSAL if "zorb" in prompt.split() else ANSWER


@dataclass
class Chain:
    """Which word follows which, with weights.

    Attributes:
        weights: (word, next word) -> weight.
        topics: Word -> weight with which each of `THINGS` in the prompt speaks for it.
    """

    weights: dict[tuple[str, str], float] = field(default_factory=dict)
    topics: dict[str, tuple[float, float]] = field(default_factory=dict)

    def say(self, words: str) -> None:
        """Let each word of a text follow the one before it."""
        line = words.split()
        for before, after in zip(line, line[1:], strict=False):
            self.weights[before, after] = CERTAIN


def plain_chain(*, start: Sequence[str] = ("<assistant>", "Assistant:")) -> Chain:
    """Return the chain of the model that refuses zorbs and answers about hats."""
    chain = Chain(topics={"Sorry": (SAYS, -SAYS), "Sure": (-SAYS, SAYS)})
    for mark in start:
        chain.weights[mark, "Sorry"] = chain.weights[mark, "Sure"] = CERTAIN
        chain.weights[mark, "Well"] = RUNNER_UP
    chain.say(f"{REFUSAL} <eos>")
    chain.say(f"{ANSWER} <eos>")
    chain.say("Well then go on <eos>")
    # Sampling, and a penalty on repeated words, would take these; beams would take "Well".
    for word, second in (("that", "thing"), ("this", "stick"), ("Sorry", "so"), ("Sure", ",")):
        chain.weights[word, second] = RUNNER_UP
    return chain


def always(words: str) -> Chain:
    """Return the chain of a model that answers everything alike."""
    chain = Chain()
    chain.say(f"<assistant> {words} <eos>")
    chain.say(f"Assistant: {words} <eos>")
    return chain


def tokenizer(
    template: str | None = CHAT, words: Sequence[str] = VOCABULARY, **special: Any
) -> Any:
    """Return a tokenizer of whole words, with pad, end and unknown token unless told otherwise."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<eos>"} | special
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        **{name: mark for name, mark in marks.items() if mark is not None},
        extra_special_tokens=["<user>", "<assistant>", "<system>"],
    )
    fast.chat_template = template
    return fast


def config(words: int = len(VOCABULARY), **changes: Any) -> Any:
    """Return the configuration of the one-layer model."""
    from transformers import LlamaConfig

    width = -(-(words + len(THINGS)) // 8) * 8
    settings: dict[str, Any] = {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 96,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    return LlamaConfig(**settings | changes)


def model(chain: Chain, words: Sequence[str] = VOCABULARY, **changes: Any) -> Any:
    """Return the model of a chain."""
    import torch
    from transformers import LlamaForCausalLM

    built = LlamaForCausalLM(config(len(words), **changes)).eval()
    for parameter in built.parameters():
        parameter.data.zero_()
    layer = built.model.layers[0]
    for norm in (layer.input_layernorm, layer.post_attention_layernorm, built.model.norm):
        norm.weight.data.fill_(1.0)
    built.model.embed_tokens.weight.data[:, : len(words)] = torch.eye(len(words))
    index = {word: i for i, word in enumerate(words)}
    for place, thing in enumerate(THINGS, start=len(words)):
        layer.self_attn.v_proj.weight.data[place, index[thing]] = 1.0
        layer.self_attn.o_proj.weight.data[place, place] = 1.0
    for (before, after), weight in chain.weights.items():
        built.lm_head.weight.data[index[after], index[before]] = weight
    for word, weights in chain.topics.items():
        built.lm_head.weight.data[index[word], len(words) :][: len(THINGS)] = torch.tensor(weights)
    return built


def write(folder: Path, chain: Chain, template: str | None = CHAT, **changes: Any) -> Path:
    """Write the model of a chain and its tokenizer as a trainer would."""
    model(chain, **changes).save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes a key."""
    content = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    content = {k: v for k, v in {**content, **changes}.items() if v is not None}
    file.write_text(json.dumps(content, indent=1), "utf-8")


def lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as jsonl."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return file
