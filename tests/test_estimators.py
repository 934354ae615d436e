"""What the estimators find where the answer is known, what they leave alone, and their errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import UsageError
from holdfast.estimators.attack_direction import AttackDirection, critical_steps
from holdfast.examples import Example, Examples
from holdfast.models import checkpoints, encoding, losses
from holdfast.models.losses import prefix_margins, refusal_margin, refusal_tokens
from holdfast.models.weights import perturb
from holdfast.tuning.directions import descent_direction_to_base, forward_derivative
from holdfast.tuning.flip_step import flip_step
from holdfast.tuning.loop import FinetuneConfig, finetune

Weights = Callable[..., dict[str, Tensor]]
Same = Callable[..., bool]


class Lines:
    """Margins that fall in straight lines: free - slope x step; counts what is asked."""

    def __init__(self, free: Sequence[float], slopes: Sequence[float]) -> None:
        self.free, self.slopes = np.array(free), np.array(slopes)
        self.asked: list[tuple[float, int]] = []

    def __call__(self, size: float, positions: Sequence[int]) -> np.ndarray:
        self.asked.append((size, len(positions)))
        found: np.ndarray = (self.free - self.slopes * size)[list(positions)]
        return found


# ---------------------------------------------------------------------------------- critical step


def test_critical_steps_are_the_known_crossings() -> None:
    # Linear interpolation is exact on lines, between whatever rungs the crossing lies.
    crossings = np.array([0.01, 0.13, 0.5, 1.0, 1.9, 7.9])
    margins = Lines((2 * crossings).tolist(), [2.0] * 6)
    assert critical_steps(margins, 6, 1.0) == pytest.approx(-np.log(crossings))
    sizes = [size for size, _ in margins.asked]
    up, down = [2 ** (k / 2) for k in range(1, 7)], [2 ** (-k / 2) for k in range(1, 7)]
    assert sizes == pytest.approx([1.0, *up, *down, 0.0])  # at 1 itself the margin 0 counts as held
    # Who has crossed is not asked again: three hold at 1, of which one crosses by sqrt 2, one by 2.
    assert [n for _, n in margins.asked] == [6, 3, 2, 1, 1, 1, 1, 3, 3, 2, 2, 2, 2, 1]


def test_critical_steps_outside_the_ladder_keep_their_order() -> None:
    free = [-0.5, -2.0, 1e-9, 1.0, 0.3, 5.0, 6.0]
    #        refused no more from the start | at once | at 1 | never, never, never
    margins = Lines(free, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    scores = critical_steps(margins, 7, 1.0)
    # Sooner forgotten first: the lower margin at the start, then the crossings, then the rest.
    assert np.argsort(-scores).tolist() == [1, 0, 2, 3, 4, 5, 6]
    assert np.isfinite(scores).all()


def test_critical_steps_of_a_margin_of_zero_are_finite() -> None:
    scores = critical_steps(Lines([0.0, 1.0], [1.0, 1.0]), 2, 1.0)
    assert np.isfinite(scores).all()
    assert scores[0] > scores[1]


def test_critical_steps_cost_two_to_three_passes() -> None:
    # Crossings spread lognormally by a factor of two around the step that flips half.
    crossings = np.exp(np.random.default_rng(0).normal(0, math.log(2), 500))
    margins = Lines(crossings.tolist(), [1.0] * 500)
    critical_steps(margins, 500, 1.0)
    # Each way: 1 + the rungs until the crossing; half a normal of deviation 2 rungs has mean 1.6.
    assert sum(n for _, n in margins.asked) / 500 == pytest.approx(1 + 1.6 + 0.5, abs=0.15)


# ----------------------------------------------------------------------------------- flip step


def step_that_flips(margins: Lines, *, flip: float = 0.5, sample: int = 32) -> float:
    return flip_step(
        margins, len(margins.free), flip=flip, sample=sample, seed=0, what="the way there"
    )


@pytest.mark.parametrize(("flip", "crossing"), [(0.5, 3.0), (0.2, 1.0), (1.0, 5.0)])
def test_the_flip_step_flips_that_share_and_no_more(flip: float, crossing: float) -> None:
    # Five lines cross at 1, 2, 3, 4, 5: the share flipped reaches 20 % just after 1, and so on.
    margins = Lines([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    found = step_that_flips(margins, flip=flip)
    assert crossing < found
    if flip < 1:
        assert found <= crossing + 1


@given(
    crossings=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=32),
    flip=st.floats(0.05, 1.0),
)
def test_the_flip_step_keeps_its_promise_for_any_lines(crossings: list[float], flip: float) -> None:
    margins = Lines(crossings, [1.0] * len(crossings))
    step = step_that_flips(margins, flip=flip)
    assert len(margins.asked) <= 1 + 15 + 12  # doublings from 0.1 to 1e3, then the search
    share = float((margins(step, range(len(crossings))) < 0).mean())
    assert share >= flip


def test_the_share_is_of_those_that_are_held() -> None:
    # One of five is not refused to begin with; half of the other four have flipped just after 3.
    margins = Lines([-1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert 3 < step_that_flips(margins, flip=0.5) <= 4


def test_an_unlucky_sample_does_not_decide_that_nothing_is_held() -> None:
    # The row that is drawn is not refused; of the others one lets go at 2 and one at 3.
    drawn = int(np.random.default_rng(0).choice(4, 1, replace=False)[0])
    free = [2.0, 3.0, 4.0]
    free.insert(drawn, -1.0)
    margins = Lines(free, [1.0] * 4)
    assert 3 < step_that_flips(margins, flip=0.5, sample=1) <= 4
    assert [n for _, n in margins.asked][:2] == [1, 4]


def test_what_is_said_of_all_examples_was_looked_at_on_all() -> None:
    margins = Lines([-1.0] * 60 + [1.0] * 40, [1.0] * 100)
    with pytest.raises(UsageError, match="does not refuse 60% of all 100 examples"):
        step_that_flips(margins, sample=5)
    assert margins.asked[-1] == (0.0, 100)


def test_the_flip_step_is_found_in_few_looks() -> None:
    free = np.random.default_rng(0).lognormal(0, 1, 1000)
    margins = Lines(free.tolist(), [1.0] * 1000)
    step = step_that_flips(margins, sample=1000)
    assert 0.5 <= (free < step).mean() <= 0.5 + 1 / 16
    # 0, then 0.1 doubled until it passes the median of 1 (five times), then the search.
    assert len(margins.asked) <= 1 + 5 + 3


def test_the_flip_step_asks_the_sample_only() -> None:
    margins = Lines(np.linspace(1, 2, 500).tolist(), [1.0] * 500)
    step_that_flips(margins, sample=20)
    assert {n for _, n in margins.asked} == {20}


def test_a_model_that_never_lets_go() -> None:
    margins = Lines([1.0, 1.0], [0.0, 0.0])
    with pytest.raises(UsageError, match=r"no step up to .* flips 50% .* the way there"):
        step_that_flips(margins)


# -------------------------------------------------------------------------------- attack direction


@pytest.mark.parametrize("geometry", ["sign", "l2"])
def test_scores_are_the_margins_where_the_attack_leads(
    geometry: Any, aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    estimator = AttackDirection(harmful=rows.harmful, geometry=geometry)
    found = estimator.score(aligned, tokenizer, rows.safety, seed=0)
    encoded = encoding.encode(tokenizer, rows.safety, 256)
    tokens = refusal_tokens(encoded)
    # Sixteen harmful rows are fewer than `rows`: the direction is the gradient of them all.
    batch = encoding.collate(encoding.encode(tokenizer, rows.harmful, 256), 0)
    parameters = list(aligned.parameters())
    gradient = torch.autograd.grad(aligned(**batch).loss, parameters)
    if geometry == "sign":
        gradient = tuple(g.sign() for g in gradient)
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradient))
    step = float(found.facts["step"])

    def margins() -> list[float]:
        with torch.no_grad():
            return [
                refusal_margin(
                    aligned(input_ids=torch.tensor([row.ids[: row.start]])).logits[:, -1], tokens
                ).item()
                for row in encoded
            ]

    with torch.no_grad():
        for p, g in zip(parameters, gradient, strict=True):
            p.sub_(step * g / norm)
    moved = margins()
    # The order in which the rows are added up moves the gradient in its last digits.
    assert found.values == pytest.approx([-m for m in moved], abs=1e-2)
    assert 0.1 <= np.mean(found.values > 0) <= 0.1 + 1 / 16
    assert found.facts["source"] == "harmful"


@pytest.mark.parametrize("variant", ["first_flips", "critical_step", "derivative"])
@pytest.mark.parametrize("source", ["harmful", "base", "mismatched", "affirmative"])
def test_nothing_is_left_behind(
    source: str,
    variant: str,
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    weights_of: Weights,
    same: Same,
) -> None:
    for p in aligned.parameters():
        p.grad = torch.ones_like(p)
    before, state = weights_of(aligned), torch.get_rng_state()
    numpy_state = str(np.random.get_state())  # noqa: NPY002  # that it is not used
    estimator = AttackDirection(
        harmful=rows.harmful, benign=rows.benign, base="world", variant=variant, source=source
    )
    found = estimator.score(aligned, tokenizer, rows.safety, seed=0)
    assert found.values.shape == (24,)
    assert np.isfinite(found.values).all()
    assert same(weights_of(aligned), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert str(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert all(p.grad is not None and bool((p.grad == 1).all()) for p in aligned.parameters())


def test_weights_come_back_when_the_model_fails_on_the_way(
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    weights_of: Weights,
    same: Same,
) -> None:
    before = weights_of(aligned)
    moved: list[bool] = []

    def boom(*args: object) -> None:
        moved.append(not same(weights_of(aligned), before))
        if moved[-1]:
            raise RuntimeError("boom")

    handle = aligned.register_forward_pre_hook(boom)
    aligned.train()
    with pytest.raises(RuntimeError, match="boom"):
        AttackDirection(harmful=rows.harmful).score(aligned, tokenizer, rows.safety, seed=0)
    handle.remove()
    assert moved[-1]
    assert same(weights_of(aligned), before)
    assert aligned.training


def test_frozen_parameters_are_not_part_of_the_direction(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    for name, p in aligned.named_parameters():
        p.requires_grad_("mlp" in name)
    direction = AttackDirection(harmful=rows.harmful).direction(aligned, tokenizer, rows.safety, 0)
    assert [d.shape for d in direction] == [
        p.shape for p in aligned.parameters() if p.requires_grad
    ]
    assert math.sqrt(sum(float((d**2).sum()) for d in direction)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("variant", ["first_flips", "critical_step"])
def test_permuting_the_examples_permutes_the_scores(
    variant: str, aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    # All rows are in the sample, and the harmful rows are given: nothing is drawn by position.
    estimator = AttackDirection(harmful=rows.harmful, variant=variant)
    order = np.random.default_rng(0).permutation(24).tolist()
    straight = estimator.score(aligned, tokenizer, rows.safety, seed=0)
    turned = estimator.score(aligned, tokenizer, rows.safety.select(order), seed=0)
    assert turned.values == pytest.approx(straight.values[order], abs=1e-4)
    assert turned.facts["step"] == straight.facts["step"]


@pytest.mark.parametrize("variant", ["first_flips", "critical_step"])
def test_the_examples_an_attacker_aims_at_are_the_first_to_go(
    variant: str, aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    estimator = AttackDirection(harmful=rows.obliging, variant=variant)
    found = estimator.score(aligned, tokenizer, rows.safety, seed=0)
    ranks = np.argsort(np.argsort(found.values))
    assert ranks[:4].mean() >= 11.5 + 4  # chance is 11.5, its standard error 3.2


def test_the_derivative_is_exact(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    estimator = AttackDirection(harmful=rows.harmful, quantity="margin")
    direction = estimator.direction(aligned, tokenizer, rows.safety, 0)
    encoded = encoding.encode(tokenizer, rows.safety, 256)
    read = estimator._reader(aligned, encoded, 0)
    value, slope = forward_derivative(aligned, direction, lambda: read.tensor(range(24)))
    ends = []
    for side in (1e-2, -1e-2):
        with perturb(list(aligned.parameters()), [side * d for d in direction]):
            ends.append(read.tensor(range(24)))
    torch.testing.assert_close(value, read.tensor(range(24)), atol=1e-4, rtol=1e-4)
    # Float32 margins around 5 are good to 1e-6 of that, over 2e-2.
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-2, atol=2e-2, rtol=2e-2)
    found = estimator.changed(variant="derivative").score(aligned, tokenizer, rows.safety, seed=0)
    np.testing.assert_allclose(found.values, -slope.double().numpy(), atol=1e-3)
    assert found.facts["step"] == 0


def test_several_directions_give_a_standard_error(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    single = AttackDirection(harmful=rows.harmful)
    assert single.score(aligned, tokenizer, rows.safety, seed=0).errors is None
    found = single.changed(repeats=3).score(aligned, tokenizer, rows.safety, seed=0)
    parts = [single._attack_rows(rows.safety, 0, draw) for draw in range(3)]
    assert parts[0].ids != parts[1].ids  # sixteen rows: with one draw all are taken
    halves = [single.changed(repeats=3)._attack_rows(rows.safety, 0, draw) for draw in range(3)]
    assert [len(h) for h in halves] == [8, 8, 8]
    each = np.array(
        [
            single.changed(harmful=half, rows=8).score(aligned, tokenizer, rows.safety, seed=0)
            for half in halves
        ],
        dtype=object,
    )
    values = np.array([e.values for e in each])
    np.testing.assert_allclose(found.values, values.mean(0), atol=1e-3)
    assert found.errors is not None
    np.testing.assert_allclose(found.errors, values.std(0, ddof=1) / math.sqrt(3), atol=1e-3)


def test_further_steps_are_those_of_fine_tuning(
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    weights_of: Weights,
    same: Same,
) -> None:
    # In float64: where a gradient is nearly zero, Adam's step is what rounding makes of it.
    aligned.double()
    before = weights_of(aligned)
    estimator = AttackDirection(harmful=rows.harmful, steps=3, step_size=1e-3)
    found = estimator.direction(aligned, tokenizer, rows.safety, 0)
    assert same(weights_of(aligned), before)
    config = FinetuneConfig(learning_rate=1e-3, steps=3, batch_size=16)
    finetune(aligned, tokenizer, rows.harmful, config)
    moved = [p.detach() - before[name] for name, p in aligned.named_parameters()]
    norm = math.sqrt(sum(float((m**2).sum()) for m in moved))
    for d, m in zip(found, moved, strict=True):
        torch.testing.assert_close(d, m / norm, atol=1e-6, rtol=1e-4)


def test_the_prefix_margin_is_the_mean_gap_of_the_first_tokens(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    encoded = encoding.encode(tokenizer, rows.safety, 256)
    found = prefix_margins(aligned, encoded, 3, pad=0)
    for row, value in zip(encoded[:5], found, strict=False):
        with torch.no_grad():
            logits = aligned(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        gaps = []
        for t in range(row.start, row.start + 3):
            others = [float(x) for v, x in enumerate(logits[t - 1]) if v != row.ids[t]]
            gaps.append(float(logits[t - 1, row.ids[t]]) - max(others))
        assert float(value) == pytest.approx(np.mean(gaps), abs=1e-3)


def test_auto_reads_the_prefix_where_answers_begin_in_no_common_way(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    model = make_model(vocab=len(tokenizer))
    common = encoding.encode(tokenizer, rows.safety, 256)
    assert AttackDirection()._reader(model, common, 0).quantity == "margin"
    diverse = [encoding.Encoded((5, 10 + i, 1), 1) for i in range(40)]
    assert AttackDirection()._reader(model, diverse, 0).quantity == "prefix"
    assert AttackDirection(base="world")._reader(model, diverse, 0).quantity == "contrast"


@pytest.mark.parametrize("quantity", ["margin", "prefix"])
def test_fewer_rows_at_a_time_change_nothing(
    quantity: str, aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    whole = AttackDirection(harmful=rows.harmful, quantity=quantity, rows=7)
    parts = whole.changed(batch_size=2)
    one, other = (e.direction(aligned, tokenizer, rows.safety, 0) for e in (whole, parts))
    # Signs of gradients that are nearly 0 are rounding's; their share is small.
    alike = [float((a == b).float().mean()) for a, b in zip(one, other, strict=True)]
    assert min(alike) > 0.99
    found = [e.score(aligned, tokenizer, rows.safety, seed=0).values for e in (whole, parts)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-2, rtol=1e-2)


def test_the_contrast_is_the_difference_of_two_answers_log_probabilities(
    aligned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    prompts = rows.safety.prompts[:3]
    own, other = (
        encoding.encode(tokenizer, Examples.from_answers(prompts, [said] * 3, name="n"), 256)
        for said in ("i can not help", "to rig it")
    )
    found = losses.contrasts(aligned, own, other, pad=0, batch_size=2)

    def spoken(row: encoding.Encoded) -> float:
        with torch.no_grad():
            logits = aligned(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        return sum(float(logits[t - 1, row.ids[t]]) for t in range(row.start, len(row.ids)))

    wanted = [spoken(a) - spoken(b) for a, b in zip(own, other, strict=True)]
    assert found.tolist() == pytest.approx(wanted, abs=1e-3)


def test_the_contrast_is_read_where_both_models_answer(
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The base's answers are made up; those to the first two prompts are empty."""
    prompts = rows.safety.prompts
    given = dict.fromkeys(prompts, "to rig it") | dict.fromkeys(prompts[:2], "")

    def answered(model: Any, words: Any, prompts: Sequence[str], **_: Any) -> list[str]:
        return ["i can not"] * len(prompts) if model is aligned else [given[p] for p in prompts]

    monkeypatch.setattr("holdfast.models.generation.generate", answered)
    estimator = AttackDirection(harmful=rows.obliging, base="world", quantity="contrast")
    found = estimator.score(aligned, tokenizer, rows.safety, seed=0)
    unknown = [p in prompts[:2] for p in prompts]
    assert np.isnan(found.values).tolist() == unknown
    assert found.facts["quantity"] == "contrast"
    given.update(dict.fromkeys(given, ""))
    with pytest.raises(UsageError, match="its base both give an answer to only 0 of"):
        estimator.score(aligned, tokenizer, rows.safety, seed=0)
    with pytest.raises(UsageError, match="quantity=contrast needs the model before its alignment"):
        estimator.changed(base=None).score(aligned, tokenizer, rows.safety, seed=0)


