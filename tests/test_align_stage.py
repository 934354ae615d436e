"""The align stage: from a method's name and a run's groups to a model with a log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import holdfast as h
from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.methods.hold import HoldOptions
from holdfast.models import checkpoints
from holdfast.results.artifacts import Scores
from holdfast.results.run_dir import RunDir
from holdfast.stages.group import group as group_stage


def written(path: Path, rows: Examples) -> str:
    lines = [json.dumps({"prompt": r.prompt, "response": r.response}) for r in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def config(
    tmp_path: Path,
    rows: Any,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[..., h.AlignConfig]:
    """Return a maker of configurations in a run that has scores and groups."""
    checkpoints.save(make_model(vocab=len(tokenizer)), tokenizer, tmp_path / "tiny")
    safety = written(tmp_path / "safety.jsonl", rows.safety)
    out = tmp_path / "run"
    common: dict[str, Any] = {"out": out, "device": "cpu"}
    values = np.arange(len(rows.safety), dtype=float)
    scored = h.ScoreConfig(model=str(tmp_path / "tiny"), data=safety, **common)
    read = scored.read(safety)
    with RunDir(out).job("score", "hand-s0", config=scored.keyed(), inputs={}) as job:
        path = RunDir(out).path("scores", "hand-s0.json")
        Scores(read.ids, values, "hand", read.hash, "").save(path)
        job.outputs.append(path)
    group_stage(h.GroupConfig(data=safety, rule="quantile", **common))

    def make(**options: Any) -> h.AlignConfig:
        given = {"model": str(tmp_path / "tiny"), "data": safety, "epochs": 0.1, **common}
        given["benign"] = written(tmp_path / "benign.jsonl", rows.benign)
        return h.AlignConfig(**{**given, **options})

    return make


def test_a_method_with_groups_is_one_model(config: Callable[..., h.AlignConfig]) -> None:
    path = h.align(config(method="vaccine+group_dro", options={"rho": 0.5, "floor": 0.2}))
    assert path.name == "vaccine+group_dro-s0"
    assert (path / "model.safetensors").is_file()
    log = json.loads(path.with_name(f"{path.name}.training.json").read_text())["log"]
    assert {"safety_loss", "q_vulnerable"} <= log[0].keys()


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_weights_stored_in_half_precision_are_trained_in_single(
    lora_rank: int, config: Callable[..., h.AlignConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = checkpoints.load

    def as_on_an_accelerator(source: str, **options: Any) -> checkpoints.Loaded:
        loaded = load(source, **options)
        loaded.model.bfloat16()
        return loaded

    monkeypatch.setattr(checkpoints, "load", as_on_an_accelerator)
    made = config(learning_rate=3e-5, lora_rank=lora_rank)
    before = load_file(Path(made.model) / "model.safetensors")
    after = load_file(h.align(made) / "model.safetensors")
    changed = total = 0
    for name, weight in after.items():
        assert weight.dtype == torch.float32, name
        if "embed" in name:  # words that do not occur stay where they are
            continue
        changed += int((weight != before[name].bfloat16().float()).sum())
        total += weight.numel()
    # In bfloat16 a step of 3e-5 is rounded away in most weights.
    assert lora_rank or changed > 0.9 * total


def test_soft_weights_take_the_scores_behind_the_groups(
    config: Callable[..., h.AlignConfig],
) -> None:
    made = config(method="group_dro", options={"tilt": 2.0})
    h.align(made)
    (entry,) = made.run.entries("align")
    (scored,) = made.run.entries("score")
    assert entry.inputs["scores"] == Scores.load(made.run.result(scored)).hash
    other = Scores.load(made.run.result(scored))
    changed = Scores(other.ids, -other.values, "hand", other.data_hash, "")
    changed.save(made.run.result(scored))
    with pytest.raises(UsageError, match="the groups were made from no longer exist"):
        h.align(config(method="group_dro", name="again", options={"tilt": 2.0}))


def test_the_learning_rate_goes_as_asked(
    config: Callable[..., h.AlignConfig],
) -> None:
    made = config(schedule="linear", options={"max_steps": 4, "logging_steps": 1})
    path = h.align(made)
    log = json.loads(path.with_name(f"{path.name}.training.json").read_text())["log"]
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert rates == pytest.approx([made.learning_rate * (1 - i / 4) for i in range(4)])


def test_defaults_are_part_of_what_an_alignment_is(config: Callable[..., h.AlignConfig]) -> None:
    options = config(method="hold", options={"reach": 1e-3}).keyed()["options"]
    assert options == {**HoldOptions().option_values(), "reach": 1e-3}


@pytest.mark.slow
def test_torchrun_aligns_as_one_process_does(config: Callable[..., h.AlignConfig]) -> None:
    # Adam would make a step of a gradient's last digit.
    options = {"step_size": 0.5, "optim": "sgd"}
    made = config(method="group_dro", name="one", options=options, epochs=0.5, learning_rate=0.1)
    h.align(made)
    script = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    script += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr"]
    script += ["127.0.0.1", "-m", "holdfast", "align", "--model", made.model, "--data", made.data]
    script += ["--benign", str(made.benign), "--out", str(made.out), "--device", "cpu"]
    script += ["--method", "group_dro", "--name", "two", "--option", "step_size=0.5"]
    script += ["--option", "optim=sgd", "--lr", "0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*script, "--epochs", "0.5", "--json"], capture_output=True, text=True, env=environment
    )
    assert "two-s0" in {e.name for e in made.run.entries("align")}, done.stderr[-3000:]
    assert len(done.stdout.strip().splitlines()) == 1  # one of the processes speaks
    one, two = (
        load_file(made.out / "models" / f"{name}-s0" / "model.safetensors")
        for name in ("one", "two")
    )
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5)


def test_processes_share_a_batch_evenly_and_other_stages_run_alone(
    config: Callable[..., h.AlignConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config()
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="--batch-size 16 cannot be shared by 3 processes"):
        h.align(made)
    with pytest.raises(
        UsageError, match="in one process, not in 3; torchrun is for holdfast align"
    ):
        group_stage(h.GroupConfig(data=made.data, out=made.out, name="again"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "vaccine", "options": {"floor": 0.2}},
            r"vaccine: floor is not an option\. The options are rho",
        ),
        ({"method": "vaccine+sam"}, "only one method and group_dro"),
        ({"method": "vaccin"}, "'vaccin' is not one of the methods: booster"),
        ({"method": "vaa,rho=0.1"}, "use --method vaa --option rho=0.1, or `options` in a run"),
        ({"method": "hold", "options": {"reach": -1}}, r"reach=-1 must be a number, at least 0"),
        (
            {"method": "sam", "options": {"rho": "abc"}},
            "sam: rho='abc' must be a number, at least 0",
        ),
        (
            {"options": {"weight_decy": 1}},
            "weight_decy is not an option. Did you mean weight_decay",
        ),
        ({"options": {"foo": 1}}, "sft: foo is not an option. The options are those of transf"),
        ({"method": "hold", "options": {"deepspeed": "z.json"}}, "deepspeed"),
        ({"method": "group_dro", "groups": "none"}, "none"),
        ({"options": {"weight_decay": "abc"}}, "sft: weight_decay='abc' must be a number"),
        (
            {"options": {"warmup_steps": None, "eval_steps": "x"}},
            "eval_steps='x' must be a number or null",
        ),
        ({"options": {"eval_strategy": "epoch"}}, "sft: .*eval_strategy"),
        ({"options": {"gradient_accumulation_steps": 0}}, "gradient_accumulation_steps=0 must be"),
        (
            {"options": {"activation_checkpointing_kwargs": {"use_reentrant": True}}},
            "use_reentrant=True: reentrant checkpointing allows one kind of backward pass",
        ),
    ],
)
def test_what_does_not_fit_is_said(
    options: dict[str, Any], message: str, config: Callable[..., h.AlignConfig]
) -> None:
    with pytest.raises(UsageError, match=message):
        h.align(config(**options))
