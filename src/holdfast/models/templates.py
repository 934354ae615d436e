"""Chat templates: what they write around a prompt and its answer, found out once per template.

A template is rendered with marker texts; what it writes around them is its `Frame`. Prompts and
answers are then put into the frame, so that each appears as it is, whatever it contains. A template
that leaves a text out, changes it, or begins an answer differently in training than in asking is
refused with one message.

What a template itself writes before the answer in training, such as an empty think block, also
stands there when the model is asked.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from holdfast.errors import UsageError
from holdfast.rows.readers import warn_once
from holdfast.rows.text import count_words
from holdfast.rows.thoughts import block_at_end, closing_of, ends_inside

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

Turn = tuple[str, str]
"""Role and text."""
Form = Literal["text", "parts"]
"""How a template takes the content of a turn: as a text, or as a list of {"type", "text"}."""
Trim = Callable[[str], str]

TODAY = datetime.datetime(2024, 7, 26)
"""The date for templates that write today's: the one Llama's templates fall back on. With the real
date the same model would give different answers tomorrow."""
MOST_CHARACTERS = 1_000_000
"""Most characters that a template may write for one short conversation."""
MOST_SECONDS = 10.0
"""Longest time a template may take for one short conversation."""
SYSTEM_PROMPT_WORDS = 4
"""With this many words before the prompt, the template is reported to add a system prompt."""
WAY_OUT = "correct its chat_template.jinja, or use a model with another template"

_PROMPT = "qOne7Kp"
_ANSWER = "aTwo9Zt"
# Markup, quotes, braces, line breaks, capitals, blanks: what templates escape, trim or replace.
_ODD = '{mark} <b>&amp;"it\'s" C:\\dir {{ x }} {{% y %}}\n\n\t\u00e9  \u65e5\u672c {long} {mark}s'
# Templates may also cut long texts off.
_LONG = " ".join(map(str, range(4000)))
_FORMS: tuple[tuple[Form, Form], ...] = (
    ("text", "text"),
    ("parts", "parts"),
    ("parts", "text"),
    ("text", "parts"),
)
_TRIMS: tuple[Trim, ...] = (
    lambda text: text,
    lambda text: text.strip(),
    lambda text: text.lstrip(),
    lambda text: text.rstrip(),
    lambda text: text.strip("\n"),
    lambda text: text.lstrip("\n"),
    lambda text: text.rstrip("\n"),
)
"""Ways in which templates shorten the blanks around a text."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around a prompt and its answer.

    Attributes:
        before: Text before the prompt.
        asked: Text between the prompt and what the model writes.
        lead: Beginning of what the model writes that is not yet the answer: the end of a think
            block that `asked` opens. "" for most templates.
        gap: Blanks between these and the answer, which belong to the answer's first token.
        after: Text after the answer: the end of the turn.
        written: What the template writes in training between its generation prompt and the
            answer; it is part of `asked`, or it is `lead`.
        content: How the template takes the texts of prompt and answer.
        trim_prompt: Shortens the blanks around a prompt as the template does.
        trim_answer: The same for an answer.
    """

    before: str
    asked: str
    lead: str = ""
    gap: str = ""
    after: str = ""
    written: str = ""
    content: tuple[Form, Form] = ("text", "text")
    trim_prompt: Trim = _TRIMS[0]
    trim_answer: Trim = _TRIMS[0]

    def prompt(self, text: str) -> str:
        """Return the text with which the model is asked."""
        return f"{self.before}{self.trim_prompt(text)}{self.asked}"

    def answer(self, text: str) -> str:
        """Return the text after `prompt` and `lead` in training: the answer and the turn's end."""
        return f"{self.gap}{self.trim_answer(text)}{self.after}"

    @property
    def opening(self) -> str:
        """What may stand before an answer in training: other text of the template, or its block."""
        return self.written if self.written.strip() else block_at_end(self.asked)

    @property
    def opened(self) -> bool:
        """Whether the model is asked inside an open think block."""
        return ends_inside(self.asked)

    @property
    def facts(self) -> dict[str, str]:
        """The frame as a job records it."""
        return {
            "before prompt": self.before,
            "after prompt": self.asked,
            "before answer": f"{self.lead}{self.gap}",
            "after answer": self.after,
        }


PLAIN = Frame(before="User: ", asked="\nAssistant: ")
"""For tokenizers without a chat template."""


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """Return what stands around prompts and answers of the tokenizer's model.

    Raises:
        UsageError: The chat template cannot be used; the message says why.
    """
    template = template_of(tokenizer)
    if template is None:
        return PLAIN
    try:
        frame = _frame(template, _special_tokens(tokenizer))
    except _TemplateError as problem:
        raise UsageError(f"{_name(tokenizer)}: the chat template {problem}; {WAY_OUT}") from problem
    _report_system_prompt(frame, tokenizer)
    return frame


