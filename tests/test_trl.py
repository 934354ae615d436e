"""Methods before TRL's trainers: the same rows, the loss that TRL computes, one row a row."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from holdfast.errors import DataError, MismatchError, UsageError
from holdfast.methods._batches import answer_tokens
from holdfast.methods.base import AlignmentData
from holdfast.methods.hold import Hold
from holdfast.methods.repnoise import RepNoise
from holdfast.methods.sft import Sft
from holdfast.methods.vaa import Vaa
from holdfast.models import head_loss

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
ALWAYS = {"curriculum": "constant", "lam": 1.0}


class VaaSft(Vaa, SFTTrainer):  # type: ignore[misc]
    pass


class VaaDpo(Vaa, DPOTrainer):  # type: ignore[misc]
    pass


class HoldDpo(Hold, DPOTrainer):  # type: ignore[misc]
    pass


class HoldSft(Hold, SFTTrainer):  # type: ignore[misc]
    pass


class RepNoiseDpo(RepNoise, DPOTrainer):  # type: ignore[misc]
    pass


class PlainSft(Sft, SFTTrainer):  # type: ignore[misc]
    pass


def turns(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


@pytest.fixture
def supervised(data: AlignmentData) -> Dataset:
    benign = list(data.benign or ())
    # Mixed, so that a row's place says nothing of what it is.
    rows = [row for pair in zip(benign, data.safety, strict=False) for row in pair]
    return Dataset.from_list(
        [
            {"prompt": turns("user", r.prompt), "completion": turns("assistant", r.response)}
            for r in rows
        ]
    )


@pytest.fixture
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
def make(
    tmp_path: Path, data: AlignmentData, tokenizer: PreTrainedTokenizerBase
) -> Callable[..., Any]:
    def build(
        cls: Any,
        model: PreTrainedModel,
        dataset: Dataset,
        rows: AlignmentData | None = None,
        **options: Any,
    ) -> Any:
        own = cls.Options.model_fields
        reference: dict[str, Any] = {}
        config: Any = DPOConfig if issubclass(cls, DPOTrainer) else SFTConfig
        settings = {"output_dir": str(tmp_path), "max_steps": 2, "optim": "sgd", "use_cpu": True}
        settings |= {"learning_rate": 0.1, "report_to": "none", "save_strategy": "no"}
        settings |= {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "bf16": False}
        settings |= {"gradient_checkpointing": False, "disable_tqdm": True, "seed": 3}
        settings |= {k: v for k, v in options.items() if k not in own}
        if issubclass(cls, DPOTrainer):
            reference["ref_model"] = copy.deepcopy(model)
        if "eval_dataset" in settings:
            reference["eval_dataset"] = settings.pop("eval_dataset")
        return cls(
            model,
            config(**settings),
            **reference,
            train_dataset=dataset,
            processing_class=tokenizer,
            data=rows or AlignmentData.of(dataset, data.groups, data.harmful),  # type: ignore[arg-type]
            options=cls.Options(**{k: v for k, v in options.items() if k in own}),
        )

    return build


@pytest.fixture
def model(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    return make_model(vocab=len(tokenizer))


def test_rows_are_known_by_their_content(data: AlignmentData, supervised: Dataset) -> None:
    found = AlignmentData.of(supervised, data.groups)  # type: ignore[arg-type]
    assert set(found.safety.ids) == set(data.safety.ids)
    assert set(found.benign.ids) <= set(data.benign.ids)  # type: ignore[union-attr]
    assert len(found.safety) + len(found.benign or ()) == len(supervised)


def test_batches_hold_the_rows_that_they_should(
    make: Callable[..., Any],
    model: PreTrainedModel,
    supervised: Dataset,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    trainer = make(VaaSft, model, supervised)
    batch = trainer.collate_positions([0, trainer.n_safety])
    assert batch["is_safety"].tolist() == [True, False]
    for ids, row in zip(
        batch["input_ids"], (trainer.data.safety[0], trainer.data.benign[0]), strict=True
    ):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert row.prompt in text
        assert row.response in text


def test_a_step_over_trls_loss_equals_the_equations(
    make: Callable[..., Any], model: PreTrainedModel, supervised: Dataset
) -> None:
    theirs: Any = copy.deepcopy(model.double())
    rho = 0.3
    trainer = make(VaaSft, model, supervised, max_steps=1, rho=rho, **ALWAYS)
    seen: list[Any] = []
    draw = trainer.draw_batches
    trainer.draw_batches = lambda it, n: seen.extend(draw(it, n)) or seen
    trainer.train()
    (batch,) = seen
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    labels, safe = batch["labels"][:, 1:], batch["is_safety"]

    def nll() -> tuple[torch.Tensor, torch.Tensor]:
        logs = theirs(**inputs).logits[:, :-1].log_softmax(-1)
        own = -logs.gather(2, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)
        return own[safe].sum() / (labels != -100).sum(), own[~safe].sum() / (labels != -100).sum()

    theirs.train()
    parameters = list(theirs.parameters())
    up = torch.autograd.grad(nll()[0], parameters)
    norm = math.sqrt(sum(float((g**2).sum()) for g in up))
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, g in zip(parameters, up, strict=True):
            p += rho * g / (norm + 1e-7)
    there = torch.autograd.grad(nll()[0], parameters)
    with torch.no_grad():
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)
    benign = torch.autograd.grad(nll()[1], parameters)
    for p, old, a, b in zip(model.parameters(), before, there, benign, strict=True):
        torch.testing.assert_close(p, old - 0.1 * (a + b), rtol=0, atol=1e-6)


def test_without_rho_it_is_trls_own_step(
    make: Callable[..., Any],
    model: PreTrainedModel,
    supervised: Dataset,
    same: Any,
    weights_of: Any,
) -> None:
    """Fed with the same batch, the trainer under the method takes the very same step."""
    batch = make(VaaSft, copy.deepcopy(model), supervised).collate_positions(range(0, 40, 5))
    ends = []
    for cls, options in ((PlainSft, {}), (VaaSft, {"rho": 0.0})):
        mine = copy.deepcopy(model)
        trainer = make(cls, mine, supervised, max_steps=1, **options)
        trainer.draw_batches = lambda it, n: [dict(batch)]
        trainer.train()
        ends.append(mine)
    for a, b in zip(*(m.parameters() for m in ends), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert not same(weights_of(ends[0]), weights_of(model))


OURS = {"attack_rows": "affirmative", "prefix": "sure", "reach": 1e-3}


@pytest.mark.parametrize(
    ("cls", "options"), [(VaaDpo, {"rho": 0.05, **ALWAYS}), (HoldDpo, OURS)], ids=["vaa", "hold"]
)
def test_preferences_are_learnt(
    cls: Any,
    options: dict[str, Any],
    make: Callable[..., Any],
    model: PreTrainedModel,
    preferences: Dataset,
) -> None:
    trainer = make(cls, model, preferences, max_steps=8, beta=1.0, **options)
    trainer.train()
    losses = [e["safety_loss"] for e in trainer.state.log_history if "group" in e]
    assert len(losses) == 8
    # With equal policies the loss of a pair is log 2; the perturbation climbs above it.
    assert losses[-1] < losses[0]
    assert {"vulnerable", "invulnerable"} == set(trainer.names)


@pytest.mark.parametrize("options", [{}, {"mixture": "both", "every": 1}, {"control": "shuffled"}])
def test_hold_goes_before_trls_supervised_trainer(
    options: dict[str, Any], make: Callable[..., Any], model: PreTrainedModel, supervised: Dataset
) -> None:
    trainer = make(HoldSft, model, supervised, max_steps=6, **OURS, **options)
    trainer.train()
    losses = [e["safety_loss"] for e in trainer.state.log_history if "safety_loss" in e]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert head_loss._reads_last_states[model], "the refusals' logits take a pass of their own"


def test_what_hold_asks_of_first_tokens_has_a_gradient_over_trls_loss(
    make: Callable[..., Any], model: PreTrainedModel, supervised: Dataset
) -> None:
    """TRL's loss makes no logits: they must come from a pass that can be trained on."""
    model = model.double().eval()
    trainer = make(HoldSft, model, supervised, **OURS, refuse=3.0)
    plain = make(HoldSft, model, supervised, **OURS, refuse=0.0)
    batch = trainer.collate_positions([0, 1, 2])
    items = torch.tensor(answer_tokens(batch))
    parameters = list(model.parameters())
    found, without = (
        torch.autograd.grad(one.scaled_loss(model, batch, items), parameters)
        for one in (trainer, plain)
    )
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    logs = model(**inputs).logits.log_softmax(-1)
    missed: Any = 0.0
    for row, labels in enumerate(batch["labels"].tolist()):
        start = next(i for i, label in enumerate(labels) if label != -100)
        right = sorted({*trainer.refusals.tolist(), labels[start]})
        length = sum(label != -100 for label in labels)
        missed = missed - length * logs[row, start - 1, right].logsumexp(0)
    wanted = torch.autograd.grad(3.0 * missed / items, parameters)
    for a, b, c in zip(found, without, wanted, strict=True):
        torch.testing.assert_close(a - b, c, rtol=1e-4, atol=1e-7)


