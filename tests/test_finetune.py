"""The fine-tuning loop against one written out, resumed against uninterrupted, bit for bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import TrainingError, UsageError
from holdfast.examples import Examples
from holdfast.models.encoding import collate, encode
from holdfast.runtime import progress
from holdfast.tuning.loop import FinetuneConfig, Hooks, Tuning, finetune, steps_done

Make = Callable[..., PreTrainedModel]
Weights = Callable[..., dict[str, torch.Tensor]]
Same = Callable[..., bool]
CONFIG = FinetuneConfig(learning_rate=3e-3, steps=7, batch_size=5, every=3, seed=4)


def by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Examples
) -> list[float]:
    """Seven steps of AdamW over shuffled epochs of 12 rows: batches of 5, 5 and 2."""
    encoded = encode(tokenizer, rows, CONFIG.max_length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(4)
    model.train()
    losses: list[float] = []
    while len(losses) < 7:
        order = torch.randperm(12, generator=generator).tolist()
        for batch in (order[:5], order[5:10], order[10:]):
            if len(losses) == 7:
                break
            loss = model(**collate([encoded[i] for i in batch], 0)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("worth_a_pass", [1, 256])
def test_equals_a_loop_written_out(
    worth_a_pass: int,
    monkeypatch: pytest.MonkeyPatch,
    rows: Any,
    make_model: Make,
    tokenizer: PreTrainedTokenizerBase,
    weights_of: Weights,
) -> None:
    monkeypatch.setattr("holdfast.models.encoding.WORTH_A_PASS", worth_a_pass)
    # In float64, so that the loss on answer positions and the fused AdamW may round differently.
    mine, theirs = (make_model(vocab=len(tokenizer)).double() for _ in range(2))
    seen: list[tuple[int, float]] = []
    chosen = rows.harmful[:12]
    finetune(mine, tokenizer, chosen, CONFIG, on_snapshot=lambda *point: seen.append(point))
    losses = by_hand(theirs, tokenizer, chosen)
    expected = weights_of(theirs)
    for name, weight in weights_of(mine).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-6)
    # Checkpoints every third step and at the last, with the mean loss since the one before.
    assert [step for step, _ in seen] == [3, 6, 7]
    means = [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    assert [loss for _, loss in seen] == pytest.approx(means, rel=1e-6)
    assert losses[-1] < losses[0]
    assert not mine.training


@pytest.mark.parametrize("at", [3, 5, 7])
@pytest.mark.parametrize(("architecture", "dropout"), [("llama", 0.0), ("opt", 0.3)])
def test_resumed_equals_uninterrupted(
    architecture: str,
    dropout: float,
    at: int,
    rows: Any,
    make_model: Make,
    tokenizer: PreTrainedTokenizerBase,
    weights_of: Weights,
    same: Same,
    tmp_path: Path,
) -> None:
    """Interrupt after step `at`: at a checkpoint, between two, and at the last one."""
    resume = tmp_path / "work" / "state.safetensors"
    points: dict[str, list[tuple[int, float]]] = {"whole": [], "parts": []}

    def fresh() -> PreTrainedModel:
        return make_model(architecture, vocab=len(tokenizer), dropout=dropout)

    whole = fresh()
    finetune(
        whole, tokenizer, rows.harmful, CONFIG, on_snapshot=lambda *p: points["whole"].append(p)
    )

    def note(what: str, done: int, total: int) -> None:
        assert (what, total) == ("fine-tuning", 7)
        if done == at:
            os.kill(os.getpid(), signal.SIGINT)

    first = fresh()
    with pytest.raises(KeyboardInterrupt), progress.showing(note):
        finetune(
            first,
            tokenizer,
            rows.harmful,
            CONFIG,
            on_snapshot=lambda *p: points["parts"].append(p),
            resume=resume,
        )
    assert resume.exists()
    assert [p.name for p in resume.parent.iterdir()] == [resume.name]
    second = fresh()
    finetune(
        second,
        tokenizer,
        rows.harmful,
        CONFIG,
        on_snapshot=lambda *p: points["parts"].append(p),
        resume=resume,
    )
    assert same(weights_of(second), weights_of(whole))
    assert points["parts"] == points["whole"]


def test_interrupted_inside_a_checkpoint(
    rows: Any,
    make_model: Make,
    tokenizer: PreTrainedTokenizerBase,
    weights_of: Weights,
    same: Same,
    tmp_path: Path,
) -> None:
    whole, first, second = (make_model(vocab=len(tokenizer)) for _ in range(3))
    finetune(whole, tokenizer, rows.harmful, CONFIG)

    def press(done: int, loss: float) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    resume = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        finetune(first, tokenizer, rows.harmful, CONFIG, on_snapshot=press, resume=resume)
    assert not same(weights_of(first), weights_of(whole))
    finetune(second, tokenizer, rows.harmful, CONFIG, resume=resume)
    assert same(weights_of(second), weights_of(whole))


def test_interrupted_without_a_state_file(
    rows: Any, make_model: Make, tokenizer: PreTrainedTokenizerBase
) -> None:
    done: list[int] = []

    def press(step: int, loss: float) -> None:
        done.append(step)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        finetune(
            make_model(vocab=len(tokenizer)), tokenizer, rows.harmful, CONFIG, on_snapshot=press
        )
    assert done == [3]


def test_the_seed_decides_and_the_global_random_state_does_not(
    rows: Any, make_model: Make, tokenizer: PreTrainedTokenizerBase, weights_of: Weights, same: Same
) -> None:
    found = []
    for state, seed in ((1, 4), (2, 4), (1, 5)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        model = make_model("opt", vocab=len(tokenizer), dropout=0.3)
        config = FinetuneConfig(learning_rate=3e-3, steps=3, batch_size=5, seed=seed)
        finetune(model, tokenizer, rows.harmful, config)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(weights_of(model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_a_snapshot_may_end_the_training(
    rows: Any, make_model: Make, tokenizer: PreTrainedTokenizerBase, weights_of: Weights, same: Same
) -> None:
    short, whole = (make_model(vocab=len(tokenizer)) for _ in range(2))
    seen: list[int] = []

    def enough(step: int, loss: float) -> bool:
        seen.append(step)
        return step >= 6

    finetune(short, tokenizer, rows.harmful, CONFIG, on_snapshot=enough)
    assert seen == [3, 6]
    assert not short.training
    finetune(whole, tokenizer, rows.harmful, replace(CONFIG, steps=6))
    assert same(weights_of(short), weights_of(whole))


def test_frozen_parameters_stay(
    rows: Any, make_model: Make, tokenizer: PreTrainedTokenizerBase, weights_of: Weights
) -> None:
    model = make_model(vocab=len(tokenizer))
    before = weights_of(model)
    for name, p in model.named_parameters():
        p.requires_grad_("mlp" in name)
    finetune(model, tokenizer, rows.harmful, CONFIG)
    for name, value in weights_of(model).items():
        assert torch.equal(value, before[name]) is ("mlp" not in name), name


def test_a_loss_that_is_not_finite(
    rows: Any, make_model: Make, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_model(vocab=len(tokenizer))
    steps = []

    def poison(done: int, loss: float) -> None:
        steps.append(done)
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)

    with pytest.raises(TrainingError, match=r"loss is nan at step 4, .*Lower the learning rate"):
        finetune(model, tokenizer, rows.harmful, CONFIG, on_snapshot=poison)
    assert steps == [3]
    assert not model.training


class InfiniteGradient(Hooks):
    """From its third call on, the loss is finite and its gradient is not: sqrt at 0."""

    def loss(self, tuning: Tuning, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = super().loss(tuning, batch)
        if tuning.done < 2:
            return loss
        weight = next(iter(tuning.parameters))
        return loss + (weight * 0).abs().sum().sqrt()


def test_a_gradient_that_is_not_finite_does_not_move_the_weights(
    rows: Any, make_model: Make, tokenizer: PreTrainedTokenizerBase, weights_of: Any
) -> None:
    model = make_model(vocab=len(tokenizer))
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def keep(done: int, loss: float) -> None:
        seen[done] = weights_of(model)

    config = replace(CONFIG, guard=InfiniteGradient(), every=1)
    with pytest.raises(
        TrainingError, match=r"gradient is not finite at step 3, though the loss is .*Lower"
    ):
        finetune(model, tokenizer, rows.harmful, config, on_snapshot=keep)
    assert list(seen) == [1, 2]
    assert all(torch.equal(value, seen[2][name]) for name, value in weights_of(model).items())


def test_weights_that_overflow_stop_before_the_checkpoint(
    rows: Any,
    make_model: Make,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = torch.optim.AdamW.step

    def overflowing(self: torch.optim.AdamW, closure: None = None) -> None:
        step(self, closure)
        with torch.no_grad():
            self.param_groups[0]["params"][-1].mul_(1e38).mul_(1e38)

    monkeypatch.setattr(torch.optim.AdamW, "step", overflowing)
    config = replace(CONFIG, every=1)
    seen: list[int] = []
    with pytest.raises(TrainingError, match="weights are not finite after step 1.*Lower the learn"):
        finetune(
            make_model(vocab=len(tokenizer)),
            tokenizer,
            rows.harmful,
            config,
            on_snapshot=lambda done, loss: seen.append(done),
        )
    assert seen == []


def test_weights_that_came_broken_are_named(
    rows: Any, make_model: Make, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_model(vocab=len(tokenizer))
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(TrainingError, match=r"step 1.*weights that are not finite: .*weight"):
        finetune(model, tokenizer, rows.harmful, CONFIG)


def test_no_rows(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UsageError, match="nothing: no rows to train on"):
        finetune(make_model(vocab=len(tokenizer)), tokenizer, Examples([], name="nothing"), CONFIG)


@pytest.mark.parametrize(
    ("steps", "every", "spacing", "expected"),
    [
        (10, 4, 1.0, [4, 8, 10]),
        (8, 4, 1.0, [4, 8]),
        (3, 5, 1.0, [3]),
        (100, 10, 2.0, [10, 30, 70, 100]),  # gaps 10, 20, 40, 80
        (20, 2, 1.5, [2, 5, 10, 16, 20]),  # 2, 2 + 3, 5 + 4.5 = 9.5, 9.5 + 6.75 = 16.25, 20
    ],
)
def test_checkpoints(steps: int, every: int, spacing: float, expected: list[int]) -> None:
    found = FinetuneConfig(steps=steps, every=every, spacing=spacing).checkpoints()
    assert sorted(found) == expected


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_schedule_is_that_of_transformers(
    schedule: Any, rows: Any, make_model: Make, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The rates of a step each, against the scheduler of the same name without warm-up."""
    from transformers import get_scheduler

    config = replace(CONFIG, schedule=schedule)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=0, num_training_steps=7)
    expected = []
    for _ in range(7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert [config.rate(done) for done in range(7)] == pytest.approx(expected)


def test_a_falling_rate_moves_less(
    rows: Any, make_model: Make, tokenizer: PreTrainedTokenizerBase, weights_of: Weights
) -> None:
    def moved(schedule: Any) -> float:
        model = make_model(vocab=len(tokenizer))
        before = weights_of(model)
        finetune(model, tokenizer, rows.harmful[:12], replace(CONFIG, schedule=schedule))
        after = weights_of(model)
        return sum(float((after[k] - before[k]).square().sum()) for k in after)

    assert moved("linear") < moved("constant")
    assert moved("cosine") < moved("constant")


def test_a_checkpoint_that_could_not_be_looked_at_is_looked_at_again(
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    tmp_path: Path,
) -> None:
    config = replace(CONFIG, steps=6, every=2)
    resume, seen, fails = tmp_path / "state.safetensors", [], {4}

    def look(done: int, loss: float) -> None:
        if done in fails:
            fails.clear()
            raise UsageError("the judge is down")
        seen.append((done, loss))

    def run(state: Path | None) -> dict[str, torch.Tensor]:
        model = make_model(vocab=len(tokenizer))
        finetune(model, tokenizer, rows.harmful, config, on_snapshot=look, resume=state)
        return model.state_dict()

    with pytest.raises(UsageError, match="judge is down"):
        run(resume)
    assert steps_done(resume) == 4
    again = run(resume)
    continued = list(seen)
    seen.clear()
    whole = run(None)
    assert continued == seen
    assert [done for done, _ in seen] == [2, 4, 6]
    assert all(torch.equal(again[name], value) for name, value in whole.items())