def template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the text of the chat template; None if the tokenizer has none.

    Raises:
        UsageError: There are several templates without a default one, or it is not a text.
    """
    template: Any = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        if "default" not in template:
            names = ", ".join(sorted(map(str, template))) or "none"
            raise UsageError(
                f"{_name(tokenizer)}: the tokenizer has several chat templates ({names}), none of "
                "them named 'default'; name one of them 'default' in tokenizer_config.json, or "
                "save it alone as chat_template.jinja"
            )
        template = template["default"]
    if template is None:
        return None
    if not isinstance(template, str) or not template.strip():
        raise UsageError(
            f"{_name(tokenizer)}: the chat template is {template!r:.40}; save the model's template "
            "as chat_template.jinja, or remove the entry to ask without a template"
        )
    return template


def render(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, add_generation_prompt: bool
) -> str:
    """Return a conversation as the chat template writes it.

    Args:
        tokenizer: With a chat template.
        turns: Roles and texts.
        add_generation_prompt: Whether the beginning of an answer follows.

    Raises:
        UsageError: There is no chat template, it fails, or it leaves a text out.
    """
    template = template_of(tokenizer)
    if template is None:
        raise UsageError(
            f"{_name(tokenizer)}: the tokenizer has no chat template; save it with one"
        )
    problems = []
    for form, _ in _FORMS[:2]:
        forms = [form] * len(turns)
        try:
            text = _render(
                template,
                _special_tokens(tokenizer),
                turns,
                forms,
                add_generation_prompt=add_generation_prompt,
            )
            _check_contents(text, turns)
        except _TemplateError as problem:
            problems.append(problem)
        else:
            return text
    raise UsageError(f"{_name(tokenizer)}: the chat template {problems[0]}; {WAY_OUT}")


def _check_contents(text: str, turns: Sequence[Turn]) -> None:
    for role, content in turns:
        if content.strip() not in text:
            raise _TemplateError(f"leaves out or changes the text of the {role}'s turn")


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts that a tokenizer reads as one token of their own, longest first."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    tokens = {*map(str, tokenizer.all_special_tokens), *added}
    # Some tokenizers have added tokens of several blanks, which are plain text.
    return sorted((token for token in tokens if token.strip()), key=lambda t: (-len(t), t))


def end_of_turn(frame: Frame, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return the text up to the control token that ends a turn, and that token.

    Without a control token after the answer, all that follows it, and "".
    """
    ends = [
        (frame.after.index(token), -len(token), token)
        for token in control_tokens(tokenizer)
        if token in frame.after
    ]
    if not ends:
        return frame.after, ""
    position, _, token = min(ends)
    return frame.after[: position + len(token)], token


def _report_system_prompt(frame: Frame, tokenizer: PreTrainedTokenizerBase) -> None:
    text = frame.before
    for token in control_tokens(tokenizer):
        text = text.replace(token, " ")
    if count_words(text) >= SYSTEM_PROMPT_WORDS:
        # Without a model's name: all models of a run have this template, and one warning is enough.
        warn_once(
            "the chat template puts its own text before every prompt, in training and when "
            f"asking: {' '.join(text.split())!r:.300}"
        )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, Any], ...]:
    tokens: Mapping[str, Any] = getattr(tokenizer, "special_tokens_map", {})
    return tuple(
        (name, tuple(map(str, token)) if isinstance(token, (list, tuple)) else str(token))
        for name, token in sorted(tokens.items())
    )


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")


# -------------------------------------------------------------------------------- finding the frame


class _TemplateError(Exception):
    """What is wrong with a template: the rest of a sentence that begins "the chat template"."""


@lru_cache(maxsize=64)
def _frame(template: str, special_tokens: tuple[tuple[str, Any], ...]) -> Frame:
    problems = []
    for forms in _FORMS:
        probe = _Probe(template, special_tokens, forms)
        try:
            return probe.frame()
        except _TemplateError as problem:
            problems.append(problem)
    raise problems[0]


@dataclass(frozen=True, slots=True)
class _Pieces:
    """What a template writes around marked texts.

    Attributes:
        before: Before the prompt.
        asking: After the prompt, when the model is asked.
        training: Between prompt and answer.
        after: After the answer.
    """

    before: str
    asking: str
    training: str
    after: str


