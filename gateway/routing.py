"""The rules of a tenant compiled into a matcher."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

from gateway.errors import InvalidPath, MethodNotAllowed, NoRoute

R = TypeVar("R")

# what an upstream may read differently from what was matched here; some end a segment at a semicolon
# (no IGNORECASE: it would match the letters s and k, which fold to characters of the range)
_UNSAFE = re.compile(r"^//|[\\\x00-\x20\x7f-\uffff#]|(?:^|/)(?:\.|%2[eE]){1,2}(?:[/;]|%3[bB]|$)|%2[fF]|%5[cC]|%00")
_SLASHES = re.compile("//+")


@dataclass(frozen=True, slots=True)
class Route(Generic[R]):
    """A path prefix without trailing slash, the methods it serves (empty for all), and what it leads to."""

    path: str
    methods: tuple[str, ...]
    leads_to: R


def check_path(raw_path: str) -> None:
    """Raises InvalidPath for a path that could mean something else to the upstream than to the matcher."""
    if not raw_path.startswith("/") or _UNSAFE.search(raw_path):
        raise InvalidPath(param="path")


class Matcher(Generic[R]):
    """The longest prefix wins, on whole segments; among equal prefixes the first route that serves the method.

    Compared is what an upstream would understand: ``/v1/ch%61t`` and ``/v1//chat`` are ``/v1/chat``, so that no spelling
    avoids the plugins of a longer prefix.
    """

    def __init__(self, routes: Iterable[Route[R]]) -> None:
        self._by_path: dict[str, list[Route[R]]] = {}
        for route in routes:
            self._by_path.setdefault(understood(route.path).removesuffix("/"), []).append(route)
        self._longest = max(map(len, self._by_path), default=0)

    def match(self, method: str, raw_path: str) -> R:
        """What a request leads to. Raises NoRoute, or MethodNotAllowed with ``Allow``."""
        prefix = understood(raw_path)
        if len(prefix) > self._longest:
            prefix = prefix[: self._longest + 1]
            prefix = prefix[: prefix.rfind("/")]
        while True:
            routes = self._by_path.get(prefix)
            if routes is not None:
                return self._choose(routes, method)
            if not prefix:
                raise NoRoute
            prefix = prefix[: prefix.rfind("/")] if "/" in prefix else ""

    def _choose(self, routes: Sequence[Route[R]], method: str) -> R:
        # who serves GET serves HEAD (RFC 9110 §9.1), unless another route asks for it by name
        for wanted in (method, "GET") if method == "HEAD" else (method,):
            for route in routes:
                if not route.methods or wanted in route.methods:
                    return route.leads_to
        names = {name for route in routes for name in route.methods}
        allowed = sorted(names | {"HEAD"} if "GET" in names else names)
        raise MethodNotAllowed(headers=[("allow", ", ".join(allowed))], param="method")


def upstream_path(rule_path: str, strip_path: bool, raw_path: str) -> str:
    """What is appended to the target's own path; byte for byte what was matched, less the prefix if it is stripped.

    Raises InvalidPath if two slashes would come to stand at the beginning.
    """
    if not strip_path or rule_path == "/":
        return raw_path
    rest = raw_path[len(rule_path) :]
    if not raw_path.startswith(rule_path):
        # spelt differently; the number of segments is the same
        matched = re.match(rf"(?:/+[^/]+){{{rule_path.count('/')}}}", raw_path)
        rest = raw_path[matched.end() :] if matched else ""
    if rest.startswith("//"):
        raise InvalidPath(param="path")
    return rest


def understood(path: str) -> str:
    """A path as a target would read it: without percent-encoding and empty segments; encoded slashes are refused elsewhere."""
    if "%" in path:
        path = unquote_to_bytes(path).decode("latin-1")
    return _SLASHES.sub("/", path) if "//" in path else path
