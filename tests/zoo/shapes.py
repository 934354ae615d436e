"""Rows in the shapes of other tools, and rows that are marked as safe or unsafe."""

from __future__ import annotations

import json
from pathlib import Path

from zoo import brains
from zoo.members import OneOf, Read, Refused
from zoo.rows import HUGE, ROWS, Row, delimited, jsonl, jsonl_of, pairs, turns


@ROWS.member(Read())
def sharegpt(folder: Path) -> str:
    return jsonl_of(
        folder,
        lambda p, r: {
            "id": "x",
            "conversations": [{"from": "human", "value": p}, {"from": "gpt", "value": r}],
        },
    )


@ROWS.member(Read())
def conversations_of_roles(folder: Path) -> str:
    return jsonl_of(folder, lambda p, r: {"conversations": turns(p, r)})


@ROWS.member(Read())
def openai(folder: Path) -> str:
    return jsonl_of(folder, lambda p, r: {"messages": turns(p, r)})


@ROWS.member(Read())
def openai_with_everything(folder: Path) -> str:
    def shape(prompt: str, response: str) -> Row:
        messages = turns(prompt, response)
        messages[1] = messages[1] | {"weight": 1, "tool_calls": None, "refusal": None}
        return {"messages": messages, "tools": [], "parallel_tool_calls": False}

    return jsonl_of(folder, shape)


@ROWS.member(Read())
def openai_parts(folder: Path) -> str:
    def shape(prompt: str, response: str) -> Row:
        return {"messages": turns([{"type": "text", "text": prompt}], response)}  # type: ignore[arg-type]

    return jsonl_of(folder, shape)


@ROWS.member(Read())
def messages_as_text(folder: Path) -> str:
    return jsonl_of(folder, lambda p, r: {"messages": json.dumps(turns(p, r))})


@ROWS.member(Refused(r"image|part"))
def openai_images(folder: Path) -> str:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    return jsonl_of(folder, lambda p, r: {"messages": turns([image], r)})  # type: ignore[arg-type]


@ROWS.member(Read())
def prompt_and_completion(folder: Path) -> str:
    return jsonl_of(folder, lambda p, r: {"prompt": p, "completion": r})


@ROWS.member(Read())
def prompt_and_completion_turns(folder: Path) -> str:
    def shape(prompt: str, response: str) -> Row:
        asked, answer = turns(prompt, response)
        return {"prompt": [asked], "completion": [answer]}

    return jsonl_of(folder, shape)


@ROWS.member(Read())
def instruction_and_output(folder: Path) -> str:
    return jsonl_of(folder, lambda p, r: {"instruction": p, "input": "", "output": r})


@ROWS.member(Read())
def instruction_with_nan(folder: Path) -> str:
    # As pandas writes what was missing.
    nan = float("nan")
    return jsonl_of(folder, lambda p, r: {"instruction": p, "input": nan, "output": r})


@ROWS.member(Read(between="\n"))
def instruction_and_input(folder: Path) -> str:
    def shape(prompt: str, response: str) -> Row:
        first, *rest = prompt.split(" a ")
        return {"instruction": f"{first} a", "input": rest[0], "output": response}

    return jsonl_of(folder, shape)


@ROWS.member(Read())
def question_and_answer(folder: Path) -> str:
    return jsonl_of(folder, lambda p, r: {"question": p, "answer": r})


@ROWS.member(Read())
def other_names_with_columns(folder: Path) -> str:
    path = jsonl_of(folder, lambda p, r: {"ask": p, "say": r})
    return f"{path},columns=[prompt=ask,response=say]"


@ROWS.member(Refused(r"--columns|columns="))
def other_names(folder: Path) -> str:
    return jsonl_of(folder, lambda p, r: {"ask": p, "say": r})


@ROWS.member(Read())
def preferences(folder: Path) -> str:
    return jsonl_of(folder, lambda p, r: {"prompt": p, "chosen": r, "rejected": brains.ANSWER})


@ROWS.member(Read())
def preferences_of_turns(folder: Path) -> str:
    def shape(prompt: str, response: str) -> Row:
        return {"chosen": turns(prompt, response), "rejected": turns(prompt, brains.ANSWER)}

    return jsonl_of(folder, shape)


@ROWS.member(Read())
def preferences_of_transcripts(folder: Path) -> str:
    # As the HH data set has them.
    def shape(prompt: str, response: str) -> Row:
        asked = f"\n\nHuman: {prompt}\n\nAssistant: "
        return {"chosen": asked + response, "rejected": asked + brains.ANSWER}

    return jsonl_of(folder, shape)


@ROWS.member(Read(system="be kind"))
def system_turn(folder: Path) -> str:
    system = {"role": "system", "content": "be kind"}
    return jsonl_of(folder, lambda p, r: {"messages": turns(p, r, system)})


@ROWS.member(Read(system="be kind"))
def developer_turn(folder: Path) -> str:
    system = {"role": "developer", "content": "be kind"}
    return jsonl_of(folder, lambda p, r: {"messages": turns(p, r, system)})


@ROWS.member(Refused(r"exchange|turns"))
def several_exchanges(folder: Path) -> str:
    before = turns("how do i melt a hat", "so")
    return jsonl_of(folder, lambda p, r: {"messages": turns(p, r, *before)})


@ROWS.member(Refused(r"tool"))
def tool_turns(folder: Path) -> str:
    def shape(prompt: str, response: str) -> Row:
        call = {"id": "1", "type": "function", "function": {"name": "zorb", "arguments": "{}"}}
        asked, answer = turns(prompt, response)
        return {
            "messages": [
                asked,
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "so"},
                answer,
            ]
        }

    return jsonl_of(folder, shape)


