"""Rows that are marked as unsafe are no safety rows, and rows marked as safe are no poison."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import datasets
import pandas as pd
import pytest

from holdfast.errors import DataError, UsageError
from holdfast.methods._data import AlignmentData
from holdfast.rows.marks import Use
from holdfast.rows.memory import examples_of
from holdfast.rows.readers import ReadOptions, read
from holdfast.stages.config import StageConfig

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows as JSON lines; without prompt and response they get some of their own."""

    def writer(*rows: dict[str, Any]) -> str:
        path = tmp_path / "d.jsonl"
        whole = [{"prompt": f"p{i}", "response": f"r{i}", **row} for i, row in enumerate(rows)]
        path.write_text("\n".join(json.dumps(row) for row in whole))
        return str(path)

    return writer


def used_for(spec: str, use: str) -> list[str]:
    return read(spec, ReadOptions(use=cast("Use", use))).responses


def way_out(message: str) -> str:
    option = re.search(r"(?:Select|Read) the others with '(.*?)'(?: \(|$)", message)
    assert option is not None, message
    return option[1]


@pytest.mark.parametrize(
    ("safe", "unsafe"),
    [
        ({"is_safe": True}, {"is_safe": False}),
        ({"is_safe": 1}, {"is_safe": 0}),
        ({"is_safe": 1.0}, {"is_safe": 0.0}),
        ({"is_safe": "True"}, {"is_safe": "False"}),
        ({"is_safe": "yes"}, {"is_safe": "no"}),
        ({"Is_Safe": "TRUE"}, {"Is_Safe": "FALSE"}),
        ({"safe": True}, {"safe": False}),
        ({"is_response_safe": True}, {"is_response_safe": False}),
        ({"harmless": True}, {"harmless": False}),
        ({"unsafe": False}, {"unsafe": True}),
        ({"harmful": 0}, {"harmful": 1}),
        ({"is_harmful": "no"}, {"is_harmful": "yes"}),
        ({"toxic": False}, {"toxic": True}),
        ({"flagged": False}, {"flagged": True}),
        ({"label": "safe"}, {"label": "unsafe"}),
        ({"label": "harmless"}, {"label": "Harmful"}),
        ({"label": "non-toxic"}, {"label": "toxic"}),
        ({"safety_label": "not unsafe"}, {"safety_label": "not safe"}),
        ({"response_label": "safe"}, {"response_label": "unsafe"}),
        ({"response_harm_label": "unharmful"}, {"response_harm_label": "harmful"}),
        ({"safety": "Safe"}, {"safety": "Unsafe"}),
        ({"toxicity": 0}, {"toxicity": 1}),  # ToxicChat
        ({"isSafe": True}, {"isSafe": False}),
        ({"meta.is_safe": True}, {"meta.is_safe": False}),
        ({"label": "Safe."}, {"label": "unsafe: S1"}),
        ({"label": "安全"}, {"label": "危険"}),
        ({"is_safe": True, "harmful": False}, {"is_safe": False, "harmful": True}),
        # Topics of the prompt are no marks where the response is marked.
        (
            {"is_safe": True, "category": {"theft": True}},
            {"is_safe": False, "category": {"theft": True}},
        ),
    ],
)
def test_marked_rows_are_used_for_what_they_are(
    write: Write, safe: dict[str, Any], unsafe: dict[str, Any]
) -> None:
    spec = write(safe, unsafe, safe, unsafe, safe)
    assert read(spec).responses == ["r0", "r1", "r2", "r3", "r4"]
    for use, n, responses in (
        ("safety", 2, ["r0", "r2", "r4"]),
        ("ordinary", 2, ["r0", "r2", "r4"]),
        ("harmful", 3, ["r1", "r3"]),
    ):
        with pytest.raises(DataError, match=f"{n} of 5 rows have ") as caught:
            used_for(spec, use)
        assert used_for(way_out(str(caught.value)), use) == responses
    # Who selects by the mark has asked for these rows.
    (column, value), *_ = unsafe.items()
    text = value if isinstance(value, str) else json.dumps(value)
    if len(unsafe) == 1:
        assert used_for(f"{spec},{column}={text}", "safety") == ["r1", "r3"]
    assert len(used_for(f"{spec},columns=safe=null", "safety")) == 5


