"""Group distributionally robust optimization: train on the groups that are worst off.

Sagawa et al., ICLR 2020, arXiv 1911.08731, in the form that VAA gives it (Chen et al., ICML 2025,
arXiv 2506.03850): min_theta max_q sum_i q_i l_i(theta) over groups i of safety examples. A step
draws a group from q, trains on a batch of that group only, and moves q towards groups with the
larger loss (EXP3, see `GroupSampler`). It is VAA without its perturbation, and what VAA builds on.

It also goes together with another method, `--method vaccine+group_dro`: the other one's loss or
perturbation, on batches that the groups' adversary chooses.

Ours, not the papers': `sampler="smoothed"` (see `SmoothedSampler`), and `batch="mixed"`, where
each batch holds rows of all groups in proportion to q instead of one group's, so that every step
sees every group's loss; the counts are rounded at random, without bias. And `tilt`: soft weights, a
row of a group is drawn in proportion to exp(tilt u), u the rank of its vulnerability in the group.
`control` breaks the groups to learn what they are worth, as VAA's ablation does: see `controlled`.

Benign rows, which the papers do not have, take their share of every batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from scipy.stats import rankdata
from torch import Tensor, nn

from holdfast.errors import UsageError
from holdfast.methods._batches import Batch, Items, Stream, by_group
from holdfast.methods._group_sampler import GroupSampler, SmoothedSampler
from holdfast.methods.base import AlignmentTrainer, unscaled
from holdfast.models.processes import rank, sum_over_processes, world_size
from holdfast.options import Options
from holdfast.results.artifacts import Groups, Scores

MOST_TILT = 20.0
Control = Literal["", "ungrouped", "shuffled", "noisy", "only_last", "only_first"]
"""Ablation of the groups, see `controlled`."""
NOISE = 0.1
"""Share of the labels that `control="noisy"` changes, as the paper does."""


class GroupDroOptions(Options):
    """Options of the groups' adversary; the defaults are VAA's published ones for Llama-2-7B."""

    owner: ClassVar[str] = "group_dro"

    sampler: Literal["exp3", "smoothed"] = "exp3"
    """Update of the group probabilities: exp3 as published, or smoothed."""
    step_size: float = Field(default=0.007, ge=0)
    """Step size eta of the sampler."""
    floor: float = Field(default=0.1, ge=0)
    """Smallest probability of a group."""
    start: Literal["uniform", "proportional"] = "uniform"
    """Probabilities of the groups at the start: uniform, or proportional to their sizes."""
    batch: Literal["group", "mixed"] = "group"
    """Safety rows of a batch: one group's, or all groups' in proportion to their probabilities."""
    tilt: float = Field(default=0.0, ge=-MOST_TILT, le=MOST_TILT)
    """Soft weights: a row of a group is drawn in proportion to exp(tilt u), u its score's rank."""
    control: Control = ""
    """Ablation that removes information from the groups; empty for none."""

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.batch == "mixed" and self.sampler == "exp3":
            raise ValueError(
                "batch=mixed sees the loss of every group, and exp3 divides by the probability of "
                "having drawn it: use sampler=smoothed"
            )
        return self


