"""Group distributionally robust optimization: train on the groups with the largest loss.

Sagawa et al., ICLR 2020, arXiv 1911.08731, in the form that VAA gives it (Chen et al., ICML 2025,
arXiv 2506.03850): min_theta max_q sum_i q_i l_i(theta) over groups i of safety examples. Each step
draws a group from q, trains on a batch of that group, and moves q towards groups with larger loss
(EXP3, see `GroupSampler`). This is VAA without its perturbation, and VAA builds on it.

It can be combined with another method, `--method vaccine+group_dro`: the other method's loss or
perturbation, on batches drawn by the adversary of the groups.

Not from the papers:

- `sampler="smoothed"`: see `SmoothedSampler`.
- `batch="mixed"`: each batch holds rows of all groups in proportion to q instead of one group's, so
  every step sees every group's loss. The counts are rounded at random, without bias.
- `tilt`: soft weights. A row of a group is drawn in proportion to exp(tilt u), with u the rank of
  its vulnerability in the group.
- Benign rows take their share of every batch.

`control` breaks the groups to measure what they contribute, as in VAA's ablation: see `controlled`.
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
"""Largest absolute value of `tilt`."""
Control = Literal["", "ungrouped", "shuffled", "noisy", "only_last", "only_first"]
"""Ablation of the groups, see `controlled`."""
NOISE = 0.1
"""Share of the labels that `control="noisy"` changes, as in the paper."""


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
                "batch=mixed observes the loss of every group, but exp3 divides by the probability "
                "of drawing it: use sampler=smoothed"
            )
        return self


class GroupDro(AlignmentTrainer):
    """An adversary draws the group to train on; as many backward passes as SFT."""

    Options: ClassVar[type[Any]] = GroupDroOptions
    needs: ClassVar[frozenset[str]] = frozenset({"groups"})

    @property
    def adversary(self) -> GroupDroOptions:
        """Options of the adversary; a subclass may fix them."""
        return cast(GroupDroOptions, self.options)

    def prepare(self) -> None:
        """Set up the groups, the sampler and the streams of rows."""
        super().prepare()
        self._check_scores()
        groups = cast(Groups, self.data.groups)
        self.labels, self.names = controlled(
            groups.aligned_to(self.data.safety.ids),
            groups.names,
            self.adversary.control,
            seed=self.args.seed,
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
        benign = range(self.n_safety, self.n_rows)
        self.streams = {"benign": Stream(benign, seeds[1], lengths)}
        for group, seed in enumerate(seeds[2:]):
            members = self.members(group)
            self.streams[f"group {group}"] = Stream(members, seed, lengths, self._weights(members))
        self.group = 0
        # Summed loss and answer tokens of each group in the current step.
        self._observed = np.zeros((len(sizes), 2))

    def _check_scores(self) -> None:
        if self.adversary.tilt and self.data.scores is None:
            raise UsageError(
                "tilt weights rows by their scores, and there are no scores: give --groups made "
                "from scores in the same run"
            )

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
        """Reject batches in which a process would lack a kind of row that the others have."""
        update = self.mixes(self.args.gradient_accumulation_steps)
        for safety, benign in update:
            if 0 < safety < world_size() or 0 < benign < world_size():
                raise UsageError(
                    f"a batch of {safety + benign} rows holds {safety} safety and {benign} benign "
                    f"rows, too few for each of {world_size()} processes to have some; raise the "
                    "batch size or give more rows of the rare kind"
                )
        safety = sum(safety for safety, _ in update)
        benign = sum(benign for _, benign in update)
        if not safety or (self.data.benign and not benign):
            raise UsageError(
                f"in proportion to the data ({self.n_safety} safety and "
                f"{self.n_rows - self.n_safety} benign rows), an update of {safety + benign} rows "
                f"holds {safety} safety and {benign} benign rows; raise the batch size or "
                "gradient_accumulation_steps, or give more rows of the rare kind"
            )
        if world_size() > 1 and self.adversary.batch == "mixed":
            raise UsageError(
                f"batch=mixed on {world_size()} processes: a process may have no row of a group, "
                "and then the others would wait for it forever; use batch=group"
            )

    def _weights(self, members: Sequence[int]) -> list[float] | None:
        """Return exp(tilt u) by position, u in [0, 1] the rank of a row's score in its group."""
        if not self.adversary.tilt:
            return None
        scores = cast(Scores, self.data.scores)
        values = scores.aligned_to(self.data.safety.ids)[list(members)]
        scored = np.isfinite(values)
        ranks = np.full(len(values), 0.5)  # a row without a score gets the middle rank
        if scored.sum() > 1:
            ranks[scored] = (rankdata(values[scored]) - 1) / (scored.sum() - 1)
        weights = np.ones(self.n_safety)
        weights[list(members)] = np.exp(self.adversary.tilt * ranks)
        return weights.tolist()

    def members(self, group: int) -> list[int]:
        """Return the positions of a group's rows."""
        return np.flatnonzero(self.labels == group).tolist()

    # ------------------------------------------------------------------------------- hooks

    def draw_batches(self, epoch_iterator: Iterator[Batch], n: int) -> list[Batch]:
        """Draw a group and the micro-batches of the step from it; or from all groups by q."""
        del epoch_iterator
        self._observed[:] = 0
        self.group = self.sampler.draw()
        batches = []
        for n_safety, n_benign in self.mixes(n):
            positions = self._draw_safety(n_safety) + self.streams["benign"].take(n_benign)
            batches.append(self.collate_positions(dealt(positions)))
        return batches

    def _draw_safety(self, n: int) -> list[int]:
        """Return positions of the safety rows of a micro-batch, for all processes."""
        if self.adversary.batch == "group":
            return self.streams[f"group {self.group}"].take(n)
        # Systematic sampling: one random offset rounds all cumulative counts, without bias.
        ends = np.floor(np.cumsum(self.sampler.probs) * n + self.rounding.random()).astype(int)
        counts = np.diff(np.minimum(ends, n), prepend=0)
        counts[-1] += n - counts.sum()
        drawn = [self.streams[f"group {g}"].take(int(count)) for g, count in enumerate(counts)]
        return [position for positions in drawn for position in positions]

    def collate_positions(self, positions: Sequence[int]) -> Batch:
        """Build a batch that also holds `group` (B,)."""
        batch = super().collate_positions(positions)
        groups = [int(self.labels[i]) if i < self.n_safety else -1 for i in positions]
        batch["group"] = torch.tensor(groups)
        return batch

    def accumulate(self, model: nn.Module, batch: Batch, num_items: Items) -> Tensor:
        """Back-propagate the rows group by group, benign rows too, and record each group's loss."""
        losses = []
        for group, part in by_group(batch):
            loss = super().accumulate(model, part, num_items)
            losses.append(loss)
            if group >= 0:
                self._observed[group] += unscaled(loss, part, num_items)
        return torch.stack(losses).sum()

    def before_update(self, losses: Tensor) -> None:
        """Update the distribution over groups from the step's safety losses."""
        super().before_update(losses)
        sums = sum_over_processes(torch.tensor(self._observed)).numpy()
        observed = {g: float(loss / n) for g, (loss, n) in enumerate(sums) if n}
        self.sampler.observe(self.rewards(observed))
        self.safety_loss = float(sums[:, 0].sum() / max(sums[:, 1].sum(), 1))
        self.note({"safety_loss": self.safety_loss})
        if self.adversary.batch == "group":
            self.note({"group": self.group})
        self.note({f"loss_{self.names[g]}": loss for g, loss in observed.items()})
        probabilities = zip(self.names, self.sampler.probs, strict=True)
        self.note({f"q_{name}": float(q) for name, q in probabilities})

    def rewards(self, observed: Mapping[int, float]) -> Mapping[int, float]:
        """Return the adversary's reward for each observed group: the group's loss."""
        return observed

    def method_state(self) -> dict[str, Any]:
        """Return the sampler, the random rounding and the streams."""
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
    """Return labels and names of groups with all or part of their information removed.

    ungrouped: one group of all rows. shuffled: groups of the same sizes with random members. noisy:
    a tenth of the rows, chosen at random, move to another group. only_last, only_first: only the
    rows of the most or least vulnerable group; the others have no group, -1.

    Args:
        labels: (n,) group of each row, least vulnerable first.
        names: Names of the groups.
        control: See `Control`; "" changes nothing.
        seed: Random seed.
    """
    rng = np.random.default_rng([seed, 3])
    last = len(names) - 1
    if control == "ungrouped":
        return np.zeros_like(labels), ("all",)
    if control == "shuffled":
        return rng.permutation(labels), tuple(names)
    if control == "noisy" and last:
        changed = rng.choice(len(labels), round(NOISE * len(labels)), replace=False)
        offsets = rng.integers(1, last + 1, len(changed))
        noisy = labels.copy()
        noisy[changed] = (noisy[changed] + offsets) % (last + 1)
        return noisy, tuple(names)
    if control in ("only_last", "only_first"):
        group = last if control == "only_last" else 0
        return np.where(labels == group, 0, -1), (names[group],)
    return labels, tuple(names)


def dealt(rows: list[int]) -> list[int]:
    """Return this process's share of the rows drawn for all processes: every nth of them."""
    return rows[rank() :: world_size()]
