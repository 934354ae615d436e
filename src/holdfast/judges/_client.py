"""Requests to an OpenAI-compatible service, and the errors that quote it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from holdfast.errors import UsageError
from holdfast.judges._service import (
    NO_RETRY,
    OF_ONE_ANSWER,
    TEMPORARY,
    Service,
    Unanswered,
    decoded,
    error_of,
    message_of,
    quoted,
    retry_after_seconds,
)

if TYPE_CHECKING:
    from types import TracebackType

    import httpx2

LARGEST = 1 << 20
"""Bytes of an answer that are read at most; no verdict is longer."""
LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass
class Client:
    """Sends requests to one service.

    Attributes:
        base_url: Its base address.
        model: Name of the model.
        key_env: Environment variable that holds the key; "" sends none.
        timeout: Seconds for one answer.
        service: What is known of the service.
    """

    base_url: str
    model: str
    key_env: str
    timeout: float
    service: Service

    def __enter__(self) -> Client:
        self.http.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.http.__exit__(kind, error, traceback)

    @cached_property
    def http(self) -> httpx2.Client:
        try:
            import httpx2
            import tenacity  # noqa: F401  # missing together
        except ModuleNotFoundError as error:
            raise UsageError(
                f"the judge endpoint needs {error.name}: pip install 'holdfast[endpoint]'"
            ) from error
        headers = {"Content-Type": "application/json"}
        if self.key_env:
            headers["Authorization"] = f"Bearer {os.environ[self.key_env]}"
        url = urlsplit(self.base_url)
        return httpx2.Client(
            headers=headers,
            timeout=self.timeout,
            follow_redirects=False,
            # A proxy set in the environment cannot reach services on this machine.
            trust_env=url.hostname not in LOCAL,
            # Without TLS there is nothing to verify, and loading certificates is slow.
            verify=url.scheme == "https",
        )

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send a request and return the JSON of the reply.

        Raises:
            Unanswered: The service gave no readable reply.
            UsageError: The request can never succeed.
        """
        import httpx2

        url = f"{self.base_url.rstrip('/')}/{path}"
        try:
            with self.http.stream("POST", url, content=json.dumps(body).encode()) as answer:
                content = self._content(answer)
                self._check_status(answer.status_code, url, answer.headers, content)
        except httpx2.TimeoutException as error:
            raise Unanswered("too slow") from error
        except httpx2.InvalidURL as error:
            raise UsageError(f"base_url={self.base_url!r} is not an address ({error})") from error
        except httpx2.HTTPError as error:
            raise Unanswered(type(error).__name__) from error
        try:
            reply = decoded(content)
        except Unanswered as error:
            if b"<html" in content[:1000].lower():
                page = quoted(message_of(content)[0], self._key)
                raise Unanswered(f"a page instead of JSON, {page!r}") from error
            raise
        error_with_code = error_of(reply) if isinstance(reply, dict) else None
        if error_with_code is not None and not (reply.get("choices") or reply.get("results")):
            raise self._refusal("200 with the error", *error_with_code)
        return reply

    def _content(self, answer: httpx2.Response) -> bytes:
        """Read the body of an answer, up to the largest size and the time limit."""
        end = time.monotonic() + self.timeout
        content = bytearray()
        for part in answer.iter_bytes():
            content += part
            if time.monotonic() > end:
                raise Unanswered("too slow")
            if len(content) > LARGEST:
                raise Unanswered("answer too long")
        return bytes(content)

    def _check_status(
        self, status: int, url: str, headers: Mapping[str, str], content: bytes
    ) -> None:
        if status == 200:
            return
        message, code = message_of(content)
        message = quoted(message, self._key)
        quote = f" ({message!r})" if message else ""
        if status in (401, 402) or (status == 403 and not self.service.answered):
            rejected = f"the key in {self.key_env}" if self.key_env else "a request without key_env"
            raise UsageError(
                f"{url} answers {status} to {rejected}{quote}; give a key that it accepts"
            )
        if status in (404, 405, 501) or 300 <= status < 400:
            raise UsageError(
                f"{url} answers {status}{quote}; check base_url, api and "
                f"model={self.model!r}{self.service.listed(self.model)}"
            )
        error = self._refusal(str(status), message, code)
        error.temporary = error.temporary and (status in TEMPORARY or status >= 500)
        error.wait = retry_after_seconds(headers.get("retry-after"))
        raise error

    def _refusal(self, what: str, message: str, code: str) -> Unanswered:
        """Return the failure of a request that the service refuses with a message."""
        message = quoted(message, self._key)
        quotation = f"{message} {quoted(code, self._key)}".strip()
        mendable = not re.search(NO_RETRY, quotation, re.IGNORECASE)
        summary = f"{what} {message!r}" if message else what
        return Unanswered(summary, temporary=mendable, said=quotation)

    def check_way(self, error: Unanswered) -> None:
        """Check that a refusal is about this answer, not about the way of asking.

        Raises:
            UsageError: Nothing was answered so far, and no later try would be.
        """
        of_one_answer = re.search(OF_ONE_ANSWER, f"{error.reason} {error.said}", re.IGNORECASE)
        if error.temporary or self.service.answered or of_one_answer:
            return
        raise UsageError(
            f"{self.base_url} refuses the request of the judge: {error.reason}. No later try would "
            f"be answered; check model={self.model!r}, the judge's options and the service"
            f"{self.service.listed(self.model)}"
        )

    def look_up_models(self) -> None:
        """Look up, once, which models the service lists; a service without a list has none."""
        import httpx2

        service = self.service
        if service.models is not None or not self.model:
            return
        service.models = ()
        try:
            answer = self.http.get(
                f"{self.base_url.rstrip('/')}/models", timeout=min(5, self.timeout)
            )
            entries = answer.json()["data"] if answer.status_code == 200 else []
            service.models = tuple(str(entry["id"]) for entry in entries)
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError):
            return

    @property
    def _key(self) -> str:
        return os.environ.get(self.key_env, "") if self.key_env else ""
