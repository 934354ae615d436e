#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.24.0 and torch 2.13.0
#
# A model whose output layer shares its weight with the embeddings gets a LoRA adapter on the output
# layer, with ensure_weight_tying=True. peft then also adapts the embeddings, with the same two
# matrices transposed, so both layers see W + D. The shared weight is one tensor, and merging adds D
# for each of the two layers: the merged model has W + 2 D and answers differently from the adapted
# one.
#
# One would have guessed that merging leaves the outputs as they are. peft warns that tied layers
# "can lead to complications", but merge_and_unload() succeeds.
#
# Seen:
#   one pair of matrices for both layers: True
#   merged weight is W + D: False
#   merged weight is W + 2 D: True
#   outputs before and after merging agree: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 peft==0.21.2
cat > "$folder/check.py" <<'PY'
import sys
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=2, tie_word_embeddings=True,
)
model = LlamaForCausalLM(config).eval()
before = model.lm_head.weight.detach().clone()
lora = LoraConfig(
    r=4, target_modules=["lm_head"], ensure_weight_tying=True, init_lora_weights=False
)
adapted = get_peft_model(model, lora)
parts = dict(adapted.named_parameters())
a = parts["base_model.model.lm_head.lora_A.default.weight"]
b = parts["base_model.model.lm_head.lora_B.default.weight"]
of_embeddings = parts["base_model.model.model.embed_tokens.lora_embedding_B.default"]
shared = a.data_ptr() == of_embeddings.data_ptr()
delta = (adapted.base_model.model.lm_head.scaling["default"] * (b @ a)).detach()
ids = torch.tensor([[1, 2, 3]])
with torch.no_grad():
    outputs = adapted(ids).logits
    merged = adapted.merge_and_unload()
    same = torch.allclose(outputs, merged(ids).logits, atol=1e-3)
change = merged.lm_head.weight.detach() - before
once = torch.allclose(change, delta, atol=1e-4)
twice = torch.allclose(change, 2 * delta, atol=1e-4)
print("one pair of matrices for both layers:", shared)
print("merged weight is W + D:", once)
print("merged weight is W + 2 D:", twice)
print("outputs before and after merging agree:", same)
sys.exit(0 if (shared, once, twice, same) == (True, False, True, False) else 1)
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/check.py"
