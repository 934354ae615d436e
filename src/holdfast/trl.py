"""Ready-made trainers: every alignment method in front of TRL's own trainers.

Each method of `holdfast.methods` is here under the name of its class, in front of TRL's
`SFTTrainer`; with "Dpo" at the end of the name, it is in front of `DPOTrainer`. They take TRL's
configuration and arguments; a method's options are keyword arguments:

    from holdfast.trl import Vaa
    trainer = Vaa(model, SFTConfig("out"), train_dataset=ds, processing_class=tok, groups=groups,
                  rho=0.1)
    trainer.train()

`HarmfulScore` works with any Trainer and needs transformers only.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

from transformers import Trainer, TrainerCallback

from holdfast import plugins
from holdfast.contracts import MOST_UNDECIDED, Verdict, check_decided
from holdfast.errors import HoldfastError, UsageError
from holdfast.methods.base import AlignmentData, AlignmentTrainer
from holdfast.models.modes import untouched_generators
from holdfast.options import describe
from holdfast.rows.memory import examples_of
from holdfast.stages.plugin_inputs import check_judges, judges_of
from holdfast.stages.verdicts import answer_and_judge, count

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

    from holdfast.results.artifacts import Counts, Groups, Scores
    from holdfast.rows.memory import Rows

logger = logging.getLogger(__name__)

DPO = "Dpo"
"""Suffix of the names of trainers on preferences."""


class ReadyTrainer(AlignmentTrainer):
    """Base of the trainers here: takes a method's options and its rows as keyword arguments.

    The safety rows of `train_dataset` are those with true in a boolean column `is_safety`. Without
    that column they are the rows in `groups`; without groups, all rows.

    Args:
        model: The model, or the name of one, which `holdfast align --model` would read alike, with
            float32 weights. TRL would draw weights that its files lack at random.
        args: Configuration of TRL's trainer.
        train_dataset: All safety and benign rows, in a format of TRL.
        groups: Groups of the safety rows, for methods that need them; see `holdfast.group`.
        harmful: Harmful rows, for methods that need them.
        scores: Scores of the safety rows, for soft weights.
        **settings: Options of the method, and arguments of TRL's trainer such as `callbacks`.

    Raises:
        OptionError: An option is unknown, ill-typed or out of range.
        UsageError: The method lacks rows, or cannot train as configured.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        train_dataset: datasets.Dataset,
        groups: Groups | None = None,
        harmful: Rows | None = None,
        scores: Scores | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(model, str):
            model = _loaded(
                model, args, settings, with_reference="ref_model" in _parameters(type(self))
            )
        passed_on = _parameters(type(self))
        options = {k: v for k, v in settings.items() if k not in passed_on}
        harmful_rows = (
            None if harmful is None else examples_of(harmful, name="harmful", use="harmful")
        )
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            data=AlignmentData.of(train_dataset, groups, harmful_rows, scores),
            options=self.Options(**options),
            **{k: v for k, v in settings.items() if k in passed_on},
        )
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, HarmfulScore):
                callback.attach(self)


def _loaded(
    name: str, args: TrainingArguments, settings: dict[str, Any], *, with_reference: bool
) -> PreTrainedModel:
    """Load a model by name; its tokenizer and a reference model enter settings that lack them."""
    from holdfast.models import checkpoints

    if getattr(args, "model_init_kwargs", None):
        raise UsageError(
            f"model={name!r} with model_init_kwargs: a model given by name is read with float32 "
            "weights and no other settings; load it yourself to set them, and give the model"
        )
    loaded = checkpoints.load(name, device="cpu")  # the trainer moves it
    settings.setdefault("processing_class", loaded.tokenizer)
    if with_reference and settings.get("ref_model") is None and not settings.get("peft_config"):
        # TRL would read the reference from the files again, without the adapters.
        settings["ref_model"] = copy.deepcopy(loaded.model)
    return loaded.model


def _parameters(cls: type[Any]) -> set[str]:
    """Return the names of the arguments of TRL's trainer behind a ready-made one."""
    trainer = next(base for base in cls.__mro__ if base.__module__.startswith("trl."))
    return set(inspect.signature(trainer).parameters)


def __getattr__(name: str) -> type[ReadyTrainer]:
    methods = _methods()
    method = methods.get(name.removesuffix(DPO))
    if method is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__dir__()}")
    try:
        trl = importlib.import_module("trl")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{name} needs TRL, which is not installed: pip install 'holdfast[trl]'"
        ) from error
    trainer = trl.DPOTrainer if name.endswith(DPO) else trl.SFTTrainer
    ready_made = _ready_made(name, method, trainer)
    globals()[name] = ready_made
    return ready_made


def __dir__() -> list[str]:
    trainers = [name + end for name in _methods() for end in ("", DPO)]
    return sorted(["HarmfulScore", *trainers])


def _methods() -> dict[str, type[AlignmentTrainer]]:
    """Return the alignment methods by the names of their classes."""
    classes = [plugins.find("methods", name) for name in plugins.available("methods")]
    return {cls.__name__: cls for cls in classes}


def _ready_made(
    name: str, method: type[AlignmentTrainer], trainer: type[Trainer]
) -> type[ReadyTrainer]:
    """Put a method in front of a TRL trainer, in a class whose signature shows the options."""

    class Ready(ReadyTrainer, method, trainer):  # type: ignore[misc, valid-type]  # known at run time
        __doc__ = _documentation(method, trainer)
        __signature__ = _signature(method)

    Ready.__name__ = Ready.__qualname__ = name
    return Ready


