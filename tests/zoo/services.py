"""Services as people bring them. A member maps the body of a request to status and content."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from zoo import brains
from zoo.members import House, Judged, OneOf, Refused

SERVICES = House()
Body = Mapping[str, Any]
Reply = tuple[int, Any]
KEY = "zorb-key-that-nobody-may-read"


@contextmanager
def serving(reply: Callable[[Body], Reply]) -> Iterator[str]:
    """Answer requests on this machine, and yield the address.

    Args:
        reply: Body of a request -> status and content, sent as JSON unless it is bytes.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content = reply({**body, "key": self.headers.get("Authorization", "")})
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            with suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def shown(body: Body) -> str:
    """Return all that a request shows."""
    messages = body.get("messages") or [{"content": body.get("input", "")}]
    return "\n".join(str(message["content"]) for message in messages)


def is_harmful(body: Body) -> bool:
    """Return whether the answer in a request is the one about hats."""
    return brains.ANSWER in shown(body)


def said(text: object, **more: Any) -> Reply:
    """Return a chat service's reply."""
    message = {"role": "assistant", "content": text, **more}
    return 200, {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}


def word(body: Body) -> str:
    """Return the right verdict in the usual words."""
    return "unsafe" if is_harmful(body) else "safe"


# ---------------------------------------------------------------------------------- forms that say


@SERVICES.member(Judged())
def one_word(body: Body) -> Reply:
    return said(word(body))


@SERVICES.member(Judged())
def capital_and_full_stop(body: Body) -> Reply:
    return said(f" {word(body).capitalize()}.\n")


@SERVICES.member(Judged())
def bold(body: Body) -> Reply:
    return said(f"**{word(body)}**")


@SERVICES.member(Judged())
def fenced(body: Body) -> Reply:
    return said(f"```\n{word(body)}\n```")


@SERVICES.member(Judged())
def quoted(body: Body) -> Reply:
    return said(f'"{word(body)}"')


@SERVICES.member(Judged())
def thought_first(body: Body) -> Reply:
    return said(f"<think>\nIs it unsafe? It might be safe.\n</think>\n\n{word(body)}")


@SERVICES.member(Judged())
def end_of_a_thought_only(body: Body) -> Reply:
    # The opening of the thought stood in the request's template.
    return said(f"Is it unsafe? It might be safe.\n</think>\n\n{word(body)}")


@SERVICES.member(Judged())
def thought_in_a_field(body: Body) -> Reply:
    return said(word(body), reasoning_content="Is it unsafe?")


@SERVICES.member(Judged())
def codes_on_a_second_line(body: Body) -> Reply:
    return said("\n\nunsafe\nS2,S9" if is_harmful(body) else "\n\nsafe")


@SERVICES.member(OneOf(Judged(), Refused(r"decided|verdict|content")))
def parts_as_content(body: Body) -> Reply:
    return said([{"type": "text", "text": word(body)}])


@SERVICES.member(Judged(), options="safe=安全,harmful=危険,undecided=不明")
def japanese_words(body: Body) -> Reply:
    return said("危険" if is_harmful(body) else "安全。")


@SERVICES.member(OneOf(Judged(), Refused(r"decided 0 of 10|危険|安全")))
def japanese(body: Body) -> Reply:
    return said("危険" if is_harmful(body) else "安全")


@SERVICES.member(Judged(), options='safe=no,harmful=yes,undecided=""')
def yes_or_no(body: Body) -> Reply:
    return said("Yes" if is_harmful(body) else "No")


# ------------------------------------------------------------------------------------- guard models


def guard(body: Body) -> Reply:
    """Rate the last turn in its role, as Llama Guard's template does: all requests are unsafe."""
    last = body["messages"][-1]
    if last["role"] == "assistant":
        return said("\n\nunsafe\nS2" if last["content"] == brains.ANSWER else "\n\nsafe")
    return said("\n\nunsafe\nS2")


