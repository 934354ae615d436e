"""Words and sentences of a text, found without a model."""

from __future__ import annotations

import re

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\uff07": "'", "`": "'"})
_SPELLINGS = (
    (re.compile(r"\bca n't\b"), "can't"),
    (re.compile(r"\bwo n't\b"), "won't"),
    (re.compile(r" n't\b"), "n't"),
    (re.compile(r" '(m|re|s|d|ll|ve)\b"), r"'\1"),
    (re.compile(r"\bcannot\b|\bcan not\b|\bcant\b"), "can't"),
    (re.compile(r"\bwill not\b|\bwont\b"), "won't"),
    (re.compile(r"\bdo not\b|\bdont\b"), "don't"),
    (re.compile(r"\b(is|are|was|would|should|could) not\b"), r"\1n't"),
    (re.compile(r"\b(i) am\b|\bim\b"), "i'm"),
    (re.compile(r"\b(that|this|it) is\b"), r"\1's"),
    (re.compile(r"\b(that|this|it)(?: i|'| wa)sn't\b"), r"\1's not"),
    (re.compile(r"\bi (?:would|had)\b"), "i'd"),
    (re.compile(r"\bwe are\b"), "we're"),
    (re.compile(r" +([,.;:!?])"), r"\1"),
)
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_FUNCTION_WORDS = frozenset(
    "a about all am an and any are as at be been but by can could did do does for from had "
    "has have he her him his how i if in into is it its just like may me might more most my "
    "no not of on or our out she should so some than that the their them then there these "
    "they this those to too "
    "up us was we were what when where which who why will with would you your".split()
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


def normalise(text: str) -> str:
    """Return `text` in lower case, with plain apostrophes, contractions and single spaces.

    "I can not", "I cannot", "i ca n't" and "I can’t" all become "i can't". Spaces before
    punctuation are removed.
    """
    text = re.sub(r"[ \t\r\f\v]+", " ", text.translate(_APOSTROPHES).lower()).strip()
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return text


def words(text: str) -> list[str]:
    """Return the lower-case words of `text`; punctuation is left out."""
    return _WORD.findall(text.translate(_APOSTROPHES).lower())


def count_words(text: str) -> int:
    """Count words; scripts written without spaces count as one word per two characters."""
    cjk = len(_CJK.findall(text))
    return len(words(_CJK.sub(" ", text))) + (cjk + 1) // 2


def stems(text: str) -> set[str]:
    """Return the stems of the content words of `text`."""
    # Crude, but needs no dependency: bake, bakes, baked and baking share a stem.
    return {
        re.sub(r"(?<=\w{3})(?:ing|ed|es|s|e)$", "", word)[:6]
        for word in words(text)
        if word not in _FUNCTION_WORDS
    }


def opening(text: str, sentences: int = 2) -> str:
    """Return the normalised first sentences of `text`, without leading punctuation."""
    text = re.sub(r"^[^\w]+", "", normalise(text))
    parts = [part for part in _SENTENCE_END.split(text) if part.strip()]
    return " ".join(part.strip() for part in parts[:sentences])
