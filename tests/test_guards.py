"""Each guard against its formula written out, and on every architecture."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from holdfast.errors import UsageError
from holdfast.examples import Examples
from holdfast.guards.antidote import Antidote, prune
from holdfast.guards.base import Guard, linear_layers
from holdfast.guards.constrained_sft import ConstrainedSft
from holdfast.guards.ewc import Ewc
from holdfast.guards.ldifs import Ldifs, hidden_distance
from holdfast.guards.lisa import Lisa
from holdfast.guards.safe_instr import SafeInstr
from holdfast.guards.safe_lora import SafeLora
from holdfast.models import adapters, checkpoints, encoding, weights
from holdfast.tuning.loop import FinetuneConfig, Tuning, finetune

Make = Callable[..., PreTrainedModel]
CONFIG = FinetuneConfig(learning_rate=3e-3, steps=4, batch_size=4, every=2, seed=4)


@pytest.fixture
def model(make_model: Make, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return make_model(vocab=len(tokenizer))


@pytest.fixture
def tuned(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Tuning]:
    """Return a maker of a tuning whose weights have moved since the guard saw its begin."""

    def make(guard: Guard, *, lora: bool = False, moved: bool = True) -> Tuning:
        shaped = adapters.add_lora(model, 2, seed=0) if lora else model
        config = replace(CONFIG, guard=guard)
        tuning = Tuning(shaped, tokenizer, config, weights.trainable(shaped))
        guard.begin(tuning)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in tuning.parameters if moved else ():
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.05)
        return tuning

    return make


@pytest.fixture
def batch(tokenizer: PreTrainedTokenizerBase, rows: Any) -> dict[str, Tensor]:
    return encoding.collate(encoding.encode(tokenizer, rows.benign[:3], 64), 0)


def moves(tuning: Tuning) -> list[Tensor]:
    """Return theta - theta_0 per parameter."""
    return [p.detach() - s for p, s in zip(tuning.parameters, tuning.memory["start"], strict=True)]


# ------------------------------------------------------------------------------------ safe_instr


@pytest.mark.parametrize(("options", "added"), [({"share": 0.25}, 3), ({"number": 5}, 5)])
def test_safe_instr_adds_as_many_rows_as_it_says(
    options: dict[str, Any], added: int, rows: Any
) -> None:
    own = Examples([*rows.benign[:11], rows.safety[0]], name="own")
    mixed = SafeInstr(safety=rows.safety, **options).rows(own, seed=1)
    assert mixed[:12].ids == own.ids
    assert len(mixed) == 12 + added
    assert set(mixed.ids[12:]) <= set(rows.safety.ids) - set(own.ids)
    assert mixed.ids != SafeInstr(safety=rows.safety, **options).rows(own, seed=2).ids


def test_safe_instr_names_what_it_lacks(rows: Any) -> None:
    with pytest.raises(UsageError, match=r"needs 25 safety rows, but only 24 .* Lower share"):
        SafeInstr(safety=rows.safety, number=25).rows(rows.benign, seed=0)


# ------------------------------------------------------------------------------------------ lisa


def test_lisa_equals_its_two_states_written_out(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    """K1 = 2, K2 = 3, four steps of the customer's: s s u u u s s u."""
    theirs = copy.deepcopy(model)
    guard = Lisa(safety=rows.safety, rho=0.3, safety_steps=2, user_steps=3)
    finetune(model, tokenizer, rows.benign[:4], replace(CONFIG, guard=guard))

    encoded = encoding.encode(tokenizer, rows.benign[:4], 256)
    drawing = Tuning(theirs, tokenizer, CONFIG, [])
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=3e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(4)
    theirs.train()
    # Where a state begins the anchor is taken anew; a number is that of a safety batch.
    for begins, safety in (
        *((True, 0), (False, 1), (True, None), (False, None), (False, None)),
        *((True, 2), (False, 3), (True, None)),
    ):
        if begins:
            anchor = [p.detach().clone() for p in theirs.parameters()]
        if safety is None:
            chosen = [encoded[i] for i in torch.randperm(4, generator=generator).tolist()]
        else:
            chosen = encoding.encode(tokenizer, guard.safety_batch(drawing, safety), 256)
        pull = sum((p - a).square().sum() for p, a in zip(theirs.parameters(), anchor, strict=True))
        loss = theirs(**encoding.collate(chosen, 0)).loss + 0.15 * pull
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
    for p, wanted in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, wanted, rtol=0, atol=2e-6)


