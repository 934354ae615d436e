"""Rows are identified by their content."""

import hashlib

import pytest

from holdfast.errors import DataError
from holdfast.examples import Example, Examples, example_id

ROWS = [Example("a", "1"), Example("b", "2", {"source": "s"}), Example("a", "3")]


def test_id_is_the_sha256_of_the_stripped_pair() -> None:
    expected = hashlib.sha256('["é", "r"]'.encode()).hexdigest()[:16]
    assert example_id(" é\n", "r ") == Example("é", "r").id == expected


def test_id_tells_rows_apart_that_join_to_the_same_text() -> None:
    assert example_id("ab", "c") != example_id("a", "bc")
    assert example_id('a", "b', "") != example_id("a", "b")


def test_provenance_is_no_part_of_the_id() -> None:
    assert Example("a", "b", {"source": "x"}).id == Example("a", "b").id


def test_examples_behave_as_a_sequence() -> None:
    examples = Examples(ROWS, name="three")
    assert len(examples) == 3
    assert list(examples) == ROWS
    assert examples[1] is ROWS[1]
    assert examples[-1] is ROWS[2]
    assert examples.prompts == ["a", "b", "a"]
    assert examples.responses == ["1", "2", "3"]
    assert examples.ids == tuple(row.id for row in ROWS)
    assert ROWS[1] in examples


def test_slices_and_selections_are_examples_of_the_same_name() -> None:
    examples = Examples(ROWS, name="three")
    assert isinstance(examples[1:], Examples)
    assert list(examples[1:]) == ROWS[1:]
    assert list(examples.select([2, 0])) == [ROWS[2], ROWS[0]]
    assert examples[1:].name == examples.select([0]).name == "three"


def test_hash_ignores_order_and_sees_content() -> None:
    examples = Examples(ROWS)
    assert Examples(reversed(ROWS)).hash == examples.hash
    assert examples[:2].hash != examples.hash
    assert examples.hash[:12] in repr(examples)
    assert "n=3" in repr(examples)


def test_a_repeated_row_is_refused_with_both_places() -> None:
    with pytest.raises(DataError, match="pool: row 3 repeats row 1 .*prompt 'a '.*Remove one"):
        Examples([Example("a", "1"), Example("b"), Example("a ", "1")], name="pool")


def test_an_example_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ROWS[0].prompt = "other"  # type: ignore[misc]
