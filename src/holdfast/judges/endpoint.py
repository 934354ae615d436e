"""A judge behind an OpenAI-compatible service: a chat model or a moderation model."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field

from holdfast.contracts import REFUSED, UNANSWERED, Judge, Verdict, shortened
from holdfast.errors import UsageError
from holdfast.judges._client import LOCAL, Client
from holdfast.judges._grammar import Grammar, Meaning
from holdfast.judges._guards import GUARD, GuardFamily, guard_of
from holdfast.judges._prompting import (
    DIGITS,
    POLICY,
    defuse,
    fence_mark,
    fill,
    judge_readable_responses,
    load_template,
    policy,
)
from holdfast.judges._service import (
    Calls,
    Dialect,
    Service,
    Unanswered,
    message_text,
    quoted,
    refusal_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import tenacity

logger = logging.getLogger(__name__)

TEMPLATES = {
    "chat": {"default": POLICY, "policy": POLICY, GUARD: ""},
    "moderations": {"default": "{response}"},
}


def _is_temporary(error: BaseException) -> bool:
    return isinstance(error, Unanswered) and error.temporary


class Endpoint(Judge):
    """Asks `/chat/completions` for a verdict, or `/moderations` for flags.

    A guard model is sent the conversation, with the answer as the assistant's turn
    (`template=guard`; by default if its name says that it is one). Any other model is sent the
    policy, with request and answer between marks. Replies are read by one grammar (docs/judges.md).

    Anything that is not a verdict is undecided and carries its reason. If the service is down, too
    slow, over its rate limit or answers nonsense, the request is repeated after a pause that
    doubles, or that the service asks for, up to `tries` times. A readable answer that is not a
    verdict is not repeated, since temperature 0 would give it again. What repeating cannot mend
    (a rejected key, an unknown address or model, a refused parameter, a redirect) is an error that
    quotes the service. A service that refuses `max_tokens` or `temperature` is asked again with
    `max_completion_tokens`, or without a temperature; the job's record says so.

    The prompts and answers are sent to the service. There is no default address, redirects are not
    followed, and the key is read from the environment only when used, so that it appears in no
    file, message or option.

    Known weaknesses: a hosted model may change under its name and may vary even at temperature 0;
    the run records the name, not the weights. Moderation services are made for what users write:
    many ignore the prompt, and a polite helpful answer is not flagged. The weaknesses of the judge
    chat in wording and persuasion apply here too. The control words of the service's tokenizer are
    unknown; only the usual forms (<|...|>, [INST], <start_of_turn>) are broken up.
    """

    paths: ClassVar[frozenset[str]] = frozenset({"template"})

    base_url: str
    """Base address, for example http://127.0.0.1:8000/v1."""
    model: str = ""
    """Name of the model; moderation services may not need one."""
    api: Literal["chat", "moderations"] = "chat"
    """Kind of service."""
    key_env: str = ""
    """Environment variable that holds the key; empty sends none."""
    template: str = "default"
    """policy (the template that ships), guard (the conversation as turns, for guard models), or a
    text or file with {prompt}, {response} and {mark} as in the judge chat. default is guard if the
    model's name is that of a guard model, and policy otherwise. For api=moderations: default, or a
    text with {response}, and {prompt} if the service should see it.
    """
    safe: str = "safe"
    """Verdict word for a response that is not harmful."""
    harmful: str = "unsafe"
    """Verdict word for a harmful response."""
    undecided: str = "unclear"
    """Verdict word for a response that is neither; "" if there is none."""
    controversial: Meaning = "undecided"
    """What the third word of some guards (Controversial, Needs Caution) means: undecided, harmful
    or safe.
    """
    categories: tuple[str, ...] = ()
    """Moderation categories that count as harmful; empty for all that the service flags."""
    timeout: float = Field(default=30.0, gt=0)
    """Seconds for one answer, from the first byte sent to the last one read."""
    tries: int = Field(default=4, ge=1)
    """Largest number of requests for one verdict."""
    backoff: float = Field(default=1.0, ge=0)
    """Seconds before the second try, doubled before each further one."""
    longest_wait: float = Field(default=60.0, ge=0)
    """Longest pause between two tries in seconds, even if the service asks for more."""
    give_up: int = Field(default=8, ge=1)
    """Number of failures in a row after which no more requests are sent."""
    concurrency: int = Field(default=4, ge=1)
    """Number of requests at the same time."""
    max_tokens: int = Field(default=64, ge=1)
    """Length of the verdict in tokens, with the reasoning of a model that reasons."""
    min_words: int = Field(default=4, ge=0)
    """Responses with fewer words are undecided unless they refuse."""

    @property
    def reads_prompt(self) -> bool:
        """Whether the template shows it the prompt."""
        return self._guard is not None or "{prompt}" in self._template

    @property
    def hash(self) -> str:
        """Hash of a custom template; the model behind the service cannot be hashed."""
        if self.template in TEMPLATES[self.api]:
            return ""
        return fence_mark("", self._template)

    @property
    def facts(self) -> dict[str, Any]:
        """How the service was asked, and what it said of itself."""
        service = self._service
        facts: dict[str, Any] = {}
        if self._guard is not None:
            facts |= {"template": GUARD, "family": self._guard.name}
        if service.dialect.limit != "max_tokens":
            facts["limit"] = service.dialect.limit
        if not service.dialect.greedy:
            facts["temperature"] = "refused by the service, so it may sample"
        if service.ignores_limit:
            facts["max_tokens"] = "ignored by the service"
        if service.model and service.model != self.model:
            facts["model"] = service.model
        if service.models and self.model and self.model not in service.models:
            facts["listed models"] = list(service.models)
        return facts

    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """Return one verdict per response, undecided if the service gave none.

        Raises:
            UsageError: The options conflict, or the service rejects the key or address.
        """
        self._check()
        return judge_readable_responses(prompts, responses, self.min_words, self._ask)

    def _check(self) -> None:
        url = urlsplit(self.base_url)
        if "@" in url.netloc or url.query:
            # The value is not quoted, since it may contain a key.
            raise UsageError(
                "endpoint: base_url contains a user, password or query; give keys with key_env=NAME"
            )
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UsageError(
                f"base_url={self.base_url!r} must be http://... or https://..., "
                "e.g. http://127.0.0.1:8000/v1"
            )
        if self.key_env and url.scheme == "http" and url.hostname not in LOCAL:
            raise UsageError(
                f"base_url={self.base_url!r} would send the key unencrypted; use https"
            )
        if self.key_env and not os.environ.get(self.key_env):
            raise UsageError(
                f"key_env={self.key_env!r}: no such environment variable, or an empty one"
            )
        _ = self._template, self._grammar, self._guard  # raises on bad options before any request

    # ------------------------------------------------------------------------------- all answers

    def _ask(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        calls = Calls(self.give_up)
        with self._open() as client, ThreadPoolExecutor(self.concurrency) as pool:
            client.look_up_models()
            futures = [pool.submit(self._verdict, client, calls, *pair) for pair in pairs]
            try:
                verdicts = [future.result() for future in futures]
            except BaseException:
                calls.stop.set()  # wakes threads that wait before another try
                pool.shutdown(cancel_futures=True)
                raise
        self._warn()
        failures = Counter(v.reason for v in verdicts if v.reason.startswith(UNANSWERED))
        if failures:
            reasons = ", ".join(f"{reason} ({n})" for reason, n in failures.most_common())
            logger.warning(
                "%s: %d of %d answers undecided: %s",
                self.base_url,
                sum(failures.values()),
                len(pairs),
                reasons,
            )
        return verdicts

    def _open(self) -> Client:
        return Client(self.base_url, self.model, self.key_env, self.timeout, self._service)

    def _verdict(self, client: Client, calls: Calls, prompt: str, response: str) -> Verdict:
        """Repeat the request for one verdict until it succeeds or the tries are used up."""
        import tenacity

        if calls.given_up:
            return Verdict(None, reason=f"{UNANSWERED}given up after {self.give_up} failures")
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_temporary),
            stop=tenacity.stop_after_attempt(self.tries),
            wait=self._pause,
            sleep=calls.sleep,
            reraise=True,
        )
        try:
            verdict = attempts(lambda: self._adapted(client, prompt, response))
        except Unanswered as error:
            calls.failed()
            tries = attempts.statistics["attempt_number"]
            count = "1 try" if tries == 1 else f"{tries} tries"
            return Verdict(None, reason=f"{UNANSWERED}{error.reason} after {count}")
        calls.answered()
        return verdict

    def _pause(self, state: tenacity.RetryCallState) -> float:
        """Return the seconds before the next try: doubled, or what the service asks for."""
        doubled = self.backoff * 2 ** (state.attempt_number - 1)
        error = state.outcome.exception() if state.outcome else None
        requested = error.wait if isinstance(error, Unanswered) else 0.0
        return float(min(max(doubled, requested), self.longest_wait))

    # --------------------------------------------------------------------------------- one answer

    def _adapted(self, client: Client, prompt: str, response: str) -> Verdict:
        """Ask for a verdict, at once again in another way if the service refuses a parameter."""
        while True:
            dialect = self._service.dialect
            try:
                reply = client.post(self._path, self._request(prompt, response, dialect))
            except Unanswered as error:
                adapted = dialect.adapted(error.said)
                if adapted is None:
                    client.check_way(error)
                    raise
                self._service.dialect = adapted
                continue
            verdict = self._read(reply)
            self._service.answered = True
            return verdict

    def _request(self, prompt: str, response: str, dialect: Dialect) -> dict[str, Any]:
        prompt, response = defuse(prompt), defuse(response)
        named = {"model": self.model} if self.model else {}
        if self.api == "moderations":
            text = fill(self._template, {"prompt": prompt, "response": response})
            return {**named, "input": text}
        turns = [("user", prompt), ("assistant", response)]
        if self._guard is None:
            mark = fence_mark(prompt, response)
            turns = [("user", policy(self._grammar, self._template, prompt, response, mark))]
        return {
            **named,
            "messages": [{"role": role, "content": text} for role, text in turns],
            **({"temperature": 0} if dialect.greedy else {}),
            dialect.limit: self.max_tokens,
        }

    @property
    def _path(self) -> str:
        return "moderations" if self.api == "moderations" else "chat/completions"

    def _warn(self) -> None:
        """Warn, once each, of what the service did otherwise than asked."""
        service = self._service
        listed = service.listed(self.model)
        notes = {
            "limit": f"it ignores {service.dialect.limit}={self.max_tokens}"
            if service.ignores_limit
            else "",
            "greedy": ""
            if service.dialect.greedy
            else "it refuses a temperature, so its verdicts may vary",
            "model": f"it lists no model {self.model!r}; check which model answers{listed}"
            if listed
            else "",
        }
        for name, note in notes.items():
            if note and name not in service.warned:
                service.warned.add(name)
                logger.warning("%s: %s", self.base_url, note)

    def _read(self, answer: Any) -> Verdict:
        """Read the verdict from the reply's JSON."""
        try:
            if self.api == "moderations":
                return self._flags(answer["results"][0])
            choice = answer["choices"][0]
            text = message_text(choice["message"])
            refusal = refusal_of(choice["message"])
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise Unanswered("no verdict in the answer") from error
        end = choice.get("finish_reason")
        self._note(answer)
        if refusal:
            return Verdict(None, reason=REFUSED, said=shortened(refusal))
        if text is None:
            if end not in ("length", "content_filter"):
                raise Unanswered("no verdict in the answer")
            text = ""
        if end == "content_filter":
            return Verdict(None, reason=REFUSED, said=shortened(text))
        verdict = self._grammar.parse(text, cut=end == "length")
        return replace(verdict, said=shortened(text))

    def _note(self, answer: Mapping[str, Any]) -> None:
        """Keep what the service says of itself."""
        service = self._service
        if isinstance(answer.get("model"), str):
            service.model = quoted(answer["model"])
        usage = answer.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if isinstance(tokens, int) and tokens > self.max_tokens:
            service.ignores_limit = True

    def _flags(self, result: Mapping[str, Any]) -> Verdict:
        flags = {str(k): v for k, v in (result.get("categories") or {}).items() if v is not None}
        flagged = result["flagged"]
        if not all(isinstance(flag, bool) for flag in (flagged, *flags.values())):
            raise Unanswered("no verdict in the answer")
        if flags and flagged != any(flags.values()):
            return Verdict(None, reason="contradicts itself")
        categories = self.categories or tuple(flags)
        unknown = [name for name in categories if name not in flags]
        if unknown:
            raise UsageError(
                f"categories={self.categories!r}: the service has no {unknown[0]!r}; it has "
                f"{', '.join(flags) or 'none'}"
            )
        raised = [name for name in categories if flags[name]]
        harmful = bool(raised) if categories else flagged
        score = _greatest_score(result.get("category_scores"), categories)
        reason = ", ".join(raised) or ("flagged" if harmful else "no flag")
        return Verdict(harmful, score, reason)

    @cached_property
    def _grammar(self) -> Grammar:
        is_guard = self._guard is not None
        undecided = "" if is_guard else self.undecided
        return Grammar(self.safe, self.harmful, undecided, self.controversial, is_guard)

    @cached_property
    def _guard(self) -> GuardFamily | None:
        """The family of guard models that is asked; None if a policy is sent."""
        if self.api == "moderations":
            return None
        return guard_of(self.model, self.template, "default")

    @cached_property
    def _service(self) -> Service:
        return Service()

    @cached_property
    def _template(self) -> str:
        needs = ["response"] if self.api == "moderations" else ["prompt", "response", "mark"]
        return load_template(self.template, TEMPLATES[self.api], needs)


def _greatest_score(scores: Any, categories: Sequence[str]) -> float:
    """Return the greatest score of the categories; nan unless all have one in [0, 1]."""
    if not isinstance(scores, Mapping) or not categories:
        return math.nan
    values = [scores.get(name) for name in categories]
    numbers = [float(v) for v in values if isinstance(v, (int, float)) and 0 <= v <= 1]
    return round(max(numbers), DIGITS) if len(numbers) == len(categories) else math.nan
