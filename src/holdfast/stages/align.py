"""Stage: align a base model on safety rows with a method."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from pydantic import Field, create_model

from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.models import adapters, checkpoints
from holdfast.models.encoding import fields_that_fit
from holdfast.models.precision import computing, computing_in
from holdfast.models.templates import frame_of
from holdfast.options import Options, option_fields
from holdfast.results.artifacts import Groups, Scores
from holdfast.results.attacks import Schedule
from holdfast.results.files import write_json
from holdfast.results.run_dir import Job, is_first_process, process_count
from holdfast.rows.mixing import mismatched
from holdfast.rows.provenance import provenance_table
from holdfast.stages.config import FurtherOptions, ModelConfig, Rate
from holdfast.stages.run_models import check_own_label, model_hash
from holdfast.stages.run_scores import only

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from holdfast.methods.base import AlignmentData, AlignmentTrainer


class AlignConfig(ModelConfig):
    """Options of the stage."""

    PLACES: ClassVar[frozenset[str]] = frozenset(
        {"model", "data", "benign", "harmful", "groups", "name", "knowledge"}
    )

    model: str
    """Model to align: "world", a directory, a GGUF file, package:NAME or a hub id."""
    data: str
    """Safety rows: restricted prompts with the desired responses."""
    benign: str | None = None
    """Ordinary rows to mix in."""
    harmful: str | None = None
    """Harmful rows, for methods that use them. If you have none, "mismatched" pairs prompts of the
    safety rows with responses of benign rows.
    """
    groups: str | None = None
    """Name of a grouping in the run, for methods that need one."""
    method: str = "sft"
    """Method: its name, "module:Class", or a method with groups such as vaccine+group_dro.
    `holdfast plugins methods` lists them.
    """
    options: FurtherOptions = Field(default_factory=dict)
    """Option of the method, for example rho=0.4; `holdfast plugins methods NAME` lists them."""
    name: str = ""
    """Label of the result (default: the method's name)."""
    epochs: float = Field(default=3.0, gt=0)
    """Number of passes over all rows."""
    learning_rate: Rate = Field(default=5e-4, gt=0, le=1)
    """Learning rate of AdamW."""
    schedule: Schedule = "constant"
    """Learning rate schedule: constant, or linear or cosine decay to 0 at the last step."""
    batch_size: int = Field(default=16, ge=1)
    """Number of rows per step, summed over all processes."""
    max_length: int = Field(default=256, ge=8)
    """Number of tokens kept of each row."""
    lora_rank: int = Field(default=0, ge=0)
    """Rank of the LoRA adapters, which are merged at the end; 0 trains all weights."""
    knowledge: str = ""
    """One word for what the defender knows about the attacker's rows, shown in tables."""

    def keyed(self) -> dict[str, Any]:
        """Return the options of a job's key, those of the method that were not given as well.

        Another default is then another alignment.
        """
        from holdfast.methods._together import method

        own = method(self.method).Options
        defaults = {k: f.get_default() for k, f in option_fields(own).items()}
        return {**super().keyed(), "options": {**defaults, **self.options}}

    @property
    def label(self) -> str:
        """Name of the aligned model within the run."""
        return f"{self.name or self.method.partition(':')[2] or self.method}-s{self.seed}"


def align(config: AlignConfig) -> Path:
    """Align a model and return the directory of the result.

    Raises:
        UsageError: Options, data and method do not fit together.
        TrainingError: The loss is not finite.
        KeyboardInterrupt: Interrupted; the same call goes on from the last step.
    """
    from holdfast.methods._together import method as find
    from holdfast.methods.base import AlignmentData

    method = find(config.method)
    _method_options(config, method)  # before rows are read and groups are looked for
    groups, scores, inputs = _groups(config, method)
    data = AlignmentData(
        safety=config.read(config.data),
        benign=config.read_if(config.benign, use="ordinary"),
        harmful=_harmful(config),
        groups=groups,
        scores=scores,
    )
    inputs["model"] = model_hash(config.run, config.model)
    parts = {"safety": data.safety, "benign": data.benign, "harmful": data.harmful}
    rows = {label: part for label, part in parts.items() if part}
    if groups is not None:
        groups.aligned_to(data.safety.ids)
    path = config.run.path("models", config.label)
    check_own_label(config.run, config.label)
    with config.run.job(
        "align", config.label, config=_settings(config), inputs=inputs, rows=rows
    ) as job:
        if job.done is None:
            with computing_in(config.computing(config.model)):
                _train(config, method, data, path, job)
            job.facts["precision"] = _precision(config)
            job.facts["provenance"] = provenance_table(data.safety)
            job.facts["rows"] = {"safety": len(data.safety), "benign": len(data.benign or ())}
            job.facts["known_harmful"] = _known(config, data.harmful)
    return path


def _settings(config: AlignConfig) -> dict[str, Any]:
    """Return the options of the job's key.

    Raises:
        UsageError: The precision is given twice.
    """
    if "bf16" in config.options:
        raise UsageError(
            "bf16 is no option of a method: give --precision bfloat16, or float32 to train without"
        )
    if config.options.get("fp16") and config.precision != "float32":
        raise UsageError(
            f"fp16=true with --precision {config.precision}: float16 scales the losses of a "
            "training in float32; give --precision float32 with it"
        )
    return config.keyed_for(config.model)


MISMATCHED = "mismatched"
"""Stands for rows that are made where there are no harmful ones."""


def _harmful(config: AlignConfig) -> Examples | None:
    if config.harmful != MISMATCHED:
        return config.read_if(config.harmful, use="harmful")
    if config.benign is None:
        raise UsageError(f"--harmful {MISMATCHED} takes the answers of benign rows: give --benign")
    prompts = config.read(config.data).prompts
    answers = config.read(config.benign, use="ordinary").responses
    return mismatched(prompts, answers, n=len({p.strip() for p in prompts}), seed=config.seed)


def _known(config: AlignConfig, harmful: Examples | None) -> dict[str, Any]:
    """Return what the method was given to know of an attacker's rows."""
    return {
        "knowledge": config.knowledge,
        "data": config.harmful,
        "rows": len(harmful or ()),
        "categories": list(provenance_table(harmful)["category"]) if harmful else [],
    }


def _groups(
    config: AlignConfig, method: type[AlignmentTrainer]
) -> tuple[Groups | None, Scores | None, dict[str, str]]:
    if "groups" not in method.needs:
        return None, None, {}
    groups = Groups.load(config.run.result(only(config, "group", config.groups)))
    inputs = {"groups": groups.hash}
    if not config.options.get("tilt"):
        return groups, None, inputs
    scores = config.run.scores_behind(groups)
    return groups, scores, {**inputs, "scores": scores.hash}


def _train(
    config: AlignConfig,
    method: type[AlignmentTrainer],
    data: AlignmentData,
    path: Path,
    job: Job,
) -> None:
    from holdfast.methods._callbacks import StopOnInterrupt
    from holdfast.runtime.interrupt import deferred_interrupt

    loaded = checkpoints.load(config.model, device=config.device, training=not config.lora_rank)
    job.facts["template"] = frame_of(loaded.tokenizer).facts
    model = loaded.model
    if config.lora_rank:
        model = adapters.add_lora(model, config.lora_rank, seed=config.seed)
    else:
        model.float()  # in bfloat16 a step of 3e-5 moves only 12 to 30 % of the weights
    rows = fields_that_fit(data, loaded.model, loaded.tokenizer, config.max_length)
    work = config.run.path("work", job.key)
    args, options = _options(config, method, work, loaded.model.device.type)
    with deferred_interrupt() as interrupt:
        try:
            trainer = method(
                model,
                args,
                data=rows,
                options=options,
                processing_class=loaded.tokenizer,
                callbacks=[StopOnInterrupt(interrupt)],
            )
        except ValueError as error:  # options that transformers finds not to go together
            raise UsageError(f"{config.method}: {error}") from error
        trainer.train(resume_from_checkpoint=_last_checkpoint(work))
        if interrupt.requested:
            raise KeyboardInterrupt
    if not is_first_process():
        return
    job.outputs += checkpoints.save(adapters.merge(model), loaded.tokenizer, path)
    log = config.run.path("models", f"{config.label}.training.json")
    write_json(log, {"kind": "training", "schema": 1, "log": trainer.state.log_history})
    job.outputs.append(log)
    job.facts["steps"] = trainer.state.global_step
    job.facts["left_out"] = _left_out(config, data, rows)
    shutil.rmtree(work, ignore_errors=True)


def _precision(config: AlignConfig) -> str:
    return "float16" if config.options.get("fp16") else config.computing(config.model)


def _left_out(config: AlignConfig, data: AlignmentData, used: AlignmentData) -> dict[str, Any]:
    """Return which rows were too long to train on: label -> what the run recorded of them."""
    pairs = {
        "safety": (data.safety, used.safety),
        "benign": (data.benign, used.benign),
        "harmful": (data.harmful, used.harmful),
    }
    return {
        label: config.run.rows.record_left_out(after)
        for label, (before, after) in pairs.items()
        if before and after and len(after) < len(before)
    }


def _arguments() -> list[str]:
    from holdfast.methods.base import MethodArguments

    return [f.name for f in fields(MethodArguments) if f.init]


def _method_options(config: AlignConfig, method: type[AlignmentTrainer]) -> Options:
    """Return the method's own options.

    Raises:
        UsageError: An option is unknown, ill-typed or out of range.
    """
    arguments = _arguments()
    _check_known(config, method, arguments)
    return method.Options(**{k: v for k, v in config.options.items() if k not in arguments})


def _options(
    config: AlignConfig, method: type[AlignmentTrainer], work: Path, device: str
) -> tuple[TrainingArguments, Options]:
    """Split the options given into the Trainer's and the method's own."""
    from holdfast.methods import _refusals, base

    arguments = _arguments()
    shared = {k: v for k, v in config.options.items() if k in arguments}
    options = _method_options(config, method)
    settings: dict[str, Any] = {
        "output_dir": str(work),
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "weight_decay": 0.0,
        "per_device_train_batch_size": _per_process(config.batch_size),
        "max_length": config.max_length,
        "seed": config.seed,
        "data_seed": config.seed,
        "use_cpu": device == "cpu",
        "bf16": computing() == "bfloat16",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 10,
        "logging_nan_inf_filter": False,
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "dataloader_pin_memory": False,
    }
    settings |= _training_settings(config.method, shared, get_type_hints(base.MethodArguments))
    _refusals.refuse(settings)  # some of them would look for a package that is not installed
    try:
        return base.MethodArguments(**settings), options
    except (TypeError, ValueError) as error:
        raise UsageError(f"{config.method}: {error}") from error


def _check_known(
    config: AlignConfig, method: type[AlignmentTrainer], arguments: Sequence[str]
) -> None:
    own = sorted(option_fields(method.Options))
    for name in config.options:
        if name not in own and name not in arguments:
            close = difflib.get_close_matches(name, [*own, *arguments], n=1)
            suggestion = f" Did you mean {close[0]}?" if close else ""
            raise UsageError(
                f"{config.method}: {name} is not an option.{suggestion} The options are "
                f"{', '.join(own)}{' and ' if own else ''}those of transformers.TrainingArguments"
            )


def _training_settings(
    method: str, values: Mapping[str, Any], types: Mapping[str, Any]
) -> dict[str, Any]:
    """Return arguments of the Trainer, checked as all options are; None is left to the Trainer."""
    set_values = {name: value for name, value in values.items() if value is not None}
    fields: dict[str, Any] = {name: (types[name], ...) for name in set_values}
    checked = create_model("TrainingSettings", __base__=Options, **fields)
    checked.owner = method
    settings = checked(**set_values)
    return {name: getattr(settings, name) if name in set_values else None for name in values}


def _per_process(rows: int) -> int:
    if rows % process_count():
        raise UsageError(f"--batch-size {rows} cannot be shared by {process_count()} processes")
    return rows // process_count()


def _last_checkpoint(work: Path) -> str | None:
    from holdfast.methods._checkpoints import STATE_FILE

    whole = [path.parent for path in work.glob(f"checkpoint-*/{STATE_FILE}")]
    return str(max(whole, key=lambda p: int(p.name.rpartition("-")[2]))) if whole else None