def test_hold_refuses_rows_whose_prompts_are_trained_on(
    make: Callable[..., Any], model: PreTrainedModel, supervised: Dataset
) -> None:
    rows = [{"messages": [*row["prompt"], *row["completion"]]} for row in supervised]  # type: ignore[misc]
    whole = Dataset.from_list(rows)
    with pytest.raises(UsageError, match="here the loss covers the prompt as well: give prompt"):
        make(HoldSft, model, whole, **OURS)
    make(HoldSft, model, whole, **OURS, refuse=0.0, comply=0.0)
    make(HoldSft, model, whole, **OURS, assistant_only_loss=True)


def test_rows_may_be_evaluated_on_the_way(
    make: Callable[..., Any], model: PreTrainedModel, supervised: Dataset
) -> None:
    evaluated = {"eval_dataset": supervised.select(range(6)), "eval_strategy": "steps"}
    trainer = make(VaaSft, model, supervised, max_steps=2, eval_steps=1, **evaluated)
    trainer.train()
    losses = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    assert len(losses) == 2
    assert losses[1] < losses[0]


def test_rows_that_move_or_are_not_there_are_refused(
    make: Callable[..., Any], model: PreTrainedModel, supervised: Dataset, data: AlignmentData
) -> None:
    with pytest.raises(UsageError, match="shuffle_dataset=True moves rows after they were counted"):
        make(VaaSft, model, supervised, shuffle_dataset=True)
    rows = AlignmentData.of(supervised, data.groups)  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match=r"4 of the \d+ rows of `data` are not in"):
        make(VaaSft, model, supervised.select(range(4, len(supervised))), rows)