@SERVICES.member(OneOf(Judged(), Refused(r"guard")), options="model=Llama-Guard-3-8B")
def llama_guard(body: Body) -> Reply:
    return guard(body)


@SERVICES.member(Judged(), options="template=guard,model=zorb")
def guard_by_another_name(body: Body) -> Reply:
    return guard(body)


@SERVICES.member(Judged(), options="template=guard,model=Qwen3Guard-Gen-4B")
def qwen3_guard(body: Body) -> Reply:
    words = ("Unsafe", "Violent", "No") if is_harmful(body) else ("Safe", "None", "Yes")
    return said("Safety: {}\nCategories: {}\nRefusal: {}".format(*words))


@SERVICES.member(Judged(), options="template=guard,model=wildguard")
def wild_guard(body: Body) -> Reply:
    words = ("no", "yes") if is_harmful(body) else ("yes", "no")
    return said("Harmful request: yes\nResponse refusal: {}\nHarmful response: {}".format(*words))


@SERVICES.member(OneOf(Judged(), Refused(r"decided|verdict")), options="template=guard,model=nemo")
def nemo_guard(body: Body) -> Reply:
    verdict = {"User Safety": "unsafe", "Response Safety": word(body)}
    return said(json.dumps(verdict | {"Safety Categories": "Violence"}))


@SERVICES.member(
    OneOf(Judged(), Refused(r"decided|verdict")), options="template=guard,model=granite-guardian"
)
def granite_guardian(body: Body) -> Reply:
    return said(f"<score> {'yes' if is_harmful(body) else 'no'} </score>")


# --------------------------------------------------------------------------------- never decides


@SERVICES.member(Refused(r"decided|verdict"))
def refuses_to_judge(body: Body) -> Reply:
    return said("I'm sorry, but I can't assist with that request.")


@SERVICES.member(Refused(r"decided|verdict"))
def thinks_for_ever(body: Body) -> Reply:
    return said("<think>\nIs it unsafe? It might be safe. Unsafe")


@SERVICES.member(Refused(r"decided|verdict|unclear"))
def always_unclear(body: Body) -> Reply:
    return said("unclear")


@SERVICES.member(Refused(r"decided|verdict"))
def empty_content(body: Body) -> Reply:
    return said("")


@SERVICES.member(Refused(r"decided|verdict|content|null"))
def null_content(body: Body) -> Reply:
    return said(None)


@SERVICES.member(Refused(r"decided|verdict"))
def both_words(body: Body) -> Reply:
    return said("It is either safe or unsafe.")


@SERVICES.member(Refused(r"decided|verdict"))
def every_second_one(body: Body) -> Reply:
    return said(word(body) if "fold" in shown(body) else "hmm, let me see")


@SERVICES.member(Refused(r"decided|verdict|choices"))
def no_choices(body: Body) -> Reply:
    return 200, {"choices": []}


@SERVICES.member(Refused(r"decided|verdict|content"))
def tool_call(body: Body) -> Reply:
    return said(None, tool_calls=[{"id": "1", "function": {"name": "x", "arguments": "{}"}}])


# ------------------------------------------------------------------------------ says what is wrong


@SERVICES.member(Judged(), options="model=zorb-5")
def wants_max_completion_tokens(body: Body) -> Reply:
    if "max_tokens" in body:
        reason = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return 400, {"error": {"message": reason, "code": "unsupported_parameter"}}
    return said(word(body))


@SERVICES.member(OneOf(Judged(), Refused(r"temperature")))
def takes_no_temperature(body: Body) -> Reply:
    if "temperature" in body:
        reason = "Unsupported value: 'temperature' does not support 0 with this model."
        return 400, {"error": {"message": reason, "param": "temperature"}}
    return said(word(body))


@SERVICES.member(Refused(r"zorbs are not allowed"))
def bad_request(body: Body) -> Reply:
    return 400, {"error": {"message": "zorbs are not allowed here", "type": "invalid_request"}}


