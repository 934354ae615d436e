"""The expected cost of a run before it starts: jobs, hours, memory. Always ranges.

Hours come from finished jobs of the same kind in the run directory, in proportion to training
steps. If there are none, a calibration measures a few training steps and responses of the model at
hand and multiplies. That does not cover methods and estimators that do more than plain training;
their time is reported as unknown.
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
from holdfast.models.load_checks import reading
from holdfast.models.precision import computing_in
from holdfast.models.reading import stored_dtype
from holdfast.results.attacks import Attack
from holdfast.results.run_dir import Entry
from holdfast.runtime import progress
from holdfast.stages.align import AlignConfig
from holdfast.stages.attacking.config import AttackConfig
from holdfast.stages.attacking.grid import attacks_of
from holdfast.stages.config import StageConfig
from holdfast.stages.evaluate import EvaluateConfig
from holdfast.stages.planned_jobs import PlannedJob, single_jobs, unfinished
from holdfast.stages.run_models import split_label

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

QUICK = ("group", "analyze", "report")
"""Stages that use no model; they are not counted."""
MEASURED = (0.7, 1.5)
"""Lower and upper bound of a forecast, relative to finished jobs."""
CALIBRATED = (0.5, 2.5)
"""Lower and upper bound of a forecast, relative to a calibration."""
PLAIN = "sft"
"""The method that does nothing besides plain training."""
STEPS = 3
"""Training steps of a calibration."""
RESPONSES = 8
"""Responses of a calibration."""
DEFAULT_TOKENS = 32
"""Length of the responses of a calibration if no job sets one."""

Range = tuple[float, float]
"""Lower and upper bound."""


@dataclass(frozen=True)
class Forecast:
    """The expected cost of planned jobs.

    Attributes:
        planned: Number of all jobs.
        finished: Number of finished jobs.
        seconds: Bounds of the wall time of the others, as far as it is known.
        unknown: Titles of jobs whose time is unknown; they come on top of `seconds`.
        basis: What `seconds` is based on.
        memory: Bounds of the bytes of the largest job; None if unknown.
        jobs: Number of parallel processes.
    """

    planned: int
    finished: int
    seconds: Range
    unknown: tuple[str, ...]
    basis: str
    memory: Range | None
    jobs: int

    def as_dict(self) -> dict[str, Any]:
        """Return the forecast in words."""
        low, high = (duration(s) for s in self.seconds)
        known = self.planned - self.finished > len(self.unknown)
        return {
            "jobs": self.planned,
            "finished already": self.finished,
            "time": f"{low} to {high}, {self.basis}" if known else "unknown",
            "not counted": list(self.unknown),
            "jobs at the same time": self.jobs,
            "memory of a job": _memory_text(self.memory),
        }

    @property
    def line(self) -> str:
        """The forecast in one sentence."""
        unfinished_jobs = self.planned - self.finished
        parts = [f"{unfinished_jobs} of {self.planned} to do, {self.finished} finished already"]
        parts.append(self._time(unfinished_jobs))
        if unfinished_jobs and self.memory:
            parts.append(f"memory of a job {_gib(self.memory)}")
        return "; ".join(parts)

    def _time(self, unfinished_jobs: int) -> str:
        if not unfinished_jobs:
            return "nothing to do"
        if unfinished_jobs == len(self.unknown):
            return "time unknown until the first is finished"
        low, high = (duration(s) for s in self.seconds)
        more = f", and {len(self.unknown)} of unknown length" if self.unknown else ""
        return f"{low} to {high}, {self.basis}{more}"


def estimate(planned: Sequence[PlannedJob], *, jobs: int = 1, calibrate: bool = True) -> Forecast:
    """Estimate the cost of jobs.

    Args:
        planned: The jobs; those that others need come first.
        jobs: Number of parallel processes.
        calibrate: Measure a few steps if no job of the kind is finished.
    """
    all_jobs = [job for job in single_jobs(planned) if job.stage not in QUICK]
    remaining = unfinished(all_jobs)
    entries = [e for e in all_jobs[0].config.run.entries() if e.seconds] if all_jobs else []
    model = _Model(all_jobs) if remaining else None
    low = high = 0.0
    unknown: list[str] = []
    bases: set[str] = set()
    for job in remaining:
        seconds = _measured(job, entries)
        basis = "from finished ones of the same kind"
        if seconds is None and model is not None and calibrate:
            seconds = model.seconds(job)
            basis = "from a few steps and answers"
        if seconds is None:
            unknown.append(job.title)
            continue
        bases.add(basis)
        low += seconds[0]
        high += seconds[1]
    processes = max(min(jobs, len(remaining)), 1)
    return Forecast(
        planned=len(all_jobs),
        finished=len(all_jobs) - len(remaining),
        seconds=(low / processes, high / processes),
        unknown=tuple(unknown),
        basis=" and ".join(sorted(bases)),
        memory=model.memory if model else None,
        jobs=jobs,
    )


def announce(planned: Sequence[PlannedJob], *, jobs: int = 1) -> None:
    """Report the forecast in one sentence, without a calibration and without reading weights."""
    if planned:
        progress.say(forecast(planned, jobs=jobs))


def forecast(planned: Sequence[PlannedJob], *, jobs: int = 1) -> str:
    """Return the forecast in one sentence, without a calibration and without reading weights."""
    return estimate(planned, jobs=jobs, calibrate=False).line


# ------------------------------------------------------------------------------- finished jobs


def _measured(job: PlannedJob, entries: Sequence[Entry]) -> Range | None:
    """Return seconds by the finished jobs of the same kind, in proportion to their steps."""
    options = job.config.keyed()
    if isinstance(job.config, AttackConfig):
        options["steps"] = _attack(job.config).steps
    kind = _kind(job.stage, options)
    size = _size(job.stage, options)
    seconds = [
        entry.seconds * size / _size(entry.stage, entry.config)
        for entry in entries
        if entry.stage == job.stage and _kind(entry.stage, entry.config) == kind
    ]
    if not seconds:
        return None
    return min(seconds) * MEASURED[0], max(seconds) * MEASURED[1]


def _kind(stage: str, config: Mapping[str, Any]) -> Any:
    """Return the option that the time of a job depends on besides its size."""
    return config.get({"align": "method", "score": "estimator"}.get(stage, ""))


def _size(stage: str, config: Mapping[str, Any]) -> float:
    field = {"align": "epochs", "attack": "steps"}.get(stage)
    return float(config[field]) if field else 1.0


# ---------------------------------------------------------------------------------- calibration


class _Model:
    """The model at hand; it is measured at the first call of `seconds`."""

    def __init__(self, planned: Sequence[PlannedJob]) -> None:
        self.planned = planned

    def seconds(self, job: PlannedJob) -> Range | None:
        """Return bounds of the seconds of a job; None if unknown."""
        work = _work(job)
        if work is None or self._rates is None:
            return None
        n_steps, n_responses = work
        step_seconds, response_seconds = self._rates
        seconds = n_steps * step_seconds + n_responses * response_seconds
        return seconds * CALIBRATED[0], seconds * CALIBRATED[1]

    @cached_property
    def _trains(self) -> list[AlignConfig | AttackConfig]:
        configs = [job.config for job in self.planned]
        return [config for config in configs if isinstance(config, AlignConfig | AttackConfig)]

    @cached_property
    def _source(self) -> str:
        first = self._trains[0]
        source = first.model if isinstance(first, AlignConfig) else first.models[0]
        path = first.run.root / "models" / source  # `source` itself if that is an absolute path
        return str(path) if path.is_dir() else split_label(source)[1]

    @cached_property
    def _shape(self) -> Shape | None:
        """The shape of the first model; the others are assumed to be like it."""
        if not self._trains:
            return None
        try:
            return Shape.stored(self._source, self._trains[0].device)
        except Exception as error:  # noqa: BLE001  # the job itself reports the error
            logger.debug("%s: its shape is unknown: %s", self._source, error)
            return None

    @cached_property
    def _rates(self) -> tuple[float, float] | None:
        """Seconds of a training step and of a response, for the job that takes most memory."""
        from holdfast.models.generation import generate
        from holdfast.tuning.loop import FinetuneConfig, finetune

        shape = self._shape
        if shape is None:
            return None
        first = self._trains[0]
        if isinstance(first, AlignConfig):
            rows = first.read_if(first.data)
        else:
            rows = first.read_if(first.harmful, use="harmful")
        if not rows:
            return None
        loaded = checkpoints.load(self._source, device=first.device)
        config = max(self._trains, key=lambda config: _needs(config, shape)[1])
        settings = FinetuneConfig(
            learning_rate=0.0,
            steps=STEPS,
            batch_size=_sizes(config).batch_size,
            max_length=config.max_length,
            every=STEPS,
        )
        model = _as_trained(loaded.model, config)
        prompts = rows.prompts[:RESPONSES]
        n_tokens = max((_tokens(job.config) for job in self.planned), default=0) or DEFAULT_TOKENS
        with computing_in(first.computing(self._source)):
            started = time.monotonic()
            generate(model, loaded.tokenizer, prompts, max_new_tokens=n_tokens)
            response_seconds = (time.monotonic() - started) / len(prompts)
            started = time.monotonic()
            finetune(model, loaded.tokenizer, rows, settings)
            step_seconds = (time.monotonic() - started) / STEPS
        return step_seconds, response_seconds

    @property
    def memory(self) -> Range | None:
        """Bounds of the bytes of the largest job; see `memory`."""
        if self._shape is None:
            return None
        needs = [_needs(config, self._shape) for config in self._trains]
        return max(least for least, _ in needs), max(most for _, most in needs)


def _as_trained(model: PreTrainedModel, config: AlignConfig | AttackConfig) -> PreTrainedModel:
    """Return a model as a job trains it: with LoRA, or in float32."""
    rank = _sizes(config).lora_rank
    if rank:
        return adapters.add_lora(model, rank, seed=0)
    model.float()
    return model


def _needs(config: AlignConfig | AttackConfig, shape: Shape) -> Range:
    """Return bounds of the bytes of a job on a model of this shape."""
    sizes = _sizes(config)
    if not sizes.lora_rank:
        shape = replace(shape, bytes_each=4)  # weights train in float32, whatever is stored
    tokens = sizes.batch_size * config.max_length
    return memory(shape, tokens=tokens, lora=sizes.lora_rank > 0)


@dataclass(frozen=True)
class Shape:
    """The properties of a model that the memory of training depends on."""

    parameters: int
    bytes_each: int
    width: int
    layers: int
    vocabulary: int

    @classmethod
    def stored(cls, source: str, device: str = "auto") -> Shape:
        """Read the shape of a model on a device, without loading its weights.

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
    """Return bounds of the bytes that training takes.

    The lower bound holds weights, gradients and the two moments of AdamW, all in the precision of
    the weights (with LoRA the weights alone). The upper bound adds a copy of the trained weights,
    as kept by methods that perturb them, and activations: 17 numbers per token, unit of width and
    layer (34 bytes in half precision, Korthikanti et al. 2022, arXiv 2205.05198, without attention
    scores, which fused attention does not keep), and three times the logits in float32.

    Args:
        shape: Shape of the model.
        tokens: Rows of a step times their length.
        lora: Only adapters are trained; their own size is ignored.
    """
    weights = shape.parameters * shape.bytes_each
    trained = 0 if lora else weights
    layers = 17 * shape.bytes_each * tokens * shape.width * shape.layers
    logits = 3 * 4 * tokens * shape.vocabulary
    least = weights + 3 * trained
    return float(least), float(least + trained + layers + logits)


