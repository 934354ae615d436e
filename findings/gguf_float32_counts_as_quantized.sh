#!/usr/bin/env bash
# transformers 5.24.0 with gguf 0.19.0 and torch 2.13.0
#
# A GGUF file whose tensors are all plain float32 is loaded with from_pretrained(gguf_file=...). The
# weights come back as float32, bit for bit, yet the model calls itself quantized:
# save_pretrained() and half() raise ValueError. With quantization_config=GgufConfig(dequantize=True)
# the same file gives an ordinary model that can be saved.
#
# One would have guessed that an unquantized file gives an unquantized model, whatever its container.
#
# Seen:
#   as it is: float32, is_quantized True, save_pretrained raises ValueError, half raises ValueError
#   dequantize=True: float32, is_quantized False, save_pretrained works, half works
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 gguf==0.19.0 accelerate
cat > "$folder/check.py" <<'PY'
import sys
from pathlib import Path

import gguf
import numpy as np
from transformers import AutoModelForCausalLM, GgufConfig

folder = Path(sys.argv[1])
WIDTH, WORDS, INNER = 32, 64, 64
random = np.random.default_rng(0)
writer = gguf.GGUFWriter(str(folder / "model.gguf"), "llama")
writer.add_file_type(0)  # all float32
writer.add_context_length(64)
writer.add_embedding_length(WIDTH)
writer.add_block_count(1)
writer.add_feed_forward_length(INNER)
writer.add_head_count(2)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(16)
writer.add_vocab_size(WORDS)
writer.add_tokenizer_model("gpt2")
writer.add_token_list([f"t{i}" for i in range(WORDS)])
shapes = {
    "token_embd": (WORDS, WIDTH), "output": (WORDS, WIDTH), "output_norm": (WIDTH,),
    "blk.0.attn_q": (WIDTH, WIDTH), "blk.0.attn_k": (WIDTH, WIDTH),
    "blk.0.attn_v": (WIDTH, WIDTH), "blk.0.attn_output": (WIDTH, WIDTH),
    "blk.0.ffn_gate": (INNER, WIDTH), "blk.0.ffn_up": (INNER, WIDTH),
    "blk.0.ffn_down": (WIDTH, INNER), "blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,),
}
for name, shape in shapes.items():
    writer.add_tensor(f"{name}.weight", random.normal(0, 0.05, shape).astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()


def outcome(action):
    try:
        action()
    except ValueError:
        return "raises ValueError"
    return "works"


def describe(label, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", **options)
    types = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}))
    saving = outcome(lambda: model.save_pretrained(folder / label.replace(" ", "-")))
    halving = outcome(model.half)
    quantized = bool(getattr(model, "is_quantized", False))
    line = f"{types}, is_quantized {quantized}, save_pretrained {saving}, half {halving}"
    print(f"{label}: {line}")
    return line


as_it_is = describe("as it is")
dequantized = describe("dequantize=True", quantization_config=GgufConfig(dequantize=True))
expected = (
    "float32, is_quantized True, save_pretrained raises ValueError, half raises ValueError",
    "float32, is_quantized False, save_pretrained works, half works",
)
sys.exit(0 if (as_it_is, dequantized) == expected else 1)
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/check.py" "$folder" 2> /dev/null
