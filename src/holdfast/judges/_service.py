"""Replies of OpenAI-compatible services: what they say, and why they refuse."""

from __future__ import annotations

import base64
import json
import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from holdfast.contracts import shortened

TEMPORARY = (408, 409, 425, 429)
NO_RETRY = "insufficient_quota|billing|payment|credit balance"
"""What an error says that passes for a rate limit and that no wait ends."""
OF_ONE_ANSWER = (
    r"context.{0,8}(?:length|size|window)|maximum.{0,20}(?:length|tokens)|"
    r"too (?:long|large|many tokens)|^413\b|"
    r"content.?(?:filter|policy|management)|filtered|moderat|flagged"
)
"""What an error says that is about one request's text, not about the way of asking."""
_UNSUPPORTED = (
    r"unsupported|not supported|not support|unknown|unrecogni[sz]ed|unexpected|not permitted|"
    r"not allowed|extra|deprecated|instead"
)
_SECRET = re.compile(r"\b(?:sk|pk|gsk|hf|xai|key|bearer)[-_ ][\w*.\-]{6,}", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.DOTALL | re.IGNORECASE)
_MARKUP = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
_WORD = re.compile(r"[^\s'\",;:()\[\]{}<>]+")
_HIDDEN = "[key]"
_MOST_LISTED = 6
_SHORTEST_KEY_PART = 6
"""Characters of a key in a row that are not quoted."""


