"""What every alignment method must do, with all weights and with LoRA."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast import plugins
from holdfast.errors import HoldfastError, TrainingError, UsageError
from holdfast.methods._batches import Batch, answer_tokens
from holdfast.methods.base import AlignmentData, AlignmentTrainer
from holdfast.models import adapters
from holdfast.results.files import write_json

SCALE = 2.0**12
"""Of fp16's loss: large enough to be seen where it is left in a gradient."""

Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]


@pytest.fixture(params=plugins.available("methods"))
def method(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["full", "lora"])
def model(
    request: pytest.FixtureRequest,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
) -> PreTrainedModel:
    made = make_model(vocab=len(tokenizer))
    return made if request.param == "full" else adapters.add_lora(made, 2, seed=0)


@pytest.fixture
def whole(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Return a model of which all weights are trained."""
    return make_model(vocab=len(tokenizer))


Make = Callable[..., AlignmentTrainer]


def frozen(model: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}


def first_batches(trainer: Any, n: int) -> list[Batch]:
    """Draw the micro-batches of the first step, outside of training."""
    trainer.state.max_steps = trainer.args.max_steps
    trainer.current_gradient_accumulation_steps = n
    loader = (trainer.collate_positions(range(i, len(trainer.rows), 7)) for i in range(n))
    batches: list[Batch] = trainer.draw_batches(loader, n)
    return batches


def gradient(trainer: Any, batches: list[Batch], total: int) -> list[Tensor]:
    trainer.model.zero_grad()
    for batch in batches:
        trainer.accumulate(trainer.model, batch, torch.tensor(total))
    return [p.grad.clone() for p in trainer.trainable_parameters()]


def test_three_steps_move_only_what_is_trainable(
    method: str, model: PreTrainedModel, make_trainer: Make, weights_of: Weights, same: Same
) -> None:
    still, start = frozen(model), weights_of(model)
    trainer = make_trainer(method, model)
    trainer.train()
    assert trainer.state.global_step == 3
    assert same(frozen(model), still)
    assert not same(weights_of(model), start)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_the_optimizer_alone_moves_the_weights(
    method: str, model: PreTrainedModel, make_trainer: Make, weights_of: Weights, same: Same
) -> None:
    trainer: Any = make_trainer(method, model, gradient_accumulation_steps=2)
    accumulate, unmoved = trainer.accumulate, []

    def watched(*args: Any) -> Tensor:
        before = weights_of(model)
        loss: Tensor = accumulate(*args)
        unmoved.append(same(weights_of(model), before))
        assert not loss.requires_grad
        return loss

    trainer.accumulate = watched
    trainer.train()
    assert unmoved == [True] * 6


def test_a_gradient_that_is_not_finite_leaves_the_last_checkpoint(
    method: str, model: PreTrainedModel, make_trainer: Make, weights_of: Weights
) -> None:
    trainer: Any = make_trainer(method, model, save_steps=1, save_strategy="steps")
    accumulate, broken = trainer.accumulate, trainer.trainable_parameters()[-1]

    def watched(*args: Any) -> Tensor:
        loss: Tensor = accumulate(*args)
        if trainer.state.global_step == 2:
            broken.grad.view(-1)[0] = torch.inf
        return loss

    trainer.accumulate = watched
    with pytest.raises(TrainingError, match="gradient is not finite at step 3, though the loss is"):
        trainer.train()
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    trainer.accumulate = accumulate
    checkpoints = sorted(path.name for path in Path(trainer.args.output_dir).iterdir())
    assert checkpoints[-1] == "checkpoint-2"
    trainer.train(resume_from_checkpoint=str(Path(trainer.args.output_dir, "checkpoint-2")))
    assert trainer.state.global_step == 3
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_forward_that_raises_leaves_the_weights(
    nth: int,
    method: str,
    model: PreTrainedModel,
    make_trainer: Make,
    weights_of: Weights,
    same: Same,
) -> None:
    trainer: Any = make_trainer(method, model)
    accumulate, before = trainer.accumulate, [weights_of(model)]
    calls: list[int] = []

    def watched(*args: Any) -> Tensor:
        before[0] = weights_of(model)
        loss: Tensor = accumulate(*args)
        return loss

    def boom(*args: object) -> None:
        calls.append(1)
        if len(calls) == nth:
            raise RuntimeError("boom")

    trainer.accumulate = watched
    model.register_forward_pre_hook(boom)
    with pytest.raises(RuntimeError, match="boom"):
        trainer.train()
    assert same(weights_of(model), before[0])


def test_the_neutral_options_give_sfts_gradient(
    method: str, model: PreTrainedModel, make_trainer: Make
) -> None:
    neutral = plugins.find("methods", method).neutral
    plain = make_trainer("sft", copy.deepcopy(model))
    trainer = make_trainer(method, model, **neutral)
    (batch,) = first_batches(trainer, 1)
    first_batches(plain, 1)
    total = answer_tokens(batch)
    found, wanted = (gradient(t, [batch], total) for t in (trainer, plain))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_parts_by_length_add_up(
    method: str,
    model: PreTrainedModel,
    make_trainer: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    neutral = plugins.find("methods", method).neutral
    trainer = make_trainer(method, model, **neutral)
    (batch,) = first_batches(trainer, 1)
    assert len(batch["attention_mask"].sum(1).unique()) > 1
    found = []
    for worth_a_pass in (256, 1):
        monkeypatch.setattr("holdfast.models.encoding.WORTH_A_PASS", worth_a_pass)
        found.append(gradient(trainer, [batch], answer_tokens(batch)))
    for whole, parted in zip(*found, strict=True):
        torch.testing.assert_close(parted, whole, rtol=1e-5, atol=1e-7)


def test_micro_batches_add_up(method: str, model: PreTrainedModel, make_trainer: Make) -> None:
    neutral = plugins.find("methods", method).neutral
    trainer = make_trainer(method, model, **neutral)
    batches = first_batches(trainer, 2)
    total = sum(map(answer_tokens, batches))
    both = gradient(trainer, batches, total)
    each = [gradient(trainer, [batch], total) for batch in batches]
    for whole, one, two in zip(both, *each, strict=True):
        torch.testing.assert_close(whole, one + two, rtol=1e-5, atol=1e-7)


def test_a_step_never_mixes_groups(
    method: str, model: PreTrainedModel, make_trainer: Make, data: AlignmentData
) -> None:
    if "groups" not in plugins.find("methods", method).needs:
        pytest.skip("the method knows no groups")
    trainer: Any = make_trainer(method, model)
    assert data.groups is not None
    label_of = dict(zip([r.ids for r in trainer.rows], data.groups.labels.tolist(), strict=False))
    for _ in range(8):
        labels = {
            label_of[tuple(ids[: sum(mask)])]
            for batch in first_batches(trainer, 2)
            for ids, mask, safe in zip(
                *(batch[k].tolist() for k in ("input_ids", "attention_mask", "is_safety")),
                strict=True,
            )
            if safe
        }
        assert len(labels) == 1


@pytest.mark.parametrize(
    ("more", "at"),
    [
        ({"optim": "adamw_torch", "learning_rate": 3e-3}, 2),
        # In the second pass over the rows, which are 56.
        ({"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 28}, 3),
    ],
    ids=["plain", "by length"],
)
def test_resume_equals_the_uninterrupted_run(
    more: dict[str, Any],
    at: int,
    method: str,
    model: PreTrainedModel,
    make_trainer: Make,
    tmp_path: Path,
    weights_of: Weights,
    same: Same,
) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": at, **more}
    start = copy.deepcopy(model)
    whole = make_trainer(method, model, **options)
    assert len(whole.rows) == 56
    whole.train()
    again = make_trainer(method, start, **options)
    torch.rand(7)  # what else has drawn from torch's generator must not matter
    again.train(resume_from_checkpoint=str(tmp_path / "work" / f"checkpoint-{at}"))
    assert again.state.global_step == 4
    assert same(weights_of(start), weights_of(model))
    assert again.method_state() == whole.method_state()


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    method: str,
    model: PreTrainedModel,
    make_trainer: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    start = copy.deepcopy(model)
    trainer = make_trainer(method, model, **options)
    written: list[Path] = []

    def write(path: Path, state: Any) -> None:
        written.append(path)
        if len(written) == 2:
            raise OSError("no room")
        write_json(path, state)

    monkeypatch.setattr("holdfast.methods._checkpoints.write_json", write)
    with pytest.raises(HoldfastError, match=r"checkpoint-4: the checkpoint could not be written"):
        trainer.train()
    assert [p.name for p in (tmp_path / "work").glob("checkpoint-*")] == ["checkpoint-2"]
    again = make_trainer(method, start, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "work" / "checkpoint-2"))
    assert [p.name for p in (tmp_path / "work").glob("checkpoint-*")] == ["checkpoint-4"]


def test_what_it_needs_is_checked_first(
    method: str, model: PreTrainedModel, make_trainer: Make, data: AlignmentData
) -> None:
    cls = plugins.find("methods", method)
    assert cls.needs <= {"groups", "harmful"}
    for need in cls.needs:
        lacking = dataclasses.replace(data, **{need: None})  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=f"needs --{need}"):
            make_trainer(method, model, lacking)


def test_safety_rows_alone_are_enough(
    method: str, model: PreTrainedModel, make_trainer: Make, data: AlignmentData
) -> None:
    rows = AlignmentData(data.safety, groups=data.groups, harmful=data.harmful)
    trainer = make_trainer(method, model, rows, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1


# -------------------------------------------------------------- under what people train with


def moved(method: str, model: PreTrainedModel, make_trainer: Make, **options: Any) -> Tensor:
    """Return where one step of gradient descent brings all trainable weights, from a copy."""
    mine = copy.deepcopy(model)
    trainer: Any = make_trainer(method, mine, max_steps=1, learning_rate=1.0, **options)
    if options.get("fp16"):  # accelerate does this on an accelerator only
        trainer.accelerator.native_amp = True
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    before = [p.detach().clone() for p in trainer.trainable_parameters()]
    torch.manual_seed(0)
    trainer.train()
    pairs = zip(trainer.trainable_parameters(), before, strict=True)
    return torch.cat([(p.detach() - old).double().flatten() for p, old in pairs])


def test_gradient_checkpointing_changes_nothing(
    method: str, model: PreTrainedModel, make_trainer: Make
) -> None:
    saving = {"activation_checkpointing": True}
    saving |= {"activation_checkpointing_kwargs": {"use_reentrant": False}}
    plain = moved(method, model, make_trainer)
    torch.testing.assert_close(
        moved(method, model, make_trainer, **saving), plain, rtol=1e-4, atol=1e-6
    )


def test_bfloat16_autocast_steps_nearly_the_same_way(
    method: str, whole: PreTrainedModel, make_trainer: Make
) -> None:
    plain, half = (moved(method, whole, make_trainer, bf16=on) for on in (False, True))
    assert not torch.equal(plain, half)
    assert torch.cosine_similarity(plain, half, dim=0) > 0.95


def test_weights_of_bfloat16_under_autocast(
    method: str, whole: PreTrainedModel, make_trainer: Make
) -> None:
    step = moved(method, whole.bfloat16(), make_trainer, bf16=True)
    assert torch.isfinite(step).all()
    assert step.any()


def test_float16_autocast_and_its_loss_scale_step_the_same_way(
    method: str, whole: PreTrainedModel, make_trainer: Make
) -> None:
    plain, half = (moved(method, whole, make_trainer, fp16=on) for on in (False, True))
    assert not torch.equal(plain, half)
    assert torch.cosine_similarity(plain, half, dim=0) > 0.99
    assert float(half.norm()) == pytest.approx(float(plain.norm()), rel=0.02)


def test_clipping_bounds_the_whole_update(
    method: str, whole: PreTrainedModel, make_trainer: Make
) -> None:
    step = moved(method, whole, make_trainer, max_grad_norm=1e-3)
    assert float(step.norm()) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("option", ["workers", "by length"])
def test_the_rows_are_the_same_whoever_loads_them(
    option: str,
    method: str,
    whole: PreTrainedModel,
    make_trainer: Make,
    weights_of: Weights,
    same: Same,
) -> None:
    ends = []
    for turn in range(2):
        mine = copy.deepcopy(whole)
        workers = {"dataloader_num_workers": turn} if option == "workers" else {}
        lengths = {"train_sampling_strategy": "group_by_length"} if option == "by length" else {}
        make_trainer(method, mine, max_steps=2, **workers, **lengths).train()
        ends.append(weights_of(mine))
    assert same(*ends)


def test_tied_embeddings_move_as_one(
    method: str,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    make_trainer: Make,
) -> None:
    model = make_model(vocab=len(tokenizer), tied=True)
    # A random model with tied embeddings says nothing, so there are no words of the base's own.
    rows = {"attack_rows": "harmful"} if method == "hold" else {}
    trainer = make_trainer(method, model, **rows)
    trainer.train()
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    assert first.weight is last.weight
    assert bool(torch.isfinite(first.weight).all())
