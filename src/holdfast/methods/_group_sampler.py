"""The adversary of group DRO: a distribution over groups that moves towards larger losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from holdfast.errors import MismatchError, TrainingError, UsageError


class GroupSampler:
    """EXP3 over groups, as in VAA (arXiv 2506.03850, section 4 and its code).

    A step draws group i with probability q_i and observes its loss f_i. The importance-weighted
    reward r_i = f_i / q_i is an unbiased estimate of the loss vector. Then

        q_i <- q_i exp(eta r_i) / Z,    q <- clip(q, floor, 1 - floor)

    The clip changes the state itself, as in the published code (the paper does not mention it),
    which differs from mixing a uniform distribution into the draw. With more than two groups it
    keeps every group at `floor` or more and splits the rest in proportion.

    Args:
        n_groups: Number of groups.
        step_size: eta, the published 0.007 for Llama-2 and 0.04 for Qwen2.5.
        floor: Least probability of a group, the published 0.1.
        start: Initial distribution, before the clip; uniform if None.
        seed: Random seed of the draws.
    """

    def __init__(
        self,
        n_groups: int,
        *,
        step_size: float,
        floor: float = 0.1,
        start: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        if n_groups < 1:
            raise UsageError(f"{n_groups} groups: there must be at least one")
        if not 0 <= floor * n_groups <= 1:
            raise UsageError(f"floor {floor} x {n_groups} groups exceeds 1; lower the floor")
        self.step_size = step_size
        self.floor = floor
        self._probs = np.full(n_groups, 1 / n_groups) if start is None else np.array(start, float)
        is_distribution = self._probs.shape == (n_groups,) and math.isclose(self._probs.sum(), 1)
        if not is_distribution or (self._probs < 0).any():
            raise UsageError(f"start {start}: must be {n_groups} shares that add up to 1")
        self._probs = _clipped(self._probs, floor)
        self._rng = np.random.default_rng(seed)

    @property
    def probs(self) -> np.ndarray:
        """(n_groups,) the current distribution, a copy."""
        return self._probs.copy()

    def draw(self) -> int:
        """Draw a group."""
        return int(self._rng.choice(len(self._probs), p=self._probs))

    def observe(self, losses: Mapping[int, float]) -> None:
        """Update the distribution with the losses observed in a step; EXP3 observes one."""
        for group, loss in losses.items():
            self.update(group, loss)

    def update(self, group: int, loss: float) -> None:
        """Update the distribution with the loss of one group.

        Raises:
            TrainingError: The loss is not finite; the distribution stays as it was.
        """
        _check_finite(group, loss)
        probs = np.maximum(self._probs, np.finfo(float).tiny)
        logs = np.log(probs)
        # Python's floats overflow to infinity without a warning; the cap keeps inf - inf away.
        logs[group] += min(self.step_size * loss / float(probs[group]), 1e300)
        weights = np.exp(logs - logs.max())
        self._probs = _clipped(weights / weights.sum(), self.floor)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint: the distribution and the random state."""
        return {"probs": self._probs.tolist(), "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        if len(state["probs"]) != len(self._probs):
            raise MismatchError(
                f"the checkpoint has {len(state['probs'])} groups, this run {len(self._probs)}"
            )
        self._probs = np.array(state["probs"], float)
        self._rng.bit_generator.state = state["rng"]


class SmoothedSampler(GroupSampler):
    """Hedge over smoothed, scale-free losses; ours, not the paper's.

    EXP3 divides a single noisy loss by the group's probability, and the effect of its step size
    depends on the scale of the losses. Here each group's loss is smoothed,

        m_i <- memory m_i + (1 - memory) f_i    (the first f_i where there is none yet),

    and in every step all groups observed so far move by how far they are above the mean:

        q_i <- q_i exp(eta (m_i / mean(m) - 1)) / Z,    then the clip.

    Multiplying all losses by a constant changes nothing, and no group is pushed by 1 / q_i. The
    price is a bias: m_i is as old as the group's last draw.

    Args:
        n_groups: Number of groups.
        step_size: eta; 0.1 means that a loss of twice the mean grows q by 10 % a step.
        floor: Least probability of a group.
        start: Initial distribution; uniform if None.
        seed: Random seed of the draws.
        memory: In [0, 1).
    """

    def __init__(
        self,
        n_groups: int,
        *,
        step_size: float,
        floor: float = 0.1,
        start: Sequence[float] | None = None,
        seed: int = 0,
        memory: float = 0.9,
    ) -> None:
        super().__init__(n_groups, step_size=step_size, floor=floor, start=start, seed=seed)
        if not 0 <= memory < 1:
            raise UsageError(f"memory={memory} must lie in [0, 1)")
        self.memory = memory
        self.losses = np.full(n_groups, math.nan)

    def observe(self, losses: Mapping[int, float]) -> None:
        """Smooth in the observed losses, if any, and update all groups."""
        if not losses:
            return
        for group, loss in losses.items():
            _check_finite(group, loss)
            smoothed = self.losses[group]
            if math.isnan(smoothed):
                self.losses[group] = loss
            else:
                self.losses[group] = self.memory * smoothed + (1 - self.memory) * loss
        mean = float(np.nanmean(self.losses))
        worse = self.losses / mean - 1 if mean > 0 else np.zeros(len(self.losses))
        # A group without a loss counts as average.
        weights = self._probs * np.exp(self.step_size * np.nan_to_num(worse))
        self._probs = _clipped(weights / weights.sum(), self.floor)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint, with the smoothed losses; None if unknown."""
        losses = [None if math.isnan(m) else float(m) for m in self.losses]
        return {**super().state_dict(), "losses": losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        super().load_state_dict(state)
        self.losses = np.array([math.nan if m is None else m for m in state["losses"]])


def _check_finite(group: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise TrainingError(f"group {group}: loss {loss} is not finite; lower rho or the rate")


def _clipped(probs: np.ndarray, floor: float) -> np.ndarray:
    """Raise every probability to at least `floor` and scale the others down in proportion."""
    low = np.zeros(len(probs), bool)
    while True:
        below = ~low & (probs < floor)
        if not below.any():
            return probs
        low |= below
        rest = probs[~low].sum()
        free = 1 - floor * low.sum()
        probs = np.where(low, floor, probs * (free / rest if rest > 0 else 0.0))
