"""Layouts: which columns of a data set hold the prompt and the response, and how to read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from holdfast.errors import DataError
from holdfast.examples import PROVENANCE
from holdfast.rows.cells import cell, label_cell, plain, structured, text_cell, text_value
from holdfast.rows.remedies import Remedies
from holdfast.rows.tables import OTHER_LAYOUT, Raw, RowError, Table, printable
from holdfast.rows.turns import Exchange, Pick, Turn, conversation, exchange, is_turns, turns_of

ROLES = (
    "prompt",
    "response",
    "input",
    "messages",
    "system",
    "history",
    "safe",
    *PROVENANCE,
    "license",
)
"""Roles that a column can be named for."""

_PAIRS = (
    ("prompt", "response"),
    ("instruction", "output"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("instruction", "response"),
    ("question", "response"),
    ("query", "response"),
    ("input", "output"),
)
"""Columns of prompt and response, in the order in which they are looked for."""
_PROMPTS = ("prompt", "instruction", "question", "query")
_RESPONSES = ("response", "output", "answer", "completion")
_MESSAGES = ("messages", "conversations", "conversation", "dialogue", "transcript")
_PREFERRED = ("chosen", "preferred_output")
"""Columns of the better response."""
_INPUTS = {"instruction": ("input", "context")}
"""Column of the prompt -> columns of what the prompt is about, as in Alpaca and Dolly."""
_SYSTEMS = ("system", "system_prompt")
_MOST_COLUMNS = 20
"""Columns that a message lists."""
NO_INPUT = "<noinput>"
"""What Alpaca's generator writes for an input that is missing."""


@dataclass(frozen=True)
class Layout:
    """Columns by role; "" where there is none.

    Attributes:
        prompt: Text or turns.
        response: Text or turns; with no `prompt`, whole conversations.
        messages: Whole conversations.
        input: Text that is appended to the prompt.
        system: Text that is put before the prompt.
        history: Earlier exchanges of the conversation.
        provenance: Key of `PROVENANCE` -> columns of which the first with a value is taken.
    """

    prompt: str = ""
    response: str = ""
    messages: str = ""
    input: str = ""
    system: str = ""
    history: str = ""
    provenance: Mapping[str, Sequence[str]] = field(default_factory=dict)


def layout_of(
    raw: Raw,
    table: Table,
    named: Mapping[str, str | None],
    *,
    needs_response: bool,
    remedies: Remedies,
) -> Layout:
    """Return the layout of a table.

    Args:
        raw: Its first row that can be read.
        table: The table.
        named: Role -> column that the user named; None where the role is not to be read.
        needs_response: Whether rows without a response column can be used.
        remedies: Words for the way out.

    Raises:
        DataError: There is no column for a role.
    """
    columns = table.columns
    missing = [column for column in named.values() if column and column not in columns]
    layout = None if missing else _detected(raw, columns, named, needs_response=needs_response)
    if layout is None:
        required = ["prompt", "response"] if needs_response else ["prompt"]
        raise _no_layout(raw, table, missing, required, remedies)
    return replace(layout, provenance=_provenance(named))


def _provenance(named: Mapping[str, str | None]) -> dict[str, Sequence[str]]:
    roles = {"licence" if role == "license" else role: column for role, column in named.items()}
    sources: dict[str, Sequence[str]] = {}
    for role in PROVENANCE:
        column = roles.get(role, role)
        others = ("license",) if column == "licence" else ()
        sources[role] = (column, *others) if column else ()
    return sources


def _detected(
    raw: Raw, columns: Sequence[str], named: Mapping[str, str | None], *, needs_response: bool
) -> Layout | None:
    present = _names(columns)

    def role(name: str, *candidates: str) -> str:
        if name in named:
            return named[name] or ""
        return next((present[c] for c in candidates if c in present), "")

    system = role("system", *_SYSTEMS)
    history = role("history", "history")
    if named.get("messages"):
        return Layout(messages=role("messages"), system=system)
    for prompt, response in _candidates(present, named, needs_response=needs_response):
        extra = role("input", *_INPUTS.get(prompt.strip().lower(), ()))
        extra = "" if extra in (prompt, response) else extra
        return Layout(prompt, response, input=extra, system=system, history=history)
    messages = role("messages", *_MESSAGES)
    if messages:
        return Layout(messages=messages, system=system)
    return _implicit(raw, present, named, Layout(system=system), needs_response=needs_response)


