"""What a run will cost, before it is begun: jobs, hours, memory. Ranges, never exact numbers.

Hours are those of finished jobs of the same kind in the run directory, in proportion to training
steps. Where there is none, a calibration measures a few training steps and answers of the model at
hand and multiplies; a method or an estimator that does more than plain training is not known from
that, and is said to be unknown rather than guessed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from holdfast.jobs.queue import duration
from holdfast.models import adapters, checkpoints
from holdfast.models.folders import parts_of, weight_files
from holdfast.models.reading import reading, stored_dtype
from holdfast.results.attacks import Attack
from holdfast.results.run_dir import Entry
from holdfast.runtime import progress
from holdfast.stages.align import AlignConfig
from holdfast.stages.attacking.config import AttackConfig
from holdfast.stages.attacking.grid import attacks_of
from holdfast.stages.config import StageConfig
from holdfast.stages.evaluate import EvaluateConfig
from holdfast.stages.planned_jobs import PlannedJob, single_jobs, unfinished

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

QUICK = ("group", "analyze", "report")
"""Stages that no model takes part in; they are not counted."""
MEASURED, CALIBRATED = (0.7, 1.5), (0.5, 2.5)
"""Least and most, as multiples of what was measured: on this work, or on a sample of it."""
PLAIN = "sft"
STEPS, ANSWERS, DEFAULT = 3, 8, 32
"""Training steps and answers of a calibration, and the answers' tokens unless a job says."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Forecast:
    """What is to be done.

    Attributes:
        planned: Jobs in all.
        finished: Those whose results are there.
        seconds: Least and most for the others, over the jobs at the same time.
        unknown: Titles of jobs of which nothing is known; they come on top.
        basis: What the seconds rest on.
        memory: Least and most bytes of the job that takes most; None if they are unknown.
        jobs: Jobs at the same time.
    """

    planned: int
    finished: int
    seconds: Range
    unknown: tuple[str, ...]
    basis: str
    memory: Range | None
    jobs: int

    def as_dict(self) -> dict[str, Any]:
        """Return it in words."""
        low, high = (duration(s) for s in self.seconds)
        known = self.planned - self.finished > len(self.unknown)
        return {
            "jobs": self.planned,
            "finished already": self.finished,
            "time": f"{low} to {high}, {self.basis}" if known else "unknown",
            "not counted": list(self.unknown),
            "jobs at the same time": self.jobs,
            "memory of a job": _memory_told(self.memory),
        }

    @property
    def line(self) -> str:
        """One sentence."""
        todo = self.planned - self.finished
        low, high = (duration(s) for s in self.seconds)
        if not todo or todo == len(self.unknown):
            time_told = "time unknown until the first are finished" if todo else "nothing to do"
        else:
            more = f", and {len(self.unknown)} of unknown length" if self.unknown else ""
            time_told = f"{low} to {high}, {self.basis}{more}"
        room = f"; memory of a job {_gib(self.memory)}" if todo and self.memory else ""
        return (
            f"{todo} of {self.planned} to do, {self.finished} finished already; {time_told}{room}"
        )


def estimate(planned: Sequence[PlannedJob], *, jobs: int = 1, calibrate: bool = True) -> Forecast:
    """Say what jobs will cost.

    Args:
        planned: Those that others need come first.
        jobs: How many are done at the same time.
        calibrate: Measure a few steps where nothing of the kind is finished.
    """
    every = [job for job in single_jobs(planned) if job.stage not in QUICK]
    wanted = unfinished(every)
    entries = [e for e in every[0].config.run.entries() if e.seconds] if every else []
    model = _Model(every) if wanted else None
    low = high = 0.0
    unknown, bases = [], set[str]()
    for job in wanted:
        found = _measured(job, entries)
        basis = "from finished ones of the same kind"
        if found is None and model is not None and calibrate:
            found, basis = model.seconds(job), "from a few steps and answers"
        if found is None:
            unknown.append(job.title)
            continue
        bases.add(basis)
        low, high = low + found[0], high + found[1]
    side = max(min(jobs, len(wanted)), 1)
    return Forecast(
        planned=len(every),
        finished=len(every) - len(wanted),
        seconds=(low / side, high / side),
        unknown=tuple(unknown),
        basis=" and ".join(sorted(bases)),
        memory=model.memory if model else None,
        jobs=jobs,
    )


def announce(planned: Sequence[PlannedJob], *, jobs: int = 1) -> None:
    """Say in one sentence what is to be done; nothing is measured for it, and no weights read."""
    if planned:
        progress.say(estimate(planned, jobs=jobs, calibrate=False).line)


