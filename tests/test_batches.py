"""Batches and streams: parting, trimming, and rows of a like length side by side."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from holdfast.errors import UsageError
from holdfast.methods._batches import Batch, Stream, by_group, by_safety, weighted


@pytest.fixture
def batch() -> Batch:
    """Return four right-padded rows of 5, 2, 3 and 1 tokens in three groups."""
    sizes = torch.tensor([5, 2, 3, 1])
    mask = (torch.arange(6) < sizes[:, None]).long()
    ids = torch.arange(24).reshape(4, 6)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.where(mask > 0, ids, -100),
        "is_safety": torch.tensor([False, True, True, True]),
        "group": torch.tensor([-1, 1, 0, 1]),
    }


def test_a_part_has_no_columns_that_only_others_need(batch: Batch) -> None:
    safety, benign = by_safety(batch)
    assert safety["input_ids"].tolist() == [[6, 7, 8], [12, 13, 14], [18, 19, 20]]
    assert safety["labels"].shape == safety["attention_mask"].shape == (3, 3)
    assert benign["input_ids"].shape == (1, 5)
    parts = dict(by_group(batch))
    assert list(parts) == [-1, 0, 1]
    assert parts[1]["input_ids"].tolist() == [[6, 7], [18, 19]]
    assert parts[1]["group"].tolist() == [1, 1]


def test_left_padding_stays(batch: Batch) -> None:
    turned = {k: v.flip(1) if v.ndim > 1 else v for k, v in batch.items()}
    safety, _ = by_safety(turned)
    assert safety["input_ids"].shape == (3, 6)


def test_a_part_may_have_no_rows(batch: Batch) -> None:
    batch["is_safety"][:] = True
    safety, benign = by_safety(batch)
    assert len(safety["input_ids"]) == 4
    assert len(benign["input_ids"]) == 0


def test_weighted(batch: Batch) -> None:
    assert weighted(40, batch, 0.5) == 80
    # Rows of 5, 2, 3 and 1 labelled tokens, of which the first is never predicted.
    assert weighted(None, batch, 0.5) == (4 + 1 + 2 + 0) / 0.5


def test_streams_by_length_visit_like_rows_together_and_all_of_them_once() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 200, 1000).tolist()
    positions = list(range(100, 900))
    plain, grouped = Stream(positions, 1), Stream(positions, 1, lengths)

    def padding(stream: Stream) -> float:
        taken = [stream.take(8) for _ in range(100)]
        assert sorted(p for part in taken for p in part) == positions
        real = sum(lengths[p] for part in taken for p in part)
        return sum(8 * max(lengths[p] for p in part) for part in taken) / real

    assert padding(plain) > 1.5
    assert padding(grouped) < 1.1
    first, second = (grouped.take(800) for _ in range(2))
    assert first != second
    window = first[: Stream.WINDOW]
    assert all(lengths[a] <= lengths[b] for a, b in pairwise(window))


def test_a_weighted_stream_draws_in_proportion() -> None:
    stream = Stream([2, 5, 7], 0, weights=[0, 0, 1.0, 0, 0, 3.0, 0, 4.0])
    counts = np.bincount(stream.take(8000), minlength=8)[[2, 5, 7]] / 8000
    # Standard errors of shares of 8000 are below 0.006.
    np.testing.assert_allclose(counts, [1 / 8, 3 / 8, 4 / 8], atol=0.02)


def test_rows_cannot_be_drawn_where_there_are_none() -> None:
    assert Stream([], seed=0).take(0) == []
    with pytest.raises(UsageError, match="there are no rows to draw from"):
        Stream([], seed=0).take(1)
