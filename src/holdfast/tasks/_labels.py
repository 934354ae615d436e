"""Reads which of a few labels an answer names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from holdfast.rows.text import words

_SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]?")
_CLAUSE = re.compile(
    r"[,;:()\u2014]|\s[-\u2013]\s|\b(?:but|because|since|although|though|while)\b", re.IGNORECASE
)
_NEGATIONS = frozenset("not no non never neither nor cannot hardly unlikely without".split())


def named_label(text: str, names: Mapping[str, str]) -> str | None:
    """Return the label that an answer names; None if it names none, several or only a negation.

    Only the first sentence with a label counts, so an answer may run on. A label that opens the
    answer stands for itself up to the first comma ("Sports, because the World Cup ..."). Otherwise
    the sentence must name one label only. Labels in a question, or in a clause with a negation
    ("not negative"), are not named.

    Args:
        text: The answer.
        names: Word in lower case -> label.
    """
    for sentence in _SENTENCE.findall(text):
        labels = [names[word] for word in words(sentence) if word in names]
        question = sentence.endswith("?") and len(words(sentence)) > 1
        if not labels or question:
            continue
        clauses = _CLAUSE.split(sentence)
        opens = next(iter(words(sentence))) in names
        own = next(clause for clause in clauses if words(clause)) if opens else None
        named = _affirmed([own] if own else clauses, names)
        return next(iter(named)) if len(named) == 1 else None
    return None


def _affirmed(clauses: list[str], names: Mapping[str, str]) -> set[str]:
    """Return the labels in clauses without a negation."""
    affirmed = set()
    for clause in clauses:
        clause_words = words(clause)
        if not any(word in _NEGATIONS or word.endswith("n't") for word in clause_words):
            affirmed |= {names[word] for word in clause_words if word in names}
    return affirmed