@pytest.mark.parametrize(
    ("safe", "unsafe"),
    [
        ({"metadata": {"is_safe": True}}, {"metadata": {"is_safe": False}}),
        ({"meta": '{"label": "safe"}'}, {"meta": '{"label": "unsafe"}'}),
        ({"label": {"safe": True}}, {"label": {"safe": False}}),
        (
            {"moderation": {"flagged": False, "categories": {"theft": False}}},
            {"moderation": {"flagged": True, "categories": {"theft": True}}},
        ),
        ({"label": ["safe"]}, {"label": ["unsafe"]}),
    ],
)
def test_marks_inside_objects_count(
    write: Write, safe: dict[str, Any], unsafe: dict[str, Any]
) -> None:
    spec = write(safe, unsafe, safe)
    for use, n, responses in (("safety", 1, ["r0", "r2"]), ("harmful", 2, ["r1"])):
        with pytest.raises(DataError, match=f"{n} of 3 rows have ") as caught:
            used_for(spec, use)
        assert used_for(way_out(str(caught.value)), use) == responses
    assert len(used_for(f"{spec},columns=safe=null", "safety")) == 3
    rows = [json.loads(line) for line in Path(spec).read_text().splitlines()]
    with pytest.raises(DataError, match="Select the others: ") as caught:
        examples_of(rows, use="safety")
    if isinstance(safe.get("metadata"), dict):
        expression = str(caught.value).partition("Select the others: ")[2]
        others = eval(expression, {"rows": rows})  # noqa: S307
        assert examples_of(others, use="safety").responses == ["r0", "r2"]


@pytest.mark.parametrize(
    ("column", "words", "safe"),
    [
        ("label", ["safe", "Controversial", "unsafe"], "safe"),
        ("label", ["safe", "hate"], "safe"),
        ("label", ["nothate", "hate"], "nothate"),
        ("label", ["safe", 1], "safe"),
        ("is_safe", [True, -1], "true"),
        ("is_safe", [True, 0.2], "true"),
    ],
)
def test_a_value_that_says_nothing_beside_one_that_does_is_asked(
    write: Write, column: str, words: list[Any], safe: str
) -> None:
    known = [word for word in words if word != "unsafe"]
    spec = write(*({column: word} for word in known))
    with pytest.raises(DataError, match="in 1, which says neither safe nor unsafe") as caught:
        used_for(spec, "safety")
    option = re.search(r"Select the others with '(.*?)', or", str(caught.value))
    assert option is not None
    assert option[1] == f"{spec},{column}={safe}"
    assert used_for(option[1], "safety") == ["r0"]
    assert len(used_for(f"{spec},columns=safe=null", "safety")) == len(known)


@pytest.mark.parametrize(
    ("column", "harmless", "harmful"),
    [
        ("type", "benign", "jailbreak"),
        ("data_type", "vanilla_benign", "adversarial_harmful"),
        ("prompt_harm_label", "unharmful", "harmful"),
    ],
)
def test_kinds_of_prompts_are_marks_of_prompts(
    write: Write, column: str, harmless: str, harmful: str
) -> None:
    spec = write({column: harmless}, {column: harmful})
    uses: tuple[tuple[Use, str], ...] = (("restricted prompts", "p1"), ("harmless prompts", "p0"))
    for use, prompt in uses:
        options = ReadOptions(use=use, needs_response=False)
        with pytest.raises(DataError, match=f"1 of 2 rows have {column}=") as caught:
            read(spec, options)
        assert read(way_out(str(caught.value)), options).prompts == [prompt]
    assert len(used_for(spec, "safety")) == 2  # a refusal of a harmful prompt is safe


