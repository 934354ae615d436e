"""Jobs of stages: what each needs, its parts, what is finished, what goes on after a failure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.errors import HoldfastError, TrainingError, UsageError
from holdfast.jobs.cluster import on_loopback
from holdfast.models import checkpoints
from holdfast.results.files import read_json
from holdfast.results.run_dir import RunDir
from holdfast.runtime import progress
from holdfast.stages import pipeline
from holdfast.stages import planned_jobs as module
from holdfast.stages.align import AlignConfig
from holdfast.stages.attack import attack
from holdfast.stages.attacking import tuning
from holdfast.stages.attacking.config import AttackConfig
from holdfast.stages.forecast import Shape, estimate, memory
from holdfast.stages.planned_jobs import PlannedJob, run_jobs, single_jobs, unfinished


def configuration(out: Path, model: str = "world", **more: Any) -> pipeline.RunConfig:
    raw = {
        "out": out,
        "model": model,
        "device": "cpu",
        "seeds": [0, 1],
        "data": {
            "alignment": "world:alignment",
            "benign": "world:benign",
            "harmful": "world:harmful",
            "test": "world:test",
        },
        "judges": ["world"],
        "score": {"loss": {}},
        "group": {"scores": "loss"},
        "methods": {"sft": {}, "vaa": {}},
        "attack": {"tasks": ["world_topic", "world_sentiment"], "seeds": [0, 3]},
    }
    return pipeline.parse({**raw, **more}, where="test")


def test_each_call_needs_what_it_reads(tmp_path: Path) -> None:
    planned = pipeline.plan(configuration(tmp_path))
    needs = {job.title: set(job.needs) for job in single_jobs(planned)}
    assert needs["align sft-s1"] == {"align base"}  # nobody makes that: it is the base model
    assert needs["score loss-s1"] == {"align sft-s1"}
    assert needs["group groups-s1"] == {"score loss-s1"}
    assert needs["align vaa-s1"] == {"align base", "group groups-s1"}
    assert needs["evaluate vaa-s1"] == {"align vaa-s1"}
    assert needs["attack vaa-s1/world_topic-p0.1-lr0.0001-s3"] == {"align vaa-s1"}
    titles = [job.title for job in planned]
    assert len(set(titles)) == len(titles)
    # The plain baseline of a seed is one job, which scores, evaluation and attacks share.
    assert [title for title in titles if title.startswith("align sft")] == [
        "align sft-s0",
        "align sft-s1",
    ]
    for number, job in enumerate(planned):
        assert job.needs & set(titles) <= set(titles[:number]), job.title


def test_a_call_can_be_read_from_its_line(tmp_path: Path) -> None:
    for job in pipeline.plan(configuration(tmp_path)):
        assert PlannedJob.read(json.loads(job.line)) == job


# ------------------------------------------------------------------------------- a tiny model


@pytest.fixture
def tiny(tmp_path: Path, make_model: Any, tokenizer: Any) -> str:
    model = make_model(vocab=len(tokenizer))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    checkpoints.save(model, tokenizer, tmp_path / "tiny")
    return str(tmp_path / "tiny")


def attacks(out: Path, model: str, **more: Any) -> AttackConfig:
    given: dict[str, Any] = {
        "models": [model],
        "tasks": ["world_topic", "world_sentiment"],
        "harmful": "world:harmful",
        "test": "world:test",
        "judges": ["world"],
        "limit": 4,
        "rows": 8,
        "poison_ratios": [0.5],
        "steps": 2,
        "every": 1,
        "batch_size": 4,
        "max_new_tokens": 2,
        "most_undecided": 1,
        "task_rows": 2,
        "device": "cpu",
        "out": out,
    }
    return AttackConfig(**{**given, **more})


def keys(out: Path) -> dict[str, str]:
    return {entry.name: entry.key for entry in RunDir(out).entries()}


def test_an_attack_alone_has_the_key_it_has_in_a_list(tmp_path: Path, tiny: str) -> None:
    config = attacks(tmp_path / "a", tiny, jobs=1)
    whole = PlannedJob("attack", "all", config)
    pieces = single_jobs([whole])
    assert [piece.name for piece in pieces] == [
        "tiny/world_topic-p0.5-lr0.0001-s0-n2-b4-rows8-every1",
        "tiny/world_sentiment-p0.5-lr0.0001-s0-n2-b4-rows8-every1",
    ]
    assert unfinished(pieces) == pieces
    pieces[1]()
    assert unfinished(pieces) == pieces[:1]
    alone = keys(tmp_path / "a")
    attack(config)
    assert keys(tmp_path / "a").items() > alone.items()
    assert unfinished(pieces) == []
    assert "jobs" not in config.keyed()
    assert config.model_copy(update={"jobs": 4, "scheduler": "x"}).keyed() == config.keyed()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TrainingError("the loss is nan"), "the loss is nan"),
        (RuntimeError("CUDA error"), "RuntimeError: CUDA error"),
        (IndexError("index out of range in self"), "IndexError: index out of range in self"),
        (AttributeError("a plug-in's"), "AttributeError: a plug-in's"),
    ],
)
def test_an_attack_that_fails_is_noted_and_the_others_are_run(
    tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    real = tuning.run_attack

    def failing(attack_job: Any, job: Any) -> Any:
        if attack_job.attack.task == "world_topic":
            raise error
        return real(attack_job, job)

    monkeypatch.setattr(tuning, "run_attack", failing)
    config = attacks(tmp_path / "a", tiny)
    with pytest.raises(HoldfastError, match=rf"1 of 2 failed; .*\n.*topic.*: {words}"):
        attack(config)
    run = RunDir(config.out)
    assert [entry.name for entry in run.entries()] == [
        "tiny/world_sentiment-p0.5-lr0.0001-s0-n2-b4-rows8-every1"
    ]
    assert [failure.reason for failure in run.failures()] == [words]
    monkeypatch.undo()
    assert len(attack(config)) == 2
    assert run.failures() == []


def test_what_needs_a_failed_call_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def called(job: PlannedJob) -> None:
        done.append(job.title)
        if job.title == "align sft-s0":
            raise TrainingError("the loss is nan")

    monkeypatch.setattr(PlannedJob, "__call__", called)
    monkeypatch.setattr(PlannedJob, "finished", False)
    said: list[str] = []
    config = configuration(tmp_path / "a", attack={"tasks": ["world_topic"], "seeds": [0, 3]})
    with (
        progress.showing(lambda *args: None, said.append),
        pytest.raises(HoldfastError, match=r"8 of 19 failed") as caught,
    ):
        pipeline.run(config)
    assert caught.value.exit_code == 1
    assert {"align sft-s1", "attack vaa-s1", "evaluate base", "analyze all"} <= set(done)
    assert not {"score loss-s0", "align vaa-s0", "attack sft-s0"} & set(done)
    failed = {f"{f.stage} {f.name}": f.reason for f in RunDir(config.out).failures()}
    assert failed["align sft-s0"] == "the loss is nan"
    assert failed["score loss-s0"] == "not run: it needs align sft-s0"
    assert failed["attack vaa-s0/world_topic-p0.1-lr0.0001-s3"].endswith("needs align vaa-s0")
    assert any("failed: the loss is nan" in line for line in said)


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        RuntimeError("CUDA error"),
        ValueError("odd"),
        KeyError("gone"),
        TypeError("none of these"),
    ],
)
def test_what_nobody_foresaw_is_one_failed_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    done: list[str] = []

    def called(job: PlannedJob) -> None:
        if job.title == "align sft-s0":
            raise error
        done.append(job.title)

    monkeypatch.setattr(PlannedJob, "__call__", called)
    # That nothing can be noted ends nothing either.
    monkeypatch.setattr(RunDir, "failures", lambda run: read_json(tmp_path / "gone", "failure"))
    with pytest.raises(HoldfastError, match=f"align sft-s0: .*{error.args[-1]}"):
        run_jobs(pipeline.plan(configuration(tmp_path / "a")))
    assert {"align sft-s1", "analyze all", "report report"} <= set(done)


@pytest.mark.parametrize("last", ["analyze all", "report report"])
def test_the_note_of_a_last_call_goes_when_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    def called(job: PlannedJob) -> None:
        if job.title in failing:
            raise TrainingError("nothing to read")

    failing = {last}
    monkeypatch.setattr(PlannedJob, "__call__", called)
    monkeypatch.setattr(PlannedJob, "finished", False)
    planned = pipeline.plan(configuration(tmp_path / "a"))[-2:]
    with pytest.raises(HoldfastError):
        run_jobs(planned)
    assert [f"{f.stage} {f.name}" for f in RunDir(tmp_path / "a").failures()] == [last]
    failing.clear()
    run_jobs(planned)
    assert RunDir(tmp_path / "a").failures() == []


@pytest.mark.slow
def test_side_by_side_is_what_one_after_the_other_is(tmp_path: Path, tiny: str) -> None:
    more = {
        "model": tiny,
        "align": {"epochs": 0.05, "max_length": 32},
        "attack": {
            **{"tasks": ["world_topic"], "seeds": [0, 1], "steps": 2, "every": 1, "rows": 8},
            **{"batch_size": 4, "max_new_tokens": 2, "task_rows": 2, "track_rows": 4},
            "most_undecided": 1,
        },
        "evaluate": {"max_new_tokens": 2, "most_undecided": 1},
    }
    found = []
    for jobs in (1, 2):
        out = tmp_path / f"jobs{jobs}"
        pipeline.run(configuration(out, **more), jobs=jobs)
        run = RunDir(out)
        files = {
            f"{entry.stage} {path}": digest
            for entry in run.entries()
            for path, digest in entry.outputs.items()
            # These hold times: the Trainer's log, and what scoring cost.
            if "training" not in path and entry.stage not in ("score", "report")
        }
        found.append((keys(out).keys(), files))
        assert run.failures() == []
    assert found[0] == found[1]


def test_a_cluster_on_another_machine_is_refused_unless_it_is_allowed(
    tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"scheduler": "tcp://10.0.0.1:8786"}
    with pytest.raises(UsageError, match="tcp://10.0.0.1:8786' is not on this machine"):
        attack(attacks(tmp_path / "a", tiny, **there))
    with pytest.raises(UsageError, match="is not on this machine"):
        pipeline.run(configuration(tmp_path / "b", tiny), **there)
    asked = []

    def connected(*args: Any, **more: Any) -> Any:
        asked.append(more)
        raise UsageError("nobody there")

    monkeypatch.setattr(module, "connected", connected)
    with pytest.raises(UsageError, match="nobody there"):
        attack(attacks(tmp_path / "a", tiny, allow_remote=True, **there))
    assert asked == [{"allow_remote": True}]
    allowed = attacks(tmp_path / "a", tiny, allow_remote=True)
    assert allowed.keyed() == attacks(tmp_path / "a", tiny).keyed()


@pytest.mark.parametrize(
    ("address", "here"),
    [
        *((a, True) for a in ("tcp://127.0.0.1:8786", "127.0.0.2:1", "tls://[::1]:8786")),
        *((a, True) for a in ("localhost:8786", "tcp://LOCALHOST:8786")),
        *((a, False) for a in ("tcp://10.0.0.1:8786", "0.0.0.0:1", "tcp://[::]:1", "host:8786")),
        *((a, False) for a in ("tcp://127.0.0.1.evil.example:1", "tcp://[:1", "", "tcp://")),
        ("tcp://127.0.0.1:1@10.0.0.1:8786", False),
        ("tcp://10.0.0.1:8786#@127.0.0.1", False),
    ],
)
def test_what_is_on_this_machine(address: str, here: bool) -> None:
    assert on_loopback(address) is here


# ------------------------------------------------------------------------------------- estimates


def test_an_estimate_counts_and_gives_a_range(tmp_path: Path, tiny: str) -> None:
    config = attacks(tmp_path / "a", tiny)
    whole = [PlannedJob("attack", "all", config)]
    before = estimate(whole, jobs=2)
    assert (before.planned, before.finished, before.unknown) == (2, 0, ())
    assert 0 < before.seconds[0] < before.seconds[1]
    assert "from a few steps" in before.as_dict()["time"]
    single_jobs(whole)[0]()
    (entry,) = RunDir(config.out).entries()
    after = estimate(whole)
    assert (after.planned, after.finished) == (2, 1)
    assert after.seconds == pytest.approx((0.7 * entry.seconds, 1.5 * entry.seconds))
    # Twice the steps take twice as long.
    longer = estimate([PlannedJob("attack", "all", config.model_copy(update={"steps": [4]}))])
    assert longer.seconds == pytest.approx((2 * 2 * after.seconds[0], 2 * 2 * after.seconds[1]))
    assert "1 of 2 to do, 1 finished already; " in after.line
    attack(config)
    assert estimate(whole).line.endswith("2 finished already; nothing to do")


def test_what_is_not_known_is_not_counted_as_nothing(tmp_path: Path, tiny: str) -> None:
    config = AlignConfig(
        out=tmp_path / "a", model=tiny, data="world:alignment", method="vaa", device="cpu"
    )
    found = estimate([PlannedJob("align", config.label, config)], calibrate=False)
    assert found.unknown == ("align vaa-s0",)
    assert found.as_dict()["time"] == "unknown"
    assert "time unknown until" in found.line


def test_memory_by_hand() -> None:
    shape = Shape(parameters=1000, bytes_each=4, width=8, layers=2, vocabulary=50)
    # Weights, gradients and two moments; one more copy, 17 numbers a token and unit, three logits.
    least = 4 * 4 * 1000
    most = least + 4 * 1000 + 17 * 4 * 10 * 8 * 2 + 3 * 4 * 10 * 50
    assert memory(shape, tokens=10) == (least, most)
    assert memory(shape, tokens=10, lora=True) == (4 * 1000, 4 * 1000 + most - least - 4 * 1000)


def stored(tmp_path: Path, make_model: Any, tokenizer: Any) -> str:
    """Store a model in half precision."""
    model = make_model(vocab=len(tokenizer)).bfloat16()
    checkpoints.save(model, tokenizer, tmp_path / "half")
    return str(tmp_path / "half")


def test_a_full_attack_takes_the_memory_of_float32(
    tmp_path: Path, make_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "pick_device", lambda name: torch.device("cuda"))
    half = stored(tmp_path, make_model, tokenizer)
    assert Shape.stored(half).bytes_each == 2
    weights = 4.0 * Shape.stored(half).parameters

    def least(**more: Any) -> float:
        whole = [PlannedJob("attack", "all", attacks(tmp_path / "a", half, **more))]
        found = estimate(whole, calibrate=False).memory
        assert found is not None
        return found[0]

    assert least() == 4 * weights
    assert least(lora_rank=[8]) == weights / 2
    # The job that takes most counts, wherever it stands.
    assert least(lora_rank=[8, 0]) == 4 * weights


def test_the_shape_of_a_model_is_known_without_its_weights(tmp_path: Path, tiny: str) -> None:
    assert Shape.stored(tiny, "cpu") == Shape.of(checkpoints.load(tiny, device="cpu").model)
    nowhere = attacks(tmp_path / "a", "nowhere", tasks=["world_topic"])
    assert estimate([PlannedJob("attack", "all", nowhere)], calibrate=False).memory is None


def test_attacks_one_after_the_other_say_what_is_to_be_done_and_how_long_it_goes_on(
    tmp_path: Path, tiny: str
) -> None:
    words = ["attack", "--model", tiny, "--task", "world_topic", "--task", "world_sentiment"]
    words += ["--harmful", "world:harmful", "--test", "world:test", "--limit", "4", "--rows", "8"]
    words += ["--poison-ratio", "0.5", "--steps", "1", "--batch-size", "4", "--task-rows", "0"]
    words += ["--max-new-tokens", "2", "--device", "cpu", "--out", str(tmp_path / "a")]
    words += ["--most-undecided", "1"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    assert "2 of 2 to do, 0 finished already; time unknown until" in found.stderr
    assert re.search(r"memory of a job .* to .* GiB", found.stderr)
    assert re.search(r"\[1/2\] tiny/world_topic\S+: \d+ s; about \d+ s to go", found.stderr)


def test_do_raises_one_error(tmp_path: Path, tiny: str) -> None:
    wrong = attacks(tmp_path / "a", tiny, tasks=["world_topic"], rows=8, poison_ratios=[0.9])
    with pytest.raises(HoldfastError):
        run_jobs(
            [PlannedJob("attack", "all", wrong.model_copy(update={"harmful": "nowhere.jsonl"}))]
        )
    assert module.PROGRAM == "holdfast.stages.child"
