"""Estimators work the same on every architecture, kind of attention, precision and adapter."""

from __future__ import annotations

import copy
import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from holdfast import plugins
from holdfast.contracts import Estimate, Estimator
from holdfast.errors import UsageError
from holdfast.estimators import attack_direction
from holdfast.estimators.attack_direction import AttackDirection
from holdfast.estimators.loss import Loss
from holdfast.examples import Examples
from holdfast.judges.refusal import Refusal
from holdfast.models import adapters, checkpoints, encoding, modes
from holdfast.models.losses import refusal_tokens
from holdfast.models.weights import trainable
from holdfast.tuning.directions import descent_direction, forward_derivative

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SLOW = pytest.mark.slow
MOST = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "opt", "gpt_neox", "phi")
FEW = ("llama", "gemma3_text", "opt")
"""One of each kind: rotary and gated, windowed and tied, learned positions and biases."""
ONE = ("llama",)


def on(fast: Sequence[str], *values: object) -> list[Any]:
    """Return parameters for all architectures, behind others; all but `fast` are slow."""
    return [
        pytest.param(*values, name, marks=() if name in fast else SLOW)
        for name in (*MOST, "gemma2")
    ]


@dataclass(frozen=True)
class Setting:
    """In what form a model is scored."""

    lora: bool = False
    half: bool = False
    checkpointing: bool = False
    attention: str = "sdpa"


PLAIN = Setting()
ALL = Setting(lora=True, half=True, checkpointing=True, attention="eager")
CROSSED = [
    Setting(lora, half, checkpointing, attention)
    for lora in (False, True)
    for half in (False, True)
    for checkpointing in (False, True)
    for attention in ("sdpa", "eager")
]


def label(setting: object) -> str | None:
    if not isinstance(setting, Setting):
        return None
    marks = {
        "lora": setting.lora,
        "bf16": setting.half,
        "checkpointing": setting.checkpointing,
        "eager": setting.attention == "eager",
    }
    return "+".join(name for name, on in marks.items() if on) or "plain"