@SERVICES.member(Refused(r"zorbs are not allowed"))
def bad_request_as_text(body: Body) -> Reply:
    return 400, b"zorbs are not allowed here"


@SERVICES.member(Refused(r"context.*length|4096"))
def context_too_short(body: Body) -> Reply:
    reason = "This model's maximum context length is 4096 tokens."
    return 400, {"error": {"message": reason, "code": "context_length_exceeded"}}


@SERVICES.member(Refused(r"extra_field|Input should be|unprocessable|422"))
def unknown_field(body: Body) -> Reply:
    return 422, {"detail": [{"loc": ["body", "temperature"], "msg": "extra_field not permitted"}]}


@SERVICES.member(Refused(r"overloaded"))
def error_in_a_success(body: Body) -> Reply:
    return 200, {"error": {"message": "zorb overloaded", "code": 429}, "choices": None}


@SERVICES.member(Refused(r"overloaded"))
def error_as_text(body: Body) -> Reply:
    return 200, {"error": "zorb overloaded"}


@SERVICES.member(Refused(r"exhausted|quota"))
def no_money_left(body: Body) -> Reply:
    return 429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}


@SERVICES.member(Refused(r"JSON|html"))
def a_page_of_html(body: Body) -> Reply:
    return 200, b"<!doctype html><html><body>Sign in</body></html>"


@SERVICES.member(Refused(r"JSON|cut"))
def cut_off(body: Body) -> Reply:
    return 200, b'{"choices": [{"message": {"content": "uns'


@SERVICES.member(Refused(r"JSON"))
def not_json_numbers(body: Body) -> Reply:
    return 200, b"[" * 100_000


@SERVICES.member(Refused(r"404|no such|not found"))
def not_found(body: Body) -> Reply:
    return 404, {"error": {"message": "The model `zorb` does not exist"}}


@SERVICES.member(Refused(r"500"))
def broken_inside(body: Body) -> Reply:
    return 500, b"Internal Server Error"


@SERVICES.member(Refused(r"401"), options="key_env=ZOO_KEY")
def key_rejected(body: Body) -> Reply:
    return 401, {"error": {"message": f"Incorrect API key provided: {body['key']}"}}


@SERVICES.member(Refused(r"rejected"), options="key_env=ZOO_KEY")
def key_in_the_reason(body: Body) -> Reply:
    return 400, {"error": {"message": f"rejected, you sent {body['key']}"}}


@SERVICES.member(Refused(r"slow|time"), options="timeout=0.05")
def slow(body: Body) -> Reply:
    time.sleep(0.2)
    return said(word(body))


@SERVICES.member(OneOf(Judged(), Refused(r"token|long|decided")))
def ignores_the_limit(body: Body) -> Reply:
    return said(f"{word(body)}\n\n" + "because zorbs are zorbs " * 500)


@SERVICES.member(Refused(r"long|large|decided|token"))
def answers_of_megabytes(body: Body) -> Reply:
    return said("hmm " * 400_000)


_busy: set[str] = set()


@SERVICES.member(Judged())
def busy_at_first(body: Body) -> Reply:
    question = shown(body)
    if question not in _busy:
        _busy.add(question)
        return 503, {"error": {"message": "try again"}}
    return said(word(body))


# ----------------------------------------------------------------------------------- moderations


@SERVICES.member(Judged(), options="api=moderations")
def moderation(body: Body) -> Reply:
    flag = is_harmful(body)
    return 200, {"results": [{"flagged": flag, "categories": {"zorbs": flag}}]}


@SERVICES.member(Refused(r"decided|verdict|contradict"), options="api=moderations")
def moderation_that_contradicts_itself(body: Body) -> Reply:
    return 200, {"results": [{"flagged": True, "categories": {"zorbs": False}}]}


@SERVICES.member(Refused(r"decided|verdict|results"), options="api=moderations")
def moderation_without_results(body: Body) -> Reply:
    return 200, {"results": []}
