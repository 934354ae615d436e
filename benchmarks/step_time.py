"""What a step of every method costs in time and memory, against plain fine-tuning.

All variants take turns in one process (A B C A B C ...), each turn from the same weights with the
turn's own seed, so that whatever slows the machine down slows all of them. The clock runs from the
first step's begin to the last step's end: loading, set-up and saving are left out.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from sys import stderr
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback

from common import Row, main, parser, write
from holdfast import plugins
from holdfast.errors import UsageError
from holdfast.methods.base import AlignmentData, AlignmentTrainer, MethodArguments
from holdfast.models import adapters, checkpoints
from holdfast.models.weights import trainable
from holdfast.results.artifacts import Groups
from holdfast.rows import readers
from holdfast.stats.intervals import Interval, bootstrap
from variants import FULL, LEAN

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from holdfast.examples import Examples

RANK = 8  # of the adapters in the "lora" rows
NOTES = (
    "time_ratio: mean seconds of a turn over those of SFT's turns, percentile bootstrap over "
    "turns. mode always: lambda 1 from the first step (2 backward passes a step); linear: lambda "
    "from 0 to 1, so (steps - 1) / (2 steps) of the steps are perturbed on average. hold: harmful "
    "rows; an attack that lasts and takes a step every second update, of a quarter of the rows "
    "(default), or every fourth, twice as far (lean), or one an update, of all rows, with the "
    "gradient at both weights (full), or an attack of 1 to 4 steps anew in every update. batch "
    "safety: "
    "safety rows only, as in the paper; mixed: a third benign rows, which are never perturbed but "
    "run apart. memory: peak of all live tensors in a perturbed step, weights and optimizer "
    "included, over SFT's; extra_parameter_copies: the difference, in copies of the trainable "
    "weights. It counts tensors as the dispatcher sees them: scratch memory inside a kernel and "
    "what the allocator keeps in reserve are not seen, and a difference in activations counts too."
)


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        method: Name for the row.
        mode: What of the method, "" where there is one way only.
        plugin: The method's plug-in.
        options: Its options.
    """

    method: str
    mode: str = ""
    plugin: str = "sft"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


SFT = Variant("sft")
HARMFUL = {"attack_rows": "harmful"}
MODES: dict[str, dict[str, Any]] = {
    "always": {"curriculum": "constant", "lam": 1.0},
    "linear": {"curriculum": "linear"},
}
HOLDS: dict[str, dict[str, Any]] = {
    "default": {},
    "lean": LEAN,
    "full": FULL,
    "4 steps anew": {"every": 0, "inner_steps": 4},
}
OTHERS = ("sam", "vaccine", "t_vaccine", "repnoise", "booster", "tar", "group_dro")
VARIANTS = (
    SFT,
    *(Variant("vaa", mode, "vaa", options) for mode, options in MODES.items()),
    *(Variant("hold", mode, "hold", {**HARMFUL, **options}) for mode, options in HOLDS.items()),
    *(Variant(name, "", name) for name in OTHERS),
)


@dataclass(frozen=True)
class Bench:
    """What all variants share.

    Attributes:
        name: Of the model, for the row.
        model: Never changed; each turn trains a copy.
        tokenizer: Its tokenizer.
        data: Rows and groups.
        steps: Optimizer steps of a turn.
        lora: Train adapters instead of the weights.
        batch_size: Rows per step.
        max_length: Tokens kept per row.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: AlignmentData
    steps: int
    lora: bool = False
    batch_size: int = 16
    max_length: int = 256

    @property
    def parameters(self) -> str:
        """What is trained."""
        return "lora" if self.lora else "full"

    @property
    def batch(self) -> str:
        """What the batches hold."""
        return "safety" if self.data.benign is None else "mixed"


@dataclass(frozen=True)
class Turn:
    """What one short run took.

    Attributes:
        seconds: Wall clock of all steps.
        cpu_seconds: Processor time of this process, which other processes do not lengthen.
        peak_bytes: Peak of the memory, 0 if it was not metered.
        trainable_bytes: Size of the trainable weights.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    trainable_bytes: int


# ----------------------------------------------------------------------------------- instruments


