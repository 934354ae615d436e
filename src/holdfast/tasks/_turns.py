"""Finds where an answer ends and a model that was not stopped begins the next turn."""

from __future__ import annotations

import re

_TURN = re.compile(
    r"\n\s{0,4}#+\s*(?:instruction|input|question|response)\b|<\|[^|<>\n]*\|>|\[/?INST\]|</s>",
    re.IGNORECASE,
)


def before_next_turn(text: str) -> str:
    """Return the text before the first mark of a chat or instruction template that follows text."""
    for turn in _TURN.finditer(text):
        if text[: turn.start()].strip():
            return text[: turn.start()]
    return text
