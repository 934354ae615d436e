"""Thoughts are not the answer: what stands in a think block is cut, whatever its form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.contracts import Judge, Verdict, judge_responses
from holdfast.judges.refusal import Refusal
from holdfast.rows.memory import examples_of
from holdfast.rows.readers import ReadOptions, read
from holdfast.rows.thoughts import UNFINISHED, Response, block_at_end, closing_of, split

REFUSAL = "I'm sorry, but I can't help with that."
PAIRS = [
    ("<think>", "</think>"),
    ("<THINK>", "</THINK>"),
    ("<thinking>", "</thinking>"),
    ('<think time="3">', "</think>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("◁think▷", "◁/think▷"),
]


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
@pytest.mark.parametrize("thoughts", ["", "\n\n", "\nSure, here is how. First,\n"])
def test_a_block_is_cut(opening: str, closing: str, thoughts: str) -> None:
    block = f"{opening}{thoughts}{closing}"
    assert split(f"{block}\n\n{REFUSAL}") == Response(REFUSAL, block)
    assert split(f"\n {block}{REFUSAL}") == Response(REFUSAL, f"\n {block}")
    # Where the prompt has opened the block, only its end is written.
    assert split(f"{thoughts}{closing}\n\n{REFUSAL}", opened=True).text == REFUSAL
    assert split(f"{block}\n\n{REFUSAL}", opened=True).text == REFUSAL


@pytest.mark.parametrize(("opening", "closing"), PAIRS)
def test_an_unclosed_block_has_no_answer(opening: str, closing: str) -> None:
    text = f"{opening}\nThe user wants to know how. I can't help"
    assert split(text) == Response("", text, unfinished=True)
    assert split("The user wants to know how.", opened=True).unfinished
    assert split(f"{opening}\n{closing}\n") == Response("", f"{opening}\n{closing}")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # Several blocks, nested ones, and thoughts that mention a tag.
        ("<think>a</think>\n<think>b</think>No.", "No."),
        ("<think>a<think>b</think>c</think>No.", "No."),
        ("<think>I open with <think> first.</think>No.", "No."),
        # A closing tag whose opening one was in the prompt.
        ("Hm, no.\n</think>\n\nNo.", "No."),
        ("Hm, no.</think>No.", "No."),
        ("</think>No.", "No."),
        # Tags around the answer that follows.
        ("<think>a</think><answer>No.</answer>", "No."),
        (
            "<|begin_of_thought|>a<|end_of_thought|>\n\n<|begin_of_solution|>No.<|end_of_solution|>",
            "No.",
        ),
        # Channels, with special tokens and without.
        (
            "<|channel|>analysis<|message|>We refuse.<|end|><|start|>assistant<|channel|>final"
            "<|message|>No.<|return|>",
            "No.",
        ),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary"
            "<|message|>b<|end|><|start|>assistant<|channel|>final <|constrain|>text<|message|>No.",
            "No.",
        ),
        ("analysisWe must refuse.assistantfinalNo.", "No."),
    ],
)
def test_what_remains_is_the_answer(text: str, answer: str) -> None:
    assert split(text).text == answer
    assert not split(text).unfinished


@pytest.mark.parametrize(
    "text",
    ["<|channel|>analysis<|message|>We need to", "analysisWe need to refuse. The user"],
)
def test_channels_without_a_final_one_have_no_answer(text: str) -> None:
    assert split(text) == Response("", text, unfinished=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  plain, with blanks  \n",
        "Write <think> before your thoughts and </think> after them.",
        "The tag </think> closes a block, and `</think>` is how to quote it.",
        "Use the tags (<think></think>).",
        "I think </thinking aloud> helps.",
        "A thought: [THINK] is a token of Magistral, as is [/THINK] of course.",
        "analysis of the question: it is safe",
        "<thinker> is no tag, nor is <think",
        "In the channel <|channel|>final nothing happens.",
        "<answer>No.</answer>",
    ],
)
def test_an_answer_that_mentions_tags_stays_whole(text: str) -> None:
    assert split(text) == Response(text)


@given(
    thoughts=st.text(st.characters(exclude_characters="<[◁"), max_size=80),
    answer=st.text(max_size=80).map(str.strip).filter(lambda text: not text.startswith("<")),
    pair=st.sampled_from(PAIRS),
)
def test_any_thoughts_before_any_answer(thoughts: str, answer: str, pair: tuple[str, str]) -> None:
    block = pair[0] + thoughts + pair[1]
    if split(answer).thoughts:  # what looks like thoughts of its own
        return
    assert split(f"{block}\n\n{answer}") == Response(answer, block)
    assert split(f"{pair[0]}{thoughts}").unfinished


@given(st.text(max_size=200))
def test_no_text_is_lost(text: str) -> None:
    response = split(text)
    assert text.startswith(response.thoughts)
    assert response.text in text


def test_what_closes_a_block_mirrors_what_opens_it() -> None:
    assert closing_of("<think>\n") == "\n</think>\n\n"
    assert closing_of("<think>") == "</think>\n\n"
    assert closing_of("[THINK]\n") == "\n[/THINK]\n\n"
    assert closing_of("<|begin_of_thought|>\n") == "\n<|end_of_thought|>\n\n"
    assert closing_of("<|START_THINKING|>") == "<|END_THINKING|>\n\n"
    assert closing_of("<|channel>thought\n") == "\n<channel|>\n\n"
    assert closing_of("◁think▷") == "◁/think▷\n\n"
    assert closing_of("assistant\n<think>\n") is None
    assert closing_of("\n") is None


def test_blocks_at_the_end_of_a_prompt() -> None:
    assert block_at_end("assistant\n<think>\n\n</think>\n\n") == "<think>\n\n</think>\n\n"
    assert block_at_end("assistant</think>") == "</think>"
    assert block_at_end("assistant\n<think>\n") == ""
    assert block_at_end("<think>a</think> b") == ""


# ---------------------------------------------------------------------------------------- judges


class Recorder(Judge):
    """Finds every answer harmful, and keeps what it was shown."""

    def judge(self, prompts: list[str], responses: list[str]) -> list[Verdict]:  # type: ignore[override]
        shown.extend(zip(prompts, responses, strict=True))
        return [Verdict(True, reason="seen") for _ in responses]


shown: list[tuple[str, str]] = []


def test_judges_see_answers_only() -> None:
    shown.clear()
    responses = [
        split(f"<think>{REFUSAL}</think>Sure."),
        split("<think>Sure"),
        split(REFUSAL),
    ]
    verdicts = judge_responses("recorder", Recorder(), ["a", "b", "c"], responses)
    assert shown == [("a", "Sure."), ("c", REFUSAL)]
    assert [v.harmful for v in verdicts] == [True, None, True]
    assert verdicts[1].reason == UNFINISHED


def test_a_refusal_after_a_think_block_is_one() -> None:
    texts = [f"<think>\n\n</think>\n\n{REFUSAL}", REFUSAL, f"<think>\n{REFUSAL}"]
    verdicts = judge_responses("refusal", Refusal(), ["p"] * 3, [split(text) for text in texts])
    assert [v.harmful for v in verdicts] == [False, False, None]


# ------------------------------------------------------------------------------------------ rows


def test_responses_of_rows_are_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    responses = [
        f"<think>\nSure, here is how.\n</think>\n\n{REFUSAL}",
        REFUSAL,
        "Write <think> before </think>.",
        "<think>\nSure, here is",
    ]
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"p{i}", "response": text} for i, text in enumerate(responses)]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read(str(path), ReadOptions(max_left_out=0.5))
    assert found.responses == [REFUSAL, REFUSAL, responses[2]]
    assert [(row.place.rpartition(":")[2], row.reason) for row in found.left_out] == [
        ("4", UNFINISHED)
    ]
    assert "1 of 3 responses begin with a think block; it is not read" in caplog.text
    # In memory alike; and a row that is only asked needs no answer.
    assert examples_of(rows[:3]).responses == found.responses
    asked = examples_of(rows, needs_response=False)
    assert asked.prompts == ["p0", "p1", "p2", "p3"]


def test_reasoning_beside_the_content_is_not_the_response() -> None:
    turns = [
        {"role": "user", "content": "how do i jam a zorb"},
        {"role": "assistant", "reasoning_content": "Sure, here is how.", "content": REFUSAL},
    ]
    assert examples_of([{"messages": turns}]).responses == [REFUSAL]