def _work(job: PlannedJob) -> tuple[float, float] | None:
    """Return the numbers of training steps and responses of a job; None if unknown."""
    config = job.config
    if isinstance(config, AlignConfig) and config.method == PLAIN:
        benign = config.read_if(config.benign, use="ordinary")
        rows = len(config.read(config.data)) + len(benign or ())
        return math.ceil(rows / config.batch_size) * config.epochs, 0.0
    if isinstance(config, AttackConfig):
        return float(_attack(config).steps), float(_checkpoints(config) * _prompts(config))
    if isinstance(config, EvaluateConfig):
        borderline = _rows(config, config.over_refusal)
        tasks = len(config.tasks) * config.task_rows
        return 0.0, float(_rows(config, config.test) + borderline + tasks)
    return None


def _attack(config: AttackConfig) -> Attack:
    """Return the first attack of a configuration."""
    return attacks_of(config)[0]


def _sizes(config: AlignConfig | AttackConfig) -> AlignConfig | Attack:
    return config if isinstance(config, AlignConfig) else _attack(config)


def _checkpoints(config: AttackConfig) -> int:
    from holdfast.tuning.loop import FinetuneConfig

    settings = FinetuneConfig(
        steps=_attack(config).steps, every=config.every, spacing=config.spacing
    )
    return 1 + len(settings.checkpoints())


def _prompts(config: AttackConfig) -> int:
    """Return the number of prompts that are answered at every checkpoint."""
    tracked = _rows(config, config.track)
    tracked = min(tracked, config.track_rows) if config.track_rows else tracked
    return _rows(config, config.test) + config.task_rows + tracked


def _rows(config: StageConfig, spec: str | None) -> int:
    return 0 if spec is None else len(config.read_prompts(spec, use=None))


def _tokens(config: StageConfig) -> int:
    return int(cast(Any, config).max_new_tokens) if hasattr(config, "max_new_tokens") else 0


def _memory_text(memory_range: Range | None) -> str:
    if memory_range is None:
        return "unknown"
    return f"{_gib(memory_range)}, by the model's size, AdamW's state and activations"


def _gib(memory_range: Range) -> str:
    low, high = (value / 2**30 for value in memory_range)
    return f"{low:.2g} to {high:.2g} GiB"
