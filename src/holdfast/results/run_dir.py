"""A run directory: the stages' results, and the record of which jobs are finished.

Beside the results there is `manifest/`, one small JSON file per finished job: its configuration,
the sha256 of every input and output, versions, seed and command line. A job whose key (stage, name,
configuration, inputs) is in the manifest and whose outputs are intact is not run again. A job in
progress holds a lock, so two processes never write the same files; different jobs of one directory
can run at the same time. `failed/` records why jobs failed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from holdfast.errors import Busy, UsageError
from holdfast.examples import Examples
from holdfast.results.artifacts import Groups, Scores
from holdfast.results.files import Artifact, Number, sha256_file, sha256_json, to_json, write_text
from holdfast.results.stored_rows import StoredRows
from holdfast.runtime.failures import plain

ATTACKED = "attacked"
"""Folder of the attacked models that are kept."""
TOGETHER = ("align",)
"""Stages that several processes do together."""

_dry_run: ContextVar[bool] = ContextVar("_dry_run", default=False)
_patience: ContextVar[float] = ContextVar("patience", default=0.0)


class Unfinished(Exception):  # noqa: N818  # it is no error
    """Raised inside `dry_run` by a job that is not finished."""


@contextlib.contextmanager
def dry_run() -> Iterator[None]:
    """Make jobs raise `Unfinished` inside the block instead of running."""
    token = _dry_run.set(True)
    try:
        yield
    finally:
        _dry_run.reset(token)


def in_dry_run() -> bool:
    """Return whether this is inside `dry_run`, where nothing is written."""
    return _dry_run.get()


@contextlib.contextmanager
def waiting_for_locks(seconds: float) -> Iterator[None]:
    """Inside the block, wait up to `seconds` for a job that another process is running."""
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


def process_count() -> int:
    """Return how many processes torchrun started together; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Return whether this process writes results: only the first of a torchrun group does."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Entry(Artifact):
    """A finished job of a run, as written to `manifest/`."""

    kind: ClassVar[str] = "entry"
    remedy: ClassVar[str] = "delete this file and rerun the command that made it"

    stage: str
    name: str
    key: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    seed: int
    command: str
    versions: Mapping[str, str]
    commit: str
    started: str
    seconds: Number
    facts: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure(Artifact):
    """A failed job, as written to `failed/`; removed once the job is finished."""

    kind: ClassVar[str] = "failure"
    remedy: ClassVar[str] = "delete this file"

    stage: str
    name: str
    reason: str
    when: str


