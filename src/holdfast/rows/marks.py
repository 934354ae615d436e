"""What a data set says of its rows' safety, and which rows may be used for what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from holdfast.errors import DataError
from holdfast.examples import Examples, Mark
from holdfast.rows.cells import NONE_OF_THEM, is_flags, structured
from holdfast.rows.remedies import Remedies
from holdfast.rows.row_specs import NOT, typed_value
from holdfast.specs import value_text

Use = Literal["safety", "ordinary", "harmful", "restricted prompts", "harmless prompts"]
"""What rows are used for."""

SAFE = ("is_safe", "safe", "is_harmless", "harmless")
"""Columns of which true marks a safe response."""
UNSAFE = (
    "is_unsafe",
    "unsafe",
    "is_harmful",
    "harmful",
    "is_toxic",
    "toxic",
    "is_malicious",
    "malicious",
    "is_flagged",
    "flagged",
    "is_jailbroken",
    "jailbroken",
    "is_violation",
    "violation",
    "is_poison",
    "is_poisoned",
    "poisoned",
    "is_jailbreak",
)
"""Columns of which true marks an unsafe response."""
WORDS = (
    "label",
    "safety",
    "safety_label",
    "harm_label",
    "harmfulness",
    "toxicity_label",
    "verdict",
    "class",
    "judgement",
    "judgment",
)
"""Columns whose words mark a response; true and false do not say which is which."""
GRADES = ("toxicity", "harm", "jailbreak")
"""Columns of which 1 and true mark an unsafe response; other values are grades or names."""
KINDS = ("type", "data_type", "prompt_type")
"""Columns whose words may mark a prompt."""
FLAGS = ("category", "categories", "harm_category", "harm_categories", "harms")
"""Columns with an object of flags, one for each kind of harm."""
CHOSEN = "chosen"
"""Column of the better one of two responses."""

_SAFE_WORDS = frozenset(
    "safe harmless unharmful notharmful nonharmful benign nontoxic nottoxic notunsafe nothate "
    "nonhate nothateful notoffensive nonoffensive inoffensive vanillabenign adversarialbenign "
    "安全 無害 无害".split()
)
_UNSAFE_WORDS = frozenset(
    "unsafe harmful toxic malicious dangerous notsafe nonsafe jailbreak jailbroken vanillaharmful "
    "adversarialharmful 危険 有害 危险 不安全".split()
)
_TRUE, _FALSE = ("true", "yes", "y", "t", "1", "1.0"), ("false", "no", "n", "f", "0", "0.0")


def mark_columns(columns: Iterable[str], response: str, named: str | None) -> dict[str, str]:
    """Return the columns that may mark a row: column -> its name without prefixes.

    Args:
        columns: The columns of the data set.
        response: Column of the response; "" if there is none.
        named: The column that the user named.
    """
    if named is not None:
        return {named: "safe"}
    bases = {}
    for column in columns:
        base = _base(_snake(column), _snake(response) or "response")
        if base.removeprefix("prompt:") in _MARKING:
            bases[column] = base
    return bases


_MARKING = frozenset((*SAFE, *UNSAFE, *WORDS, *GRADES, *KINDS, *FLAGS))


def _snake(column: str) -> str:
    """Return a column's name in one spelling: "Is Safe", "isSafe" and "meta.is_safe" are one."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column.strip().rpartition(".")[2])
    return re.sub(r"[\s-]+", "_", name).lower()


def _base(column: str, response: str) -> str:
    """Return a column's name without what it says of: "is_response_safe" is "safe"."""
    for part, prefix in ((response, ""), ("response", ""), ("prompt", "prompt:")):
        shorter = re.sub(rf"(?:(?<=^)|(?<=_)){re.escape(part)}_", "", column, count=1)
        if shorter != column:
            return f"{prefix}{shorter}"
    # GPT4_response, GPT4_harmful
    prefix = response.removesuffix("response")
    if prefix not in ("", response) and column.startswith(prefix):
        return column.removeprefix(prefix)
    return column