def test_repnoise_goes_before_preferences(
    make: Callable[..., Any], model: PreTrainedModel, preferences: Dataset
) -> None:
    trainer = make(RepNoiseDpo, model, preferences, max_steps=1)
    trainer.train()
    assert any("mmd" in e for e in trainer.state.log_history)


def test_preference_batches_part_pairs_and_not_halves(
    make: Callable[..., Any], model: PreTrainedModel, preferences: Dataset, data: AlignmentData
) -> None:
    from holdfast.methods._batches import by_safety

    trainer = make(VaaDpo, model, preferences)
    batch = trainer.collate_positions([0, 1, 2, 3])
    batch["is_safety"] = torch.tensor([True, False, False, True])
    safe, other = by_safety(batch)
    assert torch.equal(safe["input_ids"], batch["input_ids"][[0, 3, 4, 7]])
    width = other["input_ids"].shape[1]  # without what only the longer rows need
    wanted = batch["completion_mask"][[1, 2, 5, 6]]
    assert torch.equal(other["completion_mask"], wanted[:, :width])
    assert not wanted[:, width:].any()


def test_packed_rows_are_refused(
    make: Callable[..., Any], model: PreTrainedModel, supervised: Dataset
) -> None:
    with pytest.raises(UsageError, match="packing=True puts several rows into one"):
        make(VaaSft, model, supervised, packing=True, max_length=64)


def test_rows_of_other_groups(data: AlignmentData) -> None:
    rows = Dataset.from_list([{"prompt": "a", "completion": "b"}])
    with pytest.raises(MismatchError, match="none of the 1 rows of the dataset is in the groups"):
        AlignmentData.of(rows, data.groups)  # type: ignore[arg-type]


def test_a_dataset_of_plain_text_has_no_answers(data: AlignmentData) -> None:
    rows = Dataset.from_list([{"text": "a b"}])
    with pytest.raises(DataError, match="row 1: has the columns text; it needs messages, prompt"):
        AlignmentData.of(rows, data.groups)  # type: ignore[arg-type]


def test_nothing_is_sent_anywhere(
    make: Callable[..., Any],
    model: PreTrainedModel,
    supervised: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[object] = []
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **k: sent.append(k))
    monkeypatch.delenv("CI", raising=False)
    make(VaaSft, model, supervised)
    assert not sent