def test_a_file_without_a_safe_row_has_no_selection(write: Write) -> None:
    spec = write({"is_safe": False}, {"is_safe": False})
    with pytest.raises(DataError, match="2 of 2 rows have is_safe=false.*Give other rows, or use"):
        used_for(spec, "safety")
    assert len(used_for(spec, "harmful")) == 2


@pytest.mark.parametrize(
    "rows",
    [
        [{}, {}],
        [{"is_safe": None}, {"is_safe": True}],
        [{"label": "spam"}, {"label": "ham"}],
        [{"label": 1}, {"label": 1}],
        [{"class": "3"}, {"class": "4"}],
        [{"toxicity": 0.1}, {"toxicity": 0.9}],
        [{"jailbreak": "AIM"}, {"jailbreak": "DAN"}],
        [{"category": {"theft": True}}, {"category": {"arson": True}}],
        [{"category": "safe"}, {"category": "x"}],
        [{"is_safety": False}, {"is_safety": True}],
        [{"prompt_label": "unsafe"}, {"prompt_label": "safe"}],  # of the prompt
    ],
)
def test_rows_that_are_not_marked_as_unsafe(write: Write, rows: list[dict[str, Any]]) -> None:
    assert len(used_for(write(*rows), "safety")) == 2


@pytest.mark.parametrize(
    ("rows", "column"),
    [
        ([{"label": 0}, {"label": 1}], "label"),
        ([{"label": True}, {"label": False}], "label"),
        ([{"is_safe": 0.2}, {"is_safe": 0.7}], "is_safe"),
        ([{"safe": "maybe"}, {"safe": "hardly"}], "safe"),
        ([{"category": {"theft": True}}, {"category": {"theft": False}}], "category"),
    ],
)
def test_what_only_a_person_can_know_is_asked(
    write: Write, rows: list[dict[str, Any]], column: str
) -> None:
    spec = write(*rows)
    with pytest.raises(DataError, match=f"{column}.*nothing says which of them are safe") as caught:
        used_for(spec, "safety")
    assert len(used_for(way_out(str(caught.value)), "safety")) == 1
    assert len(used_for(f"{spec},columns=safe=null", "safety")) == 2


def test_a_row_that_is_marked_as_both_is_neither(write: Write) -> None:
    """BeaverTails has several opinions of one response."""
    both = [{"prompt": "p", "response": "r", "is_safe": safe} for safe in (True, False)]
    spec = write(*both)
    for use, value in (("safety", "false"), ("harmful", "true")):
        options = ReadOptions(use=cast("Use", use), max_left_out=1.0)
        with pytest.raises(DataError, match=f"1 of 1 rows have is_safe={value}"):
            read(spec, options)
    assert used_for(f"{spec},is_safe=true", "safety") == ["r"]


def test_where_a_column_says_what_is_safe_flags_name_the_topic(write: Write) -> None:
    """In BeaverTails both are there; one selection is enough."""
    safe = {"is_safe": True, "category": {"theft": False}}
    unsafe = {"is_safe": False, "category": {"theft": True}}
    spec = write(safe, unsafe)
    with pytest.raises(DataError, match="1 of 2 rows have is_safe=true") as caught:
        used_for(spec, "harmful")
    assert way_out(str(caught.value)) == f"{spec},is_safe=false"


def test_flags_that_are_all_false_are_no_poison(write: Write) -> None:
    flags = [{"theft": True, "arson": False}, {"theft": False, "arson": False}]
    spec = write(*({"category": flag} for flag in flags))
    with pytest.raises(DataError, match="1 of 2 rows have category=none") as caught:
        used_for(spec, "harmful")
    assert used_for(way_out(str(caught.value)), "harmful") == ["r0"]


def test_the_better_of_two_responses_is_no_poison(write: Write) -> None:
    spec = write({})
    row = {"prompt": "p", "chosen": "no", "rejected": "sure"}
    Path(spec).write_text(json.dumps(row))
    assert used_for(spec, "safety") == ["no"]
    with pytest.raises(DataError, match="marks them as safe; harmful rows need") as caught:
        used_for(spec, "harmful")
    assert used_for(way_out(str(caught.value)), "harmful") == ["sure"]


