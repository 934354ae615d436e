"""Ready-made trainers before TRL's, and the callback that measures the harmful score."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import holdfast.trl
from holdfast import plugins
from holdfast.errors import DataError, HoldfastError, MismatchError, UsageError
from holdfast.methods._batches import MARKS, by_group
from holdfast.methods._refusals import BATCH_LOSSES
from holdfast.methods.base import AlignmentData
from holdfast.stats.intervals import wilson
from holdfast.trl import HarmfulScore

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
NAMES = [plugins.find("methods", name).__name__ for name in plugins.available("methods")]
OPTIONS: dict[str, dict[str, Any]] = {"Hold": {"attack_rows": "affirmative", "prefix": "sure"}}


def turns(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def supervised(data: AlignmentData, **column: Any) -> Dataset:
    rows = [*data.safety, *(data.benign or ())]
    return Dataset.from_list(
        [
            {"prompt": turns("user", r.prompt), "completion": turns("assistant", r.response)}
            | {name: mark(i) for name, mark in column.items()}
            for i, r in enumerate(rows)
        ]
    )


def preferences(data: AlignmentData) -> Dataset:
    worse = [row.response for row in data.benign or ()]
    return Dataset.from_list(
        [
            {
                "prompt": turns("user", r.prompt),
                "chosen": turns("assistant", r.response),
                "rejected": turns("assistant", worse[i]),
            }
            for i, r in enumerate(data.safety)
        ]
    )


@pytest.fixture
def model(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    return make_model(vocab=len(tokenizer))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Any]:
    def build(cls: type[Any] = SFTConfig, **settings: Any) -> Any:
        quiet = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
        return cls(str(tmp_path), **{"max_steps": 2, "save_strategy": "no", **quiet, **settings})

    return build


@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_before_trls_supervised_trainer(
    name: str, model: PreTrainedModel, config: Any, data: AlignmentData, tokenizer: Any
) -> None:
    trainer = getattr(holdfast.trl, name)(
        model,
        config(),
        train_dataset=supervised(data),
        processing_class=tokenizer,
        groups=data.groups,
        harmful=data.harmful,
        **OPTIONS.get(name, {}),
    )
    assert isinstance(trainer, SFTTrainer)
    assert set(trainer.data.safety.ids) == set(data.safety.ids)
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_model_given_by_name_trains_as_the_model_itself(
    model: PreTrainedModel, config: Any, data: AlignmentData, tokenizer: Any, tmp_path: Path
) -> None:
    folder = str(tmp_path / "base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    losses = []
    for given, names in ((model, {"processing_class": tokenizer}), (folder, {})):
        trainer = holdfast.trl.Sft(
            given, config(logging_steps=1), train_dataset=supervised(data), **names
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]


def test_a_preference_trainers_reference_is_the_model_as_it_was_read(
    model: PreTrainedModel, config: Any, data: AlignmentData, tokenizer: Any, tmp_path: Path
) -> None:
    folder = str(tmp_path / "base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    trainer = holdfast.trl.SftDpo(
        folder, config(DPOConfig), train_dataset=preferences(data), groups=None
    )
    reference = trainer.ref_model.state_dict()
    assert all(torch.equal(v, reference[name]) for name, v in model.state_dict().items())


def test_a_model_given_by_name_is_complete_or_refused(
    model: PreTrainedModel, config: Any, data: AlignmentData, tokenizer: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    kept = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=kept)
    tokenizer.save_pretrained(folder)
    with pytest.raises(UsageError, match=r"lacks lm_head\.weight"):
        holdfast.trl.Sft(str(folder), config(), train_dataset=supervised(data))
    with pytest.raises(UsageError, match="no-such"):
        holdfast.trl.Sft(str(tmp_path / "no-such"), config(), train_dataset=supervised(data))
    chosen = config(model_init_kwargs={"dtype": "bfloat16"})
    with pytest.raises(UsageError, match="with model_init_kwargs"):
        holdfast.trl.Sft(str(folder), chosen, train_dataset=supervised(data))


@pytest.mark.parametrize("name", NAMES)
def test_methods_train_before_trls_preference_trainer(
    name: str, model: PreTrainedModel, config: Any, data: AlignmentData, tokenizer: Any
) -> None:
    trainer = getattr(holdfast.trl, f"{name}Dpo")(
        model,
        config(DPOConfig, max_steps=1),
        train_dataset=preferences(data),
        processing_class=tokenizer,
        groups=data.groups,
        harmful=data.harmful,
        ref_model=copy.deepcopy(model),
        **OPTIONS.get(name, {}),
    )
    trainer.train()
    assert trainer.state.global_step == 1


MEANS_OVER_ROWS = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
)


@pytest.fixture
def preference_trainer(
    model: PreTrainedModel, config: Any, data: AlignmentData, tokenizer: Any
) -> Any:
    """Return a trainer on preferences whose model has moved away from its reference."""
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)), alpha=0.05)
    return holdfast.trl.GroupDroDpo(
        model,
        config(DPOConfig, label_smoothing=0.1),
        train_dataset=preferences(data),
        processing_class=tokenizer,
        groups=data.groups,
        ref_model=reference,
    )


@pytest.mark.parametrize("loss", MEANS_OVER_ROWS)
def test_a_preference_loss_is_the_sum_of_those_of_the_groups(
    loss: str, preference_trainer: Any
) -> None:
    trainer = preference_trainer
    trainer.loss_types = [loss]
    batch = trainer.collate_positions(range(7))  # rows 0, 3 and 6 are vulnerable
    parts = [part for _, part in by_group(batch)]
    assert [len(part["is_safety"]) for part in parts] == [4, 3]
    with torch.no_grad():
        whole = trainer.compute_loss(
            trainer.model, {k: v for k, v in batch.items() if k not in MARKS}
        )
        summed = sum(trainer.scaled_loss(trainer.model, part, torch.tensor(7)) for part in parts)
    torch.testing.assert_close(summed, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired", ["sigmoid", "sft"]])
def test_a_preference_loss_over_a_whole_batch_is_refused(
    loss: Any, model: PreTrainedModel, config: Any, data: AlignmentData, tokenizer: Any
) -> None:
    with pytest.raises(UsageError, match=r"loss_type='(aot|sft).*is not a mean over rows"):
        holdfast.trl.SftDpo(
            model,
            config(DPOConfig, loss_type=loss),
            train_dataset=preferences(data),
            processing_class=tokenizer,
        )


def test_every_preference_loss_of_trl_is_tested_or_refused() -> None:
    source = inspect.getsource(DPOTrainer._compute_loss)
    losses = set(re.findall(r'loss_type == "(\w+)"', source))
    assert losses == {*MEANS_OVER_ROWS, *BATCH_LOSSES}


def test_a_column_marks_the_safety_rows(
    model: PreTrainedModel, config: Any, data: AlignmentData, tokenizer: Any
) -> None:
    dataset = supervised(data, is_safety=lambda i: i < 5)
    trainer = holdfast.trl.Sam(model, config(), train_dataset=dataset, processing_class=tokenizer)
    assert trainer.data.safety.ids == data.safety.ids[:5]
    assert len(trainer.data.benign or ()) == len(dataset) - 5
    trainer.train()
    unmarked = supervised(data, is_safety=lambda i: False)
    with pytest.raises(MismatchError, match="none of the 56 rows of the dataset has is_safety"):
        holdfast.trl.Sam(model, config(), train_dataset=unmarked, processing_class=tokenizer)


def test_without_marks_all_rows_are_safety_rows(
    model: PreTrainedModel, config: Any, data: AlignmentData, tokenizer: Any
) -> None:
    trainer = holdfast.trl.Sam(
        model, config(), train_dataset=supervised(data), processing_class=tokenizer, rho=0.1
    )
    assert len(trainer.data.safety) == 56
    assert trainer.data.benign is None
    assert trainer.options.rho == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rhoo": 0.1}, r"vaa: rhoo is not an option\. Did you mean rho\? The options are batch"),
        ({"rho": -1}, "vaa: rho=-1 must be a number, at least 0"),
        ({"lam": "much"}, "vaa: lam='much' must be a number from 0 to 1"),
    ],
)
def test_wrong_options_are_named(
    options: dict[str, Any],
    message: str,
    model: PreTrainedModel,
    config: Any,
    data: AlignmentData,
    tokenizer: Any,
) -> None:
    with pytest.raises(UsageError, match=message):
        holdfast.trl.Vaa(
            model,
            config(),
            train_dataset=supervised(data),
            processing_class=tokenizer,
            groups=data.groups,
            **options,
        )


def test_trainers_are_picklable_and_show_their_options() -> None:
    cls = holdfast.trl.Vaa
    assert pickle.loads(pickle.dumps(cls)) is cls  # noqa: S301  # made two lines above
    assert {"Vaa", "VaaDpo", "HarmfulScore"} <= set(dir(holdfast.trl))
    assert inspect.signature(cls).parameters["rho"].default == 0.4
    assert "rho: Size of the perturbation." in (cls.__doc__ or "")
    with pytest.raises(AttributeError, match="no attribute 'Vaaa'"):
        holdfast.trl.Vaaa  # noqa: B018


def test_without_trl_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(vars(holdfast.trl), "Vaccine", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'holdfast\[trl\]'"):
        holdfast.trl.Vaccine  # noqa: B018


# ------------------------------------------------------------------------------------- watching


def trained(
    model: PreTrainedModel, config: Any, data: AlignmentData, tokenizer: Any, *more: Any
) -> Any:
    trainer = SFTTrainer(
        model,
        config(max_steps=5, learning_rate=1e-2, seed=1, logging_steps=2),
        train_dataset=supervised(data),
        processing_class=tokenizer,
    )
    for callback in more:
        callback.attach(trainer)
    trainer.train()
    return trainer


def test_watching_changes_no_bit_of_the_training(
    make_model: Any, config: Any, data: AlignmentData, tokenizer: Any, weights_of: Any, same: Any
) -> None:
    start = make_model("opt", vocab=len(tokenizer), dropout=0.2)  # dropout draws random numbers
    ends = []
    for callbacks in ([], [HarmfulScore(data.safety.prompts[:4], every=2)]):
        model = copy.deepcopy(start)
        trainer = trained(model, config, data, tokenizer, *callbacks)
        ends.append((weights_of(model), [e for e in trainer.state.log_history if "loss" in e]))
    assert same(ends[0][0], ends[1][0])
    for plain, watched in zip(ends[0][1], ends[1][1], strict=True):
        assert plain == watched  # TRL's own metrics too


def test_the_scores_are_logged_with_n_and_interval(
    aligned: PreTrainedModel, config: Any, data: AlignmentData, tokenizer: Any
) -> None:
    callback = HarmfulScore(data.safety, every=2)
    trainer = trained(aligned, config, data, tokenizer, callback)
    entries = [entry for entry in trainer.state.log_history if "harmful_score" in entry]
    assert [entry["step"] for entry in entries] == [0, 2, 4, 5]
    assert sorted(callback.counts) == [0, 2, 4, 5]
    for entry in entries:
        counts = callback.counts[entry["step"]]
        least = wilson(counts.harmful, 24)
        greatest = wilson(counts.harmful + counts.undecided, 24)
        assert entry["harmful_score"] == counts.harmful / 24
        assert entry["undecided_share"] == counts.undecided / 24
        assert entry["harmful_score_low"] == least.low
        assert entry["harmful_score_high"] == greatest.high
        assert entry["harmful_score_n"] == 24


def test_generators_and_modes_are_put_back(
    model: PreTrainedModel, data: AlignmentData, tokenizer: Any
) -> None:
    from transformers import TrainerControl, TrainerState

    class Drawing:
        reads_prompt = False

        def judge(self, prompts: Any, responses: Any) -> Any:
            random.random(), np.random.random(), torch.rand(1)  # noqa: B018, NPY002, S311
            from holdfast.contracts import Verdict

            return [Verdict(None)] * len(responses)

    callback = HarmfulScore(data.safety.prompts[:2])
    callback.judges = {"drawing": Drawing()}  # type: ignore[dict-item]
    model.train()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]  # noqa: NPY002
    state = TrainerState()
    callback._measure(state, TrainerControl(), {"model": model, "processing_class": tokenizer})
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert all(module.training for module in model.modules())
    (entry,) = state.log_history
    assert entry["undecided_share"] == 1.0


def test_a_judge_that_fails_stops_nothing(
    model: PreTrainedModel,
    config: Any,
    data: AlignmentData,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*args: Any) -> None:
        raise HoldfastError("the service is down")

    callback = HarmfulScore(data.safety.prompts[:2], every=5)
    monkeypatch.setattr("holdfast.trl.answer_and_judge", fail)
    trainer = trained(model, config, data, tokenizer, callback)
    assert trainer.state.global_step == 5
    scores = [e["harmful_score"] for e in trainer.state.log_history if "harmful_score" in e]
    assert all(map(math.isnan, scores))
    assert "no harmful score: the service is down" in caplog.text


def test_it_watches_any_trainer_of_transformers(
    model: PreTrainedModel,
    config: Any,
    data: AlignmentData,
    tokenizer: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8
    callback = HarmfulScore([{"prompt": p} for p in data.safety.prompts[:3]], every=1)
    trainer = Trainer(
        model,
        config(TrainingArguments, max_steps=1),
        train_dataset=rows,  # type: ignore[arg-type]
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    assert sorted(callback.counts) == [0, 1]
    assert "goes to trainer.state.log_history only" in caplog.text
    entries = [entry for entry in trainer.state.log_history if "harmful_score" in entry]
    assert [(entry["step"], entry["harmful_score_n"]) for entry in entries] == [(0, 3), (1, 3)]


class Reported(TrainerCallback):
    """Collects what a trainer logs, as a callback that reports elsewhere would."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        self.logs.append(logs)


