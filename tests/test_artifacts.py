"""Files between stages: they come back as they went, and they refuse to be mixed up."""

import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from holdfast.errors import MismatchError, UsageError
from holdfast.results import environment, files
from holdfast.results.artifacts import AttackResult, Counts, Evaluation, Groups, Point, Scores
from holdfast.results.attacks import Attack
from holdfast.results.run_dir import RunDir
from made_lives import life

NAN = math.nan

SCORES = Scores(
    ids=("x", "y", "z"),
    values=np.array([0.1, NAN, -2.0]),
    estimator="margin,step=0.1",
    data_hash="d",
    model_hash="m",
    seed=3,
    details={"loss": np.array([NAN, 1.0, 2.0])},
    facts={"passes": 2, "note": "é"},
)
GROUPS = Groups(
    ids=("x", "y", "z"),
    labels=np.array([1, 0, 1]),
    names=("invulnerable", "vulnerable", "lost"),
    rule="above 0",
    scores_hash="s",
    data_hash="d",
    facts={"threshold": 0.0},
)
ATTACK = AttackResult(
    model="vaa-seed1",
    model_hash="m",
    method="vaa",
    model_seed=1,
    attack=Attack(task="sst2"),
    judge="world",
    points=(
        Point(0, {"world": Counts(0, 9, 1)}),
        Point(10, {"world": Counts(4, 5, 1)}, accuracy=0.5, accuracy_n=4, unparsable=1, loss=2.5),
    ),
    half_life=life(NAN, censored=True),
    tracked={"x": 2},
    tracked_judge="refusal",
)
EVALUATION = Evaluation(
    model="sft",
    model_hash="m",
    method="sft",
    model_seed=0,
    verdicts={"world": Counts(1, 2, 3)},
    by_category={"theft": {"world": Counts(1, 0, 0)}},
    over_refusal=Counts(0, 1, 9),
    tasks={"sst2": {"accuracy": 0.5, "n": 4, "unparsable": 1}},
)


def same(a: Any, b: Any) -> bool:
    """Tell whether two artifacts are equal field by field, nan being equal to nan."""
    return repr(a) == repr(b) and type(a) is type(b)


# ------------------------------------------------------------------------------------ round trip


def test_scores_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "scores.json"
    SCORES.save(path)
    found = Scores.load(path)
    np.testing.assert_array_equal(found.values, SCORES.values)
    np.testing.assert_array_equal(found.details["loss"], SCORES.details["loss"])
    assert found.values.dtype == found.details["loss"].dtype == np.float64
    for name in ("ids", "estimator", "data_hash", "model_hash", "seed"):
        assert getattr(found, name) == getattr(SCORES, name)
    assert found.facts == SCORES.facts
    assert found.hash == SCORES.hash


def test_groups_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    GROUPS.save(path)
    found = Groups.load(path)
    np.testing.assert_array_equal(found.labels, GROUPS.labels)
    assert found.labels.dtype == np.int64
    assert found.names == GROUPS.names
    assert (found.rule, found.scores_hash, found.data_hash) == ("above 0", "s", "d")
    assert found.facts == {"threshold": 0.0}
    assert found.hash == GROUPS.hash
    assert found.sizes == {"invulnerable": 1, "vulnerable": 2, "lost": 0}


@pytest.mark.parametrize("half_life", [NAN, 12.5])
def test_attack_round_trip(tmp_path: Path, half_life: float) -> None:
    path = tmp_path / "attack.json"
    attack = replace(ATTACK, half_life=life(half_life, censored=math.isnan(half_life)))
    attack.save(path)
    assert same(AttackResult.load(path), attack)


@pytest.mark.parametrize("over_refusal", [None, Counts(0, 1, 9)])
def test_evaluation_round_trip(tmp_path: Path, over_refusal: Counts | None) -> None:
    path = tmp_path / "evaluation.json"
    evaluation = replace(EVALUATION, over_refusal=over_refusal)
    evaluation.save(path)
    assert Evaluation.load(path) == evaluation


def test_files_are_strict_json(tmp_path: Path) -> None:
    SCORES.save(tmp_path / "s.json")

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    raw = json.loads((tmp_path / "s.json").read_text("utf-8"), parse_constant=refuse)
    assert raw["values"] == [0.1, None, -2.0]


def test_to_json_by_kind() -> None:
    value = {1: np.float32(0.5), "a": (np.int64(2), Path("x/y")), "s": {"b", "a"}, "i": -math.inf}
    assert files.to_json(value) == {"1": 0.5, "a": [2, "x/y"], "s": ["a", "b"], "i": None}


def test_counts_add_up_and_nothing_has_no_score() -> None:
    # Undecided responses stay in the denominator: 1 of 4, not 1 of 2.
    assert Counts(harmful=1, safe=1, undecided=2).n == 4
    assert Counts(harmful=1, safe=1, undecided=2).harmful_score == 0.25
    assert math.isnan(Counts(0, 0, 0).harmful_score)


# ----------------------------------------------------------------------------------- mismatches