def marks_of(
    row: Mapping[str, object], columns: Mapping[str, str], *, has_response: bool
) -> tuple[Mark, ...]:
    """Return what a row says of its safety.

    Args:
        row: The row.
        columns: See `mark_columns`. A name may be that of a key inside an object: "meta.is_safe".
        has_response: Whether the data set has responses; otherwise the prompts are marked.
    """
    marks = []
    for column, base in columns.items():
        name = base.removeprefix("prompt:")
        of_prompt = name != base or name in KINDS or not has_response
        value = _value(row, column)
        mark = _flags_mark(column, value) if is_flags(value) else _mark(column, name, value)
        if mark is not None:
            marks.append(replace(mark, of_prompt=of_prompt))
    return tuple(marks)


def nested_columns(
    row: Mapping[str, object], response: str, used: Container[str]
) -> dict[str, str]:
    """Return the keys inside a row's objects that may mark it, like `mark_columns`.

    Args:
        row: The row.
        response: Column of the response; "" if there is none.
        used: Columns, and keys inside them, that are read for something else.
    """
    bases: dict[str, str] = {}
    for column, value in row.items():
        is_object = isinstance(value, Mapping) or (isinstance(value, str) and value[:1] == "{")
        if not is_object or column in used or _snake(column) in FLAGS:
            continue
        inner = structured(value)
        if isinstance(inner, dict):
            names = mark_columns(inner, response, None)
            bases |= {f"{column}.{key}": base for key, base in names.items()}
    return {path: base for path, base in bases.items() if path not in used}


def _value(row: Mapping[str, object], path: str) -> object:
    """Return a cell, or what its object has under a key; of a list of one its only element."""
    column, _, key = path.partition(".")
    if path in row or not key:
        value = structured(row.get(path))
    else:
        inner = structured(row.get(column))
        value = structured(inner.get(key)) if isinstance(inner, dict) else None
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _flags_mark(column: str, value: Mapping[str, bool | None]) -> Mark | None:
    """All flags false is a harmless row; a flag that is true may be the topic of a refusal."""
    if any(value.values()):
        return Mark(column, f"{NOT}{column}", NONE_OF_THEM, None)
    if not value or None in value.values():
        return None
    return Mark(column, column, NONE_OF_THEM, safe=True)


def _mark(column: str, name: str, value: object) -> Mark | None:
    if value is None or isinstance(value, (dict, list)) or not str(value).strip():
        return None
    typed = value_text(typed_value(value))
    text = str(value).strip().lower()
    safe = _meaning(text)
    if safe is None and text in (*_TRUE, *_FALSE) and name in (*SAFE, *UNSAFE, *GRADES):
        safe = (text in _TRUE) == (name in SAFE)
    if safe is None and name in (*FLAGS, *KINDS):
        return None  # a topic
    return Mark(column, column, typed, safe)


def _meaning(text: str) -> bool | None:
    """Return whether a word means safe, perhaps with categories after it: "unsafe: S1"."""
    word, *rest = re.split(r"[\n:,;(/]", text, maxsplit=1)
    word = re.sub(r"[\W_]+", "", word)
    others = {re.sub(r"[\W_]+", "", other) for other in re.split(r"[\s,;(/]+", "".join(rest))}
    if word in _SAFE_WORDS and not others - _SAFE_WORDS - {""}:
        return True
    if word in _UNSAFE_WORDS and not others & _SAFE_WORDS:
        return False
    return None


# ------------------------------------------------------------------------------- checking


def check_marks(rows: Examples, use: Use | None, remedies: Remedies) -> None:
    """Check that no row is marked as the opposite of what the rows are used for.

    Args:
        rows: The rows.
        use: What they are used for; None for nothing in particular.
        remedies: Words for the way out.

    Raises:
        DataError: Rows are marked so, or marked in a way that only a person can understand.
    """
    if use is None:
        return
    of_prompt = use in ("restricted prompts", "harmless prompts")
    wrong = use in ("harmful", "restricted prompts")
    marks = [[mark for mark in row.marks if mark.of_prompt == of_prompt] for row in rows]
    marks = _without_other_labels(marks)
    if any(mark.safe is not None and not _is_flag(mark) for row in marks for mark in row):
        # Where a column says what is safe, flags name the topic.
        marks = [[mark for mark in row if not _is_flag(mark)] for row in marks]
    _check_sure(rows.name, marks, use, wrong, remedies)
    _check_partly_sure(rows.name, marks, use, remedies)
    _check_unsure(rows.name, marks, use, remedies)


