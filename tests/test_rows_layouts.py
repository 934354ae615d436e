"""The layouts of other tools: each is read as it means, or refused with a way out that works."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from holdfast.errors import DataError, UsageError
from holdfast.examples import Examples
from holdfast.rows.memory import examples_of
from holdfast.rows.readers import ReadOptions, read

Write = Callable[..., str]
ASKED = ReadOptions(needs_response=False)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows as JSON lines."""

    def writer(*rows: dict[str, Any], name: str = "d.jsonl") -> str:
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return str(path)

    return writer


def pairs(rows: Examples) -> list[tuple[str, str]]:
    return list(zip(rows.prompts, rows.responses, strict=True))


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


USER, ANSWER = turn("user", "u"), turn("assistant", "a")
TOOL_CALL = turn("assistant", None, tool_calls=[{"id": "1", "function": {"name": "f"}}])


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"prompt": "p", "completion": "c"}, ("p", "c")),
        ({"prompt": [USER], "completion": [ANSWER]}, ("u", "a")),
        ({"prompt": [USER], "completion": "c"}, ("u", "c")),
        ({"instruction": "i", "context": "", "response": "r", "category": "qa"}, ("i", "r")),
        ({"instruction": "i", "context": "x", "response": "r"}, ("i\nx", "r")),
        ({"instruction": "i", "input": math.nan, "output": "o"}, ("i", "o")),
        ({"instruction": "i", "input": "<noinput>", "output": "o"}, ("i", "o")),
        ({"instruction": "i", "input": "", "output": "o", "system": "s"}, ("s\n\ni", "o")),
        ({"instruction": "i", "output": "o", "history": []}, ("i", "o")),
        ({"question": "q", "response": "r"}, ("q", "r")),
        ({"query": "q", "response": "r"}, ("q", "r")),
        ({"system_prompt": "", "question": "q", "response": "r"}, ("q", "r")),
        ({"prompt": "p", "output": "o"}, ("p", "o")),
        ({"input": "i", "output": "o"}, ("i", "o")),
        ({"Prompt": "p", "Response": "r"}, ("p", "r")),
        # conversations
        ({"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
         ("u", "a")),
        ({"conversations": [{"from": "system", "value": "s"}, {"from": "user", "value": "u"},
                            {"from": "chatgpt", "value": "a"}]}, ("s\n\nu", "a")),
        ({"conversations": [{"from": "human", "value": "u"}, {"from": "bing", "value": "a"}],
          "system": "s"}, ("s\n\nu", "a")),
        ({"conversations": [USER, ANSWER]}, ("u", "a")),
        ({"conversation": [USER, ANSWER], "toxic": False}, ("u", "a")),
        ({"messages": [turn("developer", "d"), USER, ANSWER]}, ("d\n\nu", "a")),
        ({"messages": [turn("system", "s"), turn("developer", "d"), USER, ANSWER]},
         ("s\n\nd\n\nu", "a")),
        ({"messages": [turn("User", "u"), turn("Assistant", "a")]}, ("u", "a")),
        ({"messages": json.dumps([USER, ANSWER])}, ("u", "a")),
        ({"messages": str([USER, ANSWER])}, ("u", "a")),
        ({"messages": {"role": ["user", "assistant"], "content": ["u", "a"]}}, ("u", "a")),
        ({"messages": [USER, {"from": None, "value": None, **ANSWER}]}, ("u", "a")),
        ({"messages": [USER, turn("assistant", "a", weight=1, name=None, tool_calls=None)],
          "tools": []}, ("u", "a")),
        ({"messages": [USER, turn("assistant", None, refusal="no")]}, ("u", "no")),
        ({"messages": [turn("user", [{"type": "text", "text": "How do "},
                                     {"type": "text", "text": "I?"}]), ANSWER]},
         ("How do I?", "a")),
        # preferences
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, ("p", "c")),
        ({"prompt": "u", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, ("u", "a")),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}, ("u", "a")),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, ("u", "a")),
        ({"chosen": "\n\nHuman: u\n\nAssistant: a", "rejected": "\n\nHuman: u\n\nAssistant: r"},
         ("u", "a")),
        ({"prompt": "\n\nHuman: u\n\nAssistant:", "chosen": " a", "rejected": " r"}, ("u", " a")),
        ({"prompt": "\n\nHuman: u\n\nAssistant:", "chosen": "\n\nHuman: u\n\nAssistant: a",
          "rejected": ""}, ("u", "a")),
        ({"input": {"messages": [USER], "tools": []}, "preferred_output": [ANSWER],
          "non_preferred_output": [ANSWER]}, ("u", "a")),
    ],
)  # fmt: skip
def test_layouts_of_other_tools(write: Write, row: dict[str, Any], pair: tuple[str, str]) -> None:
    assert pairs(read(write(row))) == [pair]
    assert pairs(examples_of([row])) == [pair]


