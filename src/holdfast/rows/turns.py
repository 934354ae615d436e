"""Conversations: lists of turns, and the one exchange that is read from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from holdfast.rows.cells import structured, text_value
from holdfast.rows.tables import OTHER_LAYOUT, RowError

SEVERAL = "several exchanges"
TOOLS = "tool turns"
NOT_TRAINED = "answer of weight 0"

Pick = Literal["first", "last"]
"""Which exchange of a conversation to read."""

USER, ASSISTANT, SYSTEM, TOOL = "user", "assistant", "system", "tool"
_ROLES = {
    USER: ("user", "human", "prompter"),
    ASSISTANT: ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"),
    SYSTEM: ("system", "developer"),
    TOOL: (
        "tool",
        "function",
        "observation",
        "function_call",
        "tool_call",
        "tool_response",
        "tool_result",
        "ipython",
    ),
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_TRANSCRIPT = re.compile(r"\A\s*Human:.*\n\nAssistant:", re.DOTALL)


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: user, assistant, system or tool.
        text: What is said; "" if nothing.
        trained: False if the file says that nothing is to be learned from it (weight 0).
    """

    role: str
    text: str
    trained: bool = True


@dataclass(frozen=True)
class Exchange:
    """A prompt and its response, and whether it is one exchange of several."""

    prompt: str
    response: str
    cut: bool = False


def is_turns(value: object) -> bool:
    """Return whether a value is a list of turns, at least one."""
    return isinstance(value, list) and bool(value) and all(_is_turn(item) for item in value)


def _is_turn(value: object) -> bool:
    return isinstance(value, Mapping) and bool(_key(value, _ROLE_KEYS) and _named_text(value))


def _key(turn: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return the key that a turn has: Arrow adds the others with null."""
    present = [key for key in keys if key in turn]
    return next((key for key in present if turn[key] is not None), present[0] if present else "")


def _named_text(turn: Mapping[str, Any]) -> str:
    return _key(turn, _TEXT_KEYS) or ("tool_calls" if turn.get("tool_calls") else "")


def conversation(value: object) -> Any:
    """Return the turns that a cell holds, also as JSON text or as a transcript; otherwise None.

    A transcript is a text "Human: ...", "Assistant: ..." with blank lines between the turns.
    """
    value = structured(value)
    if isinstance(value, Mapping):
        value = value.get("messages", _of_columns(value))
    if isinstance(value, str):
        return _of_transcript(value)
    return value if is_turns(value) else None


def _of_columns(value: Mapping[str, Any]) -> object:
    """Return turns for {"role": [...], "content": [...]}, as older data sets store them."""
    columns = list(value.values())
    if not columns or not all(isinstance(cells, list) for cells in columns):
        return None
    if len({len(cells) for cells in columns}) > 1:
        return None
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _of_transcript(text: str) -> list[dict[str, str]] | None:
    if not _TRANSCRIPT.match(text):
        return None
    _, *parts = _SPEAKER.split(text)
    turns = [
        {"role": "user" if speaker == "Human" else "assistant", "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    # A prompt ends with "Assistant:", where the answer is to follow.
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def turns_of(place: str, value: object) -> list[Turn]:
    """Return the turns of a cell.

    Args:
        place: Location of the cell, for messages.
        value: A list of {role, content} or {from, value}, also as JSON text, or a transcript.

    Raises:
        RowError: It is not that, a role is unknown, or a content is not text.
    """
    turns = conversation(value)
    if turns is None:
        shown = structured(value)
        if shown == []:
            return []
        problem = f"must be a list of {{role, content}} or {{from, value}}, not {shown!r:.60}"
        raise RowError(place, OTHER_LAYOUT, problem)
    return [_turn(place, turn) for turn in turns]


def _turn(place: str, turn: Mapping[str, Any]) -> Turn:
    name = turn[_key(turn, _ROLE_KEYS)]
    role = _ROLE_OF.get(str(name).strip().lower())
    if role is None:
        problem = f"the role {name!r} is not one of user, assistant and system"
        raise RowError(place, OTHER_LAYOUT, problem)
    if turn.get("tool_calls") or turn.get("function_call"):
        role = TOOL
    key = _key(turn, _TEXT_KEYS)
    content = turn[key] if key else None
    text = _content(place, key, content) if role != TOOL else ""
    if not text.strip() and isinstance(turn.get("refusal"), str):
        text = text_value(place, "refusal", turn["refusal"])
    unlearned = turn.get("weight") == 0 or turn.get("train") is False
    return Turn(role, text, trained=not unlearned)


def _content(place: str, key: str, content: object) -> str:
    """Return the text of a turn; text parts are joined as they stand, as chat templates do."""
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        return text_value(place, key, content)
    texts = []
    for part in content:
        kind = part.get("type", "text")
        if kind not in _TEXT_PARTS:
            problem = f"{key} has a part of type {kind!r}, and only text is read"
            raise RowError(place, OTHER_LAYOUT, problem)
        texts.append(text_value(place, key, part.get("refusal" if kind == "refusal" else "text")))
    return "".join(texts)


def exchange(
    place: str, turns: Sequence[Turn], *, needs_response: bool = True, pick: Pick | None = None
) -> Exchange:
    """Return the prompt and the response of a conversation.

    System turns at its beginning are put before the prompt, as chat templates without a system role
    do.

    Args:
        place: Location of the conversation, for messages.
        turns: Its turns.
        needs_response: Whether the answer may be missing.
        pick: Which exchange to read if there are several; None refuses the row.

    Raises:
        RowError: There is no exchange, or there are several and `pick` is None.
    """
    start = next((i for i, turn in enumerate(turns) if turn.role != SYSTEM), len(turns))
    system = "\n\n".join(turn.text for turn in turns[:start] if turn.text.strip())
    spoken = turns[start:]
    roles = [turn.role for turn in spoken]
    if roles == [USER] and not needs_response:
        return Exchange(_with_system(system, spoken[0].text), "")
    pairs = [i for i in range(len(roles) - 1) if roles[i : i + 2] == [USER, ASSISTANT]]
    if not pairs or (len(roles) > 2 and pick is None) or not _alternate(roles):
        raise _refusal(place, turns, several=bool(pairs) and _alternate(roles))
    first = pairs[-1] if pick == "last" else pairs[0]
    asked, answered = spoken[first : first + 2]
    if needs_response and not answered.trained:
        raise RowError(place, NOT_TRAINED, "the answer has weight 0: it is not to be learned")
    return Exchange(_with_system(system, asked.text), answered.text, cut=len(roles) > 2)


def _alternate(roles: Sequence[str]) -> bool:
    """Return whether user and assistant take turns, and nobody else."""
    neighbours = zip(roles, roles[1:], strict=False)
    return {*roles} <= {USER, ASSISTANT} and all(role != other for role, other in neighbours)


def _refusal(place: str, turns: Sequence[Turn], *, several: bool) -> RowError:
    roles = [turn.role for turn in turns]
    reason = SEVERAL if several else OTHER_LAYOUT
    if TOOL in roles:
        reason = TOOLS
    shown = roles if len(roles) <= 8 else [*roles[:7], f"... ({len(roles)} turns)"]
    problem = (
        f"has the turns {', '.join(shown) or 'none'}; one user turn and one answer are required"
    )
    return RowError(place, reason, problem)


def _with_system(system: str, prompt: str) -> str:
    return f"{system}\n\n{prompt}" if system and prompt.strip() else prompt