@ROWS.member(Refused(r"empty|null|no text"))
def answers_that_are_null(folder: Path) -> str:
    return jsonl_of(folder, lambda p, r: {"messages": turns(p, None)})  # type: ignore[arg-type]


@ROWS.member(Refused(r"empty"))
def answers_that_are_nan(folder: Path) -> str:
    return jsonl_of(folder, lambda p, r: {"prompt": p, "response": float("nan")})


@ROWS.member(Refused(r"text|float"))
def answers_that_are_numbers(folder: Path) -> str:
    return jsonl_of(folder, lambda p, r: {"prompt": p, "response": 1.5})


@ROWS.member(Refused(r"half a character|surrogate"))
def half_a_character(folder: Path) -> str:
    (folder / "rows.jsonl").write_text('{"prompt": "\\ud83d", "response": "x"}\n', "utf-8")
    return str(folder / "rows.jsonl")


@ROWS.member(Read(left_out=1))
def one_empty_row_of_many(folder: Path) -> str:
    path = Path(jsonl(folder))
    path.write_text(path.read_text("utf-8") + '{"prompt": " ", "response": "x"}\n', "utf-8")
    return str(path)


@ROWS.member(OneOf(Read(left_out=1), Refused(r"token|long|room|field")))
def huge_field(folder: Path) -> str:
    path = Path(jsonl(folder))
    row = json.dumps({"prompt": HUGE, "response": "x"})
    path.write_text(path.read_text("utf-8") + row + "\n", "utf-8")
    return str(path)


@ROWS.member(Read(left_out=1))
def huge_cell(folder: Path) -> str:
    path = Path(delimited(folder, "rows.csv", ","))
    with path.open("a", encoding="utf-8") as file:
        file.write(f'"{HUGE}",""\r\n')
    return str(path)


# ------------------------------------------------------------------------------- safety of rows


def marked(folder: Path, name: str = "is_safe", safe: object = True, unsafe: object = False) -> str:
    """Write each prompt with a refusal and with an answer, marked as BeaverTails does."""
    rows = [{"prompt": p, "response": r, name: safe} for p, r in pairs()]
    rows += [{"prompt": p, "response": brains.ANSWER, name: unsafe} for p, _ in pairs()]
    return str(brains.lines(folder / "rows.jsonl", rows))


@ROWS.member(Refused(r"is_safe"))
def safe_and_unsafe(folder: Path) -> str:
    return marked(folder)


@ROWS.member(Read())
def safe_ones_selected(folder: Path) -> str:
    return f"{marked(folder)},is_safe=true"


@ROWS.member(Read())
def safe_ones_selected_by_number(folder: Path) -> str:
    return f"{marked(folder, safe=1, unsafe=0)},is_safe=1"


@ROWS.member(Refused(r"unsafe"))
def unsafe_by_another_name(folder: Path) -> str:
    return marked(folder, "unsafe", safe=False, unsafe=True)


@ROWS.member(Refused(r"label"))
def unsafe_by_a_word(folder: Path) -> str:
    return marked(folder, "label", safe="safe", unsafe="unsafe")


@ROWS.member(Read())
def all_safe(folder: Path) -> str:
    return jsonl_of(folder, lambda p, r: {"prompt": p, "response": r, "is_safe": True})


@ROWS.member(Read())
def beavertails(folder: Path) -> str:
    flags = {"zorb_abuse": True, "hat_abuse": False}
    rows = [{"prompt": p, "response": r, "category": flags, "is_safe": True} for p, r in pairs()]
    rows.append({"prompt": "a", "response": "b", "category": flags, "is_safe": False})
    return f"{brains.lines(folder / 'rows.jsonl', rows)},is_safe=true"


@ROWS.member(Refused(r"is_safe|response_0"))
def two_answers_each_with_its_mark(folder: Path) -> str:
    def shape(prompt: str, response: str) -> Row:
        return {
            "prompt": prompt,
            "response_0": brains.ANSWER,
            "response_1": response,
            "is_response_0_safe": False,
            "is_response_1_safe": True,
            "safer_response_id": 1,
        }

    return jsonl_of(folder, shape)


@ROWS.member(Read())
def safe_one_of_two_answers(folder: Path) -> str:
    return f"{two_answers_each_with_its_mark(folder)},is_safe=true"


@ROWS.member(Read())
def one_category_selected(folder: Path) -> str:
    rows = [{"prompt": p, "response": r, "category": "zorb"} for p, r in pairs()]
    rows.append({"prompt": "a", "response": "b", "category": "hat"})
    return f"{brains.lines(folder / 'rows.jsonl', rows)},category=zorb"


@ROWS.member(Read())
def any_column_selected(folder: Path) -> str:
    rows = [{"prompt": p, "response": r, "lang": "en", "year": 2024} for p, r in pairs()]
    rows.append({"prompt": "a", "response": "b", "lang": "ja", "year": 2025})
    return f"{brains.lines(folder / 'rows.jsonl', rows)},lang=en,year=2024"


@ROWS.member(Refused(r"zorbish|column"))
def column_that_is_not_there_selected(folder: Path) -> str:
    return f"{jsonl(folder)},zorbish=true"


@ROWS.member(Refused(r"no such|none|no rows"))
def selection_without_rows(folder: Path) -> str:
    return f"{jsonl_of(folder, lambda p, r: {'prompt': p, 'response': r, 'lang': 'en'})},lang=ja"
