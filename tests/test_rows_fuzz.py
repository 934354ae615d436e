"""Whatever is in a file, it is read, or refused with one message that can be printed."""

import contextlib
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import HoldfastError
from holdfast.examples import Examples
from holdfast.rows.memory import examples_of
from holdfast.rows.readers import ReadOptions, read
from holdfast.rows.row_specs import parse_rows

N_EXAMPLES = int(os.environ.get("HOLDFAST_FUZZ", "1500"))
"""Cases for each test; `HOLDFAST_FUZZ=100000` searches for an hour."""

pytestmark = pytest.mark.slow
FUZZ = settings(
    max_examples=N_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".jsonl.gz", ".zip", ".zst")
COLUMNS = (
    "prompt response instruction input output question answer context completion messages "
    "conversations chosen rejected system history category source is_safe harmful label "
    "response_0 response_1 is_response_0_safe role content from value text"
).split()
USES = (None, "safety", "harmful", "restricted prompts", "harmless prompts")

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10**20)
    | st.floats()
    | st.text(st.characters(), max_size=12)
    | st.sampled_from(
        ["", " ", "[]", "{}", "nan", "true", "\ud83d", "\n\nHuman: a\n\nAssistant: b"]
    )
)
turns = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "tool_calls", "weight", "refusal"]),
        st.sampled_from(["user", "assistant", "gpt", "human", "system", "tool"]) | scalars,
        max_size=3,
    ),
    max_size=4,
)
cells = st.recursive(
    scalars | turns | turns.map(json.dumps) | turns.map(str),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.sampled_from(COLUMNS), inner, max_size=3)
    ),
    max_leaves=6,
)
rows_of_json = st.lists(
    st.dictionaries(st.sampled_from(COLUMNS) | st.text(max_size=4), cells, max_size=5), max_size=5
)


def check(action: Any) -> None:
    """Check that an action returns rows, or fails with one short message."""
    try:
        rows = action()
    except HoldfastError as error:
        message = str(error)
        message.encode()
        assert len(message) < 4000
        assert "Traceback" not in message
    else:
        assert isinstance(rows, Examples)
        for row in rows:
            assert row.prompt.strip()
            assert len(row.id) == 16
        json.dumps([dict(row.provenance) for row in rows]).encode()


def options(use: str | None) -> ReadOptions:
    needs_response = use is None or "prompts" not in use
    return ReadOptions(max_left_out=1.0, use=use, needs_response=needs_response)  # type: ignore[arg-type]


@given(st.binary(max_size=300), st.sampled_from(SUFFIXES))
@FUZZ
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / f"any{suffix}"
    path.write_bytes(content)
    check(lambda: read(str(path)))


@given(
    rows_of_json,
    st.sampled_from([".jsonl", ".json", ".jsonl.gz"]),
    st.sampled_from(USES),
    st.data(),
)
@FUZZ
def test_any_json(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    suffix: str,
    use: str | None,
    data: st.DataObject,
) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / f"json{suffix}"
    lines = "\n".join(json.dumps(row) for row in rows) if "l" in suffix else json.dumps(rows)
    content = lines.encode()
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    content = content[:cut]
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    exchange = data.draw(st.sampled_from(["", ",exchange=first", ",exchange=last"]))
    column = data.draw(st.sampled_from(COLUMNS))
    selection = data.draw(st.sampled_from(["", f",{column}=true", f",not_{column}=[1,null]"]))
    check(lambda: read(f"{path}{exchange}{selection}", options(use)))


@given(rows_of_json, st.sampled_from(USES))
@FUZZ
def test_any_rows_in_memory(rows: list[dict[str, Any]], use: str | None) -> None:
    needs_response = use is None or "prompts" not in use
    check(lambda: examples_of(rows, needs_response=needs_response, use=use))  # type: ignore[arg-type]


@given(st.text(max_size=40) | st.text("ab,=[]()'\"\\ _.", max_size=25))
@FUZZ
def test_any_spec(text: str) -> None:
    with contextlib.suppress(HoldfastError):
        parsed = parse_rows(text)
        again = parse_rows(parsed.adding({}))
        assert (again.source, again.split, again.exchange) == (
            parsed.source,
            parsed.split,
            parsed.exchange,
        )
        assert again.columns == parsed.columns
        assert again.conditions == parsed.conditions