def test_an_answer_to_several_exchanges_is_chosen_by_an_option(write: Write) -> None:
    row = {
        "messages": [turn("system", "s"), USER, ANSWER, turn("user", "v"), turn("assistant", "b")]
    }
    spec = write(row, {"messages": [USER, ANSWER]})
    with pytest.raises(
        DataError, match="1 of 2 rows cannot be used .1 several exchanges."
    ) as caught:
        read(spec)
    option = re.search(r"Read the last exchange of each with '(.*?)'", str(caught.value))
    assert option is not None
    rows = read(option[1])
    assert pairs(rows) == [("s\n\nv", "b"), ("u", "a")]
    assert [row.provenance["exchange"] for row in rows] == ["last of several", "only one"]
    assert pairs(read(f"{spec},exchange=first")) == [("s\n\nu", "a"), ("u", "a")]
    dropped = read(spec, ReadOptions(max_left_out=1.0))
    assert [(row.place, row.reason) for row in dropped.left_out] == [
        (f"{spec}:1", "several exchanges")
    ]
    with pytest.raises(UsageError, match="exchange=middle must be first or last"):
        read(f"{spec},exchange=middle")


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "v", "output": "b", "history": [["u", "a"]]},
        {"conversations": [{"from": "gpt", "value": "hello"}, {"from": "human", "value": "v"},
                           {"from": "gpt", "value": "b"}]},
        {"chosen": "\n\nHuman: u\n\nAssistant: a\n\nHuman: v\n\nAssistant: b", "rejected": ""},
        {"prompt": [USER, ANSWER, turn("user", "v")], "completion": [turn("assistant", "b")]},
    ],
)  # fmt: skip
def test_every_layout_may_have_several_exchanges(write: Write, row: dict[str, Any]) -> None:
    spec = write(row)
    with pytest.raises(DataError, match="1 several exchanges.*exchange=last'"):
        read(spec)
    assert pairs(read(f"{spec},exchange=last")) == [("v", "b")]