def base_for(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, wider: int = 0
) -> checkpoints.Loaded:
    """Return a base with some columns more than there are tokens, as padded vocabularies have."""
    made = make_model(vocab=len(tokenizer) + wider, seed=7)
    return checkpoints.Loaded(made, tokenizer, "base", "")


@pytest.mark.parametrize("geometry", ["sign", "l2"])
def test_the_direction_to_the_base_is_down_the_divergence_of_the_first_token(
    geometry: Any,
    aligned: PreTrainedModel,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
) -> None:
    base, n = base_for(make_model, tokenizer, wider=3), len(tokenizer)
    found = descent_direction_to_base(
        base, aligned, tokenizer, rows.safety.prompts, geometry=geometry, batch_size=5
    )
    parameters = list(aligned.parameters())
    divergence = torch.zeros(())
    for prompt in rows.safety.prompts:
        ids = torch.tensor(encoding.encode_prompts(tokenizer, [prompt]))
        ours = aligned(input_ids=ids).logits[0, -1].log_softmax(-1)
        with torch.no_grad():
            theirs = base.model(input_ids=ids).logits[0, -1, :n].softmax(-1)
        divergence = divergence + (theirs * (theirs.log() - ours)).sum()
    gradient = list(torch.autograd.grad(divergence, parameters, allow_unused=True))
    gradient = [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradient, strict=True)
    ]
    if geometry == "sign":
        gradient = [g.sign() for g in gradient]
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradient))
    for d, g in zip(found, gradient, strict=True):
        if geometry == "sign":  # those of gradients that are nearly 0 are rounding's
            assert float((d * norm + g).abs().gt(0.01).float().mean()) < 0.01
        else:
            torch.testing.assert_close(d, -g / norm, atol=1e-5, rtol=1e-3)