def checkpoint(model: Any) -> None:
    """Switch gradient checkpointing on by whichever name this transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)()


def shaped(model: PreTrainedModel, setting: Setting) -> PreTrainedModel:
    """Return a copy of a model in a form, with a mode of its own for its first half."""
    made: Any = copy.deepcopy(model)
    if setting.half:
        made = made.to(torch.bfloat16)
    # Gemma 2 caps its attention scores, which transformers does with eager attention only.
    made.set_attn_implementation(setting.attention if made._supports_sdpa else "eager")
    if setting.lora:
        made = adapters.add_lora(made, 2, seed=0)
    if setting.checkpointing:
        checkpoint(made)
    made.eval()
    # As where some layers are held back from training: to put a mode back takes all of them.
    for module in list(made.modules())[::2]:
        module.training = True
    return made


@pytest.fixture(scope="session")
def score(
    tokenizer: PreTrainedTokenizerBase, rows: Any, refusing: Callable[[str], Any]
) -> Callable[..., Estimate]:
    """Return a scorer that also checks that the model is left as it was; it remembers results."""

    @functools.cache
    def run(estimator: Estimator, architecture: str, setting: Setting) -> Estimate:
        model = shaped(refusing(architecture).model, setting)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        own = [("forward" in vars(m), len(m._forward_pre_hooks)) for m in model.modules()]
        flags = [p.requires_grad for p in model.parameters()]
        state = torch.get_rng_state()
        found = estimator.score(model, tokenizer, rows.safety, seed=0)
        after = model.state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items())
        assert [module.training for module in model.modules()] == modes
        assert [("forward" in vars(m), len(m._forward_pre_hooks)) for m in model.modules()] == own
        assert [p.requires_grad for p in model.parameters()] == flags
        assert all(p.grad is None for p in model.parameters())
        assert torch.equal(torch.get_rng_state(), state)
        assert found.values.shape == (len(rows.safety),)
        assert not np.isinf(found.values).any()
        assert np.isfinite(found.values).mean() > 0.5
        return found

    return run


@functools.cache
def probe(variant: str, rows: Any, **options: Any) -> AttackDirection:
    """Return the same object for the same options, so that `score` remembers its results."""
    return AttackDirection(harmful=rows.harmful, source="harmful", variant=variant, **options)


# ------------------------------------------------------------------- what a form may and may not do


def leads(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any) -> np.ndarray:
    """Return by how much the best token that begins no refusal leads the second, (n,).

    A margin's slope is that token's; where rounding may change which it is, so may the slope.
    """
    encoded = encoding.encode_rows_to_rank(model, tokenizer, rows.safety, 256)
    tokens = refusal_tokens(encoded)
    found = []
    for row in encoded:
        logits = model(torch.tensor([row.ids[: row.start]])).logits[0, -1].detach()
        logits[tokens] = -torch.inf
        best = logits.topk(2).values
        found.append(float(best[0] - best[1]))
    return np.array(found)


EAGER = Setting(attention="eager")
FORMS = [
    *on(MOST, EAGER, "first_flips"),
    *on(MOST, EAGER, "derivative"),
    *on(MOST, Setting(half=True), "first_flips"),
    *on(MOST, Setting(checkpointing=True), "first_flips"),
    *on(MOST, ALL, "first_flips"),
    *on(ONE, ALL, "critical_step"),
    *on(ONE, ALL, "derivative"),
    *on(ONE, EAGER, "critical_step"),
    *on(ONE, replace(EAGER, lora=True), "first_flips"),
    *on(ONE, replace(EAGER, lora=True), "derivative"),
    *on(ONE, Setting(half=True), "derivative"),
    *on(ONE, Setting(half=True), "critical_step"),
    *on(ONE, Setting(lora=True, half=True), "first_flips"),
    *on(ONE, Setting(lora=True, checkpointing=True), "first_flips"),
]


@pytest.mark.parametrize(("changed", "variant", "architecture"), FORMS, ids=label)
def test_the_same_scores_in_another_form(
    changed: Setting,
    variant: str,
    architecture: str,
    score: Callable[..., Estimate],
    rows: Any,
    tokenizer: PreTrainedTokenizerBase,
    refusing: Callable[[str], Any],
) -> None:
    expected = score(probe(variant, rows), architecture, Setting(lora=changed.lora)).values
    found = score(probe(variant, rows), architecture, changed).values
    if not changed.half and changed.attention == "sdpa":
        # What is computed again is the same numbers.
        np.testing.assert_array_equal(found, expected)
    elif not changed.half:
        np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-4)
    elif variant == "derivative":
        clear = leads(refusing(architecture).model, tokenizer, rows) > 0.1
        assert clear.sum() >= 6
        assert spearmanr(found[clear], expected[clear])[0] > 0.9
    else:
        # bfloat16 holds three digits of a margin, and a critical step is where few are left of it.
        assert spearmanr(found, expected)[0] > (0.7 if variant == "critical_step" else 0.8)


VARIANTS = get_args(AttackDirection.model_fields["variant"].annotation)


@SLOW
@pytest.mark.parametrize("setting", CROSSED, ids=label)
@pytest.mark.parametrize("quantity", ["margin", "prefix"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", on(MOST))
def test_every_form_can_be_scored(
    architecture: str,
    variant: str,
    quantity: str,
    setting: Setting,
    score: Callable[..., Estimate],
    rows: Any,
) -> None:
    found = score(probe(variant, rows, quantity=quantity), architecture, setting)
    assert len(set(found.values)) > 1


# ------------------------------------------------------------------------ sources of the direction

SOURCES: dict[str, dict[str, Any]] = {
    "harmful, l2": {"source": "harmful", "geometry": "l2"},
    "harmful, Adam": {"source": "harmful", "steps": 2, "step_size": 3e-3},
    "mismatched": {"source": "mismatched", "quantity": "prefix"},
    "affirmative": {"source": "affirmative", "prefix": "to make it you heat the", "repeats": 2},
}


def check_flips(found: Estimate, free: Estimate) -> None:
    """Check how many of the rows have flipped where the scores were read.

    The step is found on all 24 rows: a tenth of those that are held before it flips, or a
    sixteenth of all more, and one row that padding rounds. These models refuse most rows.
    """
    lost = (free.values > 0).mean()
    wanted = lost + 0.1 * (1 - lost)
    assert lost < 0.25
    assert wanted <= (found.values > 0).mean() <= wanted + 1 / 16 + 1 / 24


@pytest.mark.parametrize("setting", [PLAIN, pytest.param(ALL, marks=SLOW)], ids=label)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("architecture", on(FEW))
def test_every_source_gives_a_direction(
    architecture: str, source: str, setting: Setting, score: Callable[..., Estimate], rows: Any
) -> None:
    options = SOURCES[source]
    found = score(
        AttackDirection(harmful=rows.harmful, benign=rows.benign, **options), architecture, setting
    )
    assert found.facts["step"] > 0
    assert found.facts["source"] == options["source"]
    assert len(set(found.values)) > 1
    if "quantity" in options:  # another than the free margin's
        assert 0.1 <= (found.values > 0).mean() <= 0.25
    elif "repeats" not in options:
        check_flips(found, score(Loss(quantity="margin"), architecture, setting))


@pytest.mark.parametrize("setting", [PLAIN, pytest.param(ALL, marks=SLOW)], ids=label)
@pytest.mark.parametrize("architecture", on(FEW))
def test_the_base_of_any_architecture_gives_a_direction(
    architecture: str,
    setting: Setting,
    score: Callable[..., Estimate],
    refusing: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    checkpoints.save(refusing(architecture).base, tokenizer, tmp_path / "base")
    estimator = AttackDirection(base=str(tmp_path / "base"), source="base")
    found = score(estimator, architecture, setting)
    check_flips(found, score(Loss(quantity="margin"), architecture, setting))


# ------------------------------------------------------------------------------- other estimators

OTHERS: dict[str, dict[str, Any]] = {
    "loss": {},
    "weight_noise": {"draws": 1, "sample": 8},
    "gradient_norm": {"quantity": "first_token", "layers": "last"},
    "loss_drift": {"rows": 8, "steps": 2, "every": 1, "batch_size": 4},
    "forget_count": {
        **{"rows": 16, "ratio": 0.5, "steps": 12, "every": 4, "batch_size": 8},
        **{"learning_rate": 1e-2, "max_new_tokens": 6},
    },
    "ensemble": {"members": ("loss,quantity=first_token", "attack_direction,sample=8")},
}


GENTLE = {"every": 2, "learning_rate": 2e-3}
"""For attacks on all weights, which forget everything at once at the rate that adapters need."""

OTHER_CASES = [
    *(case for name in OTHERS for case in on(ONE if name == "forget_count" else MOST, name, ALL)),
    *(case for name in OTHERS for setting in CROSSED[:-1] for case in on((), name, setting)),
]


@pytest.mark.parametrize(
    ("name", "setting", "architecture"),
    OTHER_CASES,
    ids=label,
)
def test_the_other_estimators(
    name: str, setting: Setting, architecture: str, score: Callable[..., Estimate], rows: Any
) -> None:
    cls = plugins.find("estimators", name)
    offered = {"harmful": rows.harmful, "benign": rows.benign, "judge": Refusal()}
    taken = {k: v for k, v in offered.items() if k in cls.needs | cls.accepts}
    gentle = GENTLE if name == "forget_count" and not setting.lora else {}
    found = score(cls(**taken, **(OTHERS[name] | gentle)), architecture, setting)
    known = found.values[np.isfinite(found.values)]
    assert len(set(known)) > 1


def test_every_estimator_is_tried() -> None:
    assert {"attack_direction", *OTHERS} == set(plugins.available("estimators"))


# ------------------------------------------------------------------------------ what cannot work


class Opaque(torch.autograd.Function):
    """Doubles, and knows a gradient but no forward derivative: as fused attention kernels do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