@dataclass(frozen=True, slots=True)
class _Probe:
    """Renders marked texts in one form of content."""

    template: str
    special_tokens: tuple[tuple[str, Any], ...]
    forms: tuple[Form, Form]

    def frame(self) -> Frame:
        """Return the frame; raise _TemplateError if there is none."""
        pieces = self._pieces(_PROMPT, _ANSWER)
        odd_prompt = _ODD.format(mark=_PROMPT, long=_LONG)
        odd_answer = _ODD.format(mark=_ANSWER, long=_LONG)
        if self._pieces(odd_prompt, odd_answer) != pieces:
            raise _TemplateError("depends on the text of the prompt or of the answer")
        asked, lead, gap = _beginning(pieces)
        return Frame(
            before=pieces.before,
            asked=asked,
            lead=lead,
            gap=gap,
            after=pieces.after,
            written=lead or pieces.training.removeprefix(pieces.asking).rstrip(" "),
            content=self.forms,
            trim_prompt=self._trim(
                "prompt",
                lambda text: self._asking(text),
                lambda text: f"{pieces.before}{text}{pieces.asking}",
            ),
            trim_answer=self._trim(
                "answer",
                lambda text: self._training(_PROMPT, text),
                lambda text: f"{pieces.before}{_PROMPT}{pieces.training}{text}{pieces.after}",
            ),
        )

    def _asking(self, prompt: str) -> str:
        return _render(
            self.template,
            self.special_tokens,
            [("user", prompt)],
            self.forms[:1],
            add_generation_prompt=True,
        )

    def _training(self, prompt: str, answer: str) -> str:
        turns = [("user", prompt), ("assistant", answer)]
        return _render(
            self.template, self.special_tokens, turns, self.forms, add_generation_prompt=False
        )

    def _pieces(self, prompt: str, answer: str) -> _Pieces:
        before, asking = _around("prompt", prompt, self._asking(prompt))
        before_training, rest = _around("prompt", prompt, self._training(prompt, answer))
        training, after = _around("answer", answer, rest)
        if before_training != before:
            raise _TemplateError(
                f"writes {before!r:.80} before a prompt when asking, and {before_training!r:.80} "
                "in training"
            )
        return _Pieces(before, asking, training, after)

    @staticmethod
    def _trim(
        noun: str, rendered: Callable[[str], str], expected: Callable[[str], str]
    ) -> Callable[[str], str]:
        text = f"\n  {_PROMPT} \n\n"
        written = rendered(text)
        for trim in _TRIMS:
            if written == expected(trim(text)):
                return trim
        raise _TemplateError(f"changes the blanks around the {noun}")


def _around(noun: str, text: str, rendered: str) -> tuple[str, str]:
    """Return what stands before and after a text."""
    number = rendered.count(text)
    if number == 1:
        before, _, after = rendered.partition(text)
        return before, after
    if number:
        raise _TemplateError(f"writes the {noun} {number} times")
    if _PROMPT in rendered or _ANSWER in rendered:
        raise _TemplateError(f"leaves out or changes the text of the {noun}")
    raise _TemplateError(f"leaves the {noun} out")


def _beginning(pieces: _Pieces) -> tuple[str, str, str]:
    """Return `Frame.asked`, `Frame.lead` and `Frame.gap`."""
    asking = pieces.asking
    training = pieces.training
    if training.startswith(asking):
        written = training.removeprefix(asking)
        if not written.strip():
            return asking, "", written
        block = written.rstrip(" ")
        return asking + block, "", written.removeprefix(block)
    if asking.startswith(training):
        extra = asking.removeprefix(training)
        closing = closing_of(extra)
        if closing is not None:
            return asking, closing, ""
        if block_at_end(extra) == extra or not extra.strip():
            return asking, "", ""
    if asking.rstrip() == training.rstrip():
        return asking, "", ""
    raise _TemplateError(
        f"begins an answer with {training[-80:]!r} in training, which does not continue the "
        f"{asking[-80:]!r} it writes when asking"
    )


# ---------------------------------------------------------------------------------------- rendering


def _render(
    template: str,
    special_tokens: tuple[tuple[str, Any], ...],
    turns: Sequence[Turn],
    forms: Sequence[Form],
    *,
    add_generation_prompt: bool,
) -> str:
    """Return a conversation; raise _TemplateError if the template fails, or writes no end."""
    messages = [
        {"role": role, "content": _content(text, form)}
        for (role, text), form in zip(turns, forms, strict=True)
    ]
    names = {
        **dict(special_tokens),
        "messages": messages,
        "add_generation_prompt": add_generation_prompt,
        # Rows have answers without thoughts, so templates with a switch are asked to do without.
        "enable_thinking": False,
        "tools": None,
        "documents": None,
    }
    chunks: list[str] = []
    length = 0
    deadline = time.monotonic() + MOST_SECONDS
    limit = MOST_CHARACTERS + sum(len(text) for _, text in turns)
    try:
        for chunk in _compiled(template).generate(**names):
            chunks.append(chunk)
            length += len(chunk)
            if length > limit or time.monotonic() > deadline:
                break
        else:
            return "".join(chunks)
    except Exception as error:  # noqa: BLE001  # a template is a program and may raise anything
        roles = ", ".join(role for role, _ in turns)
        raise _TemplateError(
            f"fails on a conversation of the turns {roles} ({_reason(error)})"
        ) from error
    raise _TemplateError("does not come to an end")


def _content(text: str, form: Form) -> str | list[dict[str, str]]:
    return text if form == "text" else [{"type": "text", "text": text}]


def _reason(error: Exception) -> str:
    message = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {message[:200]}" if message else type(error).__name__


@lru_cache(maxsize=64)
def _compiled(template: str) -> Template:
    """Compile a template in transformers' sandbox, with a date that stays the same."""
    from transformers.utils import chat_template_utils

    compiled: Template = chat_template_utils._cached_compile_jinja_template(template)
    compiled.environment.globals["strftime_now"] = TODAY.strftime
    return compiled
