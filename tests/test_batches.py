"""Batches and streams: parting, trimming, and rows of a like length side by side."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import UsageError
from holdfast.methods._batches import Batch, Stream, by_group, by_length, by_safety, weighted
from holdfast.models.encoding import WORTH_A_PASS, parts_by_length


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


@given(st.lists(st.integers(1, 512), max_size=40))
def test_parts_hold_every_row_once_and_each_is_worth_its_pass(lengths: list[int]) -> None:
    parts = parts_by_length(lengths)
    assert sorted(place for part in parts for place in part) == list(range(len(lengths)))
    longest = [max((lengths[i] for i in part), default=0) for part in parts]
    padded = sum(mine * len(part) for part, mine in zip(parts, longest, strict=True))
    saved = max(lengths, default=0) * len(lengths) - padded
    assert saved >= WORTH_A_PASS * (len(parts) - 1)
    for part, mine in zip(parts, longest, strict=True):
        shorter = sorted(lengths[i] for i in part)
        assert all((mine - n) * (i + 1) < WORTH_A_PASS for i, n in enumerate(shorter))


def test_rows_are_parted_where_that_saves_most() -> None:
    assert parts_by_length([100, 20, 101, 22, 90, 19]) == [list(range(6))]  # 3 x 79 tokens
    assert parts_by_length([110, 20, 101, 22, 90, 19]) == [[1, 3, 5], [0, 2, 4]]
    assert parts_by_length([]) == [[]]


def test_parts_by_length_keep_marks_and_lose_padding(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert by_length(batch) == [batch]
    monkeypatch.setattr("holdfast.models.encoding.WORTH_A_PASS", 4)
    short, long = by_length(batch)
    assert short["input_ids"].tolist() == [[6, 7], [18, 19]]
    assert short["group"].tolist() == [1, 1]
    assert long["input_ids"].shape == (2, 5)


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
