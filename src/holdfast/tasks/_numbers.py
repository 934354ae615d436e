r"""Reads the result of a word problem from an answer in prose.

A numeral may have a sign (also U+2212 and its kin), a currency, separated thousands (1,234; 1 234
with any kind of space; 1'234; 1.234.567), decimals (also 12,50), an exponent (4.2e3, 4.2 \times
10^{3}) or be a fraction (3/4, 1 1/2, ½, \frac{3}{4}). What looks like a number and has no single
meaning (10:30, 1,2,3, 1/0) is unknown.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

from holdfast.tasks._turns import before_next_turn

_MINUSES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"))
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
# What stands between a sign and its number, or between a mark and the result.
_CURRENCY = "$€£¥₹₩¢"
# The separators of thousands other than commas and dots: spaces, apostrophes, underscores.
_GAPS = " \u00a0\u2007\u2008\u2009\u200a\u202f'\u2019_"
_VULGAR = {
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "⅕": "1/5", "⅖": "2/5",
    "⅗": "3/5", "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{\s*([^{}]+?)\s*\}\s*\{\s*([^{}]+?)\s*\}"), r" \1/\2"),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r" \1/\2"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\{,\}|\\,(?=\d{3})"), ","),
    (re.compile(r"\\times|\\cdot"), "×"),
    (re.compile(r"\\div"), "÷"),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\[,;:! ]|\\(?:quad|qquad|left|right)\b|~"), " "),
)
# A minus counts as a sign only where it cannot be a subtraction ("16-3"), and the digits of an
# exponent ("cm^2") are no number.
_NUMERAL = re.compile(
    rf"""
    (?P<sign> (?<![\w)}}]) - | (?<![\d)]\s) \b (?:minus|negative) \s )?
    (?:[{_CURRENCY}] \s?)?
    (?P<inner_sign> (?<=[{_CURRENCY}]) - | (?<=[{_CURRENCY}]\s) - )?
    (?<! \^ ) (?<! \^\{{ ) (?<! \^- )
    (?:
        (?: (?P<whole> \d+ ) \s )? (?P<over> \d+ ) \s? / \s? (?P<under> \d+ ) (?! [.,]?\d | \s?/ )
      | (?:
            (?P<commas> \d{{1,3}} (?:,\d{{2,3}})* ,\d{{3}} ) (?P<point> \.\d+ )?
          | (?P<dots> \d{{1,3}} (?:\.\d{{3}})+ ) (?P<comma> ,\d+ )
          | (?P<many> \d{{1,3}} (?:\.\d{{3}}){{2,}} )
          | (?P<spaced> \d{{1,3}} (?P<gap>[{_GAPS}]) \d{{3}} (?: (?P=gap) \d{{3}} )* )
            (?P<decimals> [.,]\d+ )?
          | (?P<european> \d+ ,\d{{1,2}} )
          | (?P<plain> \d+ (?:\.\d+)? | (?<![\w.]) \.\d+ )
        )
        (?! [.,:]?\d | \s?\^ | \s?\*\*\s?\d )
        (?: (?: [eE] | \s?[×x*·]\s? 10 \s? (?:\^|\*\*) \s? \{{? \s? ) (?P<exponent> [+-]?\d+ ) \b )?
      | (?P<unclear> \d+ (?: (?: [.,:/] | \s?\^\s? | \*\* ) \d+ )* )
    )
    (?: \s? (?P<scale> % | percent\b | thousand\b | million\b | billion\b | trillion\b ) )?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_POWER = re.compile(r"(?<![\d.×x*·])(?<![×x*·]\s)10\s?(?=(?:\^|\*\*)\s?\{?\s?[+-]?\d)")
_SCALES: dict[str, int | Fraction] = {
    "": 1,
    "%": Fraction(1, 100),
    "percent": Fraction(1, 100),
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_LARGEST_EXPONENT = 300
"""A greater power of ten would take longer to write out than it is worth, and is unknown."""

# A model that was not stopped asks itself the next question.
_NEXT_QUESTION = re.compile(
    r"(?:\n\s{0,4}(?:[#*]+\s*)?(?:next\s+)?(?:question|problem|q|human|user|instruction|input)"
    r"\s*\d*\s*(?:\*\*)?:|\n\s{0,4}#+\s*problem\b)",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"(?:[\s*_`$\\({\[:=]|(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\b|boxed\b|[a-z]\s*=)*",
    re.IGNORECASE,
)
_BOXED = re.compile(r"\\f?box(?:ed)?\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_ANSWER = re.compile(
    r"\banswer\b(?:[^.\n:=\d]{0,80}?\b(?:is|be|equals)\b|\W{0,4}[:=])[\s:*]*(?P<rest>[^\n]+)",
    re.IGNORECASE,
)
# Units may stand between a number and the operator: "3 apples + 4 apples = 7 apples".
_OPERATOR = re.compile(
    r"(?:[ \t]*[A-Za-z%]{1,15}){0,2}?[ \t]*(?P<sign>[-+*/×x÷·=])[ \t]*(?=[-$€£.\d])"
)
_HEADING = re.compile(
    r"\s{0,4}(?:(?:step|part|case|phase)\s*\d|(?P<ordinal>\d{1,3})[.):]\s+[A-Za-z])", re.IGNORECASE
)


def readings(text: str) -> frozenset[Fraction]:
    """Return the numbers that the result of an answer can be read as; empty if it is unknown.

    "25%" is 25 or 0.25 and "5 million" is 5 or 5000000, whatever unit the question asks for.
    """
    numeral = _result(_plain(text))
    value = None if numeral is None else _value(numeral)
    if numeral is None or value is None:
        return frozenset()
    scale = _SCALES[(numeral["scale"] or "").lower()]
    return frozenset({value, value * scale})


def final_number(text: str) -> Fraction | None:
    r"""Return the result that an answer states, as it is written; None if it states none.

    It is the number after the first "####", else in the last \boxed{}, else after the first "answer
    is" or "answer:", else the last number. What follows another question is not part of the answer.
    The result of an equation is its last side that is a single number.
    """
    numeral = _result(_plain(text))
    return None if numeral is None else _value(numeral)


def _plain(text: str) -> str:
    """Return the answer up to a next question, with one way to write signs, powers and LaTeX."""
    text = _own_part(text).translate(_MINUSES)
    text = re.sub(
        r"(?<=10)[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda power: "^" + power[0].translate(_SUPERSCRIPTS), text
    )
    for vulgar, fraction in _VULGAR.items():
        text = re.sub(rf"(?<=\d)\s?{vulgar}", f" {fraction}", text).replace(vulgar, fraction)
    text = text.replace("\u2044", "/")
    text = re.sub(rf"(#{{4,}}\s*-)\s+(?=[{_CURRENCY}\d])", r"\1", text)  # "#### - 5"
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return _POWER.sub("1 × 10", text)


def _own_part(text: str) -> str:
    """Return the text before the first new question that follows a number."""
    text = before_next_turn(text)
    for question in _NEXT_QUESTION.finditer(text):
        if re.search(r"\d", text[: question.start()]):
            return text[: question.start()]
    return text


def _result(text: str) -> re.Match[str] | None:
    """Return the numeral of the result; None if the answer states none."""
    marks = [match.end() for match in re.finditer(r"#{4,}", text)]
    headings = [_is_heading(text, start, ordinal) for ordinal, start in enumerate(marks, 1)]
    for start, is_heading in zip(marks, headings, strict=True):
        if not is_heading and _NUMERAL.match(text, _opening(text, start)):
            return _stated(text, _opening(text, start))
    boxes = [box[1] for box in _BOXED.finditer(text) if _NUMERAL.search(box[1])]
    if boxes:
        return _last(boxes[-1])
    if answer := _ANSWER.search(text):
        return _stated(answer["rest"])
    return _last(text) if not marks or headings[-1] else _stated(text, marks[-1])


def _is_heading(text: str, start: int, ordinal: int) -> bool:
    """Return whether a mark opens a numbered heading ("#### 1. First, ...") instead of a result."""
    heading = _HEADING.match(text, start)
    return heading is not None and heading["ordinal"] in (None, str(ordinal))


def _opening(text: str, start: int) -> int:
    """Return where the result may begin after a mark."""
    opening = _OPENING.match(text, start)
    return opening.end() if opening else start


def _stated(text: str, start: int = 0) -> re.Match[str] | None:
    """Return the first numeral from a place on, or the result of the equation that it opens.

    The result is the last side that is a single number; a sum without a result states none.
    """
    numeral = _NUMERAL.search(text, start)
    if numeral is None:
        return None
    sides = [[numeral]]
    while operator := _OPERATOR.match(text, sides[-1][-1].end()):
        following = _NUMERAL.match(text, operator.end())
        if following is None:
            break
        if operator["sign"] == "=":
            sides.append([])
        sides[-1].append(following)
    return next((side[0] for side in reversed(sides) if len(side) == 1), None)


def _last(text: str) -> re.Match[str] | None:
    numerals = list(_NUMERAL.finditer(text))
    return numerals[-1] if numerals else None


def _value(numeral: re.Match[str]) -> Fraction | None:
    """Return the value of a numeral; None if it has no single meaning."""
    value = _fraction(numeral) if numeral["over"] else _decimal(numeral)
    negative = bool(numeral["sign"] or numeral["inner_sign"])
    return -value if value is not None and negative else value


def _fraction(numeral: re.Match[str]) -> Fraction | None:
    under = Fraction(Decimal(numeral["under"]))
    if not under:
        return None
    return Fraction(Decimal(numeral["whole"] or "0")) + Fraction(Decimal(numeral["over"])) / under


def _decimal(numeral: re.Match[str]) -> Fraction | None:
    exponent = int((numeral["exponent"] or "0")[:5])
    if numeral["unclear"] or abs(exponent) > _LARGEST_EXPONENT:
        return None
    digits = _digits(numeral)
    # Decimal reads any number of digits, int() only some thousands.
    return Fraction(Decimal(digits)) * Fraction(10) ** exponent


def _digits(numeral: re.Match[str]) -> str:
    """Return the numeral as Python writes it: no separators, and a point before the decimals."""
    if numeral["commas"]:
        return numeral["commas"].replace(",", "") + (numeral["point"] or "")
    if numeral["dots"]:
        return numeral["dots"].replace(".", "") + numeral["comma"].replace(",", ".")
    if numeral["many"]:
        return numeral["many"].replace(".", "")
    if numeral["spaced"]:
        whole = numeral["spaced"].replace(numeral["gap"], "")
        return whole + (numeral["decimals"] or "").replace(",", ".")
    return (numeral["european"] or numeral["plain"]).replace(",", ".")