def test_an_attached_callback_reports_through_its_own_trainer(
    model: PreTrainedModel, config: Any, data: AlignmentData, tokenizer: Any
) -> None:
    callback = HarmfulScore(data.safety.prompts[:3], every=1)
    reported = Reported()
    trainer = holdfast.trl.Sft(
        model,
        config(max_steps=1),
        train_dataset=supervised(data),
        processing_class=tokenizer,
        callbacks=[callback, reported],
    )
    assert callback.attach(trainer) is callback  # again: it is not called twice
    trainer.train()
    assert sum("harmful_score" in logs for logs in reported.logs) == 2
    later = Trainer(
        model,
        config(TrainingArguments, max_steps=1),
        train_dataset=[{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8,  # type: ignore[arg-type]
        processing_class=tokenizer,
        callbacks=[callback],
    )
    logged = len(trainer.state.log_history)
    later.train()
    assert len(trainer.state.log_history) == logged  # nothing of another trainer's run


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompts": []}, DataError, "prompts: there are no rows"),
        ({"prompts": ["a"], "every": 0}, UsageError, "every=0 must be at least 1"),
        ({"prompts": ["a"], "judge": "refusel"}, UsageError, "'refusel' is not one of the judges"),
        ({"prompts": [{"text": "a"}]}, DataError, "no column for"),
    ],
)
def test_what_cannot_be_watched(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        HarmfulScore(**arguments)