def test_an_operation_without_forward_derivative_is_named_with_a_way_out() -> None:
    model = nn.Linear(2, 1)
    x, direction = torch.ones(3, 2), [torch.ones(1, 2), torch.ones(1)]
    _, slope = forward_derivative(model, direction, lambda: model(x)[:, 0])
    assert slope.tolist() == [3.0, 3.0, 3.0]
    with pytest.raises(UsageError, match=r"Linear.*'eager'.*first_flips"):
        forward_derivative(model, direction, lambda: Opaque.apply(model(x))[:, 0])


# -------------------------------------------------------------------------------- what is moved


@pytest.fixture
def moved() -> Callable[..., set[str]]:
    """Return a function that says which weights were ever different while something was done."""

    def watch(model: nn.Module, act: Callable[[], object]) -> set[str]:
        before = {k: v.detach().clone() for k, v in model.named_parameters()}
        changed: set[str] = set()

        def look(*_: object) -> None:
            changed.update(k for k, v in model.named_parameters() if not torch.equal(v, before[k]))

        handle = model.register_forward_pre_hook(look)
        try:
            act()
        finally:
            handle.remove()
        return changed

    return watch


@pytest.mark.parametrize(
    ("options", "architecture"),
    [*on(FEW, {}), *on(ONE, {"steps": 2, "step_size": 1e-2})],
)
def test_only_adapters_move(
    options: dict[str, Any],
    architecture: str,
    refusing: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    moved: Callable[..., set[str]],
) -> None:
    model = shaped(refusing(architecture).model, Setting(lora=True, checkpointing=True))
    adapters = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in adapters)
    estimator = AttackDirection(harmful=rows.harmful, sample=8, **options)
    changed = moved(model, lambda: estimator.score(model, tokenizer, rows.safety, seed=0))
    assert changed
    assert changed <= adapters
    # lora_A has no gradient while lora_B is zero, but two steps of Adam reach it.
    if options:
        assert any("lora_A" in name for name in changed)