class Unanswered(Exception):  # noqa: N818  # not an error: it becomes an undecided verdict
    """The service gave no readable answer.

    Attributes:
        reason: The reason, in a few words.
        temporary: Whether another try may succeed.
        wait: Seconds that the service asks to wait before the next try.
        said: What the service says about the request.
    """

    def __init__(
        self, reason: str, *, temporary: bool = True, wait: float = 0.0, said: str = ""
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.temporary = temporary
        self.wait = wait
        self.said = said


@dataclass(frozen=True)
class Dialect:
    """How the service wants to be asked.

    Attributes:
        limit: Name of the parameter that limits the length of a reply.
        greedy: Whether the temperature is sent; a service that refuses it samples as it likes.
    """

    limit: str = "max_tokens"
    greedy: bool = True

    def adapted(self, message: str) -> Dialect | None:
        """Return the dialect after a refusal; None if the refusal is about something else."""
        if not re.search(_UNSUPPORTED, message, re.IGNORECASE):
            return None
        if self.limit == "max_tokens" and re.search(r"\bmax_tokens\b", message):
            return replace(self, limit="max_completion_tokens")
        if self.greedy and re.search(r"\btemperature\b", message):
            return replace(self, greedy=False)
        return None


@dataclass
class Service:
    """What is known of a service from its replies.

    Attributes:
        dialect: How it wants to be asked.
        answered: Whether it has given a reply.
        model: The model that it says it is.
        ignores_limit: Whether a reply was longer than allowed.
        models: The models that it lists; None if it was not asked yet.
        warned: What the user was warned of.
    """

    dialect: Dialect = field(default_factory=Dialect)
    answered: bool = False
    model: str = ""
    ignores_limit: bool = False
    models: tuple[str, ...] | None = None
    warned: set[str] = field(default_factory=set)

    def listed(self, model: str) -> str:
        """Return the models that the service lists, for messages; "" if `model` is among them."""
        if not self.models or not model or model in self.models:
            return ""
        more = ", ..." if len(self.models) > _MOST_LISTED else ""
        return f". Its models are {quoted(', '.join(self.models[:_MOST_LISTED]))}{more}"


@dataclass
class Calls:
    """The state that the threads of one call of `judge` share.

    Attributes:
        limit: Failures in a row after which no more requests are sent.
        failures: Failures in a row so far.
        stop: Set when the verdicts are no longer needed.
    """

    limit: int
    failures: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def given_up(self) -> bool:
        """Whether to send no more requests."""
        return self.failures >= self.limit

    def answered(self) -> None:
        """Record a verdict."""
        with self._lock:
            self.failures = 0

    def failed(self) -> None:
        """Record a request without a verdict."""
        with self._lock:
            self.failures += 1

    def sleep(self, seconds: float) -> None:
        """Wait before the next try; raise if the verdicts are no longer needed."""
        if self.stop.wait(seconds):
            raise Unanswered("stopped", temporary=False)


def retry_after_seconds(
    header: str | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> float:
    """Return the seconds in a Retry-After header, a number or a date (RFC 9110); 0 if neither."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            when = parsedate_to_datetime(header)
        except (ValueError, OverflowError):
            return 0.0
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        seconds = (when - now()).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


# --------------------------------------------------------------------------------------- contents


def decoded(content: bytes) -> Any:
    """Return the JSON of a reply; one that was streamed is put together.

    Raises:
        Unanswered: It is neither.
    """
    text = content.decode("utf-8", errors="replace").lstrip("\ufeff \r\n\t")
    try:
        return _joined(text) if text.startswith("data:") else json.loads(text)
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unanswered("not JSON") from error


def _joined(text: str) -> Any:
    """Return the reply that a stream of server-sent events amounts to."""
    payloads = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    events = [json.loads(payload) for payload in payloads if payload and payload != "[DONE]"]
    choices = [event["choices"][0] for event in events if event.get("choices")]
    errors = [event["error"] for event in events if event.get("error")]
    if errors:
        return {"error": errors[0]}
    if not choices:
        return {}
    parts = [choice.get("delta", {}).get("content") or "" for choice in choices]
    ends = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    message = {"role": "assistant", "content": "".join(parts)}
    # A stream without an end was broken off.
    end = ends[-1] if ends else "length"
    return {**events[0], "choices": [{"message": message, "finish_reason": end}]}


def message_text(message: Mapping[str, Any]) -> str | None:
    """Return the text of a chat message; None if it has none.

    The content may be a list of text parts. Reasoning and a refusal in fields of their own are no
    reply.
    """
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if texts and len(texts) == len(content) else None
    return content if isinstance(content, str) else None


def refusal_of(message: Mapping[str, Any]) -> str:
    """Return why a model gave no content, in its own words; "" if it gave some, or says nothing."""
    refusal = message.get("refusal")
    return refusal if isinstance(refusal, str) and not message.get("content") else ""


def error_of(reply: Any) -> tuple[str, str] | None:
    """Return message and code of a JSON error; None if the JSON is no error."""
    if not isinstance(reply, dict):
        return None
    for name in ("error", "detail", "message", "errors"):
        error = reply.get(name)
        if not error:
            continue
        if isinstance(error, list):
            error = error[0] if error else ""
        if isinstance(error, dict):
            text = error.get("message") or error.get("msg") or json.dumps(error)
            place = error.get("loc")
            where = f"{'.'.join(map(str, place))}: " if isinstance(place, list) else ""
            codes = (error.get("code"), error.get("type"), error.get("param"))
            return f"{where}{text}", " ".join(str(code) for code in codes if code is not None)
        return str(error), ""
    return None


def message_of(content: bytes) -> tuple[str, str]:
    """Return the message and the code of an error's body: JSON, HTML or plain text."""
    text = content.decode("utf-8", errors="replace").strip()
    try:
        error = error_of(json.loads(text))
    except (ValueError, RecursionError):
        error = None
    if error is not None:
        return error
    title = _TITLE.search(text)
    if title is not None:
        return title[1].strip(), ""
    return (_MARKUP.sub(" ", text) if "<" in text else text), ""


def quoted(message: str, key: str = "") -> str:
    """Return what a service says, fit to be shown: one short line without the key."""
    text = _SECRET.sub(_HIDDEN, message)
    if key:
        for form in (key, quote(key, safe=""), base64.b64encode(key.encode()).decode()):
            text = text.replace(form, _HIDDEN)

        def hide(word: re.Match[str]) -> str:
            is_part = len(word[0]) >= _SHORTEST_KEY_PART and word[0].strip(".*\u2026") in key
            return _HIDDEN if is_part and word[0].strip(".*\u2026") else word[0]

        text = _WORD.sub(hide, text)
    return shortened(text)
