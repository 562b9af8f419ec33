"""A request to a model: what it asks for, and what is sent to the target instead of what the client sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

from gateway.errors import GatewayError, InvalidJson, UnsupportedMediaType
from gateway.formats import Asked, Endpoint, Fields, endpoint_of, is_plainly_written, read_fields, write_fields
from gateway.plugin import check_alike, check_json_type
from gateway.policy.compiled import CompiledKey, CompiledRule
from gateway.policy.facts import RequestFacts
from gateway.routing import understood, upstream_path

_READ_BY_MODELS = frozenset(
    {
        *("messages", "prompt", "suffix", "input", "instructions", "text"),
        *("tools", "functions", "response_format", "prediction"),
        *("system", "output_format", "output_config"),
        *("contents", "content", "requests", "systemInstruction", "system_instruction"),
    }
)

MOST_KEPT, LONGEST_KEPT = 64, 200
"""Paths whose endpoint a rule keeps: most requests have one of a few."""


class Call(NamedTuple):
    """``asked`` is what the target is asked for, and ``named`` how the client named the model: it may be an alias.

    ``fields`` is None where no JSON object was read. Where nothing is reserved, what the model reads is not among ``asked``: it
    is needed only if the reply does not tell its usage (`complete`), and of a long prompt takes milliseconds to collect.
    """

    endpoint: Endpoint
    asked: Asked
    named: str = ""
    fields: Fields | None = None
    path: str = ""
    is_complete: bool = True

    @property
    def model(self) -> str:
        """The model that the target is asked for; empty if that is not known."""
        return self.asked.model

    @classmethod
    def of(cls, endpoint: Endpoint, asked: Asked, aliases: Mapping[str, str]) -> Call:
        """With the model that an alias stands for in its place."""
        model = aliases.get(asked.model)
        return cls(endpoint, asked if model is None else asked._replace(model=model), asked.model)

    def complete(self) -> Call:
        """With all that the model reads."""
        if self.is_complete or self.fields is None:
            return self
        asked = self.endpoint.asked(self.fields, self.path)
        return self._replace(asked=asked._replace(model=self.model), is_complete=True)


def endpoint_for(rule: CompiledRule, head: RequestFacts) -> Endpoint | None:
    """What this request calls at the target, if that is understood.

    No spelling of a path that the target may understand avoids a limit of tokens, see `endpoint_of`.
    """
    if rule.format == "none" or head.method != "POST":
        return None
    kept, path = rule.endpoints, head.path
    if path in kept:
        return kept[path]
    try:
        asked = upstream_path(rule.info.path, rule.strip_path, path)
    except GatewayError:
        return None  # it will be refused where the URL is made
    endpoint = endpoint_of(rule.format, head.method, rule.target.path + asked)
    if len(path) <= LONGEST_KEPT:
        if len(kept) >= MOST_KEPT:
            kept.clear()
        kept[path] = endpoint
    return endpoint


def is_decided_by_body(rule: CompiledRule, key: CompiledKey, endpoint: Endpoint | None) -> bool:
    """Whether the body must be read before the request can be decided."""
    if rule.needs_model or key.needs_model:
        return True
    return endpoint is not None and (rule.is_measured or key.is_measured)


def is_readable(head: RequestFacts) -> bool:
    """Whether the body may be JSON as it is: neither a form nor compressed."""
    for name, value in head.headers:
        if name == b"content-type" and value.lower().startswith(b"multipart/"):
            return False
        if name == b"content-encoding" and value.lower() != b"identity":
            return False
    return True


def check_readable(head: RequestFacts, endpoint: Endpoint | None) -> None:
    """Raises UnsupportedMediaType for a body that, by its head, the target may read otherwise than it is read here.

    A form for an endpoint that takes forms passes.
    """
    if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in head.headers):
        raise UnsupportedMediaType("This route reads the body, which must not be compressed.", param="Content-Encoding")
    types = [value.decode("latin-1") for name, value in head.headers if name == b"content-type"]
    if endpoint is None or not endpoint.takes_forms or not all(each.lower().startswith("multipart/") for each in types):
        check_json_type(types)


def read_call(
    rule: CompiledRule, endpoint: Endpoint, head: RequestFacts, body: bytes | None, *, decides: bool, reserves: bool
) -> tuple[Call, bytes | None]:
    """What the request asks for, and its body as it is to be understood.

    A body that another parser might read otherwise, such as one that names a field twice, is written anew, so that the target
    reads what was read here. If something is decided by the body, one that cannot be read raises InvalidJson or
    UnsupportedMediaType; forms excepted, whose usage only the reply tells. ``reserves`` if tokens or cost are limited.
    """
    if decides and head.has_body:
        check_readable(head, endpoint)
    if body is None or not is_readable(head):
        return Call(endpoint, Asked("")), body
    fields = read_fields(body)
    if fields is None:
        if decides:
            raise InvalidJson("The body must be a JSON object.")
        return Call(endpoint, Asked("")), body
    if decides:
        check_alike(fields, "model")
    path = understood(head.path)
    told = fields if reserves else {name: value for name, value in fields.items() if name not in _READ_BY_MODELS}
    call = Call.of(endpoint, endpoint.asked(told, path), rule.aliases)._replace(fields=fields, path=path, is_complete=reserves)
    return call, body if is_plainly_written(body, fields) else write_fields(fields)


def sent_body(call: Call, read: bytes | None, body: bytes, bound: int | None, *, asks: bool) -> tuple[bytes, bool]:
    """What the target is sent, and whether its stream is asked for a usage that the client did not ask for.

    ``read`` is the body that the call was read from, ``body`` what plugins have left of it; ``bound`` limits the output where
    the client has set no limit. ``asks`` if the target may be asked for a usage.
    """
    fields = call.fields
    if fields is not None and body is not read:
        fields = read_fields(body)
    if fields is None:
        return body, False
    changes: dict[str, bytes] = {}
    if call.model != call.named and "model" in fields:
        changes["model"] = json.dumps(call.model).encode()
    asked = call.endpoint.asks_for_usage(fields) if asks and call.asked.streams else {}
    changes.update(asked)
    if bound is not None:
        changes.update(call.endpoint.bounded(fields, bound))
    if not changes:
        return body, False
    return write_fields({**fields, **changes}), bool(asked)


def renamed_path(call: Call, path: str) -> str:
    """The path to ask the target for, which may name the model (as Gemini's do), and by an alias."""
    named, model = call.named, call.model
    if named == model:
        return path
    return understood(path).replace(f"/models/{named}:", f"/models/{quote(model, safe='')}:", 1)


def names_of(call: Call, aliases: Mapping[str, str]) -> tuple[str, ...]:
    """The names under which a key may be allowed to ask for the model."""
    return (call.named, call.model) if call.named in aliases else (call.model,)
