#!/usr/bin/env bash
# transformers 5.24.0 with tokenizers 0.23.3
#
# model.save_pretrained() writes config.json and weights, but no tokenizer. For several model types
# AutoTokenizer builds a tokenizer without a vocabulary from such a folder, with no error and no warning
# (here from config.json alone, since weights are not read). With qwen2, gpt2 and gpt_neox every text
# becomes no tokens at all. With roberta, which a judge may be, every text becomes the same two special
# tokens, so all get the same verdict. With bert every word is the unknown token. llama raises
# ValueError, but not if a tokenizer_config.json names its class: then it is empty too.
#
# One would have guessed the error that llama gives, for all of them: the weights expect a vocabulary,
# and config.json states its size. The migration guide to version 5 documents an empty tokenizer that
# can be trained for a class that is called without arguments, not for from_pretrained(). A user has met
# the empty one as a failure far from its cause: https://github.com/syv-ai/qwen38-27b-rtx3090/issues/15
#
# Seen:
#   qwen2: 1 of 151936 tokens, [] and []
#   gpt2: 1 of 50257 tokens, [] and []
#   gpt_neox: 2 of 50432 tokens, [] and []
#   roberta: 5 of 50265 tokens, [2, 3] and [2, 3]
#   bert: 5 of 30522 tokens, [2, 1, 1, 1, 1, 1, 1, 3] and [2, 1, 1, 3]
#   llama: ValueError
#   llama with tokenizer_config.json: 3 of 32000 tokens, [] and []
#   warnings: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0 tokenizers==0.23.3
cat > "$folder/check.py" <<'PY'
import json
import logging
import sys
import warnings
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

folder = Path(sys.argv[1])
logged = []


class Collector(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())


def describe(model_type, tokenizer_class=None):
    model = folder / f"{model_type}-{tokenizer_class}"
    config = AutoConfig.for_model(model_type)
    config.save_pretrained(model)
    if tokenizer_class:
        settings = json.dumps({"tokenizer_class": tokenizer_class})
        (model / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except ValueError as error:
        return type(error).__name__
    long = tokenizer("How do I bake bread?")["input_ids"]
    short = tokenizer("Stop.")["input_ids"]
    return f"{len(tokenizer)} of {config.vocab_size} tokens, {long} and {short}"


logging.getLogger("transformers").addHandler(Collector(level=logging.WARNING))
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    types = ["qwen2", "gpt2", "gpt_neox", "roberta", "bert", "llama"]
    result = [f"{model_type}: {describe(model_type)}" for model_type in types]
    named = describe("llama", "LlamaTokenizer")
result.append(f"llama with tokenizer_config.json: {named}")
result.append(f"warnings: {len(seen) + len(logged)}")
print("\n".join(result))
expected = [
    "qwen2: 1 of 151936 tokens, [] and []",
    "gpt2: 1 of 50257 tokens, [] and []",
    "gpt_neox: 2 of 50432 tokens, [] and []",
    "roberta: 5 of 50265 tokens, [2, 3] and [2, 3]",
    "bert: 5 of 30522 tokens, [2, 1, 1, 1, 1, 1, 1, 3] and [2, 1, 1, 3]",
    "llama: ValueError",
    "llama with tokenizer_config.json: 3 of 32000 tokens, [] and []",
    "warnings: 0",
]
sys.exit(0 if result == expected else 1)
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/check.py" "$folder"