# ------------------------------------------------------------------------------- finished jobs


def _measured(job: PlannedJob, entries: Sequence[Entry]) -> Range | None:
    """Return the range of the finished jobs of the same kind, in proportion to their steps."""
    options = job.config.keyed()
    if isinstance(job.config, AttackConfig):
        options["steps"] = _attack(job.config).steps
    kind = _kind(job.stage, options)
    size = _size(job.stage, options)
    found = [
        entry.seconds * size / _size(entry.stage, entry.config)
        for entry in entries
        if entry.stage == job.stage and _kind(entry.stage, entry.config) == kind
    ]
    return (min(found) * MEASURED[0], max(found) * MEASURED[1]) if found else None


def _kind(stage: str, config: Mapping[str, Any]) -> Any:
    """What the time of a job depends on besides its size."""
    return config.get({"align": "method", "score": "estimator"}.get(stage, ""))


def _size(stage: str, config: Mapping[str, Any]) -> float:
    field = {"align": "epochs", "attack": "steps"}.get(stage)
    return float(config[field]) if field else 1.0


# ---------------------------------------------------------------------------------- calibration


class _Model:
    """The model at hand, measured for a few steps and answers when that is first asked for."""

    def __init__(self, planned: Sequence[PlannedJob]) -> None:
        self.planned = planned

    def seconds(self, job: PlannedJob) -> Range | None:
        """Return least and most seconds of a job, None if they are unknown."""
        work = _work(job)
        if work is None or self._rates is None:
            return None
        step, answer = self._rates
        seconds = work[0] * step + work[1] * answer
        return seconds * CALIBRATED[0], seconds * CALIBRATED[1]

    @cached_property
    def _trains(self) -> list[AlignConfig | AttackConfig]:
        found = [c.config for c in self.planned]
        return [c for c in found if isinstance(c, AlignConfig | AttackConfig)]

    @cached_property
    def _source(self) -> str:
        first = self._trains[0]
        source = first.model if isinstance(first, AlignConfig) else first.models[0]
        path = first.run.root / "models" / source  # which is elsewhere if it is a whole path
        return str(path) if path.is_dir() else source

    @cached_property
    def _shape(self) -> Shape | None:
        """The shape of the first model; the others are taken to be like it."""
        if not self._trains:
            return None
        try:
            return Shape.stored(self._source, self._trains[0].device)
        except Exception as error:  # noqa: BLE001  # its own turn reports the error
            logger.debug("%s: its shape is unknown: %s", self._source, error)
            return None

    @cached_property
    def _rates(self) -> tuple[float, float] | None:
        """Seconds of a training step and of an answer, of the job that takes most memory."""
        from holdfast.models.generation import generate
        from holdfast.tuning.loop import FinetuneConfig, finetune

        first, shape = next(iter(self._trains), None), self._shape
        spec = first.data if isinstance(first, AlignConfig) else first and first.harmful
        if first is None or not spec or shape is None:
            return None
        rows, loaded = first.read(spec), checkpoints.load(self._source, device=first.device)
        config = max(self._trains, key=lambda one: _needs(one, shape)[1])
        sizes = _sizes(config)
        length = max((_tokens(job.config) for job in self.planned), default=0) or DEFAULT
        settings = FinetuneConfig(
            learning_rate=0.0,
            steps=STEPS,
            batch_size=sizes.batch_size,
            max_length=config.max_length,
            every=STEPS,
        )
        model = loaded.model
        if sizes.lora_rank:
            model = adapters.add_lora(model, sizes.lora_rank, seed=0)
        else:
            model.float()
        prompts = rows.prompts[:ANSWERS]
        clock = time.monotonic()
        generate(model, loaded.tokenizer, prompts, max_new_tokens=length)
        answer = (time.monotonic() - clock) / len(prompts)
        clock = time.monotonic()
        finetune(model, loaded.tokenizer, rows, settings)
        return (time.monotonic() - clock) / STEPS, answer

    @property
    def memory(self) -> Range | None:
        """Bytes of the job that takes most, least and most; see `memory`."""
        if self._shape is None:
            return None
        needs = [_needs(config, self._shape) for config in self._trains]
        return max(least for least, _ in needs), max(most for _, most in needs)