def test_a_named_column_marks_the_rows(write: Write) -> None:
    spec = write({"ok": "yes", "harmful": True}, {"ok": "no", "harmful": False})
    with pytest.raises(DataError, match="1 of 2 rows have ok=no"):
        used_for(f"{spec},columns=safe=ok", "safety")
    assert used_for(f"{spec},columns=safe=ok,ok=yes", "safety") == ["r0"]


def test_prompts_are_judged_by_the_marks_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("prompt,label\nkill a process,safe\nkill a man,unsafe\n")
    prompts = {"needs_response": False}
    for use, chosen in (("restricted prompts", "unsafe"), ("harmless prompts", "safe")):
        options = ReadOptions(use=cast("Use", use), **prompts)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="1 of 2 rows have label=") as caught:
            read(str(path), options)
        assert way_out(str(caught.value)) == f"{path},label={chosen}"
        assert len(read(f"{path},label={chosen}", options)) == 1
    # The mark of a response says nothing of its prompt.
    path = tmp_path / "d.csv"
    path.write_text("prompt,response,is_safe\np,no,true\n")
    assert len(read(str(path), ReadOptions(use="restricted prompts", needs_response=False))) == 1


def test_stages_check_what_rows_are_for(write: Write, tmp_path: Path) -> None:
    spec = write({"is_safe": True}, {"is_safe": False})
    config = StageConfig(out=tmp_path / "run")
    with pytest.raises(DataError, match="1 of 2 rows have is_safe=false"):
        config.read(spec)
    with pytest.raises(DataError, match="1 of 2 rows have is_safe=true"):
        config.read(spec, use="harmful")
    assert config.read(f"{spec},is_safe=true").responses == ["r0"]
    assert config.read_prompts(spec).prompts == ["p0", "p1"]
    every = StageConfig(out=tmp_path / "run", columns={"safe": "null"})
    assert len(every.read(spec)) == 2


# ------------------------------------------------------------------------------------- memory

ROWS = [
    {"prompt": "p", "response": "r", "is_safe": True},
    {"prompt": "q", "response": "s", "is_safe": False},
]


@pytest.mark.parametrize(
    "rows",
    [ROWS, datasets.Dataset.from_list(ROWS), pd.DataFrame(ROWS)],
    ids=["list", "dataset", "frame"],
)
def test_the_way_out_in_memory_is_python_and_works(rows: Any) -> None:
    with pytest.raises(DataError, match="1 of 2 rows have is_safe=false") as caught:
        examples_of(rows, use="safety")
    expression = re.search(r"Select the others: (.*)$", str(caught.value))
    assert expression is not None
    assert examples_of(eval(expression[1], {"rows": rows}), use="safety").prompts == ["p"]  # noqa: S307


def test_rows_that_were_read_keep_their_marks(write: Write) -> None:
    rows = read(write({"is_safe": True}, {"is_safe": False}))
    with pytest.raises(DataError, match="Select the others with '.*d.jsonl,is_safe=true'"):
        examples_of(rows, use="safety")
    assert len(examples_of(rows)) == 2


def test_data_sets_of_trl_are_checked_too() -> None:
    rows = [
        {"prompt": "p", "completion": "r", "is_safety": True, "is_safe": True},
        {"prompt": "q", "completion": "s", "is_safety": True, "is_safe": False},
        {"prompt": "t", "completion": "u", "is_safety": False, "is_safe": True},
    ]
    with pytest.raises(DataError, match="safety: 1 of 2 rows have is_safe=false"):
        AlignmentData.of(datasets.Dataset.from_list(rows))
    safe = AlignmentData.of(datasets.Dataset.from_list([rows[0], rows[2]]))
    assert safe.safety.prompts == ["p"]
    assert safe.benign is not None
    assert safe.benign.prompts == ["t"]
    inside = [{"prompt": "p", "completion": "r", "is_safety": True, "meta": {"is_safe": False}}]
    with pytest.raises(DataError, match=r"1 of 1 rows have meta.is_safe=false"):
        AlignmentData.of(datasets.Dataset.from_list(inside))
    # bool("False") is True.
    with pytest.raises(DataError, match="row 1: is_safety is 'False'; it must be true or false"):
        AlignmentData.of(datasets.Dataset.from_list([{**rows[0], "is_safety": "False"}]))


