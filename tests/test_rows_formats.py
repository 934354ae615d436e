"""The same rows have the same ids and labels from every file format, folder and container."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from holdfast.errors import DataError, UsageError
from holdfast.examples import Example, Examples
from holdfast.rows.memory import examples_of
from holdfast.rows.readers import ReadOptions, read

ALL = ReadOptions(max_left_out=1.0)


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    """Write a table as a spreadsheet does: structures as JSON, missing cells empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\r\n", quoting=csv.QUOTE_ALL)
    writer.writerow(columns)
    for row in rows:
        cells = (row.get(column) for column in columns)
        writer.writerow(json.dumps(c) if isinstance(c, (list, dict)) else c for c in cells)
    return b"\xef\xbb\xbf" + file.getvalue().encode()


def columns_of(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    columns = dict.fromkeys(column for row in rows for column in row)
    return {column: [row.get(column) for row in rows] for column in columns}


def dataset_of(rows: list[dict[str, Any]]) -> datasets.Dataset:
    # Not from_list, which drops the columns that the first row lacks.
    return datasets.Dataset.from_dict(columns_of(rows), on_mixed_types="use_json")


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def sources(rows: list[dict[str, Any]], folder: Path) -> Iterator[tuple[str, Examples]]:
    """Yield the rows read from every source, with the name of the source."""
    lines, table = jsonl(rows), dataset_of(rows)
    contents = {
        "d.jsonl": lines,
        "crlf.jsonl": b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"),
        "d.ndjson": lines,
        "d.json": json.dumps(rows, indent=1).encode(),
        "lines.json": lines + b"\n" + b"\n",
        "array.jsonl": json.dumps(rows).encode(),
        "columns.json": json.dumps(columns_of(rows)).encode(),
        "wrapped.json": json.dumps({"data": rows}).encode(),
        "d.csv": as_csv(rows),
        "d.tsv": as_csv(rows, "\t"),
        "d.jsonl.gz": gzip.compress(lines),
        "no-suffix-of-gzip.jsonl": gzip.compress(lines),
        "d.csv.bz2": bz2.compress(as_csv(rows)),
        "d.json.xz": lzma.compress(json.dumps(rows).encode()),
        "d.zip": zipped("inside/d.jsonl", lines),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield name, read(str(folder / name), ALL)
    table.to_parquet(folder / "d.parquet")
    table.save_to_disk(str(folder / "saved"))
    datasets.DatasetDict(only=table).save_to_disk(str(folder / "dict"))
    (folder / "hub" / "data").mkdir(parents=True)
    table.to_parquet(folder / "hub" / "data" / "train-00000-of-00001.parquet")
    for name in ("d.parquet", "saved", "dict", "hub"):
        yield name, read(str(folder / name), ALL)
    options = {"needs_response": True}
    for name, given_rows in (
        ("list", rows),
        ("columns", columns_of(rows)),
        ("dataset", table),
        ("frame", pd.DataFrame(columns_of(rows), dtype=object)),
    ):
        yield name, examples_of(given_rows, **options)


def same_everywhere(rows: list[dict[str, Any]], folder: Path) -> Examples:
    """Check that all sources have the same ids and labels, and return them."""
    first: Examples | None = None
    for name, examples in sources(rows, folder):
        first = first or examples
        assert examples.ids == first.ids, name
        assert [r.provenance for r in examples] == [r.provenance for r in first], name
        said = [[(m.column, m.safe) for m in r.marks] for r in examples]
        assert said == [[(m.column, m.safe) for m in r.marks] for r in first], name
    assert first is not None
    return first


TURNS = [{"role": "user", "content": "u \u2028 x"}, {"role": "assistant", "content": "a"}]
WITH_MORE = [
    {"role": "user", "content": [{"type": "text", "text": "v"}]},
    {"role": "assistant", "content": "b", "weight": 1},
]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (
            [
                {"prompt": 'a\nb, "c"', "response": "1", "is_safe": 1, "category": {"x": True}},
                {"prompt": "b\u2028", "response": "2.0", "is_safe": 0, "category": {"y": False}},
            ],
            [Example('a\nb, "c"', "1", {"category": "x"}), Example("b\u2028", "2.0", {})],
        ),
        (
            [{"messages": TURNS}, {"messages": WITH_MORE}],
            [Example("u \u2028 x", "a"), Example("v", "b")],
        ),
        (
            [
                {"instruction": "i", "input": "x", "output": "o"},
                {"instruction": "j", "output": "p"},
            ],
            [Example("i\nx", "o"), Example("j", "p")],
        ),
        (
            [
                {"prompt": "p", "response": "r", "source": "web", "consent": True,
                 "category": ["b", "a"]},
                {"prompt": "q", "response": "s", "owner": "me", "category": []},
            ],
            [
                Example("p", "r", {"source": "web", "consent": "true", "category": "a|b"}),
                Example("q", "s", {"owner": "me"}),
            ],
        ),
    ],
)  # fmt: skip
def test_the_same_rows_from_everywhere(
    tmp_path: Path, rows: list[dict[str, Any]], wanted: list[Example]
) -> None:
    assert list(same_everywhere(rows, tmp_path)) == wanted


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1, max_size=12)
WORDS = TEXT.filter(lambda text: bool(text.strip()))
PLAIN = WORDS.filter(lambda text: not text.strip().startswith(("[", "{")))


