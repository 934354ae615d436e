"""The models that stages work on: their labels in the run, and their hashes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import UsageError
from holdfast.models import checkpoints
from holdfast.models.imports import described
from holdfast.models.packages import PREFIX
from holdfast.results.run_dir import RunDir
from holdfast.results.sources import Sources

_LABELLED = re.compile(r"([\w.-]+)=(.+)")


@dataclass(frozen=True)
class Subject:
    """A model that is scored, attacked or evaluated.

    Attributes:
        label: Its name in the run, e.g. "vaa-s0".
        source: Directory, GGUF file, "package:NAME" or hub id.
        method: The label without the seed; results of several seeds are pooled by it.
        seed: Seed of its alignment, 0 if it was not aligned in this run.
        hash: `checkpoints.hash_model`.
    """

    label: str
    source: str
    method: str
    seed: int
    hash: str


def model_hash(run: RunDir, spec: str) -> str:
    """Return the hash of a model; if it is gone, the hash that it had when the run read it.

    Args:
        run: The run.
        spec: See `checkpoints.resolve`.

    Raises:
        UsageError: There is no such model, and the run never read it.
    """
    if spec == "world":
        return _contents(spec)["hash"]
    if Path(spec).is_dir():
        # A directory that cannot be read is not missing: its earlier hash would be another model's.
        contents = _contents(spec)
        return Sources(run).contents("model", spec, lambda: contents)["hash"]
    return Sources(run).contents("model", spec, lambda: _contents(spec))["hash"]


def weight_count(run: RunDir, spec: str) -> int:
    """Return the number of weights of a model; if it is gone, the number when the run read it.

    Args:
        run: The run.
        spec: See `checkpoints.resolve`.

    Raises:
        UsageError: There is no such model, and the run never read it.
    """
    if spec == "world" or Path(spec).is_dir():
        return checkpoints.weights_in(checkpoints.resolve(spec), spec)
    return int(Sources(run).contents("model", spec, lambda: _contents(spec))["weights"])


def _contents(spec: str) -> dict[str, str]:
    """Return the hash and the number of weights of a model, and the file it was converted from."""
    path = checkpoints.resolve(spec)
    weights = checkpoints.weights_in(path, spec)
    contents = {"hash": checkpoints.hash_model(path), "weights": str(weights)}
    made_from = described(path)
    return {**contents, "made_from": made_from} if made_from else contents


def subject(run: RunDir, name: str) -> Subject:
    """Find a model: one aligned in this run by its label, or any other by where it is.

    Args:
        run: The run.
        name: Label, directory, GGUF file, "package:NAME" or hub id; "LABEL=DIRECTORY" and the like
            give the label.

    Raises:
        UsageError: There is no such model, or its label is that of another model of the run.
    """
    aligned = run.entries("align")
    for entry in aligned:
        own = run.path("models", entry.name)
        if entry.name == name or own.resolve() == Path(name).resolve():
            digest = checkpoints.hash_model(checkpoints.resolve(str(own)))
            method = entry.name.removesuffix(f"-s{entry.seed}")
            return Subject(entry.name, str(own), method, entry.seed, digest)
    label, source = split_label(name)
    try:
        digest = model_hash(run, source)
    except UsageError as error:
        if Path(source).is_dir() or checkpoints.is_import(source):
            raise
        labels = ", ".join(entry.name for entry in aligned) or "nothing yet"
        raise UsageError(f"{error}. Aligned in {run.root}: {labels}") from error
    model = Subject(label, source, label, 0, digest)
    _check_label(run, model, [entry.name for entry in aligned])
    return model


def subjects(run: RunDir, names: Sequence[str]) -> list[Subject]:
    """Find several models, each once; no two may have the same label, which names results.

    Raises:
        UsageError: See `subject`, or two different models share a label.
    """
    by_label: dict[str, Subject] = {}
    for name in names:
        model = subject(run, name)
        other = by_label.setdefault(model.label, model)
        if other.hash != model.hash:
            raise _same_label(model.label, other.source, model.source)
    return list(by_label.values())


def label_of(name: str) -> str:
    """Return the label of a model that was not aligned in the run."""
    return split_label(name)[0]


def split_label(name: str) -> tuple[str, str]:
    """Return label and source of a model that was not aligned in the run."""
    match = _LABELLED.fullmatch(name)
    if match and not Path(name).exists():
        return match[1], match[2]
    if name == "world":
        return "base", name
    if checkpoints.is_import(name):
        return Path(name.removeprefix(PREFIX)).name.removesuffix(".gguf"), name
    path = Path(name.removeprefix(checkpoints.HUB))
    # "." and ".." have no name of their own.
    return (path if path.name.strip(".") else path.resolve()).name, name


def _check_label(run: RunDir, model: Subject, aligned: Sequence[str]) -> None:
    """Refuse a label under which the run has results of a model from another place.

    A model that was trained again in its place keeps its label.
    """
    if model.label in aligned:
        own = str(run.path("models", model.label))
        if checkpoints.hash_model(checkpoints.resolve(own)) != model.hash:
            raise _same_label(model.label, own, model.source)
    place = _place(model.source)
    sources = Sources(run)
    earlier = sources.label(model.label)
    if earlier and earlier["hash"] != model.hash and earlier["place"] != place:
        raise _same_label(model.label, earlier["place"], place)
    sources.set_label(model.label, {"hash": model.hash, "place": place})


def check_own_label(run: RunDir, label: str) -> None:
    """Refuse to align a model under a label with which the run has results of another model.

    Raises:
        UsageError: It has, and they would stand in reports as those of the aligned model.
    """
    earlier = Sources(run).label(label)
    if earlier is None:
        return
    own = run.path("models", label)
    if not own.is_dir() or checkpoints.hash_model(own) != earlier["hash"]:
        raise UsageError(
            f"{run.root} has results of {earlier['place']} under the name {label!r}, which the "
            "aligned model would have too: give another --out, or another --seed"
        )


def _place(source: str) -> str:
    path = Path(source)
    return str(path.resolve()) if path.exists() else source


def _same_label(label: str, one: str, other: str) -> UsageError:
    return UsageError(
        f"models {one} and {other} are both called {label!r}, and results are stored under that "
        f"name: give one of them another label, as in --model other-{label}={other}"
    )
