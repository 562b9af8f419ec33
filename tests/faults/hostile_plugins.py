"""What plugins may do wrong. A deed is done to an exchange, once, in the stage that the request's path names."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

from gateway.models import Stage
from gateway.plugin import Answer, Exchange, Headers, Plugin, Reject, Reply, Settings

Deed = Callable[[Exchange], Awaitable[None] | None]

STAGES = tuple(stage.value for stage in Stage)
INJECTED = (b"a", b"b\r\nset-cookie: x")


def raising(error: BaseException) -> Deed:
    def deed(exchange: Exchange) -> NoReturn:
        raise error

    return deed


def setting(where: str, value: Any) -> Deed:
    """A function is called for a fresh value."""

    def deed(exchange: Exchange) -> None:
        *path, last = where.split(".")
        place: Any = exchange
        for name in path:
            place = getattr(place, name)
        setattr(place, last, value() if callable(value) else value)

    return deed


def replying(status: Any = 200, fields: Any = (), body: Any = None) -> Deed:
    return setting("reply", lambda: Reply(status, Headers(fields), body))


def refusing(changes: Mapping[str, Any] | None = None, **facts: Any) -> Deed:
    """A rejection with these facts, changed afterwards."""

    def deed(exchange: Exchange) -> None:
        error = Reject(403, "no", "no", **facts)
        for name, value in (changes or {}).items():
            setattr(error, name, value)
        raise error

    return deed


class Weird:
    """Nothing that is asked of it works."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(name)

    def __str__(self) -> NoReturn:
        raise RuntimeError

    def __bool__(self) -> NoReturn:
        raise RuntimeError


async def for_ever(exchange: Exchange) -> None:
    await asyncio.Event().wait()


async def swallowing(exchange: Exchange) -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


async def cleaning_up(exchange: Exchange) -> None:
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(60)


async def shielding(exchange: Exchange) -> None:
    await asyncio.shield(asyncio.sleep(0.5))
    await asyncio.sleep(60)


async def coming_late(exchange: Exchange) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)


async def cancelling_itself(exchange: Exchange) -> None:
    await asyncio.sleep(0)
    raise asyncio.CancelledError


async def raising_after_a_moment(exchange: Exchange) -> None:
    await asyncio.sleep(0.001)
    raise KeyboardInterrupt


def blocking(exchange: Exchange) -> None:
    time.sleep(0.5)


def recursing(exchange: Exchange) -> None:
    recursing(exchange)


async def spawning(exchange: Exchange) -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    exchange.notes["task"] = asyncio.ensure_future(fails())


RAISES: dict[str, Deed] = {
    "Exception": raising(ValueError("boom")),
    "BaseException": raising(BaseException("boom")),
    "SystemExit": raising(SystemExit(3)),
    "KeyboardInterrupt": raising(KeyboardInterrupt()),
    "KeyboardInterrupt later": raising_after_a_moment,
    "CancelledError": raising(asyncio.CancelledError()),
    "CancelledError later": cancelling_itself,
    "GeneratorExit": raising(GeneratorExit()),
    "StopIteration": raising(StopIteration(1)),
    "StopAsyncIteration": raising(StopAsyncIteration()),
    "ExceptionGroup": raising(ExceptionGroup("several", [ValueError(), KeyError()])),
    "BaseExceptionGroup": raising(BaseExceptionGroup("several", [SystemExit(), KeyboardInterrupt()])),
    "RecursionError": recursing,
    "MemoryError": raising(MemoryError()),
    "OSError": raising(OSError(24, "too many open files")),
    "TimeoutError": raising(TimeoutError()),
}

HANGS: dict[str, Deed] = {
    "waits for ever": for_ever,
    "swallows its cancellation": swallowing,
    "cleans up for ever": cleaning_up,
    "shields": shielding,
    "comes back late": coming_late,
}