def test_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    GROUPS.save(path)
    with pytest.raises(
        MismatchError, match="a.json: kind: expected 'scores', got 'groups'; .*holdfast score"
    ):
        Scores.load(path)
    path.write_text("[1]")
    with pytest.raises(MismatchError, match="expected a 'groups' file, got a JSON list"):
        Groups.load(path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"kind": "scores", "schema": files.SCHEMA + 1})
    with pytest.raises(
        MismatchError,
        match=f"schema: this version reads {files.SCHEMA}, got {files.SCHEMA + 1}; run",
    ):
        Scores.load(path)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff"])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="a.json: not valid JSON .*holdfast score"):
        Scores.load(path)


def test_a_missing_file_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no.json: no such file; run `holdfast score"):
        Scores.load(tmp_path / "no.json")


def test_lengths_must_agree() -> None:
    with pytest.raises(MismatchError, match=r"values: shape \(2,\), expected \(3,\)"):
        replace(SCORES, values=np.zeros(2))
    with pytest.raises(MismatchError, match=r"loss: shape \(3, 1\), expected \(3,\)"):
        replace(SCORES, details={"loss": np.zeros((3, 1))})


def test_alignment_goes_by_id_not_by_position() -> None:
    np.testing.assert_array_equal(SCORES.aligned_to(["z", "x"]), [-2.0, 0.1])
    np.testing.assert_array_equal(SCORES.aligned_to(["y"]), [NAN])
    np.testing.assert_array_equal(GROUPS.aligned_to(["y", "x", "y"]), [0, 1, 0])
    assert GROUPS.aligned_to(["y"]).dtype == np.int64


def test_alignment_to_other_rows_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"scores lack 2 of 3 examples \(first: q\).*again"):
        SCORES.aligned_to(["x", "q", "r"])
    with pytest.raises(MismatchError, match="groups lack 1 of 1 examples"):
        GROUPS.aligned_to(["q"])


@pytest.mark.parametrize(
    "change",
    [
        {"values": np.array([0.1, 0.0, -2.0])},
        {"ids": ("x", "y", "w")},
        {"estimator": "loss"},
        {"data_hash": "other"},
    ],
)
def test_the_hash_of_scores_sees_the_content(change: Mapping[str, Any]) -> None:
    assert replace(SCORES, **change).hash != SCORES.hash


# ---------------------------------------------------------------------------------------- files


def test_write_text_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    files.write_text(path, "old")
    files.write_text(path, "new é")
    assert path.read_bytes() == "new é".encode()
    assert os.listdir(path.parent) == ["b.txt"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_write_text_that_fails_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "b.txt"
    files.write_text(path, "old")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["b.txt"]


def test_hashes_are_sha256(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # The test vector of FIPS 180-2.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(path) == expected


def test_json_hash_ignores_key_order_only() -> None:
    assert files.sha256_json({"a": 1, "b": 2}) == files.sha256_json({"b": 2, "a": 1})
    assert files.sha256_json([1, 2]) != files.sha256_json([2, 1])


# ----------------------------------------------------------------------------------------- runs

CONFIG = {"lr": 0.1, "seed": 7}
INPUTS = {"data": "d1"}


def record(
    run: RunDir,
    name: str = "a",
    *,
    config: Mapping[str, Any] = CONFIG,
    inputs: Mapping[str, str] = INPUTS,
    text: str = "result",
) -> bool:
    """Run a job that writes one file; return whether it was done anew."""
    with run.job("score", name, config=config, inputs=inputs) as job:
        if job.done is None:
            path = run.path("scores", f"{name}.txt")
            files.write_text(path, text)
            job.outputs.append(path)
            job.facts["share"] = NAN
            return True
    return False


def test_a_job_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/holdfast", "score", "a file"])
    run = RunDir(tmp_path / "run")
    assert record(run)
    [entry] = run.entries()
    assert (entry.stage, entry.name, entry.seed) == ("score", "a", 7)
    assert (entry.config, entry.inputs) == (CONFIG, INPUTS)
    assert entry.outputs == {"scores/a.txt": files.sha256_file(run.path("scores", "a.txt"))}
    assert entry.command == "holdfast score 'a file'"
    assert entry.facts == {"hardware": environment.hardware(), "share": None}
    assert entry.versions["numpy"] == np.__version__
    assert entry.seconds >= 0


@pytest.mark.parametrize("name", ["../../elsewhere", "/elsewhere", "a/../../b"])
def test_a_name_does_not_lead_out_of_the_run(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"is outside {tmp_path}: names must not be"):
        RunDir(tmp_path).path("scores", f"{name}.json" if name[0] == "/" else f"../{name}.json")
    assert RunDir(tmp_path).path("a", "..", "b") == tmp_path / "a" / ".." / "b"
    assert RunDir(tmp_path).path() == tmp_path


def test_a_model_that_is_kept_is_not_the_result(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with run.job("attack", "a", config=CONFIG, inputs=INPUTS) as job:
        for path in ("attacked/a/config.json", "attacks/a.json"):
            files.write_text(run.path(path), "{}")
            job.outputs.append(run.path(path))
    assert run.result(run.entries()[0]) == run.path("attacks", "a.json")


def test_a_finished_job_is_skipped(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert record(run)
    before = run.digest
    assert not record(RunDir(tmp_path))
    assert run.digest == before
    with run.job("score", "a", config=CONFIG, inputs=INPUTS) as job:
        assert job.done == run.entries()[0]


@pytest.mark.parametrize(
    "change", [{"config": {**CONFIG, "lr": 0.2}}, {"inputs": {"data": "d2"}}, {"config": {}}]
)
def test_a_job_with_another_key_runs_again(tmp_path: Path, change: dict[str, Any]) -> None:
    run = RunDir(tmp_path)
    assert record(run)
    before = run.digest
    assert record(run, **change)
    assert run.digest != before
    assert len(run.entries()) == 1  # it replaces the old one
    assert record(run)  # and the old one is not there any more


def test_a_job_whose_output_is_lost_or_changed_runs_again(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run)
    run.path("scores", "a.txt").write_text("tampered")
    assert record(run)
    run.path("scores", "a.txt").unlink()
    assert record(run)
    assert run.verify() == []


def test_an_exception_leaves_no_entry(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with (
        pytest.raises(KeyboardInterrupt),
        run.job("score", "a", config={}, inputs={}),
    ):
        raise KeyboardInterrupt
    assert run.entries() == []
    assert record(run, config={}, inputs={})


def test_verify_names_what_was_tampered_with_or_lost(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for name in ("a", "b", "c"):
        record(run, name)
    assert run.verify() == []
    run.path("scores", "a.txt").write_text("tampered")
    run.path("scores", "b.txt").unlink()
    assert sorted(run.verify()) == [
        "scores/a.txt: changed after score 'a'",
        "scores/b.txt: missing (made by score 'b')",
    ]


def test_entries_by_stage_and_require(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, "a")
    record(run, "b")
    with run.job("group", "g", config={}, inputs={}):
        pass
    assert [e.name for e in run.entries("group")] == ["g"]
    assert [e.name for e in run.require("score")] == ["a", "b"]
    assert [e.name for e in run.require("score", "b")] == ["b"]
    with pytest.raises(UsageError, match=r"no score 'z' \(has a, b\); run `holdfast score --out"):
        run.require("score", "z")
    with pytest.raises(UsageError, match=r"no attack results; run `holdfast att"):
        run.require("attack")


