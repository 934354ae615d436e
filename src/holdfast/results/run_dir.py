"""Run directories: the results of the stages, and the record of finished and failed jobs.

`manifest/` has one small JSON file per finished job, with its configuration, the sha256 of every
input and output, versions, seed and command line. A job is not run again if its key (stage, name,
configuration, inputs) is in the manifest and its outputs are intact. A running job holds a lock, so
two processes never write the same files, while different jobs of one directory can run at the same
time. `failed/` records why jobs failed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from holdfast.errors import Busy, UsageError
from holdfast.examples import Examples
from holdfast.results.artifacts import Groups, Scores
from holdfast.results.environment import git_commit, hardware, versions
from holdfast.results.files import (
    Artifact,
    Number,
    read_json,
    sha256_file,
    sha256_json,
    to_json,
    write_text,
)
from holdfast.results.stored_rows import StoredRows
from holdfast.runtime.failures import plain

ATTACKED = "attacked"
"""Folder of the saved models of attacks."""
WEIGHTS = (".safetensors", ".bin", ".pt")
"""Suffixes of the large files of models."""
DISTRIBUTED = ("align",)
"""Stages that several processes can run together."""

_dry_run: ContextVar[bool] = ContextVar("_dry_run", default=False)
_patience: ContextVar[float] = ContextVar("patience", default=0.0)


class Unfinished(Exception):  # noqa: N818  # not an error
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
    """Inside the block, wait up to `seconds` for a job that another process is running.

    Outside it, such a job raises `Busy` at once.
    """
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


def process_count() -> int:
    """Return the number of processes that torchrun started together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Return whether this is the first process of its torchrun group, the only one that writes."""
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
    """A failed job, as written to `failed/`; the file is removed when the job finishes."""

    kind: ClassVar[str] = "failure"
    remedy: ClassVar[str] = "delete this file"

    stage: str
    name: str
    reason: str
    when: str


@dataclass
class Job:
    """A running job: the files it has written, and facts for its manifest entry.

    Attributes:
        key: Hash of stage, name, configuration and inputs; names the job's working files.
        done: The manifest entry if the job is already finished, else None.
        outputs: Files the job has written, inside the run directory.
        facts: Scalars to store in the manifest entry, e.g. for the report.
    """

    key: str
    done: Entry | None
    outputs: list[Path] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class RunDir:
    """The directory that holds the results of a run.

    Args:
        root: The directory; the first job creates it.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.rows = StoredRows(self.root / "rows")

    def path(self, *parts: str) -> Path:
        """Return a path inside the directory.

        Raises:
            UsageError: The path is outside the directory.
        """
        inside = Path(os.path.normpath(Path(*parts))) if parts else Path()
        if inside.is_absolute() or inside.parts[:1] == ("..",):
            raise UsageError(
                f"{'/'.join(parts)} is outside {self.root}: names must not be absolute paths or "
                "contain '..'"
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
        """Run the block as a job, unless the job is already finished.

        If the manifest has an entry with the job's key and its outputs are intact, `job.done` is
        that entry, and the block must load the result instead of computing it. Otherwise the entry
        is written when the block ends without an exception, so an interrupted job has no entry.

        In a torchrun group all processes enter the block, and the first one writes the entry.

        An exception in the block is recorded in `failed/`. If the cause was a full disk or too
        little memory, it is replaced by an error that explains what to do.

        Args:
            stage: Name of the stage, e.g. "score".
            name: Name of the result within the stage.
            config: All options that affect the result.
            inputs: Label -> content hash of everything else that the result depends on.
            rows: Label -> rows that the result depends on. Their hashes are added to the inputs,
                and the run stores them.

        Raises:
            UsageError: The job cannot be shared by several processes.
            Busy: Another process is running this job.
            Unfinished: The job is not finished, inside `dry_run`.
            DiskFull: The disk was full.
        """
        if process_count() > 1 and stage not in DISTRIBUTED:
            raise UsageError(
                f"holdfast {stage} runs in one process, not in {process_count()}; torchrun is for "
                f"holdfast {' and '.join(DISTRIBUTED)} only"
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
            # Another process may have finished the job while this one waited for the lock.
            job = Job(key, self._intact(stage, name, key))
            started = datetime.now(UTC)
            clock = time.monotonic()
            with self._failure_recorded(stage, name):
                yield job
                if job.done is None:
                    seconds = time.monotonic() - clock
                    records = {
                        label: self.rows.record(examples) for label, examples in rows.items()
                    }
                    self._record(stage, name, config, inputs, records, job, started, seconds)

    def _record(  # noqa: PLR0913  # an entry consists of all these
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
        """Return the manifest entries, oldest first.

        Args:
            stage: Return the entries of this stage only; None for all stages.

        Raises:
            UsageError: A file in `manifest/` is broken; the message names all that are.
        """
        entries, problems = self.readable_entries()
        if problems:
            raise UsageError("; ".join(problems))
        if stage is not None:
            entries = [entry for entry in entries if entry.stage == stage]
        return sorted(entries, key=lambda entry: (entry.started, entry.stage, entry.name))

    def readable_entries(self) -> tuple[list[Entry], list[str]]:
        """Return the manifest entries that can be read, and a line for each that cannot."""
        entries, problems = [], []
        for path in sorted(self.path("manifest").glob("*.json")):
            try:
                entries.append(Entry.load(path))
            except UsageError as error:
                problems.append(str(error))
        return sorted(entries, key=lambda e: (e.started, e.stage, e.name)), problems

    def entry(self, stage: str, name: str) -> Entry | None:
        """Return the manifest entry of a job under any key; None if the job never finished."""
        path = self._entry_path(stage, name)
        return Entry.load(path) if path.is_file() else None

    def record_failure(self, stage: str, name: str, reason: str) -> None:
        """Record that a job failed; on a full disk do nothing."""
        when = datetime.now(UTC).isoformat(timespec="seconds")
        failure = Failure(stage, name, reason, when)
        with contextlib.suppress(OSError):
            failure.save(self._failure_path(stage, name))

    def clear_failure(self, stage: str, name: str) -> None:
        """Remove the record of a job's failure, if there is one."""
        self._failure_path(stage, name).unlink(missing_ok=True)

    def failures(self) -> list[Failure]:
        """Return the recorded failures of jobs that have not finished since."""
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
        """Return the manifest entries of a stage, at least one.

        Args:
            stage: Name of the stage.
            name: Name of the result within the stage; None for all results.

        Raises:
            UsageError: There is no such entry; the message names the command that makes it.
        """
        entries = self.entries(stage)
        matching = [entry for entry in entries if name is None or entry.name == name]
        if not matching:
            missing = f"{stage} {name!r}" if name else f"{stage} results"
            available = ", ".join(entry.name for entry in entries)
            raise UsageError(
                f"{self.root}: no {missing}{f' (has {available})' if available else ''}; "
                f"run `holdfast {stage} --out {self.root}` first"
            )
        return matching

    def result(self, entry: Entry) -> Path:
        """Return the JSON file of a job's result."""
        # The folder of a saved model also contains JSON files.
        outputs = [path for path in entry.outputs if not path.startswith(f"{ATTACKED}/")]
        return self.path(next(path for path in outputs if path.endswith(".json")))

    def scores_behind(self, groups: Groups) -> Scores:
        """Return the scores that groups were made from.

        Raises:
            UsageError: The run no longer has these scores.
        """
        for entry in self.require("score"):
            scores = Scores.load(self.result(entry))
            if scores.hash == groups.scores_hash:
                return scores
        raise UsageError(
            f"{self.root}: the scores that the groups were made from no longer exist; rerun "
            "`holdfast score` and `holdfast group`"
        )

    def verify(self, *, weights: bool = True) -> list[str]:
        """Recompute the hashes of all outputs and rows; return a line for each problem.

        Args:
            weights: Whether to hash the weights of models too, which takes long.
        """
        entries, problems = self.readable_entries()
        for entry in entries:
            for relative, expected in entry.outputs.items():
                path = self.path(relative)
                if not weights and path.suffix in WEIGHTS and path.is_file():
                    continue
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
        named = {line.partition(":")[0] for line in problems}
        problems += [line for file, line in self._missing_sources().items() if file not in named]
        changed = (path.relative_to(self.root).as_posix() for path in self.rows.changed())
        problems += [f"{path}: changed after the run stored its rows" for path in changed]
        return list(dict.fromkeys(problems))

    def _missing_sources(self) -> dict[str, str]:
        """Return a line for each file of stored rows that is gone, and each unreadable record."""
        problems: dict[str, str] = {}
        for path in sorted(self.path("sources").glob("*.json")):
            try:
                source = read_json(path, "source", "delete this file")
            except UsageError as error:
                problems[str(path)] = str(error)
                continue
            name = source["contents"].get("file")
            if name is not None and not self.rows.has(name):
                file = f"rows/{name}.jsonl"
                problems[file] = f"{file}: missing (rows of {source['spec']})"
        return problems

    @property
    def digest(self) -> str:
        """One hash over all results, without the report, which prints it."""
        entries = [entry for entry in self.entries() if entry.stage != "report"]
        entries.sort(key=lambda entry: (entry.stage, entry.name))
        return sha256_json(
            [[entry.stage, entry.name, entry.key, entry.outputs] for entry in entries]
        )

    @contextlib.contextmanager
    def _failure_recorded(self, stage: str, name: str) -> Iterator[None]:
        """Record an exception of the block as the job's failure; clear the record otherwise."""
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
        digest = "" if safe == name else f"-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        return self.path("manifest", f"{stage}--{safe}{digest}.json")

    @contextlib.contextmanager
    def _locked(self, stage: str, name: str) -> Iterator[None]:
        """Hold the job's lock; the operating system releases it even if the process is killed."""
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
                "choose another --out"
            ) from error
        try:
            with contextlib.suppress(OSError):  # on a full disk the lock has no owner's name
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
    """Return the key of a job: a hash of everything that its result depends on."""
    return sha256_json([stage, name, config, inputs])[:16]