NONSENSE: dict[str, Deed] = {
    "no request": setting("request", None),
    "a number for a request": setting("request", 42),
    "no method": setting("request.method", None),
    "a method with a line break": setting("request.method", "GET / HTTP/1.1\r\nx: y\r\n\r\nGET"),
    "no path": setting("request.path", None),
    "a path with a line break": setting("request.path", "/v1/x HTTP/1.1\r\nhost: evil\r\n\r\n"),
    "a path that begins with a user": setting("request.path", "@evil/x"),
    "a path outside of ASCII": setting("request.path", "/v1/\u2028\u0100"),
    "no query": setting("request.query", None),
    "a query with a line break": setting("request.query", "a\r\nb: c"),
    "no fields": setting("request.headers", None),
    "a dictionary of fields": setting("request.headers", lambda: {"a": "b"}),
    "no list of fields": setting("request.headers.raw", None),
    "texts for fields": setting("request.headers.raw", lambda: [("a", "b")]),
    "a request's field with a line break": setting("request.headers.raw", lambda: [INJECTED]),
    "triples for fields": setting("request.headers.raw", lambda: [(b"a", b"b", b"c")]),
    "a text for a body": setting("request.body", "text"),
    "a list for a body": setting("request.body", lambda: [b"a"]),
    "no address": setting("request.client_ip", None),
    "a number for a reply": setting("reply", 42),
    "status 99": replying(99),
    "status 101": replying(101, body=b"x"),
    "status 1000": replying(1000),
    "a text for a status": replying("200"),
    "a fraction for a status": replying(200.5),
    "true for a status": replying(True),
    "no fields of a reply": setting("reply", lambda: Reply(200, None)),  # type: ignore[arg-type]
    "a reply's field with a line break": replying(fields=[INJECTED]),
    "a reply's name with a line break": replying(fields=[(b"a\r\nb", b"b")]),
    "texts for fields of a reply": replying(fields=[("a", "b")], body=b"x"),
    "a length of its own": replying(fields=[(b"content-length", b"3"), (b"content-length", b"7")]),
    "a text for a reply's body": replying(body="text"),
    "a number for a reply's body": replying(body=7),
    "a body that may change": replying(body=bytearray(b"hello")),
    "a number for an answer": setting("answer", 42),
    "an answer of status 99": setting("answer", Answer(99)),
    "an answer without fields": setting("answer", Answer(200, None)),  # type: ignore[arg-type]
    "an answer's field with a line break": setting("answer", Answer(200, (("a", "b\r\nc: d"),))),
    "an answer's field outside of Latin-1": setting("answer", Answer(200, (("a", "\u2028"),))),
    "bytes for an answer's field": setting("answer", Answer(200, ((b"a", b"b"),))),  # type: ignore[arg-type]
    "a text for an answer's body": setting("answer", Answer(200, (), "text")),  # type: ignore[arg-type]
    "no costs": setting("costs", None),
    "weird costs": setting("costs", Weird),
    "no notes": setting("notes", None),
    "no timings": setting("timings", None),
    "no limits": setting("limits", None),
    "no tenant": setting("tenant", None),
    "no key": setting("api_key", None),
    "no rule": setting("rule", None),
    "another request id": setting("request_id", "a\r\nb: c"),
    "a refusal's field with a line break": refusing(headers=[("a", "b\r\nset-cookie: x")]),
    "a refusal with a length of its own": refusing(headers=[("content-length", "3")]),
    "a refusal in chunks": refusing(headers=[("transfer-encoding", "chunked")]),
    "a number for a refusal's field": refusing(headers=[("a", 5)]),
    "numbers for a refusal's fields": refusing(headers=[5]),
    "details that are no JSON": refusing(details={"a": object()}),
    "keys that are no JSON": refusing(details={(1, 2): 5}),
    "a parameter that is no text": refusing(param=object()),
    "a refusal of status 99": refusing({"status": 99}),
    "a refusal of status 200": refusing({"status": 200}),
    "a text for a refusal's status": refusing({"status": "403"}),
    "a refusal without a code": refusing({"code": object()}),
    "a code as long as a book": refusing({"code": "x" * 10_000}),
    "a refusal without a message": refusing({"args": ()}),
    "a refusal without fields": refusing({"headers": None}),
    "a refusal without details": refusing({"details": None}),
}

ODD: dict[str, Deed] = {
    "another origin in the path": setting("request.path", "//evil/x"),
    "framing of its own": setting(
        "request.headers.raw", lambda: [(b"transfer-encoding", b"chunked"), (b"content-length", b"5"), (b"host", b"evil")]
    ),
    "a long body": setting("request.body", lambda: b"x" * (1 << 20)),
    "a reply with framing of its own": replying(
        fields=[(b"content-length", b"3"), (b"transfer-encoding", b"chunked"), (b"content-length", b"7")], body=b"hello"
    ),
    "a reply for this hop": replying(fields=[(b"x-request-id", b"b"), (b"connection", b"upgrade")], body=b"hello"),
    "many fields": replying(fields=[(b"x-%d" % number, b"y" * 100) for number in range(300)], body=b"hello"),
    "a long reply": replying(body=b"x" * (1 << 20)),
    "costs that are no numbers": setting("costs", lambda: {"places": Weird(), 7: "x", "known": float("nan"), "held": -5}),
    "costs without a bound": setting("costs", lambda: {"known": 10**400, "held": -(10**30)}),
    "a text for a cost": setting("cost_nano_usd", "much"),
    "a task that fails": spawning,
}


class HostilePlugin(Plugin[Settings]):
    """Does what the path of a request says: `/<policy>/<rule>/<stage>/<deed>`."""

    name = "hostile"

    async def _act(self, exchange: Exchange, stage: str) -> None:
        where, _, deed = exchange.request.path.rpartition("/")
        if where.endswith(f"/{stage}") and deed in DEEDS:
            done = DEEDS[deed](exchange)
            if done is not None:
                await done

    async def pre_request(self, exchange: Exchange) -> None:
        await self._act(exchange, "pre_request")

    async def post_request(self, exchange: Exchange) -> None:
        await self._act(exchange, "post_request")

    async def pre_response(self, exchange: Exchange) -> None:
        await self._act(exchange, "pre_response")

    async def post_response(self, exchange: Exchange) -> None:
        await self._act(exchange, "post_response")


class HostileReader(HostilePlugin):
    """The same, with both bodies read."""

    name = "hostile_reader"
    needs_request_body = True
    needs_reply_body = True


def spelt(name: str) -> str:
    """The name of a deed in a path."""
    return name.replace(" ", "-")


KINDS: dict[str, dict[str, Deed]] = {
    "raises": RAISES,
    "hangs": HANGS,
    "leaves nonsense": NONSENSE,
    "is odd": ODD,
    "blocks": {"blocks": blocking},
}
DEEDS = {spelt(name): deed for deeds in KINDS.values() for name, deed in deeds.items()}
