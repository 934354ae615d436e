"""What lies on disk between two stages: schema-versioned files and their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.errors import MismatchError, UsageError

SCHEMA = 1


# ---------------------------------------------------------------------------------------- files


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    # mkstemp makes files that only their owner may read; reading the umask means setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def to_json(value: Any) -> Any:
    """Turn arrays, paths and nan into what JSON can hold (nan and infinities become null)."""
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [to_json(v) for v in items]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given."""
    write_text(path, json.dumps(to_json(value), ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """Read an artifact and check that it is of the kind and schema expected.

    Raises:
        UsageError: Missing or broken file.
        MismatchError: Another kind of artifact or another schema version.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"{path}: no such file; `holdfast {kind.removesuffix('s')}` makes it"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid JSON ({error}); make it again") from error
    if not isinstance(value, dict) or value.get("kind") != kind:
        found = value.get("kind") if isinstance(value, dict) else type(value).__name__
        raise MismatchError(f"{path}: expected a {kind!r} file, found {found!r}")
    if value.get("schema") != SCHEMA:
        raise MismatchError(
            f"{path}: schema {value.get('schema')!r}, this version reads {SCHEMA}; make it again"
        )
    return value


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON."""
    text = json.dumps(to_json(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def numbers(values: Sequence[float | None]) -> np.ndarray:
    """Read a JSON list of numbers, null meaning nan."""
    return np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)


# ------------------------------------------------------------------------------------ artifacts


@dataclass(frozen=True)
class Scores:
    """Vulnerability of every alignment example under one estimator.

    Attributes:
        ids: Content ids, as in `Examples.ids`.
        values: (n,) float64; higher = forgotten sooner; nan = not scored.
        estimator: Name and options, as given to `plugins.make`.
        data_hash: `Examples.hash` of the rows that were scored.
        model_hash: Hash of the model that was scored.
        seed: Seed of the estimator.
        errors: (n,) standard error of each value; nan = unknown, None = all of them.
        details: Further arrays of length n, by name.
        facts: Scalars (step size, what it cost).
    """

    ids: tuple[str, ...]
    values: np.ndarray
    estimator: str
    data_hash: str
    model_hash: str
    seed: int = 0
    errors: np.ndarray | None = None
    details: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        errors = {} if self.errors is None else {"errors": self.errors}
        for name, array in {"values": self.values, **errors, **self.details}.items():
            if array.shape != (len(self.ids),):
                raise MismatchError(f"{name}: shape {array.shape}, expected ({len(self.ids)},)")

    @property
    def hash(self) -> str:
        """Sha256 of the content."""
        return sha256_json([self.ids, self.values, self.estimator, self.data_hash])

    def aligned_to(self, ids: Sequence[str]) -> np.ndarray:
        """Return the values in the order of `ids`.

        Raises:
            MismatchError: Some ids were never scored; the message counts and names them.
        """
        return _aligned(self.ids, self.values, ids, "scores")

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_json(path, {"kind": "scores", "schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Read a file written by `save`."""
        raw = read_json(path, "scores")
        return cls(
            ids=tuple(raw["ids"]),
            values=numbers(raw["values"]),
            estimator=raw["estimator"],
            data_hash=raw["data_hash"],
            model_hash=raw["model_hash"],
            seed=raw["seed"],
            errors=None if raw.get("errors") is None else numbers(raw["errors"]),
            details={k: numbers(v) for k, v in raw["details"].items()},
            facts=raw["facts"],
        )


@dataclass(frozen=True)
class Groups:
    """A partition of the alignment examples, least vulnerable group first.

    Attributes:
        ids: Content ids.
        labels: (n,) int64, group of each example.
        names: Name of each group, e.g. ("invulnerable", "vulnerable").
        rule: How the labels were made, in words.
        scores_hash: `Scores.hash` of the scores behind it.
        data_hash: `Examples.hash` of the rows.
        facts: Threshold and whatever else the rule found.
        doubt: (n,) probability that the example belongs to another group, given its score's
            standard error; nan = unknown, None = all of them.
        edits: {"id", "from", "to"} of each example that somebody moved to another group.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    names: tuple[str, ...]
    rule: str
    scores_hash: str
    data_hash: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    doubt: np.ndarray | None = None
    edits: tuple[Mapping[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.doubt is not None and self.doubt.shape != (len(self.ids),):
            raise MismatchError(f"doubt: shape {self.doubt.shape}, expected ({len(self.ids)},)")

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples in each group."""
        counts = np.bincount(self.labels, minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))

    @property
    def hash(self) -> str:
        """Sha256 of the content."""
        return sha256_json([self.ids, self.labels, self.names])

    def aligned_to(self, ids: Sequence[str]) -> np.ndarray:
        """Return the labels in the order of `ids`; see `Scores.aligned_to`."""
        return _aligned(self.ids, self.labels, ids, "groups").astype(np.int64)

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_json(path, {"kind": "groups", "schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Groups:
        """Read a file written by `save`."""
        raw = read_json(path, "groups")
        return cls(
            ids=tuple(raw["ids"]),
            labels=np.array(raw["labels"], dtype=np.int64),
            names=tuple(raw["names"]),
            rule=raw["rule"],
            scores_hash=raw["scores_hash"],
            data_hash=raw["data_hash"],
            facts=raw["facts"],
            doubt=None if raw.get("doubt") is None else numbers(raw["doubt"]),
            edits=tuple(raw.get("edits", ())),
        )


def _aligned(
    have: Sequence[str], values: np.ndarray, wanted: Sequence[str], what: str
) -> np.ndarray:
    position = {identity: i for i, identity in enumerate(have)}
    missing = [identity for identity in wanted if identity not in position]
    if missing:
        raise MismatchError(
            f"{what} lack {len(missing)} of {len(wanted)} examples (first: {missing[0]}): they "
            f"were made from other data. Make the {what} again from this data."
        )
    return values[[position[identity] for identity in wanted]]


@dataclass(frozen=True)
class EvalRecord:
    """One prompt, the response, and what each judge said of it; `sample` counts answers to it."""

    id: str
    prompt: str
    response: str
    verdicts: Mapping[str, Mapping[str, Any]]
    category: str = ""
    sample: int = 0


@dataclass(frozen=True)
class Counts:
    """Verdicts of one judge over a set of responses; the three add up to n."""

    harmful: int
    safe: int
    undecided: int

    @property
    def n(self) -> int:
        """Number of responses judged."""
        return self.harmful + self.safe + self.undecided

    @property
    def harmful_score(self) -> float:
        """Share answered harmfully among all responses; nan when there are none."""
        return self.harmful / self.n if self.n else math.nan


@dataclass(frozen=True)
class Point:
    """One checkpoint of an attack.

    Attributes:
        step: Optimizer steps of the attack done so far; 0 is before the attack.
        verdicts: Judge -> counts over the restricted test prompts.
        accuracy: Mean score on the downstream task's test rows; nan if not measured.
        accuracy_n: Test rows behind it.
        unparsable: Test rows whose answer could not be graded (they count as 0 in accuracy).
        loss: Training loss of the attacker since the last checkpoint.
        marks: Judge -> one letter for each prompt in `AttackResult.prompts`: h harmful, s safe,
            u undecided. Empty in attacks of earlier versions.
        lost: Judge -> verdicts that its service did not give, where there are any; they count as
            undecided. Empty in attacks of earlier versions, too.
    """

    step: int
    verdicts: Mapping[str, Counts]
    accuracy: float = math.nan
    accuracy_n: int = 0
    unparsable: int = 0
    loss: float = math.nan
    marks: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class AttackResult:
    """The course of one harmful fine-tuning attack on one model.

    Attributes:
        model: Label of the attacked model within the run, e.g. "sft" or "vaa-seed1".
        model_hash: Hash of its weights and tokenizer.
        method: Alignment method of the attacked model, e.g. "sft"; seeds share it.
        model_seed: Seed of its alignment.
        attack: task, poison_ratio, learning_rate, steps, batch_size, rows, seed, and what only
            some attacks have: guard, poison, schedule, name of the grid.
        judge: The judge whose verdicts define the half-life.
        points: The checkpoints, step 0 first.
        half_life: Steps until the harmful score first reaches one half, interpolated; nan if never.
        censored: True when it never did within the attack: the half-life is above the last step.
        tracked: Content id of an alignment example -> number of checkpoints (step 0 left out) at
            which it was answered harmfully though it was not at step 0. Empty if not tracked.
        unknown: Content id of a tracked example that was held at step 0 but whose count is unknown
            -> the least and the most that it can be (`ForgettingTracker.harmful_steps`).
        tracked_judge: The judge of the tracked examples.
        prompts: Content ids of the restricted test prompts, in the order of `Point.marks`.
    """

    model: str
    model_hash: str
    method: str
    model_seed: int
    attack: Mapping[str, Any]
    judge: str
    points: tuple[Point, ...]
    half_life: float
    censored: bool
    tracked: Mapping[str, int] = field(default_factory=dict)
    unknown: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tracked_judge: str = ""
    prompts: tuple[str, ...] = ()

    @property
    def unusual(self) -> dict[str, str]:
        """What only some attacks have, in words: word -> value."""
        words = {"guard": "guard", "poison": "rows", "schedule": "schedule", "name": "grid"}
        found = {word: str(self.attack[k]) for k, word in words.items() if k in self.attack}
        rank = self.attack.get("lora_rank")
        return {**found, "LoRA": str(rank)} if rank else found

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_json(path, {"kind": "attack", "schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> AttackResult:
        """Read a file written by `save`."""
        raw = read_json(path, "attack")
        del raw["kind"], raw["schema"]
        raw["points"] = tuple(cls.read_points(raw["points"]))
        raw["prompts"] = tuple(raw.get("prompts", ()))
        raw["half_life"] = _nan(raw["half_life"])
        if "unknown" not in raw:
            raise MismatchError(
                f"{path}: made by a version that counted undecided answers as held; remove the "
                "file and attack again"
            )
        raw["unknown"] = {key: tuple(bounds) for key, bounds in raw["unknown"].items()}
        return cls(**raw)

    @staticmethod
    def read_points(raw: Sequence[Mapping[str, Any]]) -> list[Point]:
        """Read the points of a file."""
        return [
            Point(
                step=p["step"],
                verdicts={k: Counts(**v) for k, v in p["verdicts"].items()},
                accuracy=_nan(p["accuracy"]),
                accuracy_n=p["accuracy_n"],
                unparsable=p["unparsable"],
                loss=_nan(p["loss"]),
                marks=p.get("marks", {}),
                lost=p.get("lost", {}),
            )
            for p in raw
        ]


@dataclass(frozen=True)
class Evaluation:
    """A model's standing, without any attack of ours.

    Attributes:
        model: Label within the run.
        model_hash: Hash of its weights and tokenizer.
        method: Alignment method.
        model_seed: Seed of its alignment.
        verdicts: Judge -> counts over the restricted test prompts.
        by_category: Category of the prompt -> judge -> counts.
        over_refusal: Verdicts of the refusal judge on benign borderline prompts: here `safe`
            counts refusals, `undecided` the rest. None if not measured.
        tasks: Task -> {"accuracy", "n", "unparsable"}.
        exchanged: Judge -> {"changed", "n", "reads"}: of so many answers that were judged again
            under another's prompt, the verdicts that changed, and whether the judge says that it
            reads prompts. Empty if that was not tried.
        general: Task of lm-evaluation-harness -> metric -> {"value", "stderr", "n"}.
        samples: Answers to each prompt; those to one prompt are not independent.
    """

    model: str
    model_hash: str
    method: str
    model_seed: int
    verdicts: Mapping[str, Counts]
    by_category: Mapping[str, Mapping[str, Counts]] = field(default_factory=dict)
    over_refusal: Counts | None = None
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    exchanged: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    general: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    samples: int = 1

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_json(path, {"kind": "evaluation", "schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read a file written by `save`."""
        raw = read_json(path, "evaluation")
        del raw["kind"], raw["schema"]
        raw["verdicts"] = {k: Counts(**v) for k, v in raw["verdicts"].items()}
        raw["by_category"] = {
            category: {k: Counts(**v) for k, v in judges.items()}
            for category, judges in raw["by_category"].items()
        }
        if raw["over_refusal"] is not None:
            raw["over_refusal"] = Counts(**raw["over_refusal"])
        raw["general"] = {
            task: {name: {k: _nan(v) for k, v in found.items()} for name, found in metrics.items()}
            for task, metrics in raw.get("general", {}).items()
        }
        return cls(**raw)


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