@dataclass
class Job:
    """A job in progress: collects the files it writes, and facts for its manifest entry.

    Attributes:
        key: Hash of stage, name, configuration and inputs; names the job's working files.
        done: The manifest entry, if the job was finished before.
        outputs: Files written, inside the run directory.
        facts: Scalars for the manifest entry, e.g. for the report.
    """

    key: str
    done: Entry | None
    outputs: list[Path] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class RunDir:
    """A directory in which the stages leave their results.

    Args:
        root: The directory; created with the first job.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.rows = StoredRows(self.root / "rows")

    def path(self, *parts: str) -> Path:
        """Return a path inside the directory.

        Raises:
            UsageError: A name leads out of it.
        """
        inside = Path(os.path.normpath(Path(*parts))) if parts else Path()
        if inside.is_absolute() or inside.parts[:1] == ("..",):
            raise UsageError(
                f"{'/'.join(parts)} is not inside {self.root}: a name is one word, without '..'"
            )
        return self.root.joinpath(*parts)

    @contextlib.contextmanager
    def job(
        self,
        stage: str,
        name: str,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        rows: Mapping[str, Examples] | None = None,
    ) -> Iterator[Job]:
        """Run a job unless it is finished already.

        On entry `job.done` is the manifest entry if its key matches and its outputs are intact;
        the caller then loads the result instead of computing it. Otherwise the entry is written
        when the block ends without an exception, so an interrupted job leaves no entry.

        Args:
            stage: Name of the stage, e.g. "score".
            name: Name of the result within the stage.
            config: Everything that changes the result.
            inputs: What it is made from: label -> content hash.
            rows: The rows it is made from, by label. Their hashes belong to the inputs, and the
                run keeps them.

        In a group of processes started by torchrun all of them train, and the first writes the
        entry.

        An exception in the block is recorded in `failed/`. If disk or memory was full, it becomes
        an error that says what to do.

        Raises:
            UsageError: Several processes run a job that is not training.
            Busy: Another process is running this job.
            Unfinished: Inside `dry_run`, if the job is not finished.
            DiskFull: The disk was full.
        """
        if process_count() > 1 and stage not in TOGETHER:
            raise UsageError(
                f"holdfast {stage} runs in one process, not in {process_count()}; torchrun is for "
                f"holdfast {' and '.join(TOGETHER)} only"
            )
        rows = rows or {}
        inputs = {**inputs, **{label: examples.hash for label, examples in rows.items()}}
        key = job_key(stage, name, config, inputs)
        done = self._intact(stage, name, key)
        if done is None and _dry_run.get():
            raise Unfinished(f"{stage} {name!r}")
        if done is not None or not is_first_process():
            if done is not None:
                self.clear_failure(stage, name)
            yield Job(key, done)
            return
        with self._locked(stage, name):
            # Another process may have finished it while the lock was waited for.
            job = Job(key, self._intact(stage, name, key))
            started = datetime.now(UTC)
            clock = time.monotonic()
            with self._noting_failure(stage, name):
                yield job
                if job.done is None:
                    seconds = time.monotonic() - clock
                    kept = {label: self.rows.record(r) for label, r in rows.items()}
                    self._record(stage, name, config, inputs, kept, job, started, seconds)

    def _record(  # noqa: PLR0913  # an entry is all of these
        self,
        stage: str,
        name: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        rows: Mapping[str, Mapping[str, Any]],
        job: Job,
        started: datetime,
        seconds: float,
    ) -> None:
        """Write the manifest entry of a job that has just finished."""
        outputs = {
            path.relative_to(self.root).as_posix(): sha256_file(path)
            for path in sorted(job.outputs)
        }
        entry = Entry(
            stage=stage,
            name=name,
            key=job.key,
            config=to_json(config),
            inputs=dict(inputs),
            outputs=outputs,
            seed=int(config.get("seed", 0)),
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            versions=versions(),
            commit=git_commit(),
            started=started.isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            facts=to_json({"hardware": hardware(), **job.facts}),
            rows=rows,
        )
        entry.save(self._entry_path(stage, name))

    def entries(self, stage: str | None = None) -> list[Entry]:
        """Return the manifest entries, oldest first; only those of `stage` if given."""
        entries = [Entry.load(path) for path in sorted(self.path("manifest").glob("*.json"))]
        chosen = [entry for entry in entries if stage is None or entry.stage == stage]
        return sorted(chosen, key=lambda entry: (entry.started, entry.stage, entry.name))

    def entry(self, stage: str, name: str) -> Entry | None:
        """Return the manifest entry of a job, whatever its key; None if it never finished."""
        path = self._entry_path(stage, name)
        return Entry.load(path) if path.is_file() else None

    def record_failure(self, stage: str, name: str, reason: str) -> None:
        """Record that a job failed, unless the disk has no room for that."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        failure = Failure(stage, name, reason, when)
        with contextlib.suppress(OSError):
            failure.save(self._failure_path(stage, name))

    def clear_failure(self, stage: str, name: str) -> None:
        """Remove the record that a job failed."""
        self._failure_path(stage, name).unlink(missing_ok=True)

    def failures(self) -> list[Failure]:
        """Return the jobs that failed when last tried and have not been finished since."""
        failures = []
        for path in sorted(self.path("failed").glob("*.json")):
            try:
                failures.append(Failure.load(path))
            except UsageError:
                if path.exists():
                    raise
                continue  # another process has just finished the job
        return failures

    def require(self, stage: str, name: str | None = None) -> list[Entry]:
        """Return the manifest entries of a stage.

        Raises:
            UsageError: There are none; the message names the command that makes them.
        """
        found = [e for e in self.entries(stage) if name is None or e.name == name]
        if not found:
            have = ", ".join(e.name for e in self.entries(stage)) or "nothing"
            what = f"{stage} {name!r}" if name else f"{stage} results"
            raise UsageError(
                f"{self.root}: no {what} (has {have}); "
                f"run `holdfast {stage} --out {self.root}` first"
            )
        return found

    def result(self, entry: Entry) -> Path:
        """Return the JSON file that holds a job's result (answers lie beside it)."""
        # An attacked model that was kept has JSON files of its own.
        found = (p for p in entry.outputs if not p.startswith(f"{ATTACKED}/"))
        return self.path(next(p for p in found if p.endswith(".json")))

    def scores_behind(self, groups: Groups) -> Scores:
        """Return the scores that groups were made from.

        Raises:
            UsageError: They no longer exist.
        """
        for entry in self.require("score"):
            scores = Scores.load(self.result(entry))
            if scores.hash == groups.scores_hash:
                return scores
        raise UsageError(
            f"{self.root}: the scores behind the groups are gone or were made again; run "
            "`holdfast score` and `holdfast group` again"
        )

    def verify(self) -> list[str]:
        """Recompute the hash of every output and of all rows; return what is missing or changed."""
        problems = []
        for entry in self.entries():
            for relative, expected in entry.outputs.items():
                path = self.path(relative)
                if not path.is_file():
                    problems.append(f"{relative}: missing (made by {entry.stage} {entry.name!r})")
                elif sha256_file(path) != expected:
                    problems.append(f"{relative}: changed after {entry.stage} {entry.name!r}")
            for label, record in entry.rows.items():
                if not self.rows.has(record["file"]):
                    problems.append(
                        f"rows/{record['file']}.jsonl: missing ({label} rows of {entry.stage} "
                        f"{entry.name!r})"
                    )
        changed = (path.relative_to(self.root).as_posix() for path in self.rows.changed())
        problems += [f"{path}: changed after the run stored its rows" for path in changed]
        return list(dict.fromkeys(problems))

    @property
    def digest(self) -> str:
        """One hash over all results except the report, which shows it."""
        entries = sorted(self.entries(), key=lambda e: (e.stage, e.name))
        return sha256_json(
            [[e.stage, e.name, e.key, e.outputs] for e in entries if e.stage != "report"]
        )

    @contextlib.contextmanager
    def _noting_failure(self, stage: str, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            explained = plain(error, self.root, f"{stage} {name!r}")
            self.record_failure(stage, name, str(explained or f"{type(error).__name__}: {error}"))
            if explained is None or explained is error:
                raise
            raise explained from error
        self.clear_failure(stage, name)

    def _failure_path(self, stage: str, name: str) -> Path:
        return self.path("failed", self._entry_path(stage, name).name)

    def _entry_path(self, stage: str, name: str) -> Path:
        safe = "".join(c if c.isalnum() or c in "-_.=" else "-" for c in name)
        # Names that differ only in replaced characters must not share a file.
        mark = "" if safe == name else f"-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        return self.path("manifest", f"{stage}--{safe}{mark}.json")

    @contextlib.contextmanager
    def _locked(self, stage: str, name: str) -> Iterator[None]:
        """Hold the job's lock; the system releases it when the process ends, however it ends."""
        path = self.path("work", "locks", self._entry_path(stage, name).stem)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=_patience.get())
        try:
            lock.acquire()
        except Timeout as error:
            owner = ""
            with contextlib.suppress(OSError):
                owner = f" ({path.read_text(encoding='utf-8').strip()})"
            raise Busy(
                f"{self.root}: another process{owner} is running {stage} {name!r}; wait for it, or "
                "give another --out"
            ) from error
        try:
            with contextlib.suppress(OSError):  # on a full disk the owner stays unnamed
                write_text(path, f"process {os.getpid()} on {platform.node()}")
            yield
        finally:
            path.unlink(missing_ok=True)
            lock.release()

    def _intact(self, stage: str, name: str, key: str) -> Entry | None:
        entry = self.entry(stage, name)
        if entry is None or entry.key != key:
            return None
        for relative, expected in entry.outputs.items():
            output = self.path(relative)
            if not output.is_file() or sha256_file(output) != expected:
                return None
        return entry


def job_key(stage: str, name: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the key of a job: a hash of everything that decides its result."""
    return sha256_json([stage, name, config, inputs])[:16]


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide results."""
    found = {"python": platform.python_version()}
    for package in ("holdfast", "torch", "transformers", "accelerate", "peft", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


@cache
def hardware() -> str:
    """Return processor, cores, memory and accelerator in one line."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    parts = [name, f"{os.cpu_count()} cores"]
    with contextlib.suppress(ValueError, OSError, AttributeError):
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        parts.append(f"{size / 2**30:.0f} GiB memory")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


@cache
def git_commit() -> str:
    """Return the commit of the working directory ("" outside a repository, "+" if changed)."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if status.strip() else "")
