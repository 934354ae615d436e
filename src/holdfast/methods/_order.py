"""The order in which rows are visited; the dataset holds only their positions."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler


class ByLength(LengthGroupedSampler):
    """Groups rows by length as transformers does, with its own generator so that runs can resume.

    Args:
        n: Rows per update.
        lengths: Length of every row.
        seed: Random seed.
    """

    def __init__(self, n: int, lengths: list[int], seed: int) -> None:
        super().__init__(n, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Seed the generator for an epoch; the Trainer calls this before each."""
        state = np.random.SeedSequence([self.seed, epoch]).generate_state(1)
        self.generator.manual_seed(int(state[0]))


class Positions(Dataset[int]):
    """A dataset of row positions; the collator looks up the rows."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index