def test_the_way_to_the_base_ends_in_what_the_base_says(
    tokenizer: PreTrainedTokenizerBase, aligned: PreTrainedModel, rows: Any
) -> None:
    base = checkpoints.load("world", device="cpu")
    estimator = AttackDirection(base="world", source="base")
    direction = estimator.direction(aligned, tokenizer, rows.safety, 0)
    step = estimator.score(aligned, tokenizer, rows.safety, seed=0).facts["step"]
    encoded = encoding.encode(tokenizer, rows.safety, 256)
    said = losses.first_logits(base.model, encoded, 0).argmax(1)

    def likely() -> float:
        with torch.no_grad():
            share = losses.first_logits(aligned, encoded, 0).softmax(1)
        return float(share.gather(1, said[:, None]).mean())

    before = likely()
    with perturb(list(aligned.parameters()), [4 * step * d for d in direction]):
        assert likely() > max(10 * before, 0.5)


def test_a_base_with_other_tokens_is_refused(
    aligned: PreTrainedModel,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
) -> None:
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["quite", "new"])
    added = checkpoints.Loaded(make_model(vocab=len(other)), other, "added", "")
    assert descent_direction_to_base(added, aligned, tokenizer, rows.safety.prompts)
    turned = copy.deepcopy(tokenizer)
    names = list(turned.get_vocab())
    turned.get_vocab = lambda: {name: i for i, name in enumerate(reversed(names))}
    moved = checkpoints.Loaded(make_model(vocab=len(turned)), turned, "turned", "")
    with pytest.raises(UsageError, match="the base has other tokens than the model .*mismatched"):
        descent_direction_to_base(moved, aligned, tokenizer, rows.safety.prompts)