def _without_other_labels(marks: Sequence[Sequence[Mark]]) -> list[list[Mark]]:
    """Return the marks without those of columns that hold labels of something else."""
    columns = {
        mark.column
        for row in marks
        for mark in row
        if mark.safe is not None or _is_flag(mark) or _asks(mark)
    }
    return [[mark for mark in row if mark.column in columns] for row in marks]


def _asks(mark: Mark) -> bool:
    """Return whether a value can only be of safety, though it does not say which."""
    is_switch = mark.value.strip("\"'").lower() in (*_TRUE, *_FALSE)
    base = _base(_snake(mark.column), "response").removeprefix("prompt:")
    return is_switch or base in (*SAFE, *UNSAFE)


def _is_flag(mark: Mark) -> bool:
    return mark.value == NONE_OF_THEM


def _check_sure(
    name: str, marks: Sequence[Sequence[Mark]], use: Use, wrong: bool, remedies: Remedies
) -> None:
    """Refuse rows that are marked as safe (if `wrong` is True) or as unsafe (if it is False)."""
    marked = [mark for row in marks for mark in row]
    columns = dict.fromkeys(mark.column for mark in marked if mark.safe is wrong)
    if not columns:
        return
    bad = [next((mark for mark in row if mark.safe is wrong), None) for row in marks]
    counts = Counter(f"{mark.option}={mark.value}" for mark in bad if mark is not None)
    shares = " and ".join(f"{n} of {len(marks)} rows have {text}" for text, n in counts.items())
    word = "safe" if wrong else "unsafe"
    problem = f"{name}: {shares}, which marks them as {word}; {_USED_AS[use]}"
    if CHOSEN in columns:
        raise DataError(f"{problem}. {remedies.response('rejected')}")
    others = [row for row, mark in zip(marks, bad, strict=True) if mark is None]
    options: dict[str, list[str]] = {}
    for mark in (mark for row in others for mark in row if mark.column in columns):
        options.setdefault(mark.option, [])
        if mark.value not in options[mark.option]:
            options[mark.option].append(mark.value)
    if {option.removeprefix(NOT) for option in options} >= columns.keys() or (
        options and columns.keys() <= options.keys()
    ):
        raise DataError(f"{problem}. {remedies.selecting(options)}")
    raise DataError(f"{problem}. Give other rows, or {remedies.ignoring(list(columns))}")


def _check_partly_sure(
    name: str, marks: Sequence[Sequence[Mark]], use: Use, remedies: Remedies
) -> None:
    """Refuse values that say nothing in a column whose other values say what is safe."""
    every = [mark for row in marks for mark in row]
    sure = {mark.column for mark in every if mark.safe is not None and not _is_flag(mark)}
    for column in sure:
        unsure = Counter(m.value for m in every if m.column == column and m.safe is None)
        if not unsure:
            continue
        counts = ", ".join(f"{column}={value} in {n}" for value, n in unsure.most_common(5))
        values = dict.fromkeys(m.value for m in every if m.column == column and m.safe is not None)
        raise DataError(
            f"{name}: of {len(marks)} rows there are {counts}, which says neither safe nor unsafe; "
            f"{_USED_AS[use]}. {remedies.selecting({column: [*values]})}, or "
            f"{remedies.ignoring([column])}"
        )


def _check_unsure(name: str, marks: Sequence[Sequence[Mark]], use: Use, remedies: Remedies) -> None:
    """Refuse different values of which nothing says which ones are the safe ones."""
    for column in dict.fromkeys(m.column for row in marks for m in row if m.safe is None):
        values = Counter((m.option, m.value) for row in marks for m in row if m.column == column)
        if len(values) < 2:
            continue
        counts = ", ".join(f"{o}={value} in {n}" for (o, value), n in values.most_common(5))
        option, value = min(values)
        raise DataError(
            f"{name}: of {len(marks)} rows there are {counts}, and nothing says which of them are "
            f"safe; {_USED_AS[use]}. {remedies.selecting({option: [value]})} (or the other value), "
            f"or {remedies.ignoring([column])}"
        )


_USED_AS: dict[Use, str] = {
    "safety": "safety rows need safe responses",
    "ordinary": "ordinary rows need safe responses",
    "harmful": "harmful rows need harmful responses",
    "restricted prompts": "restricted prompts must not be harmless",
    "harmless prompts": "harmless prompts must not be harmful",
}
