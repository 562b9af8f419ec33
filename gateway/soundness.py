"""What a plugin may leave behind. Anything else is its failure: found at once, where it has a name, and undone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from operator import attrgetter, is_
from typing import Any

from gateway.errors import GatewayError
from gateway.headers import HOP_BY_HOP, RawHeaders, is_field
from gateway.plugin import Answer, Exchange, Headers, Reply, Request

LONGEST_CODE = 64

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH = re.compile(r"/[!-~]*")
_QUERY = re.compile(r"[!-~]*")
_EXCHANGE = ("request", "reply", "answer", "notes", "costs", "timings", "request_id", "tenant", "api_key", "rule", "limits")
_REQUEST = ("method", "path", "query", "client_ip", "headers", "body", "has_body")
_REPLY = ("status", "headers", "body")
_OF_EXCHANGE, _OF_REQUEST, _OF_REPLY = attrgetter(*_EXCHANGE), attrgetter(*_REQUEST), attrgetter(*_REPLY)
_OURS = HOP_BY_HOP | {b"content-length", b"content-type", b"x-request-id"}


class Unsound(Exception):
    """A plugin left something that cannot be served; the text says what."""


class Kept:
    """An exchange as it was before a plugin, as far as it can be replaced. Values of bodies and notes are not copied."""

    __slots__ = ("_exchange", "_fields", "_reply", "_reply_fields", "_request")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = _OF_EXCHANGE(exchange)
        request, reply = self._exchange[:2]
        self._request = _OF_REQUEST(request)
        self._fields = request.headers.raw.copy()
        self._reply: tuple[Any, ...] = () if reply is None else _OF_REPLY(reply)
        self._reply_fields: RawHeaders = [] if reply is None else reply.headers.raw.copy()

    def check(self, exchange: Exchange) -> None:
        """Raises Unsound. What is as it was costs next to nothing."""
        now = _OF_EXCHANGE(exchange)
        request, reply = now[:2]
        if not all(map(is_, now, self._exchange)):
            self._check_exchange(now)
        if not (all(map(is_, _OF_REQUEST(request), self._request)) and request.headers.raw == self._fields):
            self._check_request(request)
        if reply is not None and not (
            self._reply and all(map(is_, _OF_REPLY(reply), self._reply)) and reply.headers.raw == self._reply_fields
        ):
            self._check_reply(reply)

    def restore(self, exchange: Exchange) -> None:
        """As if the plugin had not run."""
        _put(exchange, _EXCHANGE, self._exchange)
        request, reply = self._exchange[:2]
        _put(request, _REQUEST, self._request)
        request.headers.raw = self._fields.copy()
        if reply is not None:
            _put(reply, _REPLY, self._reply)
            reply.headers.raw = self._reply_fields.copy()

    def _check_exchange(self, now: tuple[Any, ...]) -> None:
        request, reply, answer, notes, costs = now[:5]
        if not all(map(is_, now[5:], self._exchange[5:])):
            raise Unsound("who asks what, when and under which limits is not for a plugin to say")
        _check_types((request, Request), (notes, dict), (costs, dict))
        if reply is None and self._exchange[1] is not None:
            raise Unsound("the reply is gone")
        if reply is not None:
            _check_types((reply, Reply))
        if answer is not None and answer is not self._exchange[2]:
            _check_answer(answer)

    def _check_request(self, request: Request) -> None:
        method, path, query, client_ip, headers, body, _ = _OF_REQUEST(request)
        _check_types((method, str), (path, str), (query, str), (client_ip, str), (headers, Headers))
        if not (
            (method is self._request[0] or _TOKEN.fullmatch(method))
            and (path is self._request[1] or _PATH.fullmatch(path))
            and (query is self._request[2] or _QUERY.fullmatch(query))
        ):
            raise Unsound("the request has a method, path or query that cannot be sent")
        _check_body(body, self._request[5])
        _check_fields(headers.raw, self._fields)

    def _check_reply(self, reply: Reply) -> None:
        status, headers, body = _OF_REPLY(reply)
        _check_types((headers, Headers))
        _check_status(status)
        _check_body(body, self._reply[2] if self._reply else None)
        for name, _ in _check_fields(headers.raw, self._reply_fields):
            if name == b"content-length" and body is None:
                raise Unsound("the length of a body that is streamed is not for a plugin to say")


def check_refusal(error: GatewayError) -> None:
    """Raises Unsound for an error that cannot be answered as it is."""
    _check_types((error.code, str), (error.type, str), (error.args, tuple), (error.headers, tuple), (error.details, dict))
    _check_status(error.status)
    if error.status < 400 or not (error.args and isinstance(error.args[0], str)):
        raise Unsound("a refusal has a status of 400 to 599 and a message")
    if not (_TOKEN.fullmatch(error.code) and len(error.code) <= LONGEST_CODE):
        raise Unsound("a refusal has a short code for programs")
    fields = _encoded(error.headers)
    if not all(map(is_field, fields)) or any(name in _OURS for name, _ in fields):
        raise Unsound("a refusal has header fields that cannot be sent")
    try:
        json.dumps(error.body(""))
    except (TypeError, ValueError, RecursionError) as problem:
        raise Unsound("a refusal has details that are no JSON") from problem


def _check_types(*pairs: tuple[object, type]) -> None:
    for value, wanted in pairs:
        if not isinstance(value, wanted):
            raise Unsound(f"{type(value).__name__} instead of {wanted.__name__}")


def _check_status(status: object) -> None:
    if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 599:
        raise Unsound("a status that no reply can have")


def _check_body(body: object, before: object) -> None:
    if not isinstance(body, bytes) and (body is not None or before is not None):
        raise Unsound("a body is bytes, and stays there once it was read")


def _check_answer(answer: Answer) -> None:
    _check_types((answer, Answer), (answer.body, bytes))
    _check_status(answer.status)
    if not all(map(is_field, _encoded(answer.headers))):
        raise Unsound("the answer has header fields that cannot be sent")


def _check_fields(raw: object, before: Sequence[tuple[bytes, bytes]]) -> RawHeaders:
    """The fields that were not there before."""
    _check_types((raw, list))
    known = set(map(id, before))
    new: RawHeaders = [field for field in raw if id(field) not in known]  # type: ignore[attr-defined]
    for field in new:
        if not (isinstance(field, tuple) and len(field) == 2 and all(isinstance(part, bytes) for part in field)):
            raise Unsound("a header field is a pair of bytes")
        if not is_field(field):
            raise Unsound("a header field cannot be sent")
    return new


def _encoded(headers: object) -> RawHeaders:
    try:
        return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]  # type: ignore[attr-defined]
    except (TypeError, ValueError, AttributeError) as problem:
        raise Unsound("header fields are pairs of texts") from problem


def _put(target: object, names: Iterable[str], values: Iterable[Any]) -> None:
    for name, value in zip(names, values, strict=True):
        setattr(target, name, value)
