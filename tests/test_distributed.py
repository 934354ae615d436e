"""Two processes take the steps that one takes with the same rows: DDP, and FSDP2 in pieces.

Each case starts processes of its own, half a minute for both; the one-process run is the twin.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("distributed_worker.py")
VAA = {"method": "vaa", "options": {"rho": 0.3, "curriculum": "constant", "step_size": 0.05}}
HOLD = {"attack_rows": "harmful", "reach": 0.002, "every": 0}
HOLD |= {"attack_share": 1.0, "mixture": "both"}
CASES: dict[str, dict[str, Any]] = {
    "ddp": {**VAA, "accumulation": 2},
    "ddp lora clipped": {**VAA, "lora": True, "clip": 0.5},
    "ddp hold": {
        "method": "hold",
        "options": {**HOLD, "mixture": "coin", "every": 1, "attack_share": 0.5, "inner_steps": 2},
    },
    "ddp hold anew": {"method": "hold", "options": {**HOLD, "inner_steps": 2}},
    "ddp update": {
        "method": "vaa",
        "options": {**VAA["options"], "per": "update", "mixture": "both", "lam": 0.5},  # type: ignore[dict-item]
        "accumulation": 2,
    },
    # Three benign rows: most batches have some on one process only.
    "ddp sam": {"method": "sam", "options": {"rho": 0.2}, "benign": 3},
    # Fewer safety rows than benign ones: processes have them in different micro-batches.
    "ddp sam update": {
        "method": "sam",
        "options": {"rho": 0.2, "per": "update"},
        "benign": 40,
        "batch": 4,
        "accumulation": 2,
    },
    "ddp sam and groups": {"method": "sam+group_dro", "options": {"step_size": 0.05}, "benign": 12},
    "fsdp": {**VAA, "fsdp": True, "accumulation": 2, "clip": 0.5},
    "fsdp hold": {"method": "hold", "options": {**HOLD, "inner_steps": 2}, "fsdp": True},
}
SLOW = CASES.keys() - {"ddp", "fsdp"}


def start(out: Path, case: dict[str, Any], processes: int) -> str:
    """Run the worker; return what it wrote to standard error."""
    script = [str(WORKER), str(out), json.dumps({"batch": 8, **case})]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    alone = [sys.executable]
    local = [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "127.0.0.1:0",
        "--local-addr",
        "127.0.0.1",
    ]
    command = [*torchrun, *local, *script] if processes > 1 else [*alone, *script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    return done.stderr


def run(out: Path, case: dict[str, Any], processes: int) -> dict[str, Any]:
    errors = start(out, case, processes)
    # A rank sometimes aborts at exit, with its results written: the file says.
    assert out.is_file(), errors[-3000:]
    facts: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    return facts


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES]
)
def test_two_processes_equal_one(name: str, tmp_path: Path) -> None:
    case = dict(CASES[name])
    two = run(tmp_path / "two.safetensors", case, 2)
    alone = {k: v for k, v in case.items() if k != "fsdp"}
    one = run(tmp_path / "one.safetensors", alone, 1)
    assert two["sharded"] == ("fsdp" in case)
    assert len(one["log"]) == 3
    for a, b in zip(one["log"], two["log"], strict=True):
        for key in ("group", "perturbed", "inner_steps"):
            assert a.get(key) == b.get(key)
        assert a.keys() == b.keys()
        if "perturbation_gap" in a:
            # The difference of two losses of about 20, in float32.
            assert a["perturbation_gap"] == pytest.approx(b["perturbation_gap"], rel=1e-4, abs=1e-5)
        if "safety_loss" in a:
            assert a["safety_loss"] == pytest.approx(b["safety_loss"], rel=1e-5)
    mine, theirs = (load_file(tmp_path / f"{n}.safetensors") for n in ("one", "two"))
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        # transformers takes the loss in float32, whatever the weights are.
        torch.testing.assert_close(theirs[key], value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_loss_that_is_nan_on_one_process_ends_all(tmp_path: Path) -> None:
    out = tmp_path / "two.safetensors"
    # In the first of two micro-batches nothing is exchanged that would carry the nan along.
    errors = start(out, {"method": "sft", "accumulation": 2, "nan_on": 1}, 2)
    messages = [out.with_suffix(f".{rank}.txt") for rank in range(2)]
    assert all(path.is_file() for path in messages), errors[-3000:]
    first, second = [path.read_text() for path in messages]
    assert first.startswith("the loss is not finite in another process at step 1:")
    assert second.startswith("the loss is nan at step 1:")
