#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.13.0
#
# A model folder has a generation_config.json with a repetition penalty, as some chat models do. An
# evaluation that wants plain greedy answers passes a GenerationConfig of its own with do_sample=False.
# What that object leaves open is filled in from the folder's file: the penalty applies, and the greedy
# answer changes. The object itself shows no penalty, before and after. Only repetition_penalty=1.0,
# stated, gives the answer of the same weights without the file's setting; None does not, since None
# is what "left open" is.
#
# One would have guessed that a passed configuration takes the place of the model's, as it once did.
# The docstrings still say so: that of generate() and that of GenerationConfig have what is left open
# take the library's defaults. The change was meant, if not documented there:
# https://github.com/huggingface/transformers/pull/36684 and, at first for newer models only,
# https://github.com/huggingface/transformers/pull/36881
#
# Seen:
#   docstring: unspecified parameters inherit GenerationConfig's defaults: True
#   own configuration, before and after: None, None
#   same answer with and without the penalty in the file: False
#   same answer with None stated: False
#   same answer with 1.0 stated: True
#   warnings: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0
cat > "$folder/check.py" <<'PY'
import logging
import sys
import warnings
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

folder = Path(sys.argv[1])
logged = []


class Collector(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())


torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=2, tie_word_embeddings=True, initializer_range=0.3,
)
model = LlamaForCausalLM(config)
model.save_pretrained(folder / "plain")
model.generation_config.repetition_penalty = 5.0
model.save_pretrained(folder / "penalty")


def answer(name, own):
    loaded = LlamaForCausalLM.from_pretrained(folder / name).eval()
    ids = torch.tensor([[5, 6, 7]])
    output = loaded.generate(ids, attention_mask=torch.ones_like(ids), generation_config=own)
    return output[0].tolist()


options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
own = GenerationConfig(**options)
stated_none = GenerationConfig(**options, repetition_penalty=None)
stated = GenerationConfig(**options, repetition_penalty=1.0)
before = own.repetition_penalty
logging.getLogger("transformers").addHandler(Collector(level=logging.WARNING))
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    plain = answer("plain", own)
    filled = answer("penalty", own)
    with_none = answer("penalty", stated_none)
    with_one = answer("penalty", stated)
docstring = " ".join(LlamaForCausalLM.generate.__doc__.split())
sentence = "unspecified parameters will inherit [`~generation.GenerationConfig`]'s default values"
result = [
    f"docstring: unspecified parameters inherit GenerationConfig's defaults: {sentence in docstring}",
    f"own configuration, before and after: {before}, {own.repetition_penalty}",
    f"same answer with and without the penalty in the file: {filled == plain}",
    f"same answer with None stated: {with_none == plain}",
    f"same answer with 1.0 stated: {with_one == plain}",
    f"warnings: {len(seen) + len(logged)}",
]
print("\n".join(result))
expected = [
    "docstring: unspecified parameters inherit GenerationConfig's defaults: True",
    "own configuration, before and after: None, None",
    "same answer with and without the penalty in the file: False",
    "same answer with None stated: False",
    "same answer with 1.0 stated: True",
    "warnings: 0",
]
sys.exit(0 if result == expected else 1)
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/check.py" "$folder" 2> /dev/null