@st.composite
def tables(draw: Callable[..., Any]) -> list[dict[str, Any]]:
    """Draw rows of one layout, some cells of which are missing."""
    layout = draw(st.sampled_from(["pair", "alpaca", "turns", "from"]))
    rows = []
    prompts = draw(st.lists(PLAIN, min_size=1, max_size=4, unique_by=str.strip))
    for prompt in prompts:
        answer = draw(PLAIN)
        keys = ("role", "content") if layout == "turns" else ("from", "value")
        spoken = [
            dict(zip(keys, p, strict=True)) for p in (("user", prompt), ("assistant", answer))
        ]
        row: dict[str, Any] = {
            "pair": {"prompt": prompt, "response": answer},
            "alpaca": {"instruction": prompt, "output": answer, "input": draw(PLAIN)},
            "turns": {"messages": spoken},
            "from": {"conversations": spoken},
        }[layout]
        row |= draw(st.fixed_dictionaries({}, optional={
            "source": PLAIN,
            "is_safe": st.booleans(),
            "category": st.dictionaries(st.sampled_from("abc"), st.booleans(), min_size=1),
        }))  # fmt: skip
        rows.append(row)
    return rows


@given(tables())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_rows_are_the_same_from_everywhere(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    same_everywhere(rows, tmp_path_factory.mktemp("rows"))


# ------------------------------------------------------------------------------- single formats


def test_fields_of_megabytes_are_read(tmp_path: Path) -> None:
    text = "x" * 3_000_000
    before = csv.field_size_limit()
    for name, content in (
        ("d.csv", f"prompt,response\na,{text}\n"),
        ("d.jsonl", json.dumps({"prompt": "a", "response": text})),
    ):
        (tmp_path / name).write_text(content)
        assert read(str(tmp_path / name)).responses == [text]
    assert csv.field_size_limit() == before


def test_zstandard(tmp_path: Path) -> None:
    codec = pyarrow.Codec("zstd")
    content = codec.compress(b'{"prompt": "a", "response": "1"}').to_pybytes()
    (tmp_path / "d.jsonl.zst").write_bytes(content)
    assert read(str(tmp_path / "d.jsonl.zst")).prompts == ["a"]


def test_json_that_pandas_writes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "response": ["1", "2"]})
    for orient in ("columns", "records"):
        frame.to_json(tmp_path / "d.json", orient=orient)  # type: ignore[call-overload]
        assert read(str(tmp_path / "d.json")).prompts == ["a", "b"]
    frame.to_json(tmp_path / "d.jsonl", orient="records", lines=True)
    assert read(str(tmp_path / "d.jsonl")).responses == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b'{"prompt": "a", "prompt": "b"}', "prompt. occurs twice"),
        ("d.json", b'[{"prompt": "a", "prompt": "b"}]', "prompt. occurs twice"),
        ("d.json", b'{"prompt": ["a", "b"], "response": ["1"]}', "different lengths .1, 2"),
        ("d.json", b'{"train": [{"a": 1}], "test": [{"a": 2}]}', "lists of rows .train, te"),
        ("d.jsonl.gz", b'{"prompt": "a"}', "not a .gz file"),
        ("d.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], "cannot be unpacked"),
        ("d.zip", zipped("a.txt", b""), "must hold one data file, and this one holds none"),
        ("d.gz", gzip.compress(b"{}", mtime=0), "the name has no suffix"),
        ("d.csv", b"prompt\tresponse\na\t1\n", "several columns in one. Rename the file to .tsv"),
        ("d.tsv", b"prompt,response\na,1\n", "several columns in one. Rename the file to .csv"),
        ("d.arrow", b"no", "not an arrow file"),
        ("d.jsonl", b'{"\\ud83d": 1}', "found .ud83d"),
        ("d.jsonl", b'{"prompt": {"a": 1}, "response": "r"}', "prompt is not text but dict"),
        ("d.json", b'{"prompt": "a"', "invalid JSON"),
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(str(tmp_path / name))
    str(caught.value).encode()


def test_arrow_adds_no_rows_and_loses_none(tmp_path: Path) -> None:
    """A JSON text in a column that is text stays a text."""
    table = pyarrow.table({"prompt": ["a"], "response": ['{"x": 1}']})
    parquet.write_table(table, tmp_path / "d.parquet")
    assert read(str(tmp_path / "d.parquet")).responses == ['{"x": 1}']
    mixed = dataset_of([{"prompt": "a", "response": "x"}, {"prompt": "b", "response": 2}])
    mixed.to_parquet(tmp_path / "m.parquet")
    rows = read(str(tmp_path / "m.parquet"), ALL)
    assert rows.responses == ["x"]
    assert rows.left_out[0].detail.startswith("response is not text but int 2")


def test_folders(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": "1"}]
    others = [{"prompt": "b", "response": "2"}]
    both = datasets.DatasetDict(train=dataset_of(rows), test=dataset_of(others))
    both.save_to_disk(str(tmp_path / "both"))
    with pytest.raises(UsageError, match="has the splits train, test; name one: '.*,split=train'"):
        read(str(tmp_path / "both"))
    assert read(f"{tmp_path / 'both'},split=test").prompts == ["b"]
    with pytest.raises(UsageError, match="no split 'dev'; its splits are train, test"):
        read(f"{tmp_path / 'both'},split=dev")
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "train.jsonl").write_bytes(jsonl(rows))
    (hub / "test.jsonl").write_bytes(jsonl(others))
    (hub / "README.md").write_text("---\n---\n")
    assert read(f"{hub},split=train").prompts == ["a"]
    assert read(f"{hub},split=test,prompt=b").prompts == ["b"]
    (hub / "notes.csv").write_text("a,b\n")
    with pytest.raises(
        DataError, match="is a directory; give one of the files in it: notes.csv, te"
    ):
        read(str(hub))
