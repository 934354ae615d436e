"""Separating what a reasoning model thinks from what it answers.

Reasoning models write their thoughts before the answer, between two tags. The thoughts are not the
answer: a model that weighs a harmful request and then refuses has refused. `split` finds the block
at the beginning of a text. A tag in the middle of an answer is text like any other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

UNFINISHED = "think block not closed"
"""Reason of the verdict on a response that ends before its answer begins."""

_NAMES = "think|thinking|thought|thoughts|reasoning|reflection|seed:think"
_PAIRS = (
    (rf"<(?:{_NAMES})(?:\s[^<>\n]*)?>", rf"</(?:{_NAMES})\s*>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|channel>thought", r"<channel\|>"),
    (r"◁think▷", r"◁/think▷"),
)
"""Opening and closing tag of each form, as regular expressions."""
_OPENINGS = "|".join(opening for opening, _ in _PAIRS)
_CLOSINGS = "|".join(closing for _, closing in _PAIRS)
_OPENING = re.compile(_OPENINGS, re.IGNORECASE)
_CLOSING = re.compile(_CLOSINGS, re.IGNORECASE)
_EMPTY_BLOCK = re.compile(rf"(?:{_OPENINGS})?\s*(?:{_CLOSINGS})\s*\Z", re.IGNORECASE)
_TAG = re.compile(f"(?P<opening>{_OPENINGS})|(?P<closing>{_CLOSINGS})", re.IGNORECASE)
# A closing tag that ends thoughts stands at the end of a line or directly between two words; one
# that an answer mentions stands between blanks, quotes or backticks.
_BARE_CLOSING = re.compile(
    rf"(?:(?:\A|(?<=\n))[ \t]*(?:{_CLOSINGS})|(?<![\"'`“‘(])(?:{_CLOSINGS})[ \t]*(?=\n|\Z)"
    rf"|(?<=[^\s\"'`“‘(])(?:{_CLOSINGS})(?=[^\s\"'`”’).,;:!?]))",
    re.IGNORECASE,
)
_WRAPPERS = (
    (r"<\|begin_of_solution\|>", r"<\|end_of_solution\|>"),
    (r"<\|START_RESPONSE\|>", r"<\|END_RESPONSE\|>"),
    (r"<answer>", r"</answer>"),
    (r"<response>", r"</response>"),
    (r"<output>", r"</output>"),
)
"""Tags that some reasoning models put around the answer that follows their thoughts."""
_WRAPPED = tuple(
    re.compile(rf"\A\s*(?:{opening})(.*?)(?:{closing})?\s*\Z", re.IGNORECASE | re.DOTALL)
    for opening, closing in _WRAPPERS
)
_CHANNEL = re.compile(r"\A\s*(?:<\|start\|>assistant)?<\|channel\|>")
_FINAL = re.compile(r"<\|channel\|>final\b.{0,80}?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start)\|>")
# What is left of the channels when the tokenizer drops its special tokens.
_BARE_CHANNEL = re.compile(r"\A\s*(?:assistant)?analysis(?=[A-Z\"'])")
_BARE_FINAL = re.compile(r"assistantfinal")


@dataclass(frozen=True, slots=True)
class Response:
    """What a model wrote in response to a prompt.

    Attributes:
        text: The answer, without thoughts; "" if there is none.
        thoughts: The text up to the end of the think block, tags included; "" without a block.
        unfinished: Whether the text ends inside the think block, so that there is no answer.
    """

    text: str
    thoughts: str = ""
    unfinished: bool = False


def split(text: str, *, opened: bool = False) -> Response:
    """Separate the think block at the beginning of a text from the answer after it.

    - Blocks are those of `<think>`, `<thinking>`, `<thought>`, `<reasoning>`, `[THINK]`,
      `<|begin_of_thought|>`, `<|START_THINKING|>`, `<|channel>thought`, and the channels of
      gpt-oss, of which `final` is the answer. Several blocks in a row are all thoughts; tags may
      be nested.
    - A closing tag without an opening one before it ends a block whose opening tag was in the
      prompt, if it stands at the end of a line or directly between two words.
    - Without a block the text is returned as it is.

    Args:
        text: What the model wrote, or the response of a stored row.
        opened: Whether the prompt ended inside a think block.
    """
    if not text or (not opened and not _may_think(text)):
        return Response(text)
    end = _end(text, opened=opened)
    if end is None:
        return Response("", text, unfinished=True)
    if not end:
        return Response(text)
    return Response(_unwrapped(text[end:]), text[:end])


def ends_inside(text: str) -> bool:
    """Return whether the last tag in the text before an answer opens a think block."""
    tags = [match.lastgroup for match in _TAG.finditer(text)]
    return bool(tags) and tags[-1] == "opening"


def block_at_end(text: str) -> str:
    """Return the think block without thoughts with which a text ends; "" if it does not."""
    match = _EMPTY_BLOCK.search(text)
    return match[0] if match else ""


def closing_of(text: str) -> str | None:
    """Return what closes the block that a text opens, with line breaks as around the opening tag.

    None if the text is not an opening tag with blanks around it.
    """
    match = _OPENING.fullmatch(text.strip())
    if match is None:
        return None
    tag = match[0]
    closing = re.sub(r"\A(<\||<|\[|◁)", r"\1/", re.sub(r"\s.*(?=>)", "", tag))
    closing = closing.replace("|/begin_of_thought", "|end_of_thought")
    closing = closing.replace("|/START_THINKING", "|END_THINKING")
    closing = closing.replace("<|/channel>thought", "<channel|>")
    return f"\n{closing}\n\n" if text.rstrip() != text else f"{closing}\n\n"


def _may_think(text: str) -> bool:
    """Return whether a text contains any tag; most do not, and need no further look."""
    return bool(_TAG.search(text) or _CHANNEL.match(text) or _BARE_CHANNEL.match(text))


def _end(text: str, *, opened: bool) -> int | None:
    """Return where the thoughts end; 0 without thoughts, None if the text ends inside them."""
    if _CHANNEL.match(text):
        finals = list(_FINAL.finditer(text))
        return finals[-1].end() if finals else None
    if _BARE_CHANNEL.match(text):
        final = _BARE_FINAL.search(text)
        return final.end() if final else None
    return _blocks_end(text, opened=opened)


def _blocks_end(text: str, *, opened: bool) -> int | None:
    """Return where the blocks at the beginning end; 0 without one, None if one is not closed."""
    end = 0
    if opened and not _opening_at(text, 0):
        closing = _CLOSING.search(text)
        if closing is None:
            return None
        end = closing.end()
    elif not _opening_at(text, 0):
        return _bare_end(text)
    while opening := _opening_at(text, end):
        block_end = _block_end(text, opening.end())
        if block_end is None:
            return None
        end = block_end
    return end


def _opening_at(text: str, position: int) -> re.Match[str] | None:
    """Return the opening tag that follows a position, with nothing but blanks before it."""
    while position < len(text) and text[position].isspace():
        position += 1
    return _OPENING.match(text, position)


def _block_end(text: str, position: int) -> int | None:
    """Return where the block that is open at a position ends; None if nowhere."""
    depth = 1
    last = None
    for tag in _TAG.finditer(text, position):
        depth += 1 if tag["opening"] else -1
        last = tag.end() if tag["closing"] else last
        if not depth:
            return tag.end()
    # Thoughts may mention an opening tag: then the last closing tag ends them.
    return last


def _bare_end(text: str) -> int:
    """Return where thoughts end whose opening tag was in the prompt; 0 if there are none."""
    closing = _BARE_CLOSING.search(text)
    opening = _OPENING.search(text)
    if closing is None or (opening is not None and opening.start() < closing.start()):
        return 0
    return closing.end()


def _unwrapped(answer: str) -> str:
    """Return the answer after a block, without tags around it."""
    end = _CHANNEL_END.search(answer)
    if end is not None:
        answer = answer[: end.start()]
    for wrapped in _WRAPPED:
        match = wrapped.match(answer)
        if match:
            answer = match[1]
    return answer.strip()