def test_an_empty_or_missing_run_has_no_entries(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "none")
    assert run.entries() == run.verify() == []
    assert not (tmp_path / "none").exists()


def test_names_with_slashes_stay_in_the_manifest(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with run.job("score", "../../org/model:1", config={}, inputs={}):
        pass
    assert run.entries()[0].name == "../../org/model:1"
    assert len(os.listdir(tmp_path / "manifest")) == 1


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run)
    [path] = run.path("manifest").iterdir()
    path.write_text("{")
    with pytest.raises(UsageError, match="not valid JSON"):
        run.entries()


def test_git_commit_outside_a_repository_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_commit.__wrapped__() == ""


@pytest.mark.parametrize(("status", "expected"), [("", "abc"), (" M file\n", "abc+")])
def test_git_commit_marks_changes(
    monkeypatch: pytest.MonkeyPatch, status: str, expected: str
) -> None:
    def git(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        text = "abc\n" if command[1] == "rev-parse" else status
        return subprocess.CompletedProcess(command, 0, stdout=text)

    monkeypatch.setattr(subprocess, "run", git)
    assert environment.git_commit.__wrapped__() == expected


# ------------------------------------------------------------------------------------------- locks

WORKER = """
import sys
from pathlib import Path
from holdfast.results.run_dir import RunDir
run = RunDir(sys.argv[1])
with run.job("align", "a", config={}, inputs={}) as job:
    print("begun", flush=True)
    sys.stdin.readline()
    path = run.path("models", "a.txt")
    path.parent.mkdir(exist_ok=True)
    path.write_text("done")
    job.outputs.append(path)
"""


@contextlib.contextmanager
def another_process(root: Path) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Yield a process that has begun the job, and the input that lets it end."""
    command = [sys.executable, "-c", WORKER, str(root)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process, process.stdin


def test_two_processes_never_run_the_same_job(tmp_path: Path) -> None:
    with another_process(tmp_path) as (other, told):
        run = RunDir(tmp_path)
        words = rf"another process \(process {other.pid} on .*\) is running align 'a'; wait"
        with (
            pytest.raises(UsageError, match=words),
            run.job("align", "a", config={}, inputs={}),
        ):
            raise AssertionError("this must not begin")
        with run.job("align", "b", config={}, inputs={}) as job:  # another job may go on
            assert job.done is None
        told.write("\n")
    with run.job("align", "a", config={}, inputs={}) as job:
        assert job.done is not None
    assert other.returncode == 0


def test_a_process_that_died_holds_no_lock(tmp_path: Path) -> None:
    with another_process(tmp_path) as (other, _):
        other.kill()
    with RunDir(tmp_path).job("align", "a", config={}, inputs={}) as job:
        assert job.done is None
