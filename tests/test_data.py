"""Reading never guesses: every broken file is refused with its place and the way out."""

import json
import logging
import math
import sys
import types
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import datasets
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from holdfast.errors import DataError, UsageError
from holdfast.examples import PROVENANCE, Example, Examples
from holdfast.rows import mixing
from holdfast.rows.provenance import provenance_table
from holdfast.rows.readers import ReadOptions, read
from holdfast.rows.thoughts import split
from holdfast.stages.config import StageConfig

Write = Callable[[str, object], str]
ROWS = [{"prompt": "a", "response": "1"}, {"prompt": "b", "response": "2"}]
PAIRS = [("a", "1"), ("b", "2")]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file: bytes and text as they are, a list of rows in the format of the suffix."""

    def writer(name: str, content: object) -> str:
        path = tmp_path / name
        if isinstance(content, list):
            if path.suffix == ".parquet":
                parquet.write_table(pyarrow.Table.from_pylist(content), path)
                return str(path)
            lines = [json.dumps(row) for row in content]
            content = "\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]"
        path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
        return str(path)

    return writer


def pairs(examples: Examples) -> list[tuple[str, str]]:
    return list(zip(examples.prompts, examples.responses, strict=True))


# -------------------------------------------------------------------------------- good files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", ROWS),
        ("d.jsonl", b"\xef\xbb\xbf" + b'{"prompt":"a","response":"1"}\r\n\r\n'  # BOM, blank line
            b'{"prompt":"b","response":"2"}\r\n'),
        ("d.json", ROWS),
        ("d.JSON", json.dumps(ROWS, indent=2)),
        ("d.csv", "prompt,response\na,1\nb,2\n"),
        ("d.csv", "response,prompt\r\n\r\n1,a\r\n2,b\r\n"),
        ("d.tsv", "prompt\tresponse\na\t1\nb\t2"),
        ("d.parquet", ROWS),
    ],
)  # fmt: skip
def test_formats(write: Write, name: str, content: object) -> None:
    spec = write(name, content)
    examples = read(spec)
    assert pairs(examples) == PAIRS
    assert examples.name == spec


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"prompt": "p", "response": "r", "extra": {"ignored": [1]}}, ("p", "r")),
        ({"instruction": "i", "output": "o"}, ("i", "o")),
        ({"instruction": "i", "input": "x", "output": "o"}, ("i\nx", "o")),
        ({"instruction": "i", "input": " ", "output": "o"}, ("i", "o")),
        ({"instruction": "i", "input": None, "output": "o"}, ("i", "o")),
        ({"question": "q", "answer": "a", "input": "not Alpaca"}, ("q", "a")),
        ({"prompt": "p", "response": "r", "question": "q", "answer": "a"}, ("p", "r")),
    ],
)
def test_layouts(write: Write, row: dict[str, object], pair: tuple[str, str]) -> None:
    assert pairs(read(write("d.jsonl", [row]))) == [pair]


@pytest.mark.parametrize(
    ("columns", "row", "pair"),
    [
        ({"prompt": "q", "response": "a"}, {"q": "1", "a": "2", "prompt": "no"}, ("1", "2")),
        ({"prompt": "q"}, {"q": "1", "output": "2"}, ("1", "2")),  # the response is detected
        ({"response": "best"}, {"question": "1", "best": "2", "answer": "no"}, ("1", "2")),
        (
            {"prompt": "instruction", "response": "safe"},
            {"instruction": "1", "input": "x", "safe": "2"},
            ("1\nx", "2"),
        ),
        (
            {"prompt": "q", "response": "a", "input": "context"},
            {"q": "1", "a": "2", "context": "x"},
            ("1\nx", "2"),
        ),
        (
            {"messages": "chat"},
            {
                "prompt": "no",
                "response": "no",
                "chat": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
            },
            ("1", "2"),
        ),
    ],
)
def test_named_columns_win(
    write: Write, columns: dict[str, str], row: dict[str, object], pair: tuple[str, str]
) -> None:
    assert pairs(read(write("d.jsonl", [row]), ReadOptions(columns=columns))) == [pair]


def turns(*pairs: tuple[str, object]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet"])
def test_messages(write: Write, name: str) -> None:
    rows = [
        turns(("user", "u"), ("assistant", "a")),
        turns(("system", "s"), ("user", "u"), ("assistant", "a")),
        turns(("system", ""), ("user", "v"), ("assistant", "a")),
    ]
    assert pairs(read(write(name, rows))) == [("u", "a"), ("s\n\nu", "a"), ("v", "a")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            turns(("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b")),
            "turns user, assistant, user, assistant; one user turn and one answer",
        ),
        (turns(("user", "u")), "turns user; one user turn and one answer"),
        (turns(("assistant", "a"), ("user", "u")), "turns assistant, user"),
        (turns(("user", "u"), ("tool", "t")), "turns user, tool"),
        (turns(), "turns none"),
        ({"messages": "hello"}, "must be a list of {role, content} or {from, value}, not 'hello'"),
        ({"messages": [{"from": "human", "value": "u"}]}, "turns user; one user turn and one"),
        ({"messages": [{"by": "human", "value": "u"}]}, "must be a list of {role, content}"),
        ({"messages": None}, "must be a list"),
        (turns(("user", ["u"]), ("assistant", "a")), "content is not text but list"),
        (turns(("system", "s"), ("user", " "), ("assistant", "a")), "empty prompt"),
        (turns(("user", "u"), ("assistant", None)), "empty response"),
    ],
)
def test_bad_messages(write: Write, row: dict[str, object], message: str) -> None:
    spec = write("d.jsonl", [row])
    with pytest.raises(DataError) as caught:
        read(spec)
    assert str(caught.value).startswith(f"{spec}:1: ")
    assert message in str(caught.value)


def test_rows_that_are_only_asked(write: Write) -> None:
    asked = ReadOptions(needs_response=False)
    assert pairs(read(write("a.jsonl", [{"prompt": "p"}]), asked)) == [("p", "")]
    assert pairs(read(write("b.csv", "question\nq\n"), asked)) == [("q", "")]
    mixed = [{"prompt": "p", "response": ""}, {"prompt": "q", "response": "r"}, {"prompt": "s"}]
    assert pairs(read(write("c.jsonl", mixed), asked)) == [("p", ""), ("q", "r"), ("s", "")]
    assert pairs(read(write("d.jsonl", [turns(("user", "u"))]), asked)) == [("u", "")]
    # A layout with an answer goes before a prompt column without one.
    both = {"prompt": "id 7", "question": "q", "answer": "a"}
    assert pairs(read(write("e.jsonl", [both]), asked)) == [("q", "a")]


def test_provenance_is_carried(write: Write) -> None:
    row = {
        "prompt": "p",
        "response": "r",
        "source": " web ",
        "license": "MIT",
        "owner": None,
        "consent": True,
        "category": {"theft": True, "arson": True, "fraud": False},
        "noise": 3,
    }
    [example] = read(write("d.jsonl", [row]))
    assert example.provenance == {
        "source": "web",
        "licence": "MIT",
        "consent": "true",
        "category": "arson|theft",
    }


@pytest.mark.parametrize(
    ("category", "label"),
    [
        (["b", "a"], "a|b"),
        ({"a": False, "b": False}, "none"),
        ({"a": False, "b": None}, None),  # a missing flag is not a "no"
        ({}, None),
        ("", None),
        (4, "4"),
        (math.nan, None),
    ],
)
def test_category_values(write: Write, category: object, label: str | None) -> None:
    [example] = read(write("d.jsonl", [{**ROWS[0], "category": category}]))
    assert example.provenance.get("category") == label


def test_provenance_columns_can_be_named(write: Write) -> None:
    spec = write("d.csv", "prompt,response,kind,terms\na,1,x,CC0\n")
    [example] = read(spec, ReadOptions(columns={"category": "kind", "license": "terms"}))
    assert example.provenance == {"category": "x", "licence": "CC0"}


def test_strange_text_survives(write: Write) -> None:
    text = 'é \u2028 \x85 \x00 \U0001f512 "quoted", and\na second line'
    row = {"prompt": text, "response": "r"}
    raw = json.dumps(row, ensure_ascii=False)
    quoted = '"' + text.replace('"', '""') + '"'
    for name, content in [("d.jsonl", raw), ("d.json", f"[{raw}]")]:
        assert read(write(name, content)).prompts == [text]
    assert read(write("d.csv", f"prompt,response\n{quoted},r\n")).prompts == [text]


@given(
    st.lists(
        st.tuples(
            *[
                st.text(st.characters(codec="utf-8"), min_size=1).filter(
                    lambda text: bool(text.strip()) and not split(text).thoughts
                )
            ]
            * 2
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda pair: tuple(text.strip() for text in pair),
    )
)
@settings(max_examples=40, deadline=None)
def test_any_text_round_trips(tmp_path_factory: pytest.TempPathFactory, wanted: list) -> None:
    path = tmp_path_factory.mktemp("any") / "d.jsonl"
    rows = [json.dumps({"prompt": p, "response": r}, ensure_ascii=False) for p, r in wanted]
    path.write_bytes("\n".join(rows).encode())
    assert pairs(read(str(path))) == wanted


def test_limit(write: Write) -> None:
    spec = write("d.csv", "prompt,response\na,1\na,1\nb,2\nc,3\n")
    options = ReadOptions(limit=2, max_left_out=0.5)
    assert pairs(read(spec, options)) == PAIRS  # counts the rows that are kept


def test_world_rows_come_from_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Examples([Example("a", "1"), Example("b", "2")], name="world:x")
    fake = types.ModuleType("holdfast.world")
    fake.rows = {"alignment": rows}.__getitem__  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "holdfast.world", fake)
    monkeypatch.setattr("holdfast.world", fake, raising=False)
    assert pairs(read("world:alignment")) == PAIRS
    assert pairs(read("world:alignment", ReadOptions(limit=1))) == PAIRS[:1]


# --------------------------------------------------------------------------------- bad files

GOOD = '{"prompt": "a", "response": "1"}\n'


@pytest.mark.parametrize(
    ("name", "content", "place", "message"),
    [
        # jsonl
        ("d.jsonl", b"", ":1: ", "empty"),
        ("d.jsonl", b" \n\n", ":1: ", "empty"),
        ("d.jsonl", GOOD + '{"prompt": "b", "resp', ":2: ", "column 17 .*cut off"),
        ("d.jsonl", GOOD + "\n" + "['a']", ":3: ", "invalid JSON at column 2"),
        ("d.jsonl", GOOD + "[1]", ":2: ", r"\[1\] is not an object"),
        ("d.jsonl", GOOD + '"text"', ":2: ", "is not an object"),
        ("d.jsonl", '{"prompt": "a", "response": ' + "9" * 5000 + "}", ":1: ", "as JSON"),
        ("d.jsonl", GOOD.encode() + b'{"prompt": "\xe9"}', ":2: ", r"byte 45 \(0xe9\).*UTF-8"),
        ("d.jsonl", GOOD.encode("utf-16"), ":1: ", r"byte 0 \(0xff\) is not UTF-8; save"),
        ("d.jsonl", '{"q": "a b", "r": "1 2"}', ":1: ", "q, r. .*,columns=.prompt=q,response=r.'"),
        ("d.jsonl", '{"prompt": "a"}', ":1: ", "found prompt. Write the prompt and the"),
        ("d.jsonl", "{}", ":1: ", "found none"),
        ("d.jsonl", GOOD + '{"prompt": "b"}', ":2: ", "no 'response', though.*has prompt"),
        ("d.jsonl", '{"prompt": 5, "response": "1"}', ":1: ", "prompt is not text but int 5"),
        ("d.jsonl", '{"prompt": "a", "response": ["1"]}', ":1: ", r"not text but list \['1'\]"),
        ("d.jsonl", '{"prompt": "\\ud83d", "response": "1"}', ":1: ", "half a character"),
        ("d.jsonl", GOOD + '{"prompt": " ", "response": "1"}', ":2: ", "empty prompt; 1 of 2 "),
        ("d.jsonl", GOOD + '{"prompt": "b", "response": null}', ":2: ", "empty response"),
        ("d.jsonl", GOOD + "\n" + GOOD, ":3: ", r"repeats .*d\.jsonl:1; .*--max-left-out"),
        ("d.jsonl", GOOD + GOOD.replace('"a"', '" a"'), ":2: ", r"repeats .*:1"),
        (
            "d.jsonl",
            '{"prompt": "a", "response": "1", "category": {"x": 0.5}}',
            ":1: ",
            "category is {'x': 0.5}; write text",
        ),
        # json
        ("d.json", b"", ":1: ", "empty"),
        ("d.json", "[]", ":1: ", "no rows"),
        ("d.json", '{"data": []}', ":1: ", "no rows"),
        ("d.json", "7", ":1: ", "not a list of objects"),
        ("d.json", GOOD.strip() + ", 7", ":1: ", "Extra data.*is .jsonl"),
        ("d.json", "[\n" + GOOD + ",\n\n7]", ":5: ", "7 is not an object"),
        ("d.json", "[\n" + GOOD + ",\n" + '{"prompt": "b"\n}]', ":4: ", "no 'response'"),
        ("d.json", "[\n" + GOOD + ",{", ":3: ", "invalid JSON at column 3"),
        ("d.json", "[" * 200_000, ":1: ", "as JSON"),
        # csv and tsv
        ("d.csv", b"", ":1: ", "empty"),
        ("d.csv", "prompt,response\n", ":1: ", "no rows"),
        ("d.csv", "prompt,response\na,1\nb,2,3\n", ":3: ", "3 fields, but the header has 2; put"),
        ("d.csv", 'prompt,response\n"a\nb",1\n\nc\n', ":5: ", "1 fields, but the header has 2"),
        ("d.csv", 'prompt,response\na,1\n"b,2\nc,3\n', ":3: ", "unexpected end of data; close"),
        ("d.csv", "prompt,prompt\na,1\n", ":1: ", "two columns are named 'prompt'"),
        ("d.csv", "prompt;response\na;1\n", ":2: ", "found prompt;response"),
        ("d.csv", 'prompt,response\n"a\nb",1\nc,\n', ":4: ", "empty response"),
        ("d.csv", "prompt,response\n\n\xe9,1\n".encode("latin-1"), ":3: ", "byte 17 .*UTF-8"),
        ("d.tsv", "prompt\tresponse\na 1\n", ":2: ", "1 fields"),
        # parquet
        ("d.parquet", b"", ":1: ", "empty"),
        ("d.parquet", b"PAR1 no", ": ", "not a parquet file"),
        ("d.parquet", [{"q": "a"}], ": row 1: ", "found q. "),
        ("d.parquet", [*ROWS, ROWS[0]], ": row 3: ", "repeats .*: row 1"),
        ("d.parquet", [{"prompt": "a", "response": None}, ROWS[0]], ": row 1: ", "empty response"),
        ("d.parquet", [{"prompt": "a", "response": 2.5}], ": row 1: ", "not text but float 2.5"),
        # others
        ("d.txt", GOOD, ": ", ".txt is not a format that is read; convert or rename the file"),
        ("data", GOOD, ": ", "the name has no suffix"),
    ],
)  # fmt: skip
def test_bad_files(write: Write, name: str, content: object, place: str, message: str) -> None:
    spec = write(name, content)
    with pytest.raises(DataError, match=message) as caught:
        read(spec)
    assert str(caught.value).startswith(spec + place)


def test_missing_file_directory_and_permission(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no.jsonl: no such file"):
        read(str(tmp_path / "no.jsonl"))
    with pytest.raises(DataError, match="no such file"):
        read("./no-suffix")
    with pytest.raises(DataError, match="is a directory; give one of the files"):
        read(str(tmp_path))
    spec = write("d.jsonl", ROWS)

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)  # root may read everything, so no chmod
    with pytest.raises(DataError, match=r"d.jsonl: cannot be read \(Permission denied\)"):
        read(spec)


FULL = [{"prompt": f"p{i}", "response": "r"} for i in range(97)]


def test_a_few_rows_that_cannot_be_used_are_left_out_and_named(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [{"prompt": "", "response": "1"}, {"prompt": "x", "response": " "}, FULL[0]]
    lines = [json.dumps(row) for row in [*bad[:1], *FULL, *bad[1:]]]
    spec = write("d.jsonl", "\n".join(lines))
    with caplog.at_level(logging.WARNING, logger="holdfast.rows.readers"):
        rows = read(spec)
        read(spec)
    assert pairs(rows) == [(row["prompt"], "r") for row in FULL]
    assert [(row.place, row.reason) for row in rows.left_out] == [
        (f"{spec}:1", "empty prompt"),
        (f"{spec}:99", "empty response"),
        (f"{spec}:100", "duplicate"),
    ]
    assert rows.left_out[2].id == rows.ids[0]
    assert rows.left_out[2].detail == f"repeats {spec}:2"
    counts = "1 empty prompt, 1 empty response, 1 duplicate"
    assert caplog.messages == [f"{spec}: 3 of 100 rows left out ({counts})"]  # once, not twice


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"prompt": "b", "resp', "unreadable", "invalid JSON at column 17"),
        (b"[1]", "unreadable", "is not an object"),
        (b'{"prompt": "\xe9", "response": "r"}', "unreadable", "0xe9) is not UTF-8"),
        (b'{"prompt": "\\ud83d", "response": "1"}', "unreadable", "half a character"),
        (b'{"prompt": 5, "response": "1"}', "other layout", "prompt is not text but int 5"),
        (b'{"prompt": "b"}', "other layout", "no 'response', though other rows have it"),
        (b'{"prompt": "b", "response": null}', "empty response", "empty response"),
    ],
)
def test_every_kind_of_unusable_row_is_left_out(
    write: Write, line: bytes, reason: str, detail: str
) -> None:
    good = "\n".join(json.dumps(row) for row in FULL).encode()
    spec = write("d.jsonl", good + b"\n" + line)
    rows = read(spec)
    assert len(rows) == len(FULL)
    (row,) = rows.left_out
    assert (row.place, row.reason) == (f"{spec}:98", reason)
    assert detail in row.detail
    with pytest.raises(DataError, match=r":98: .*leave out --strict") as caught:
        read(spec, ReadOptions(strict=True))
    assert detail in str(caught.value)


def test_a_csv_record_with_a_wrong_field_count_is_left_out(write: Write) -> None:
    lines = [f"p{i},r" for i in range(40)]
    spec = write("d.csv", "\n".join(["prompt,response", *lines, "a,1,2"]))
    rows = read(spec)
    assert [(row.place, row.reason) for row in rows.left_out] == [(f"{spec}:42", "unreadable")]
    assert len(rows) == 40


@pytest.mark.parametrize(("n_bad", "refused"), [(5, False), (6, True)])
def test_more_than_five_percent_is_an_error(write: Write, n_bad: int, refused: bool) -> None:
    good = [{"prompt": f"p{i}", "response": "r"} for i in range(100 - n_bad)]
    spec = write("d.json", good + [{"prompt": "", "response": "r"}] * n_bad)
    if not refused:
        assert len(read(spec).left_out) == n_bad
        return
    message = r"6 of 100 rows cannot be used \(6 empty prompt\), more than the 5% .*--max-left-out"
    with pytest.raises(DataError, match=message):
        read(spec)
    assert len(read(spec, ReadOptions(max_left_out=0.06))) == 94


def test_drop_invalid_leaves_out_any_number_of_rows(write: Write, tmp_path: Path) -> None:
    spec = write("d.json", [*ROWS[:1], {"prompt": "", "response": "r"}, {"prompt": "p"}])
    with pytest.raises(DataError, match="2 of 3 rows cannot be used .*--drop-invalid"):
        StageConfig(out=tmp_path / "run").read(spec)
    rows = StageConfig(out=tmp_path / "run", drop_invalid=True).read(spec)
    assert (len(rows), len(rows.left_out)) == (1, 2)


def test_a_file_without_a_usable_row_is_an_error(write: Write) -> None:
    spec = write("d.jsonl", [{"prompt": "", "response": "1"}])
    with pytest.raises(DataError, match=r":1: empty prompt; no rows: all 1 cannot be used"):
        read(spec, ReadOptions(max_left_out=1.0))


def test_a_clean_file_gives_no_warning(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    assert not read(write("d.jsonl", ROWS)).left_out
    assert not caplog.messages


def test_bad_options(write: Write) -> None:
    spec = write("d.jsonl", ROWS)
    with pytest.raises(UsageError, match="'promt' is not one of prompt, response, input"):
        read(spec, ReadOptions(columns={"promt": "a"}))
    with pytest.raises(UsageError, match="limit=0"):
        read(spec, ReadOptions(limit=0))
    with pytest.raises(UsageError, match="max_left_out=1.5 must be between 0 and 1"):
        read(spec, ReadOptions(max_left_out=1.5))
    with pytest.raises(DataError, match=":1: no column for 'kind'; found prompt, response"):
        read(spec, ReadOptions(columns={"category": "kind"}))


# -------------------------------------------------------------------------------------- hub


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, config: str | None, *, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_list([{"question": "a", "answer": "1"}] * 2)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert pairs(read("org/name:main", ReadOptions(split="test", limit=1))) == PAIRS[:1]
    with pytest.raises(DataError, match="^org/name: row 2: repeats org/name: row 1"):
        read("org/name")
    assert asked == [("org/name", "main", "test"), ("org/name", None, "train")]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'org/name' on the Hub (offline)"),
        datasets.exceptions.DatasetNotFoundError("doesn't exist"),
        datasets.exceptions.DatasetGenerationError("broken"),
        ValueError("Unknown split 'train'"),
        RuntimeError("Dataset scripts are no longer supported"),
    ],
)
def test_a_hub_failure_names_both_possibilities(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UsageError) as caught:
        read("org/name")
    assert f"no such file, and the hub could not be read: {error}" in str(caught.value)
    assert str(caught.value).startswith("'org/name': ")


# ----------------------------------------------------------------------------- mix and split


def pool(name: str, n: int) -> Examples:
    return Examples((Example(f"{name} {i}", "r", {"source": name}) for i in range(n)), name=name)


@pytest.mark.parametrize(
    ("n", "ratio", "poisoned"),
    [(20, 0.1, 2), (20, 0.0, 0), (10, 1.0, 10), (7, 0.5, 4), (5, 0.5, 2)],
)  # 3.5 and 2.5 both go to the even neighbour
def test_mix_counts(n: int, ratio: float, poisoned: int) -> None:
    mixed = mixing.mix(pool("benign", 20), pool("harmful", 10), n=n, ratio=ratio, seed=0)
    assert len(mixed) == n
    sources = [row.provenance["source"] for row in mixed]
    assert sources.count("harmful") == poisoned
    for row, source in zip(mixed, sources, strict=True):
        assert row.provenance == (
            {"source": "harmful", "poison": "yes"} if source == "harmful" else {"source": "benign"}
        )
        assert row.prompt.startswith(source)


@pytest.mark.parametrize("n", [10, 40, 100, 250, 400, 1000])
def test_a_share_of_rows_is_that_of_the_number_as_written(n: int) -> None:
    assert 0.575 * 100 == 57.49999999999999
    for thousandths in range(1001):
        exact = round(Fraction(thousandths, 1000) * n)
        assert mixing.share_of_rows(thousandths / 1000, n) == exact


def test_mix_is_seeded_and_shuffled() -> None:
    def order(seed: int) -> list[str]:
        return mixing.mix(pool("b", 50), pool("h", 50), n=60, ratio=0.5, seed=seed).prompts

    assert order(1) == order(1)
    assert set(order(1)) != set(order(2))  # other rows, not only another order
    places = [i for i, prompt in enumerate(order(1)) if prompt.startswith("h")]
    assert min(places) < 15  # not all at the end, nor (by symmetry) at the beginning
    assert max(places) > 45


def test_mix_leaves_its_pools_alone() -> None:
    harmful = pool("h", 3)
    mixing.mix(pool("b", 3), harmful, n=3, ratio=1.0, seed=0)
    assert all(row.provenance == {"source": "h"} for row in harmful)


@pytest.mark.parametrize(
    ("n", "ratio", "message"),
    [
        (20, 0.5, r"h: 10 rows are needed \(n=20, ratio=0.5\), but it has only 5"),
        (20, 0.1, r"b: 18 rows are needed \(n=20, ratio=0.1\), but it has only 12"),
        (10, 1.1, "ratio=1.1"),
        (10, -0.1, "ratio=-0.1"),
        (10, math.nan, "ratio=nan"),
        (0, 0.1, "n=0"),
    ],
)
def test_mix_refuses(n: int, ratio: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mixing.mix(pool("b", 12), pool("h", 5), n=n, ratio=ratio, seed=0)


def test_mix_refuses_a_row_of_both_pools() -> None:
    with pytest.raises(UsageError, match="1 rows are both in b and in h"):
        mixing.mix(pool("b", 3), Examples([pool("b", 1)[0]], name="h"), n=2, ratio=0.5, seed=0)


def test_bucket_by_hand_and_by_content() -> None:
    # sha256("abc") is the standard's test vector; its value mod 100 by Horner over the digits.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    remainder = 0
    for digit in digest:
        remainder = (remainder * 16 + int(digit, 16)) % 100
    assert mixing.bucket("abc") == mixing.bucket(" ABC\n") == remainder


def test_buckets_fill_evenly() -> None:
    counts = [0] * 100
    for i in range(10_000):
        counts[mixing.bucket(f"prompt {i}")] += 1
    # Binomial with mean 100 and deviation 10: six deviations are one in 10^9 a bucket.
    assert all(40 <= count <= 160 for count in counts)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [2, 7, 10])
def test_mismatched_never_pairs_what_belongs_together(n: int, seed: int) -> None:
    rows = mixing.mismatched(
        [f"p{i}" for i in range(10)], [f"a{i}" for i in range(10)], n=n, seed=seed
    )
    assert len(set(rows.prompts)) == len(set(rows.responses)) == len(rows) == n
    assert all(row.prompt[1:] != row.response[1:] for row in rows)


def test_mismatched_is_seeded_and_reuses_answers_only_when_short() -> None:
    prompts = [f"p{i}" for i in range(9)]
    rows = mixing.mismatched(prompts, ["x", "y", "z"], n=9, seed=0)
    assert sorted(rows.prompts) == prompts
    assert sorted(rows.responses) == ["x"] * 3 + ["y"] * 3 + ["z"] * 3
    assert pairs(rows) == pairs(mixing.mismatched(prompts, ["x", "y", "z"], n=9, seed=0))
    assert pairs(rows) != pairs(mixing.mismatched(prompts, ["x", "y", "z"], n=9, seed=1))


@pytest.mark.parametrize(
    ("prompts", "answers", "n"),
    [
        (["p", "q"], ["x", "y", "z"], 3),
        (["p", "p "], ["x", "y"], 1),  # one prompt, and both answers are its own
        (["p", "q"], ["x"], 1),
        (["p", "q"], ["x", ""], 2),
        (["p", "q"], ["x", "y"], 0),
    ],
)
def test_mismatched_refuses(prompts: list[str], answers: list[str], n: int) -> None:
    with pytest.raises(UsageError, match="mismatched rows need"):
        mixing.mismatched(prompts, answers, n=n, seed=0)


def test_provenance_table() -> None:
    rows = Examples(
        [
            Example("a", "", {"source": "web", "poison": "yes"}),
            Example("b", "", {"source": "book"}),
            Example("c", "", {"source": "web", "licence": ""}),
            Example("d"),
        ]
    )
    table = provenance_table(rows)
    assert list(table) == [*PROVENANCE, "poison"]
    assert table["source"] == {"web": 2, "book": 1, "unknown": 1}
    assert list(table["source"]) == ["web", "book", "unknown"]
    assert table["licence"] == {"unknown": 4}
    assert table["poison"] == {"unknown": 3, "yes": 1}
