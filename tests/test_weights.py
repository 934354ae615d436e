"""Weights are moved and put back exactly; gradients are taken without side effects."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.models.weights import (
    _RoundingError,
    displace,
    freeze,
    global_norm,
    gradients,
    perturb,
    reversible_steps,
    step_along,
    trainable,
)


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def copies(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in parameters]


def equal(a: list[Tensor], b: list[nn.Parameter]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_perturbed_gradient_agrees_with_an_independent_one(shared: Path) -> None:
    path = shared / "fixtures" / "perturbed_gradient.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there; set HOLDFAST_SHARED")
    reference = json.loads(path.read_text())
    names = ("W1", "b1", "W2", "b2")

    def tensors(key: str) -> list[Tensor]:
        return [torch.tensor(reference[key][n], dtype=torch.float64) for n in names]

    x = torch.tensor(reference["x"], dtype=torch.float64)
    labels = torch.tensor(reference["labels"])
    theta = [nn.Parameter(t) for t in tensors("params")]
    start = copies(theta)

    def loss() -> Tensor:
        w1, b1, w2, b2 = theta
        return F.cross_entropy(torch.tanh(x @ w1.T + b1) @ w2.T + b2, labels)

    grads = gradients(loss(), theta)
    assert loss().item() == pytest.approx(reference["loss"], abs=1e-9)
    assert global_norm(grads).item() == pytest.approx(reference["grad_norm"], abs=1e-9)
    steps = step_along(grads, reference["rho"], eps=reference["eps"])
    with perturb(theta, steps):
        assert loss().item() == pytest.approx(reference["perturbed_loss"], abs=1e-9)
        moved = gradients(loss(), theta)
    for found, wanted in (
        (grads, tensors("grad")),
        (moved, tensors("sam_grad")),
    ):
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    assert equal(start, theta)


def test_gradients_leave_accumulated_ones_alone() -> None:
    model = net()
    parameters = trainable(model)
    x = torch.randn(5, 3)
    model(x).sum().backward()
    before = [p.grad.clone() for p in parameters if p.grad is not None]
    found = gradients(model(x).sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(found, before, strict=True))
    assert all(
        p.grad is not None and torch.equal(p.grad, b)
        for p, b in zip(parameters, before, strict=True)
    )


def test_gradients_are_zero_where_the_loss_does_not_reach() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    found = gradients(used.sum(), [used, unused])
    assert found[0].tolist() == [1.0, 1.0]
    assert found[1].tolist() == [0.0, 0.0, 0.0]


def test_steps_by_hand() -> None:
    grads = [torch.tensor([3.0, 0.0]), torch.tensor([[-4.0]])]
    assert global_norm(grads).item() == 5.0
    up = step_along(grads, 10.0, eps=0.0)
    assert (up[0].tolist(), up[1].tolist()) == ([6.0, 0.0], [[-8.0]])
    down = step_along(grads, -0.5, geometry="sign")
    assert (down[0].tolist(), down[1].tolist()) == ([-0.5, 0.0], [[0.5]])


def test_a_zero_gradient_gives_a_zero_step() -> None:
    assert step_along([torch.zeros(3)], 0.4)[0].tolist() == [0.0, 0.0, 0.0]


def test_the_norm_of_half_precision_gradients_is_taken_in_single() -> None:
    # 300^2 x 4 = 360,000 exceeds the largest half-precision number, 65,504.
    grads = [torch.full((4,), 300.0, dtype=torch.float16)]
    assert global_norm(grads).item() == 600.0
    assert step_along(grads, 2.0)[0].dtype == torch.float16
    assert step_along(grads, 2.0)[0].tolist() == [1.0] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    model = net(dtype)
    parameters = trainable(model)
    start = copies(parameters)
    steps = [torch.randn_like(p) / 7 for p in parameters]
    # Why they are kept and not subtracted again:
    assert any(not torch.equal(p + s - s, p) for p, s in zip(parameters, steps, strict=True))
    with reversible_steps(parameters) as add:
        add(steps)
        assert not equal(start, parameters)
        add([2 * s for s in steps])
    assert equal(start, parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_when_the_body_raises(dtype: torch.dtype) -> None:
    parameters = trainable(net(dtype))
    start = copies(parameters)
    with (
        pytest.raises(RuntimeError, match="boom"),
        perturb(parameters, [torch.ones_like(p) for p in parameters]),
    ):
        raise RuntimeError("boom")
    assert equal(start, parameters)


def test_weights_come_back_when_the_steps_do_not_fit() -> None:
    parameters = trainable(net())
    start = copies(parameters)
    too_few = [torch.ones_like(p) for p in parameters[:-1]]
    with pytest.raises(ValueError, match="shorter"), perturb(parameters, too_few):
        pytest.fail("the block must not be entered")
    assert equal(start, parameters)


def test_a_step_that_is_not_finite_does_not_stay() -> None:
    parameters = trainable(net())
    start = copies(parameters)
    with perturb(parameters, [torch.full_like(p, math.nan) for p in parameters]):
        assert parameters[0].isnan().all()
    assert equal(start, parameters)


def test_nothing_is_copied_when_nothing_moves() -> None:
    parameters = trainable(net())
    start = copies(parameters)
    with reversible_steps(parameters):
        pass
    assert equal(start, parameters)


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_taken_back_is_put_right_bit_for_bit(dtype: torch.dtype) -> None:
    """Weights of all sizes, far smaller and far larger than the step, of both signs and zero."""
    torch.manual_seed(0)
    p = nn.Parameter((torch.randn(64, 64) * 10.0 ** torch.empty(64, 64).uniform_(-7, 2)).to(dtype))
    q = nn.Parameter(torch.cat([torch.zeros(8), torch.full((8,), -0.0)]).to(dtype))
    parameters = [p, q]
    start = copies(parameters)
    steps = [0.01 * torch.randn_like(x) for x in parameters]
    assert not torch.equal(p + steps[0] - steps[0], p)
    with displace(parameters, lambda: [step.clone() for step in steps]):
        for x, old, step in zip(parameters, start, steps, strict=True):
            assert torch.equal(x.detach(), old + step)
    assert equal(start, parameters)
    assert [math.copysign(1, x) for x in q.tolist()] == [1.0] * 8 + [-1.0] * 8


def test_a_displacement_keeps_a_quarter_of_a_copy() -> None:
    p = torch.randn(100, 100) + 5
    lost = _RoundingError.between(p, p + 0.1 - 0.1)
    assert lost is not None
    assert lost.small.nbytes == p.nbytes / 4
    assert len(lost.large_at) == 0
    tiny = torch.full((100,), 1e-9)  # of which nothing is left: a copy is smaller
    assert _RoundingError.between(tiny, tiny + 0.1 - 0.1) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_displacement_that_is_not_finite_does_not_stay(bad: float) -> None:
    parameters = trainable(net())
    start = copies(parameters)
    with displace(parameters, lambda: [torch.full_like(p, bad) for p in parameters]):
        assert not parameters[0].isfinite().any()
    assert equal(start, parameters)


def test_a_displacement_is_undone_on_any_way_out() -> None:
    parameters = trainable(net())
    start = copies(parameters)

    def ones() -> list[Tensor]:
        return [torch.ones_like(p) for p in parameters]

    with pytest.raises(RuntimeError, match="boom"), displace(parameters, ones):
        raise RuntimeError("boom")
    assert equal(start, parameters)
    with pytest.raises(ValueError, match="shorter"), displace(parameters, lambda: ones()[:-1]):
        pytest.fail("the block must not be entered")
    assert equal(start, parameters)

    def cut_short() -> Iterator[Tensor]:
        yield ones()[0]
        raise KeyboardInterrupt

    calls = iter([cut_short(), iter(ones())])
    with pytest.raises(KeyboardInterrupt), displace(parameters, lambda: next(calls)):
        pytest.fail("the block must not be entered")
    assert equal(start, parameters)


def test_frozen_parameters_are_left_alone() -> None:
    model = net()
    model[0].requires_grad_(False)
    still = copies(list(model[0].parameters()))
    parameters = trainable(model)
    assert [p.shape for p in parameters] == [(2, 4), (2,)]
    with perturb(parameters, [torch.ones_like(p) for p in parameters]):
        assert equal(still, list(model[0].parameters()))
    assert equal(still, list(model[0].parameters()))


def test_gradients_flow_through_perturbed_weights() -> None:
    # d/dw w^3 at w + 1 = 3 (w + 1)^2, and it lands in .grad of the unperturbed parameter.
    w = nn.Parameter(torch.tensor([2.0]))
    with perturb([w], [torch.tensor([1.0])]):
        (w**3).sum().backward()
    assert w.grad is not None
    assert (w.item(), w.grad.item()) == (2.0, 27.0)


def test_what_is_frozen_needs_a_gradient_again_on_any_way_out() -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    with freeze(model[0].parameters()):
        model(torch.ones(1, 3)).sum().backward()
        assert [p.grad is None for p in model.parameters()] == [True, True, False, False]
    assert [p.requires_grad for p in model.parameters()] == flags
    with pytest.raises(ZeroDivisionError), freeze(model[0].parameters()):
        1 / 0  # noqa: B018
    assert [p.requires_grad for p in model.parameters()] == flags