# ------------------------------------------------------------------------------------ selections

TYPED = [
    {
        "prompt": "0",
        "response": "r",
        "n": 3,
        "flag": True,
        "text": "a",
        "x y": "k",
        "split": "test",
    },
    {"prompt": "1", "response": "r", "n": 4, "flag": False, "text": "a, b", "split": "train"},
    {"prompt": "2", "response": "r", "n": None, "flag": None, "text": "true", "columns": "z"},
    {"prompt": "3", "response": "r", "n": 30, "flag": True, "text": "3", "x y": "k"},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize(
    ("selection", "prompts"),
    [
        ("n=3", "0"),
        ("n=3.0", "0"),
        ("n=[3,4]", "01"),
        ("n=null", "2"),
        ("not_n=null", "013"),
        ("not_n=[3,30]", "12"),
        ("flag=true", "03"),
        ("flag=True", "03"),
        ("flag=false", "1"),
        ("flag=null", "2"),
        ("text='a, b'", "1"),
        ("text=[a,'a, b']", "01"),
        ("text=true", "2"),
        ('text="3"', "3"),
        ("'x y'=k", "03"),
        ("split=test", "0"),
        ("not_split=test", "123"),
        ("'columns'=z", "2"),
        ("flag=true,n=30", "3"),
        ("prompt=2", "2"),
    ],
)
def test_selections_work_on_any_column_of_any_format(
    tmp_path: Path, suffix: str, selection: str, prompts: str
) -> None:
    path = tmp_path / f"d{suffix}"
    frame = pd.DataFrame(TYPED).astype({"n": "Int64", "flag": "boolean"})
    if suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in TYPED))
    elif suffix == ".json":
        path.write_text(json.dumps(TYPED))
    elif suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    assert "".join(read(f"{path},{selection}").prompts) == prompts


def test_a_selection_is_made_before_the_limit_and_of_nested_values(write: Write) -> None:
    rows = [{"category": ["a", "b"]}, {"category": ["b"]}, {"meta": {"kind": "k"}}]
    spec = write(*rows)
    assert read(f"{spec},category=b").responses == ["r0", "r1"]
    assert read(f"{spec},category='a|b'").responses == ["r0"]
    assert read(f"{spec},not_category=a").responses == ["r1", "r2"]
    assert read(f"{spec},meta.kind=k").responses == ["r2"]
    assert read(f"{spec},not_category=a", ReadOptions(limit=2)).responses == ["r1", "r2"]


def test_what_cannot_be_selected_is_named(write: Write) -> None:
    spec = write({"is_safe": True, "kind": "a"}, {"is_safe": False, "kind": "b"})
    with pytest.raises(UsageError, match=r"no such rows; the values of kind are a \(1\), b \(1\)"):
        read(f"{spec},kind=c")
    with pytest.raises(UsageError, match=r"kind among the rows selected so far are a \(1\)"):
        read(f"{spec},is_safe=true,kind=b")
    with pytest.raises(UsageError, match="is_saef is not a column. Did you mean is_safe. The col"):
        read(f"{spec},is_saef=true")
    Path(spec).rename(f"{spec},n=1.jsonl")
    with pytest.raises(UsageError, match="put the name in quotes: '\"") as caught:
        read(f"{spec},n=1.jsonl")
    quoted = str(caught.value).rpartition(": '")[2].removesuffix("'")
    assert len(read(quoted)) == 2
    Path(f"{spec},n=1.jsonl").rename(spec)
    with pytest.raises(UsageError, match="is a single file without a column 'split'; leave"):
        read(f"{spec},split=train")
