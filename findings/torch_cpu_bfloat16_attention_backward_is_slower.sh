#!/usr/bin/env bash
# torch 2.13.0 (CPU)
#
# On a processor with bfloat16 instructions (AVX512-BF16, AMX), a matrix product in bfloat16 takes a
# fraction of the time in float32. The backward pass of scaled_dot_product_attention takes longer in
# bfloat16, at the sizes of a small chat model: training under autocast loses there what it gains
# elsewhere. Attention in float32 inside an autocast region is faster.
#
# One would have guessed that half the bytes and faster products make every operation faster.
#
# Seen (16 rows, 9 heads, 75 tokens, 64 wide; medians of 15 runs; other processors give other factors):
#   matrix product, bfloat16 over float32: 0.15
#   attention backward, bfloat16 over float32: 3.53
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
grep -q avx512_bf16 /proc/cpuinfo || { echo "this processor has no bfloat16: nothing to see"; exit 0; }
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
cat > "$folder/check.py" <<'PY'
import statistics
import sys
import time

import torch
from torch.nn.functional import scaled_dot_product_attention as attend

torch.manual_seed(0)


def seconds(call, prepare=lambda: ()):
    times = []
    for _ in range(15):
        given = prepare()
        start = time.perf_counter()
        call(*given)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def product(dtype):
    left, right = torch.randn(1200, 576, dtype=dtype), torch.randn(576, 1536, dtype=dtype)
    return seconds(lambda: left @ right)


def backward(dtype):
    def prepare():
        made = [torch.randn(16, 9, 75, 64, dtype=dtype, requires_grad=True) for _ in range(3)]
        return (attend(*made, is_causal=True).sum(),)

    return seconds(lambda loss: loss.backward(), prepare)


products = product(torch.bfloat16) / product(torch.float32)
attention = backward(torch.bfloat16) / backward(torch.float32)
print(f"matrix product, bfloat16 over float32: {products:.2f}")
print(f"attention backward, bfloat16 over float32: {attention:.2f}")
sys.exit(0 if products < 0.7 and attention > 1.5 else 1)
PY
"$folder/venv/bin/python" "$folder/check.py"