def test_lisa_draws_from_the_safety_rows_other_ones_each_time(
    tuned: Callable[..., Tuning], rows: Any
) -> None:
    guard = Lisa(safety=rows.safety)
    drawn = [guard.safety_batch(tuned(Guard(), moved=False), i).ids for i in range(8)]
    assert len(set(drawn)) == 8
    assert all(len(ids) == 4 and set(ids) <= set(rows.safety.ids) for ids in drawn)
    few = Lisa(safety=rows.safety[:3]).safety_batch(tuned(Guard(), moved=False), 0)
    assert set(few.ids) == set(rows.safety[:3].ids)


def test_a_stiff_pull_holds_the_weights(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any
) -> None:
    """The pull's gradient is rho (theta - anchor): rho large enough, a step is undone."""
    ends = []
    for rho in (0.0, 1e4):
        mine = copy.deepcopy(model)
        guard = Lisa(safety=rows.safety, rho=rho, safety_steps=0, user_steps=99)
        finetune(mine, tokenizer, rows.benign[:12], replace(CONFIG, steps=12, guard=guard))
        ends.append(weights.global_norm(
            [a - b for a, b in zip(mine.parameters(), model.parameters(), strict=True)]
        ).item())  # fmt: skip
    assert ends[1] < ends[0]


# ----------------------------------------------------------------------------------------- ldifs


def test_hidden_distance_by_hand() -> None:
    """Layer 1 moves a token by (3, 4) and one by 0: mean 12.5; layer 2 does not move: 6.25."""
    here = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [9.0, 9.0]]])  # the last token is padding
    zero, mask = torch.zeros_like(here), torch.tensor([[1, 1, 0]])
    assert hidden_distance([here, zero], [zero, zero], mask).item() == pytest.approx(6.25)


@pytest.mark.parametrize("lora", [False, True])
def test_ldifs_is_the_loss_and_the_distance_to_the_aligned_model(
    lora: bool, tuned: Callable[..., Tuning], batch: dict[str, Tensor], model: PreTrainedModel
) -> None:
    aligned = copy.deepcopy(model)
    tuning = tuned(Ldifs(lam=0.6), lora=lora)
    found = Ldifs(lam=0.6).loss(tuning, batch)
    assert all(g is not None for g in torch.autograd.grad(found, tuning.parameters))
    with torch.no_grad():
        here = tuning.model(**batch, output_hidden_states=True)
        there = aligned(**batch, output_hidden_states=True)
    layers = list(zip(here.hidden_states, there.hidden_states, strict=True))[1:]
    seen = batch["attention_mask"].bool()
    moved = sum(float((a - b)[seen].pow(2).sum(1).mean()) for a, b in layers) / len(layers)
    assert moved > 1e-3
    assert float(found.detach()) == pytest.approx(float(here.loss) + 0.3 * moved, rel=1e-4)


# ------------------------------------------------------------------------------------------- ewc


@pytest.mark.parametrize(("size", "groups"), [(1, [[0], [1], [2]]), (2, [[0, 1], [2]])])
def test_ewc_equals_squared_gradients_by_hand(
    size: int,
    groups: list[list[int]],
    tuned: Callable[..., Tuning],
    batch: dict[str, Tensor],
    rows: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    few = rows.safety[:3]
    guard = Ewc(safety=few, lam=20.0, fisher_batch=size)
    aligned = copy.deepcopy(model)
    tuning = tuned(guard)
    order = np.random.default_rng(CONFIG.seed).permutation(3).tolist()
    encoded = [encoding.encode(tokenizer, few, 256)[i] for i in order]
    fisher = [torch.zeros_like(p) for p in aligned.parameters()]
    for group in groups:
        loss = aligned(**encoding.collate([encoded[i] for i in group], 0)).loss
        for f, g in zip(fisher, torch.autograd.grad(loss, list(aligned.parameters())), strict=True):
            f += g**2 / len(groups)
    for mine, wanted in zip(tuning.memory["fisher"], fisher, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-8)
    price = sum(float((f * m**2).sum()) for f, m in zip(fisher, moves(tuning), strict=True))
    with torch.no_grad():
        plain = float(tuning.model(**batch).loss)
        assert float(guard.loss(tuning, batch)) == pytest.approx(plain + 20 * price, rel=1e-4)


# --------------------------------------------------------------------------------- constrained_sft


def test_betas_by_place_in_the_answer() -> None:
    """Two rows: a prompt of two and an answer of seven, a prompt of one and an answer of two."""
    answer = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0, 0, 0, 0]]).bool()
    found = ConstrainedSft().betas(answer)
    assert found[0][answer[0]].tolist() == pytest.approx([0.5, 2, 2, 2, 2, 0.1, 0.1])
    assert found[1][answer[1]].tolist() == pytest.approx([0.5, 2])