class GroupDro(AlignmentTrainer):
    """An adversary draws the group to train on; as many backward passes as SFT."""

    Options: ClassVar[type[Any]] = GroupDroOptions
    needs: ClassVar[frozenset[str]] = frozenset({"groups"})

    @property
    def adversary(self) -> GroupDroOptions:
        """The options of the adversary: the method's own, unless it has settled them."""
        return cast(GroupDroOptions, self.options)

    def prepare(self) -> None:
        """Make the sampler and the streams of rows."""
        super().prepare()
        groups = cast(Groups, self.data.groups)
        if self.adversary.tilt and self.data.scores is None:
            raise UsageError(
                "tilt weighs rows by their scores, and there are none: give --groups "
                "made of scores in the same run"
            )
        self.labels = groups.aligned_to(self.data.safety.ids)
        self.labels, self.names = controlled(
            self.labels, groups.names, self.adversary.control, seed=self.args.seed
        )
        sizes = np.bincount(self.labels[self.labels >= 0], minlength=len(self.names))
        if (sizes == 0).any():
            empty = self.names[int(np.argmin(sizes))]
            raise UsageError(f"group {empty!r} is empty: choose another rule with `holdfast group`")
        self._check_mix()
        self.sampler = self._sampler(sizes)
        seeds = np.random.SeedSequence(self.args.seed).generate_state(len(sizes) + 2).tolist()
        self.rounding = np.random.default_rng(seeds[0])
        by_length = self.args.train_sampling_strategy == "group_by_length"
        lengths = self.row_lengths if by_length else None
        self.streams = {"benign": Stream(range(self.n_safety, self.n_rows), seeds[1], lengths)}
        for group, seed in enumerate(seeds[2:]):
            members = self.members(group)
            self.streams[f"group {group}"] = Stream(members, seed, lengths, self._weights(members))
        self.group = 0
        self._seen = np.zeros((len(sizes), 2))  # loss and tokens of each group in this step

    def _sampler(self, sizes: np.ndarray) -> GroupSampler:
        options = self.adversary
        start = None if options.start == "uniform" else (sizes / sizes.sum()).tolist()
        kind = GroupSampler if options.sampler == "exp3" else SmoothedSampler
        return kind(
            len(sizes),
            step_size=options.step_size,
            floor=options.floor,
            start=start,
            seed=self.args.seed,
        )

    def _check_mix(self) -> None:
        """Refuse batches in which a process would lack rows that the others have."""
        update = self.mixes(self.args.gradient_accumulation_steps)
        for safety, benign in update:
            if 0 < safety < world_size() or 0 < benign < world_size():
                raise UsageError(
                    f"batches of {safety + benign} rows hold {safety} safety and {benign} benign "
                    f"rows, too few for {world_size()} processes each to have some; raise the "
                    "batch size or give more of what is few"
                )
        safety, benign = map(sum, zip(*update, strict=True))
        if not safety or (self.data.benign and not benign):
            raise UsageError(
                f"updates of {safety + benign} rows hold {safety} safety and {benign} benign rows "
                f"in the mix of the data, {self.n_safety} and {self.n_rows - self.n_safety}; raise "
                "the batch size or gradient_accumulation_steps, or give more of what is few"
            )
        if world_size() > 1 and self.adversary.batch == "mixed":
            raise UsageError(
                f"batch=mixed on {world_size()} processes: one may have no row of a group, and "
                "they would wait for each other; take batch=group"
            )

    def _weights(self, members: Sequence[int]) -> list[float] | None:
        """Return exp(tilt u) by position, u in [0, 1] the rank of a row's score in its group."""
        if not self.adversary.tilt:
            return None
        scores = cast(Scores, self.data.scores)
        values = scores.aligned_to(self.data.safety.ids)[list(members)]
        known = np.isfinite(values)
        ranks = np.full(len(values), 0.5)  # a row without a score is taken for an average one
        if known.sum() > 1:
            ranks[known] = (rankdata(values[known]) - 1) / (known.sum() - 1)
        found = np.ones(self.n_safety)
        found[list(members)] = np.exp(self.adversary.tilt * ranks)
        return found.tolist()

    def members(self, group: int) -> list[int]:
        """Return the positions of a group's rows."""
        return np.flatnonzero(self.labels == group).tolist()

    # ------------------------------------------------------------------------------- hooks

    def draw_batches(self, epoch_iterator: Iterator[Batch], n: int) -> list[Batch]:
        """Draw a group and all micro-batches of the step from it, or from all in proportion."""
        del epoch_iterator
        self._seen[:] = 0
        self.group = self.sampler.draw()
        return [
            self.collate_positions(
                dealt(self._safety(safety) + self.streams["benign"].take(benign))
            )
            for safety, benign in self.mixes(n)
        ]

    def _safety(self, n: int) -> list[int]:
        """Return the safety rows of a micro-batch, of all processes."""
        if self.adversary.batch == "group":
            return self.streams[f"group {self.group}"].take(n)
        # Systematic rounding: the ends of q's parts, read off a ruler that was laid at random.
        ends = np.floor(np.cumsum(self.sampler.probs) * n + self.rounding.random()).astype(int)
        counts = np.diff(np.minimum(ends, n), prepend=0)
        counts[-1] += n - counts.sum()
        taken = [self.streams[f"group {g}"].take(int(k)) for g, k in enumerate(counts)]
        return [position for part in taken for position in part]

    def collate_positions(self, positions: Sequence[int]) -> Batch:
        """Build a batch with `group` (B,) beside `is_safety`."""
        batch = super().collate_positions(positions)
        groups = [int(self.labels[i]) if i < self.n_safety else -1 for i in positions]
        batch["group"] = torch.tensor(groups)
        return batch

    def accumulate(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Back-propagate each group's rows, and the benign ones, and count the groups' losses."""
        losses = []
        for group, part in by_group(batch):
            losses.append(super().accumulate(model, part, num_items))
            if group >= 0:
                self._seen[group] += unscaled(losses[-1], part, num_items)
        return torch.stack(losses).sum()

    def before_update(self, losses: Tensor) -> None:
        """Move the distribution over groups by the safety losses that were back-propagated."""
        super().before_update(losses)
        sums = sum_over_processes(torch.tensor(self._seen)).numpy()
        seen = {g: float(nll / n) for g, (nll, n) in enumerate(sums) if n}
        self.sampler.observe(self.rewards(seen))
        self.safety_loss = float(sums[:, 0].sum() / max(sums[:, 1].sum(), 1))
        probs = self.sampler.probs
        whole = {} if self.adversary.batch == "mixed" else {"group": self.group}
        self.note(
            {
                "safety_loss": self.safety_loss,
                **whole,
                **{f"loss_{self.names[g]}": loss for g, loss in seen.items()},
                **{f"q_{name}": float(q) for name, q in zip(self.names, probs, strict=True)},
            }
        )

    def rewards(self, seen: Mapping[int, float]) -> Mapping[int, float]:
        """Return what the adversary is paid for each group that was seen: its loss."""
        return seen

    def method_state(self) -> dict[str, Any]:
        """Return sampler, roundings and streams."""
        return {
            **super().method_state(),
            "sampler": self.sampler.state_dict(),
            "rounding": self.rounding.bit_generator.state,
            "streams": {name: stream.state_dict() for name, stream in self.streams.items()},
        }

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `method_state`."""
        super().load_method_state(state)
        self.sampler.load_state_dict(state["sampler"])
        self.rounding.bit_generator.state = state["rounding"]
        for name, stream in self.streams.items():
            stream.load_state_dict(state["streams"][name])


def controlled(
    labels: np.ndarray, names: Sequence[str], control: Control, *, seed: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels and names of the groups with what they say taken away, all of it or in part.

    ungrouped: one group of all rows. shuffled: groups of the same sizes, dealt out at random.
    noisy: a tenth of the rows, at random, are put into another group. only_last, only_first: rows
    of the most or of the least vulnerable group alone; the others have no group, -1.

    Args:
        labels: (n,) group of each row, least vulnerable first.
        names: Of the groups.
        control: See `Control`; "" leaves them as they are.
        seed: Of what is random.
    """
    rng = np.random.default_rng([seed, 3])
    last = len(names) - 1
    if control == "ungrouped":
        return np.zeros_like(labels), ("all",)
    if control == "shuffled":
        return rng.permutation(labels), tuple(names)
    if control == "noisy" and last:
        changed = rng.choice(len(labels), round(NOISE * len(labels)), replace=False)
        found = labels.copy()
        found[changed] = (found[changed] + rng.integers(1, last + 1, len(changed))) % (last + 1)
        return found, tuple(names)
    if control in ("only_last", "only_first"):
        kept = last if control == "only_last" else 0
        return np.where(labels == kept, 0, -1), (names[kept],)
    return labels, tuple(names)


def dealt(rows: list[int]) -> list[int]:
    """Return this process's share of rows that all processes drew alike, every nth of them."""
    return rows[rank() :: world_size()]