def _documentation(method: type[AlignmentTrainer], trainer: type[Trainer]) -> str:
    lines = [
        f"        {option.name}: {option.help} Default: {option.default_text}."
        for option in describe(method.Options)
    ]
    return "\n".join(
        [
            f"{method.__name__} before TRL's {trainer.__name__}: {inspect.getdoc(method)}",
            "",
            "    Options, besides the arguments of `ReadyTrainer` and of TRL's trainer:",
            *(lines or ["        none"]),
        ]
    )


def _signature(method: type[AlignmentTrainer]) -> inspect.Signature:
    *parameters, settings = list(inspect.signature(ReadyTrainer).parameters.values())
    options = [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default)
        for option in describe(method.Options)
    ]
    return inspect.Signature([*parameters, *options, settings])


# ------------------------------------------------------------------------------------- watching


class HarmfulScore(TrainerCallback):
    """Measures the harmful score during the training of any Trainer.

    Before the first step, every `every` steps and after the last one, the model answers restricted
    prompts greedily. The callback logs `harmful_score` with its 95 % interval
    (`harmful_score_low`, `_high`), which covers undecided responses, the number of prompts
    (`harmful_score_n`) and `undecided_share`. Weights, modes, generators and the course of the
    training do not change. If the judge fails or decides nothing, the callback logs a warning and
    nan.

        trainer = SFTTrainer(model, SFTConfig("out"), train_dataset=dataset)
        watch = HarmfulScore(prompts, every=50).attach(trainer)

    The trainers of this module also take it as one of their `callbacks`. transformers does not tell
    a callback which Trainer calls it, so with `callbacks` of any other trainer the scores go to
    `trainer.state.log_history` only, and not to where the trainer reports.

    Args:
        prompts: Restricted prompts, as rows or as texts.
        judge: Name and options of the judge.
        every: Steps between measurements.
        max_new_tokens: Length of the responses in tokens.

    Attributes:
        counts: Step -> verdicts at that step, without steps at which the judge failed.

    Raises:
        UsageError: The judge does not exist or has a wrong option, or `every` is below 1.
        DataError: There are no prompts.
    """

    def __init__(
        self,
        prompts: Rows | list[str],
        judge: str = "refusal",
        every: int = 50,
        *,
        max_new_tokens: int = 32,
    ) -> None:
        if every < 1:
            raise UsageError(f"HarmfulScore: every={every} must be at least 1")
        self.prompts = examples_of(
            _as_rows(prompts), name="prompts", needs_response=False, use="restricted prompts"
        )
        self.judges = judges_of([judge])
        self.judge = judge
        self.every = every
        self.max_new_tokens = max_new_tokens
        self.counts: dict[int, Counts] = {}
        self._trainer: Trainer | None = None
        check_judges(self.judges)

    def attach(self, trainer: Trainer) -> Self:
        """Watch a trainer and log through it; return the callback."""
        self._trainer = trainer
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        return self

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the model before its training."""
        if not self._is_attached(state):
            logger.warning(
                "the harmful score goes to trainer.state.log_history only; to report it as well, "
                "use HarmfulScore(...).attach(trainer) instead of callbacks=[...]"
            )
        self._measure(state, control, kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure every `every` steps."""
        if state.global_step % self.every == 0:
            self._measure(state, control, kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the trained model, unless the last step was measured."""
        if state.global_step not in self.counts:
            self._measure(state, control, kwargs)

    def _measure(
        self, state: TrainerState, control: TrainerControl, kwargs: Mapping[str, Any]
    ) -> None:
        logs = {"harmful_score": float("nan")}
        try:
            with untouched_generators():
                verdicts, _ = answer_and_judge(
                    kwargs["model"],
                    kwargs["processing_class"],
                    self.prompts,
                    self.judges,
                    self.max_new_tokens,
                )
        except HoldfastError as error:
            logger.warning("step %d: no harmful score: %s", state.global_step, error)
        else:
            (of_judge,) = verdicts.values()
            counts = count(of_judge)
            self.counts[state.global_step] = counts
            self._warn(of_judge, state.global_step)
            interval = counts.interval
            logs = {
                "harmful_score": counts.harmful_score,
                "harmful_score_low": interval.low,
                "harmful_score_high": interval.high,
                "harmful_score_n": counts.n,
                "undecided_share": counts.undecided / counts.n,
            }
        # Logging clears the flag that makes the Trainer log its own line of this step.
        should_log = control.should_log
        self._log(logs, state)
        control.should_log = should_log

    def _is_attached(self, state: TrainerState) -> bool:
        return self._trainer is not None and self._trainer.state is state

    def _log(self, logs: dict[str, float], state: TrainerState) -> None:
        if self._is_attached(state):
            # Not TRL's own `log`, which would average and clear its training metrics early.
            Trainer.log(cast(Trainer, self._trainer), logs)
        else:
            epoch = {} if state.epoch is None else {"epoch": state.epoch}
            state.log_history.append({**logs, **epoch, "step": state.global_step})

    def _warn(self, verdicts: Sequence[Verdict], step: int) -> None:
        """Warn if the judge left too many responses undecided for the score to mean much."""
        try:
            check_decided(self.judge, verdicts, MOST_UNDECIDED)
        except HoldfastError as error:
            logger.warning("step %d: %s", step, error)


def _as_rows(prompts: Any) -> Any:
    if isinstance(prompts, list) and all(isinstance(prompt, str) for prompt in prompts):
        return [{"prompt": prompt} for prompt in prompts]
    return prompts
