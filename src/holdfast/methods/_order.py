"""The order in which rows are visited: the data set is their positions."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler


class ByLength(LengthGroupedSampler):
    """Groups rows by length as transformers does, by draws of its own, so that they can be resumed.

    Args:
        n: Rows of an update.
        lengths: Of the rows.
        seed: Of the draws.
    """

    def __init__(self, n: int, lengths: list[int], seed: int) -> None:
        super().__init__(n, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw as in this pass over the rows; the Trainer calls it before each."""
        state = np.random.SeedSequence([self.seed, epoch]).generate_state(1)
        self.generator.manual_seed(int(state[0]))


class Positions(Dataset[int]):
    """The dataset is the row positions; the collator looks the rows up."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index