def _names(columns: Sequence[str]) -> dict[str, str]:
    """Return the columns by name; a name in other letters stands for itself in small ones."""
    small: dict[str, str] = {}
    for column in columns:
        small.setdefault(column.strip().lower(), column)
    return {**small, **{column: column for column in columns}}


def _candidates(
    present: Mapping[str, str], named: Mapping[str, str | None], *, needs_response: bool
) -> Iterator[tuple[str, str]]:
    """Yield columns of prompt and response, the surest first."""
    pairs = [*_PAIRS, *_only_pair(present), *(("prompt", better) for better in _PREFERRED[:1])]
    for prompt, response in pairs:
        columns = (named.get("prompt") or prompt, named.get("response") or response)
        if all(column in present for column in columns):
            yield present[columns[0]], present[columns[1]]
    if needs_response:
        return
    if any(column in present for column in (*_MESSAGES, *_PREFERRED)) and not named.get("prompt"):
        return
    for prompt in (*_PROMPTS, "input"):
        column = named.get("prompt") or prompt
        if column in present:
            yield present[column], ""


def _only_pair(present: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return a pair of other names if there is one name for a prompt and one for a response."""
    prompts = [name for name in _PROMPTS if name in present]
    responses = [name for name in _RESPONSES if name in present]
    return [(prompts[0], responses[0])] if len(prompts) == len(responses) == 1 else []


def _implicit(
    raw: Raw,
    present: Mapping[str, str],
    named: Mapping[str, str | None],
    layout: Layout,
    *,
    needs_response: bool,
) -> Layout | None:
    """Return a layout of whole conversations in the column of the better response."""
    column = named.get("response") or next((present[c] for c in _PREFERRED if c in present), "")
    if not column or "prompt" in named:
        return None
    if isinstance(structured(raw.row.get("input")), dict):
        return replace(layout, prompt="input", response=column)
    if conversation(raw.row.get(column)) is None:
        return None
    return replace(layout, messages=column)


def is_preferred(layout: Layout) -> bool:
    """Return whether the response is the better one of two."""
    return (layout.response or layout.messages).lower() in _PREFERRED


def _no_layout(
    raw: Raw, table: Table, missing: Sequence[str], required: Sequence[str], remedies: Remedies
) -> DataError:
    """Return the error for a table without a column for some role."""
    lacking = ", ".join(repr(column) for column in missing) or " and ".join(required)
    columns = ", ".join(table.columns)
    shown = ", ".join(table.columns[:_MOST_COLUMNS])
    more = f" and {len(table.columns) - _MOST_COLUMNS} more" if shown != columns else ""
    problem = printable(f"{raw.place}: no column for {lacking}; found {shown or 'none'}{more}")
    if len(table.columns) == 1 and ";" in columns:
        return DataError(
            f"{problem}, columns separated by semicolons. Save it with commas, or as .tsv with tabs"
        )
    if len(table.columns) == 1 and ("\t" in columns or "," in columns):
        right = ".tsv" if "\t" in columns else ".csv"
        return DataError(f"{problem}, which is several columns in one. Rename the file to {right}")
    if missing:
        return DataError(f"{problem}. Check the names of the columns")
    names = _likely(raw, table.columns, required)
    if not names and table.columns:
        return DataError(
            f"{problem}. Write the {' and the '.join(required)} in a column each: a text that "
            "holds both is not split"
        )
    return DataError(printable(f"{problem}. {remedies.columns(names)}"))


_LIKELY_PROMPTS = ("goal", "behavior", "behaviour", "text", "request", "user")
_LIKELY_RESPONSES = ("target", "reply", "assistant", "bot", "refusal")


def _likely(raw: Raw, columns: Sequence[str], required: Sequence[str]) -> dict[str, str]:
    """Return columns that the roles may have, for a message that shows how to name them.

    Without a telling name it is a column whose text has several words, unlike an id or a label.
    """
    turns = [column for column in columns if conversation(raw.row.get(column)) is not None]
    if turns:
        return {"messages": turns[0]}
    cells = {column: plain(raw.row.get(column)) for column in columns}
    texts = {column: text for column, text in cells.items() if isinstance(text, str)}

    def likely(words: Sequence[str]) -> str:
        named = [c for c in texts if any(word in c.lower() for word in words)]
        return next(iter([*named, *(c for c, text in texts.items() if " " in text.strip())]), "")

    prompt = likely((*_PROMPTS, *_LIKELY_PROMPTS))
    if not prompt or len(required) == 1:
        return {"prompt": prompt} if prompt else {}
    del texts[prompt]
    response = likely((*_RESPONSES, *_LIKELY_RESPONSES))
    return {"prompt": prompt, "response": response} if response else {}


# ------------------------------------------------------------------------------------ rows


def exchange_of(
    raw: Raw, layout: Layout, *, needs_response: bool = True, pick: Pick | None = None
) -> Exchange:
    """Return the prompt and the response of a row.

    Args:
        raw: The row.
        layout: The layout of its table.
        needs_response: Whether the response may be missing.
        pick: Which exchange of a conversation to read.

    Raises:
        RowError: The row is laid out otherwise, or holds several exchanges and `pick` is None.
    """
    try:
        return _exchange(raw, layout, needs_response=needs_response, pick=pick)
    except RowError as error:
        problem = str(error).removeprefix(f"{raw.place}: ")
        raise RowError(raw.place, error.reason, problem) from error


def _exchange(raw: Raw, layout: Layout, *, needs_response: bool, pick: Pick | None) -> Exchange:
    before = [*_system(raw, layout), *_history(raw, layout)]
    if layout.messages:
        place = f"{raw.place}: {layout.messages}"
        turns = [*before, *turns_of(place, raw.row.get(layout.messages))]
        return exchange(place, turns, needs_response=needs_response, pick=pick)
    prompt = _prompt(raw, layout)
    response = _response(raw, layout, needs_response=needs_response)
    if isinstance(prompt, str) and isinstance(response, str) and not before:
        return Exchange(prompt, response)
    if isinstance(response, str):
        answer = [Turn("assistant", response)] if response or needs_response else []
        place = f"{raw.place}: {layout.prompt}"
    else:
        answer = response
        place = f"{raw.place}: {layout.response}"
    turns = [*before, *_joined(prompt, answer)]
    return exchange(place, turns, needs_response=needs_response, pick=pick)


def _prompt(raw: Raw, layout: Layout) -> str | list[Turn]:
    turns = conversation(cell(raw, layout.prompt))
    if turns is not None:
        return turns_of(f"{raw.place}: {layout.prompt}", turns)
    prompt = text_cell(raw, layout.prompt)
    if not layout.input or layout.input not in raw.row:
        return prompt
    extra = text_cell(raw, layout.input)
    if not prompt.strip() or not extra.strip() or extra.strip().lower() == NO_INPUT:
        return prompt
    return f"{prompt}\n{extra}"


def _response(raw: Raw, layout: Layout, *, needs_response: bool) -> str | list[Turn]:
    if not layout.response or (not needs_response and layout.response not in raw.row):
        return ""
    value = structured(cell(raw, layout.response))
    if is_turns(value) or (layout.response.lower() != "response" and _is_transcript(value)):
        return turns_of(f"{raw.place}: {layout.response}", value)
    return text_cell(raw, layout.response)


def _is_transcript(value: object) -> bool:
    return isinstance(value, str) and conversation(value) is not None


def _joined(prompt: str | list[Turn], response: list[Turn]) -> list[Turn]:
    """Return all turns; the turns of a response may contain those of the prompt."""
    before = [Turn("user", prompt)] if isinstance(prompt, str) else prompt
    earlier = [(turn.role, turn.text.strip()) for turn in before]
    whole = [(turn.role, turn.text.strip()) for turn in response]
    questions = [text for role, text in whole if role == "user"]
    is_last_question = bool(questions) and earlier == [("user", questions[-1])]
    repeats = whole[: len(earlier)] == earlier or is_last_question
    return response if repeats else [*before, *response]


def _system(raw: Raw, layout: Layout) -> list[Turn]:
    if not layout.system:
        return []
    text = text_value(raw.place, layout.system, plain(raw.row.get(layout.system)))
    return [Turn("system", text)] if text.strip() else []


def _history(raw: Raw, layout: Layout) -> list[Turn]:
    """Return the earlier exchanges of a row: a list of [prompt, response]."""
    history = structured(raw.row.get(layout.history)) if layout.history else None
    if not history:
        return []
    pairs = isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    )
    if not pairs:
        problem = f"{layout.history} is {history!r:.60}, not a list of [prompt, response]"
        raise RowError(raw.place, OTHER_LAYOUT, problem)
    texts = [text_value(raw.place, layout.history, text) for pair in history for text in pair]
    return [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


def provenance_of(raw: Raw, layout: Layout) -> dict[str, str]:
    """Return where a row came from, by key of `PROVENANCE`.

    Raises:
        RowError: A value can be no label.
    """
    labels = {}
    for role, columns in layout.provenance.items():
        for column in columns:
            label = label_cell(raw.place, column, raw.row.get(column))
            if label:
                labels[role] = label
                break
    return labels