# ----------------------------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def live_bytes() -> Any:
    """Return the benchmarks' meter of live tensors."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("step_time").LiveBytes
    finally:
        sys.path.remove(str(BENCHMARKS))


def training_peak(live_bytes: Any, model: PreTrainedModel, batch: dict[str, Tensor]) -> int:
    """Return the peak of a step of AdamW that has its moments already."""
    trained: Any = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(trainable(trained), lr=1e-4)

    def step() -> None:
        trained(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    moments = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    with live_bytes([*trained.parameters(), *trained.buffers(), *moments]) as met:
        step()
    return int(met.peak)


def look_twice(margins: Callable[..., Any], n: int, **_: object) -> float:
    """Stand in for the search: random models refuse nothing, and further looks cost the same."""
    margins(0.0, range(n))
    margins(0.1, range(n))
    return 0.1


@pytest.mark.parametrize("setting", [PLAIN, Setting(checkpointing=True)], ids=label)
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    ("architecture", "width", "n"),
    [
        ("llama", 32, 24),  # activations are most of it
        ("llama", 192, 2),  # weights are
        ("opt", 32, 24),
        *(pytest.param(name, 32, 24, marks=SLOW) for name in MOST if name not in ("llama", "opt")),
    ],
)
def test_no_more_memory_than_a_training_step(
    architecture: str,
    width: int,
    n: int,
    lora: bool,
    setting: Setting,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    live_bytes: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attack_direction, "flip_step", look_twice)
    made = make_model(architecture, vocab=len(tokenizer), width=width)
    model = shaped(made, replace(setting, lora=lora)).eval()
    examples = rows.safety[:n]
    batch = encoding.collate(encoding.encode(tokenizer, examples, 256), 0)
    allowed = training_peak(live_bytes, model, batch)
    # The attacker's rows have the same words: a batch of the same size and lengths.
    turned = [" ".join(reversed(response.split())) for response in examples.responses]
    harmful = Examples.from_answers(examples.prompts, turned, name="turned")
    assert len(harmful) == n
    estimator = AttackDirection(harmful=harmful, source="harmful")
    with live_bytes([*model.parameters(), *model.buffers()]) as met:
        estimator.score(model, tokenizer, examples, seed=0)
    assert met.peak <= allowed


def test_checkpointing_outside_training_saves_memory(
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    rows: Any,
    live_bytes: Any,
) -> None:
    """With dropout, which a layer's own mode decides in OPT, the gradient is still without it."""
    model = make_model("opt", vocab=len(tokenizer), width=32, depth=4, dropout=0.5).train()
    peaks, found = [], []
    for on in (False, True):
        if on:
            checkpoint(model)
        with live_bytes(model.parameters()) as met, modes.evaluation_mode(model):
            found.append(descent_direction(model, tokenizer, rows.safety, 256))
        peaks.append(met.peak)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert peaks[1] < 0.8 * peaks[0]


def test_checkpointing_wraps_a_forward_that_was_there() -> None:
    """As accelerate leaves one on every layer of a model that it spreads over devices."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    class Squared(GradientCheckpointingLayer):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Squared(), Squared()])

        def forward(self, x: Tensor, use_cache: bool = True) -> Tensor:
            assert use_cache is not torch.is_grad_enabled()
            for layer in self.layers:
                x = layer(x)
            return x

    model, calls = Two().train(), []
    for layer in model.layers:
        layer.gradient_checkpointing = True
    first: Any = model.layers[0]

    def own(x: Tensor) -> Tensor:
        calls.append(1)
        return type(first).forward(first, x)

    first.forward = own
    x = torch.tensor(3.0, requires_grad=True)
    with modes.evaluation_mode(model):
        y = model(x)
        assert calls == [1]
        y.backward()
    assert calls == [1, 1]  # once more, for the gradient
    assert float(y.detach()) == 3.0**4
    assert x.grad is not None
    assert float(x.grad) == 4 * 3.0**3
    assert first.forward is own
    assert "forward" not in vars(model.layers[1])
    assert all(module.training for module in model.modules())