def _needs(config: AlignConfig | AttackConfig, shape: Shape) -> Range:
    """Return least and most bytes of a job on a model of this shape."""
    sizes = _sizes(config)
    if not sizes.lora_rank:
        shape = replace(shape, bytes_each=4)  # it trains in float32, however the model is stored
    tokens = sizes.batch_size * config.max_length
    return memory(shape, tokens=tokens, lora=sizes.lora_rank > 0)


@dataclass(frozen=True)
class Shape:
    """What the memory of training depends on: counts, and the bytes of a weight."""

    parameters: int
    bytes_each: int
    width: int
    layers: int
    vocabulary: int

    @classmethod
    def stored(cls, source: str, device: str = "auto") -> Shape:
        """Read the shape of a model, as it is on a device, without its weights.

        Raises:
            UsageError: There is no such model.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        parts = parts_of(checkpoints.resolve(source))
        stored = stored_dtype(weight_files(parts.base))
        on_cpu = checkpoints.pick_device(device).type == "cpu"
        with reading(source, "a causal language model"), torch.device("meta"):
            config = AutoConfig.from_pretrained(parts.base, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return cls.of(model.to(torch.float32 if on_cpu else stored))

    @classmethod
    def of(cls, model: PreTrainedModel) -> Shape:
        """Read the shape of a model."""
        config = model.config.get_text_config()
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            bytes_each=next(model.parameters()).element_size(),
            width=int(config.hidden_size),
            layers=int(config.num_hidden_layers),
            vocabulary=int(config.vocab_size),
        )


def memory(shape: Shape, *, tokens: int, lora: bool = False) -> Range:
    """Return the least and the most bytes that training takes.

    Least: weights, gradients and the two moments of AdamW, all as wide as the weights (with LoRA
    the weights alone). Most: one more copy of the trained weights, as the methods that perturb
    them keep, and activations: 17 numbers per token, unit of width and layer (34 bytes in half
    precision, Korthikanti et al. 2022, arXiv 2205.05198, without attention scores, which fused
    attention does not keep), and three times the logits in float32.

    Args:
        shape: Of the model.
        tokens: Rows of a step times their length.
        lora: Only adapters are trained; their own size is left out.
    """
    weights = shape.parameters * shape.bytes_each
    trained = 0 if lora else weights
    layers = 17 * shape.bytes_each * tokens * shape.width * shape.layers
    logits = 3 * 4 * tokens * shape.vocabulary
    least = weights + 3 * trained
    return float(least), float(least + trained + layers + logits)


def _work(job: PlannedJob) -> tuple[float, float] | None:
    """Return the training steps and the answers of a job, None if they are not known."""
    config = job.config
    if isinstance(config, AlignConfig) and config.method == PLAIN:
        benign = config.read_if(config.benign)
        rows = len(config.read(config.data)) + len(benign or ())
        return math.ceil(rows / config.batch_size) * config.epochs, 0.0
    if isinstance(config, AttackConfig):
        return float(_attack(config).steps), float(_checkpoints(config) * _asked(config))
    if isinstance(config, EvaluateConfig):
        borderline = _rows(config, config.over_refusal)
        tasks = len(config.tasks) * config.task_rows
        return 0.0, float(_rows(config, config.test) + borderline + tasks)
    return None


def _attack(config: AttackConfig) -> Attack:
    """Return the one attack of a configuration that stands alone, else its first."""
    return attacks_of(config)[0]


def _sizes(config: AlignConfig | AttackConfig) -> AlignConfig | Attack:
    return config if isinstance(config, AlignConfig) else _attack(config)


def _checkpoints(config: AttackConfig) -> int:
    from holdfast.tuning.loop import FinetuneConfig

    settings = FinetuneConfig(
        steps=_attack(config).steps, every=config.every, spacing=config.spacing
    )
    return 1 + len(settings.checkpoints())


def _asked(config: AttackConfig) -> int:
    tracked = _rows(config, config.track)
    tracked = min(tracked, config.track_rows) if config.track_rows else tracked
    return _rows(config, config.test) + config.task_rows + tracked


def _rows(config: StageConfig, spec: str | None) -> int:
    return 0 if spec is None else len(config.read_prompts(spec))


def _tokens(config: StageConfig) -> int:
    return int(cast(Any, config).max_new_tokens) if hasattr(config, "max_new_tokens") else 0


def _memory_told(found: Range | None) -> str:
    if found is None:
        return "unknown"
    return f"{_gib(found)}, by the model's size, AdamW's state and activations"


def _gib(found: Range) -> str:
    low, high = (value / 2**30 for value in found)
    return f"{low:.2g} to {high:.2g} GiB"