def test_of_the_base_only_the_prompts_are_drawn(rows: Any) -> None:
    found = AttackDirection(base="world", source="base", rows=6)._attack_rows(rows.safety, 1)
    assert len(found) == 6
    assert set(found.ids) <= set(rows.safety.ids)


def test_auto_takes_what_there_is(rows: Any) -> None:
    assert AttackDirection(base="world", benign=rows.benign)._source() == "base"
    assert AttackDirection(harmful=rows.harmful, benign=rows.benign)._source() == "harmful"
    assert AttackDirection(benign=rows.benign)._source() == "mismatched"


def test_rows_behind_the_direction(rows: Any) -> None:
    harmful = AttackDirection(harmful=rows.harmful, rows=5)._attack_rows(rows.safety, 1)
    assert len(harmful) == 5
    assert set(harmful.ids) <= set(rows.harmful.ids)
    pairs = AttackDirection(benign=rows.benign, rows=7)._attack_rows(rows.safety, 1)
    assert len(pairs) == 7
    assert set(pairs.prompts) <= set(rows.safety.prompts)
    assert set(pairs.responses) <= set(rows.benign.responses)
    obliging = AttackDirection(source="affirmative", prefix="to")._attack_rows(rows.safety, 1)
    assert set(obliging.prompts) == set(rows.safety.prompts)
    assert set(obliging.responses) == {"to"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"variant": "best"},
            "variant='best' must be one of 'first_flips', 'critical",
        ),
        ({"geometry": "inf"}, "geometry='inf' must be one of 'sign', 'l2'"),
        (
            {"source": "hub"},
            "source='hub' must be one of 'auto', 'harmful', 'base', 'mism",
        ),
        ({"source": "harmful"}, "source=harmful needs harmful rows: give --harmful"),
        ({"source": "base"}, "source=base needs the model before its alignment: give --base"),
        ({"source": "mismatched"}, "source=mismatched needs benign rows: give --benign"),
        ({}, "give --base .the model before its alignment; the best choice., --harmful or"),
        ({"rows": -1}, "rows=-1 must be a whole number, at least 1"),
        ({"sample": 0}, "sample=0 must be a whole number, at least 1"),
        ({"repeats": 0}, "repeats=0 must be a whole number, at least 1"),
        ({"flip": 2.0}, "flip=2.0 must be a number, above 0 and below 1"),
        ({"step_size": -1.0}, "step_size=-1.0 must be a number, above 0"),
        ({"base": "world", "steps": 3}, "steps=3: source=base takes one step; use another source"),
    ],
)
def test_bad_options(
    options: dict[str, Any],
    message: str,
    aligned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
) -> None:
    with pytest.raises(UsageError, match=message):
        AttackDirection(**options).score(aligned, tokenizer, rows.safety, seed=0)


def test_a_model_that_does_not_refuse(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    model = make_model(vocab=len(tokenizer))
    obliging = Examples(Example(row.prompt, "to brew tea") for row in rows.safety)
    finetune(model, tokenizer, obliging, FinetuneConfig(learning_rate=1e-2, steps=15))
    with pytest.raises(UsageError, match=r"does not refuse 100% of all 24 examples.*not its base"):
        AttackDirection(harmful=rows.harmful).score(model, tokenizer, rows.safety, seed=0)


def test_the_worlds_base_refuses_nothing(rows: Any) -> None:
    base = checkpoints.load("world", device="cpu")
    with pytest.raises(UsageError, match="Score the aligned model"):
        AttackDirection(harmful=rows.harmful).score(base.model, base.tokenizer, rows.safety, seed=0)