@pytest.mark.parametrize(
    ("row", "reason", "problem"),
    [
        ({"messages": [USER, TOOL_CALL, turn("tool", "4"), ANSWER]}, "tool turns", "tool, tool"),
        ({"messages": [USER, TOOL_CALL]}, "tool turns", "turns user, tool;"),
        ({"conversations": [{"from": "human", "value": "u"},
                            {"from": "function_call", "value": "f"},
                            {"from": "observation", "value": "o"}, {"from": "gpt", "value": "a"}]},
         "tool turns", "user, tool, tool, assistant"),
        ({"messages": [USER, turn("assistant", "a", weight=0)]}, "answer of weight 0", "weight 0"),
        ({"messages": [turn("narrator", "n"), ANSWER]}, "other layout", "role 'narrator' is not"),
        ({"messages": [turn("user", [{"type": "image_url", "image_url": {}}]), ANSWER]},
         "other layout", "part of type 'image_url'"),
        ({"messages": [USER, USER, ANSWER]}, "other layout", "user, user, assistant"),
        ({"messages": [USER, turn("assistant", "")]}, "empty response", "empty response"),
        ({"messages": [turn("user", "\ud83d"), ANSWER]}, "unreadable", "half a character"),
        ({"messages": "no turns"}, "other layout", "must be a list of"),
        ({"messages": "[{'role': 'user'}\n {'role': 'assistant'}]"}, "other layout", "must be"),
    ],
)  # fmt: skip
def test_rows_that_are_refused_by_rule(
    write: Write, row: dict[str, Any], reason: str, problem: str
) -> None:
    good = [{next(iter(row)): [turn("user", f"p{i}"), ANSWER]} for i in range(20)]
    spec = write(*good, row)
    rows = read(spec)
    assert len(rows) == 20
    (left_out,) = rows.left_out
    assert (left_out.place, left_out.reason) == (f"{spec}:21", reason)
    assert problem in left_out.detail


@pytest.mark.parametrize(
    ("row", "needs_response", "pair"),
    [
        ({"goal": "g", "target": "t"}, True, ("g", "t")),
        ({"my prompt": "p", "the, reply": "r"}, True, ("p", "r")),
        ({"user": "u", "bot": "b", "n": 3}, True, ("u", "b")),
        ({"text": "t"}, False, ("t", "")),
        ({"Behavior": "b", "id": "7"}, False, ("b", "")),
        ({"chat": [USER, ANSWER]}, True, ("u", "a")),
        ({"text": "\n\nHuman: u\n\nAssistant: a"}, True, ("u", "a")),
    ],
)
def test_the_option_that_a_message_names_works(
    write: Write, row: dict[str, Any], needs_response: bool, pair: tuple[str, str]
) -> None:
    options = ReadOptions(needs_response=needs_response)
    with pytest.raises(DataError, match="no column for prompt") as caught:
        read(write(row), options)
    option = re.search(r"Name them with '(.*)'$", str(caught.value))
    assert option is not None
    assert pairs(read(option[1], options)) == [pair]


@pytest.mark.parametrize(
    "row", [{"prompt": "p q", "id": "7", "label": "x"}, {"a b": "c d", "0": "1"}]
)
def test_an_id_or_a_label_is_not_named_as_the_response(write: Write, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="Write the prompt and the response in a column each"):
        read(write(row))


def test_text_alone_has_no_response(write: Write) -> None:
    with pytest.raises(DataError, match="found text. Write the prompt and the response in a col"):
        read(write({"text": "### Instruction: i ### Response: r"}))


def test_columns_of_one_file_replace_those_of_all(write: Write) -> None:
    spec = write({"q": "1", "a": "2", "prompt": "3", "kind": "x"})
    named = ReadOptions(columns={"prompt": "prompt", "response": "prompt"})
    rows = read(f"{spec},columns=[prompt=q,response=a,category=kind],category=x", named)
    assert pairs(rows) == [("1", "2")]
    assert rows[0].provenance == {"category": "x"}
    spec = write({"prompt": "p", "response": "r", "source": {"score": 0.5}})
    with pytest.raises(DataError, match="source is {'score': 0.5}; write text"):
        read(spec)
    assert read(f"{spec},columns=source=null")[0].provenance == {}
    for wrong in ("columns=prompt", "columns=[prompt=]", "columns=(a,b=c)"):
        with pytest.raises(UsageError, match="must be ROLE=COLUMN"):
            read(f"{spec},{wrong}")


PKU = {
    "prompt": "p",
    "response_0": "good",
    "response_1": "bad",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "better_response_id": 1,
    "safer_response_id": 0,
    "response_0_harm_category": {"theft": False},
    "response_1_harm_category": {"theft": True},
}