class Clock(TrainerCallback):
    """Measures the time from the begin of the first step to the end of the last."""

    def __init__(self) -> None:
        self.began: tuple[float, float] | None = None
        self.ended = (0.0, 0.0)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock, once."""
        if self.began is None:
            self.began = self._now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Read it."""
        self.ended = self._now()

    def _now(self) -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> tuple[float, float]:
        """Wall clock and processor time."""
        wall, cpu = self.began or self.ended
        return self.ended[0] - wall, self.ended[1] - cpu


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all live tensors inside the block, from `known` tensors on.

    The resident size of the process would be of no use here: it never shrinks, so the second
    variant in a process would find the first one's peak. A dispatch mode sees every tensor that an
    operator returns, in the backward pass as well, and a weak reference to its storage tells when
    it is freed; views share a storage and count once.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Keyed by address; an entry goes when its storage does, so no address is used twice.
        self.storages: dict[int, object] = {}
        self.live = self.peak = 0
        for tensor in known:
            self._follow(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and follow what it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return

        def freed(_: object) -> None:
            del self.storages[key]
            self.live -= size

        self.storages[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


class Meter(TrainerCallback):
    """Finds the peak memory of one step: the third, when the optimizer has its state."""

    def __init__(self) -> None:
        self.peak = 0
        self._mode: LiveBytes | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start at the third step."""
        if state.global_step != 2:
            return
        model = cast(nn.Module, kwargs["model"])
        if next(model.parameters()).is_cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        held = kwargs["optimizer"].state.values()
        moments = [t for values in held for t in values.values() if isinstance(t, Tensor)]
        self._mode = LiveBytes([*model.parameters(), *model.buffers(), *moments])
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop at its end."""
        if state.global_step != 3:
            return
        if self._mode is None:
            self.peak = torch.cuda.max_memory_allocated()
            return
        self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.peak = self._mode.peak


# ---------------------------------------------------------------------------------------- turns


def turn(bench: Bench, variant: Variant, seed: int, *, metered: bool = False) -> Turn:
    """Train a copy of the model for a few steps."""
    model = copy.deepcopy(bench.model)
    if bench.lora:
        model = adapters.add_lora(model, RANK, seed=seed)
    clock, meter = Clock(), Meter()
    method: type[AlignmentTrainer] = plugins.find("methods", variant.plugin)
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "output_dir": folder,
            "max_steps": 3 if metered else bench.steps,
            "learning_rate": 5e-4,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "per_device_train_batch_size": bench.batch_size,
            "max_length": bench.max_length,
            "seed": seed,
            "data_seed": seed,
            "use_cpu": bench.model.device.type == "cpu",
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 10,
            "save_strategy": "no",
            "dataloader_pin_memory": False,
        }
        callback: TrainerCallback = meter if metered else clock
        method(
            model,
            MethodArguments(**settings),
            data=bench.data,
            options=method.Options(**variant.options),
            processing_class=bench.tokenizer,
            callbacks=[callback],
        ).train()
    wall, cpu = clock.seconds
    return Turn(
        seconds=wall,
        cpu_seconds=cpu,
        peak_bytes=meter.peak,
        trainable_bytes=sum(p.numel() * p.element_size() for p in trainable(model)),
    )


def take_turns(
    bench: Bench,
    variants: Sequence[Variant],
    rounds: int,
    *,
    progress: Callable[[str], None],
    until: float = math.inf,
) -> dict[Variant, list[Turn]]:
    """Let the variants take turns, after one step of each that is thrown away.

    A single round is for trying the script out; it does not warm up. After the first no round
    begins later than `until`, by time.perf_counter.
    """
    taken: dict[Variant, list[Turn]] = {variant: [] for variant in variants}
    if rounds > 1:
        for variant in variants:
            turn(replace(bench, steps=1), variant, 0)
    for number in range(rounds):
        if number and time.perf_counter() > until:
            break
        progress(f"{bench.name} {bench.batch} {bench.parameters}: {number + 1} of {rounds}")
        for variant in variants:
            taken[variant].append(turn(bench, variant, number))
    return taken


def rows(
    bench: Bench, taken: Mapping[Variant, Sequence[Turn]], peaks: Mapping[Variant, Turn]
) -> list[Row]:
    """Return a row per variant other than SFT: its ratios to SFT."""
    base = taken[SFT]
    found = []
    for variant, turns in taken.items():
        if variant == SFT:
            continue
        time_ratio = ratio([t.seconds for t in turns], [t.seconds for t in base])
        cpu_ratio = ratio([t.cpu_seconds for t in turns], [t.cpu_seconds for t in base])
        peak, plain = peaks[variant], peaks[SFT]
        found.append(
            {
                "method": variant.method,
                "mode": variant.mode,
                "parameters": bench.parameters,
                "model": bench.name,
                "batch": bench.batch,
                "time_ratio": time_ratio.value,
                "time_ratio_low": time_ratio.low,
                "time_ratio_high": time_ratio.high,
                "cpu_time_ratio": cpu_ratio.value,
                "memory_ratio": peak.peak_bytes / plain.peak_bytes,
                "extra_parameter_copies": (peak.peak_bytes - plain.peak_bytes)
                / peak.trainable_bytes,
                "sft_step_seconds": sum(t.seconds for t in base) / len(base) / bench.steps,
                "trainable_bytes": peak.trainable_bytes,
                "turns": len(turns),
            }
        )
    return found


def ratio(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Return mean(a) / mean(b) of paired turns with its bootstrap interval."""
    if len(a) < 2:
        value = a[0] / b[0] if a and b[0] else math.nan
        return Interval(value, math.nan, math.nan, len(a))
    return bootstrap(lambda x, y: float(x.mean() / y.mean()), np.array(a), np.array(b))


def peaks_of(bench: Bench, variants: Sequence[Variant]) -> dict[Variant, Turn]:
    """Return the peak of a step of each variant, always of a perturbed one."""
    found: dict[Variant, Turn] = {}
    for variant in variants:
        same = [v for v in found if v.plugin == variant.plugin == "vaa"]
        always = {"vaa": MODES["always"], "hold": {"clean": 0.0}}.get(variant.plugin, {})
        met = replace(variant, options={**variant.options, **always})
        found[variant] = found[same[0]] if same else turn(bench, met, 0, metered=True)
    return found


# -------------------------------------------------------------------------------------- benches


def halves(safety: Examples) -> Groups:
    """Return two groups of equal size; which rows are in which does not change a step's cost."""
    return Groups(
        ids=safety.ids,
        labels=np.arange(len(safety)) % 2,
        names=("even", "odd"),
        rule="alternating",
        scores_hash="",
        data_hash=safety.hash,
    )


def rows_of_world(*, benign: bool) -> AlignmentData:
    """Return the world's rows, with or without the benign ones."""
    safety = readers.read("world:alignment")
    return AlignmentData(
        safety=safety,
        benign=readers.read("world:benign") if benign else None,
        groups=halves(safety),
        harmful=readers.read("world:probe_harmful"),
    )


def benches(*, quick: bool) -> list[Bench]:
    """Return the world's base and one wide enough that arithmetic, not overhead, takes the time."""
    from holdfast.world import train_base

    base = checkpoints.load("world", device="cpu")
    wide = train_base.model(len(base.tokenizer), width=512, depth=4)
    safety, mixed = rows_of_world(benign=False), rows_of_world(benign=True)
    small, large, size = (2, 1, 4) if quick else (30, 12, 16)
    found = [
        Bench("world", base.model, base.tokenizer, safety, small),
        Bench("world", base.model, base.tokenizer, mixed, small),
        Bench("wide", wide, base.tokenizer, safety, large),
    ]
    return [replace(bench, lora=lora, batch_size=size) for bench in found for lora in (False, True)]


def named(names: str) -> tuple[Variant, ...]:
    """Return the variants of these methods, and SFT.

    Raises:
        UsageError: A name is not known.
    """
    if names == "all":
        return VARIANTS
    chosen = {SFT.method, *names.split(",")}
    if unknown := sorted(chosen - {variant.method for variant in VARIANTS}):
        have = ", ".join(dict.fromkeys(variant.method for variant in VARIANTS))
        raise UsageError(f"--methods {', '.join(unknown)}: none of {have}")
    return tuple(variant for variant in VARIANTS if variant.method in chosen)


def run_benchmark() -> None:
    """Measure all benches and write."""
    options = parser(__doc__, seeds=10)
    options.add_argument("--methods", default="all", help="all, or names with commas")
    chosen = options.parse_args()
    variants = named(chosen.methods)
    rounds = 1 if chosen.quick else chosen.seeds
    found, steps = [], {}
    for bench in benches(quick=chosen.quick):
        peaks = peaks_of(bench, variants)
        taken = take_turns(bench, variants, rounds, progress=lambda text: print(text, file=stderr))
        found += rows(bench, taken, peaks)
        steps[bench.name] = bench.steps
    facts = {
        "setting": "world",
        "quick": chosen.quick,
        "turns": rounds,
        "steps": steps,
        "batch_size": bench.batch_size,
        "lora_rank": RANK,
        "notes": NOTES,
    }
    write(chosen.json, "step_time", facts, found)


if __name__ == "__main__":
    main(run_benchmark)