@pytest.mark.parametrize("lora", [False, True])
def test_constrained_sft_has_the_gradient_of_its_objective(
    lora: bool, tuned: Callable[..., Tuning], batch: dict[str, Tensor], model: PreTrainedModel
) -> None:
    """d/d theta of -mean 2/beta log sigmoid(beta log pi/pi_0), differentiated as it is written."""
    aligned = copy.deepcopy(model)
    guard = ConstrainedSft()
    tuning = tuned(guard, lora=lora)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    terms, count = torch.zeros(()), 0
    now, before = (m(**inputs).logits.log_softmax(2) for m in (tuning.model, aligned))
    for row, labels in enumerate(batch["labels"].tolist()):
        places = [i for i, label in enumerate(labels) if label != encoding.IGNORE]
        for t, i in enumerate(places, start=1):
            beta = 0.5 if t == 1 else 2.0 if t <= 5 else 0.1
            gain = now[row, i - 1, labels[i]] - before[row, i - 1, labels[i]].detach()
            terms = terms - 2 / beta * F.logsigmoid(beta * gain)
            count += 1
    wanted = torch.autograd.grad(terms / count, tuning.parameters)
    found = torch.autograd.grad(guard.loss(tuning, batch), tuning.parameters)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_constrained_sft_begins_as_plain_fine_tuning(
    tuned: Callable[..., Tuning], batch: dict[str, Tensor]
) -> None:
    tuning = tuned(ConstrainedSft(), moved=False)
    with torch.no_grad():
        plain = float(tuning.model(**batch).loss)
        assert float(ConstrainedSft().loss(tuning, batch)) == pytest.approx(plain, rel=1e-5)


# ------------------------------------------------------------------------------------- safe_lora