def test_numbered_responses_are_rows_of_their_own(write: Write) -> None:
    spec = write(PKU)
    assert pairs(read(spec)) == [("p", "good"), ("p", "bad")]
    assert pairs(read(f"{spec},is_safe=true")) == [("p", "good")]
    assert pairs(read(f"{spec},better=true")) == [("p", "bad")]
    assert pairs(read(f"{spec},safer=true", ReadOptions(use="safety"))) == [("p", "good")]
    assert pairs(read(f"{spec},harm_category=theft")) == [("p", "bad")]
    # A named column of one response is read as any other.
    assert pairs(read(f"{spec},columns=response=response_1")) == [("p", "bad")]
    with pytest.raises(DataError, match=r"1 of 1 rows have is_response_1_safe=false"):
        read(f"{spec},columns=response=response_1", ReadOptions(use="safety"))


# ------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "rows",
    [
        [{"q": "a b", "a": "c d"}],
        datasets.Dataset.from_list([{"q": "a b", "a": "c d"}]),
        pd.DataFrame([{"q": "a b", "a": "c d"}]),
    ],
    ids=["list", "dataset", "frame"],
)
def test_messages_about_rows_in_memory_speak_python(rows: Any) -> None:
    with pytest.raises(DataError, match="rows: row 1: no column for prompt") as caught:
        examples_of(rows)
    assert "--" not in str(caught.value)
    expression = re.search(r"Rename them: (.*)$", str(caught.value))
    assert expression is not None
    assert pairs(examples_of(eval(expression[1], {"rows": rows}))) == [("a b", "c d")]  # noqa: S307


def test_rows_in_memory_of_every_kind() -> None:
    wanted = [("u", "a"), ("v", "b")]
    records = [{"prompt": "u", "response": "a"}, {"prompt": "v", "response": "b", "source": None}]
    dataset = datasets.Dataset.from_list(records)
    for rows in (
        records,
        (record for record in records),
        {"prompt": ["u", "v"], "response": ["a", "b"]},
        dataset,
        dataset.with_format("torch"),
        dataset.to_iterable_dataset(),
        dataset.to_pandas(),
        dataset.data.table,
    ):
        assert pairs(examples_of(rows)) == wanted
    with pytest.raises(DataError, match=r"the splits train, test; give one: rows\['train'\]"):
        examples_of(datasets.DatasetDict(train=dataset, test=dataset))
    with pytest.raises(DataError, match="a dict is one row, or columns of equal length"):
        examples_of({"prompt": "u", "response": "a"})


def test_too_many_unusable_rows_in_memory_speak_python() -> None:
    rows = [{"prompt": "u", "response": ""}, {"prompt": "v", "response": "b"}]
    with pytest.raises(DataError, match="may be left out: give the rows without them$"):
        examples_of(rows)
    several = [{"messages": [USER, ANSWER, turn("user", "v"), turn("assistant", "b")]}]
    with pytest.raises(DataError) as caught:
        examples_of(several)
    expression = re.search(r"Keep the last exchange of each: (.*)$", str(caught.value))
    assert expression is not None
    shortened = eval(expression[1], {"rows": several})  # noqa: S307
    assert pairs(examples_of(shortened)) == [("v", "b")]


def test_a_column_without_a_name_is_not_read(tmp_path: Path) -> None:
    """Pandas writes the number of each row into one; it was put after every prompt."""
    path = tmp_path / "d.csv"
    path.write_text(",prompt,response\n0,a b,c d\n1,e f,g h\n")
    rows = read(str(path))
    assert rows.prompts == ["a b", "e f"]
    assert rows.responses == ["c d", "g h"]


def test_a_message_lists_twenty_columns(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text(",".join(f"c{i}" for i in range(3000)) + "\n" + ",".join("1" * 3000) + "\n")
    with pytest.raises(DataError, match="c18, c19 and 2980 more") as caught:
        read(str(path))
    assert len(str(caught.value)) < 600
