"""Which model a stage works on, and what it is called in the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import UsageError
from holdfast.models import checkpoints
from holdfast.results.run_dir import RunDir


@dataclass(frozen=True)
class Subject:
    """A model under attack or evaluation.

    Attributes:
        label: Its name in the run, e.g. "vaa-s0".
        source: Directory or hub id.
        method: The label without the seed; results of several seeds are pooled by it.
        seed: Seed of its alignment, 0 if it was not aligned in this run.
        hash: `checkpoints.hash_model`.
    """

    label: str
    source: str
    method: str
    seed: int
    hash: str


def subject(run: RunDir, name: str) -> Subject:
    """Find a model: one aligned in this run by its label, or any other by directory or hub id.

    Raises:
        UsageError: It is neither; the message lists the run's labels.
    """
    for entry in run.entries("align"):
        own = run.path("models", entry.name)
        if entry.name == name or own.resolve() == Path(name).resolve():
            source = str(own)
            digest = checkpoints.hash_model(checkpoints.resolve(source))
            suffix = f"-s{entry.seed}"
            return Subject(entry.name, source, entry.name.removesuffix(suffix), entry.seed, digest)
    try:
        digest = checkpoints.hash_model(checkpoints.resolve(name))
    except UsageError as error:
        aligned = ", ".join(entry.name for entry in run.entries("align")) or "nothing yet"
        raise UsageError(f"{error}. Aligned in {run.root}: {aligned}") from error
    label = label_of(name)
    return Subject(label, name, label, 0, digest)


def subjects(run: RunDir, names: Sequence[str]) -> list[Subject]:
    """Find several models, each once; none may have another's label, under which results lie.

    Raises:
        UsageError: See `subject`, or two different ones share a label.
    """
    found: dict[str, Subject] = {}
    for name in names:
        who = subject(run, name)
        other = found.setdefault(who.label, who)
        if other.hash != who.hash:
            raise UsageError(
                f"models {other.source} and {who.source} are both called {who.label!r}, and "
                "results lie under that name: rename a folder, or give each its own --out"
            )
    return list(found.values())


def label_of(name: str) -> str:
    """Return what `subject` calls a model."""
    return "base" if name == "world" else Path(name).name