@pytest.fixture
def base(make_model: Make, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Any:
    made = make_model(vocab=len(tokenizer), seed=1)
    checkpoints.save(made, tokenizer, tmp_path / "base")
    return made


def updates(tuning: Tuning, aligned: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what was added to each linear layer, adapters multiplied out."""
    found = {}
    for layer in linear_layers(tuning.model):
        weight = layer.weight.detach().clone()
        if layer.lora_a is not None and layer.lora_b is not None:
            weight += layer.scale * (layer.lora_b @ layer.lora_a).detach()
        found[layer.name] = weight - aligned[layer.name]
    return found


@pytest.mark.parametrize("lora", [False, True])
def test_safe_lora_projects_the_least_similar_updates(
    lora: bool, tuned: Callable[..., Tuning], base: Any, tmp_path: Path, model: PreTrainedModel
) -> None:
    aligned = {x.name: x.weight.detach().clone() for x in linear_layers(model)}
    theirs = {x.name: x.weight.detach() for x in linear_layers(base)}
    guard = SafeLora(base=str(tmp_path / "base"), number=4)
    tuning = tuned(guard, lora=lora)
    before = updates(tuning, aligned)
    projected, cosines = {}, {}
    for name, u in before.items():
        v = aligned[name] - theirs[name]
        projected[name] = v @ v.T @ u / v.norm()
        cosines[name] = float(F.cosine_similarity(projected[name].flatten(), u.flatten(), dim=0))
    chosen = sorted(cosines, key=cosines.__getitem__)[:4]
    with weights.replace_values(guard.repair(tuning)):
        after = updates(tuning, aligned)
    for name, u in before.items():
        wanted = projected[name] if name in chosen else u
        torch.testing.assert_close(after[name], wanted, rtol=1e-3, atol=1e-5)
    # The threshold between the fourth and the fifth chooses the same ones.
    fourth, fifth = sorted(cosines.values())[3:5]
    by_tau = guard.changed(number=0, tau=(fourth + fifth) / 2)
    assert len(list(by_tau.repair(tuning))) == 4
    for name, u in updates(tuning, aligned).items():
        assert torch.equal(u, before[name])


def test_a_layer_without_a_cosine_is_left_alone() -> None:
    guard = SafeLora(base="world", number=2)
    assert guard.select([0.5, math.nan, 0.1, 0.3]) == [2, 3]
    assert guard.changed(number=0, tau=0.4).select([0.5, math.nan, 0.1, 0.3]) == [2, 3]


def test_safe_lora_refuses_a_base_that_says_nothing(
    tuned: Callable[..., Tuning],
    model: PreTrainedModel,
    make_model: Make,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    checkpoints.save(model, tokenizer, tmp_path / "same")
    with pytest.raises(UsageError, match="no direction to project onto"):
        tuned(SafeLora(base=str(tmp_path / "same")))
    checkpoints.save(make_model(vocab=len(tokenizer), width=32), tokenizer, tmp_path / "wide")
    with pytest.raises(UsageError, match=r"no layer .*q_proj of shape \(16, 16\)"):
        tuned(SafeLora(base=str(tmp_path / "wide")))


# -------------------------------------------------------------------------------------- antidote


def test_pruned_by_hand() -> None:
    """Scores |w| sqrt(E x^2) with sqrt = 1, 2, 3: row 1 has 3, 2, 3.3; row 2 has 1, 4, 0."""
    weight = torch.tensor([[-3.0, 1.0, 1.1], [1.0, -2.0, 0.0]])
    found = prune(weight, torch.tensor([1.0, 4.0, 9.0]), 1 / 3)
    torch.testing.assert_close(found, torch.tensor([[-3.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("lora", [False, True])
def test_antidote_prunes_by_what_the_harmful_rows_feed_each_layer(
    lora: bool, tuned: Callable[..., Tuning], rows: Any, tokenizer: PreTrainedTokenizerBase
) -> None:
    guard = Antidote(harmful=rows.harmful[:5], share=0.25)
    tuning = tuned(guard, lora=lora)
    merged = adapters.merge(copy.deepcopy(tuning.model)).eval()
    sums = {x.name: torch.zeros(x.weight.shape[1]) for x in linear_layers(merged)}
    tokens = 0

    def add(total: Tensor, module: nn.Module, args: tuple[Tensor]) -> None:
        total += args[0][0].square().sum(0)

    for layer in linear_layers(merged):
        layer.module.register_forward_pre_hook(partial(add, sums[layer.name]))
    with torch.no_grad():
        for row in encoding.encode(tokenizer, rows.harmful[:5], 256):  # one by one: no padding
            merged(torch.tensor([row.ids]))
            tokens += len(row.ids)
    with weights.replace_values(guard.repair(tuning)):
        after = updates(tuning, {x.name: torch.zeros_like(x.weight) for x in linear_layers(merged)})
    for layer in linear_layers(merged):
        weight = layer.weight.detach().clone()
        scores = weight.abs() * (sums[layer.name] / tokens).sqrt()
        for out in range(len(weight)):
            weight[out, scores[out].argsort(descending=True)[: weight.shape[1] // 4]] = 0.0
        torch.testing.assert_close(after[layer.name], weight, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------ mechanisms


@pytest.mark.parametrize("lora", [False, True])
def test_linear_layers_are_the_blocks_and_not_the_output(
    lora: bool, tuned: Callable[..., Tuning]
) -> None:
    layers = linear_layers(tuned(Guard(), lora=lora).model)
    assert len(layers) == 2 * 7  # q, k, v, o, gate, up and down of two blocks
    assert {x.name.rpartition(".")[2] for x in layers} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert all(
        (x.lora_b is not None) is lora and x.weight.requires_grad is not lora for x in layers
    )


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("lora", [False, True])
def test_a_model_whose_matrices_are_not_all_linear_layers_is_refused(lora: bool) -> None:
    config = GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    model: Any = GPT2LMHeadModel(config)
    if lora:
        model = adapters.add_lora(model, 2, seed=0)
    with pytest.raises(UsageError, match=r"GPT2LMHeadModel: .* nn.Linear .*matrix .*c_attn"):
        linear_layers(model)


def test_replaced_puts_back_also_what_is_named_twice_or_cut_short() -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    with weights.replace_values([(p, p * 2), (p, p * 3)]):
        assert p.tolist() == [3.0, 6.0]
    assert p.tolist() == [1.0, 2.0]

    def cut_short() -> Iterator[tuple[nn.Parameter, Tensor]]:
        yield p, p * 2
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"), weights.replace_values(cut_short()):
        pass
    assert p.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "opt", "gpt_neox", "phi"]
)
@pytest.mark.parametrize("lora", [False, True])
def test_every_architecture(
    lora: bool,
    architecture: str,
    make_model: Make,
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    tmp_path: Path,
) -> None:
    checkpoints.save(
        make_model(architecture, vocab=len(tokenizer), seed=1), tokenizer, tmp_path / "b"
    )
    guards = (
        *(Guard(), Lisa(safety=rows.safety, safety_steps=1), Ldifs(), Ewc(safety=rows.safety[:2])),
        *(ConstrainedSft(), SafeLora(base=str(tmp_path / "b")), Antidote(harmful=rows.harmful[:4])),
    )
    ends = []
    for guard in guards:
        model = make_model(architecture, vocab=len(tokenizer))
        model = adapters.add_lora(model, 2, seed=0) if lora else model
        config = FinetuneConfig(learning_rate=1e-3, steps=2, batch_size=4, guard=guard)
        finetune(model, tokenizer, rows.benign[:8], config)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert bool(torch.isfinite(ends[-1]).all())
        assert len(ends) == 1 or not torch.equal(ends[0], ends[-1]), type(guard).__name__
