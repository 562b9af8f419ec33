"""Very many tenants in a short time: copies of one that the admin API made, each with a name and a key of its own."""

from __future__ import annotations

import hashlib
import itertools
import random
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gateway import virtual_key
from scripts.bench.contenders.gateway import DOMAIN, Caller

AT_ONCE = 500


def populate(client: Any, model: Caller, count: int) -> list[Caller]:
    """So many copies of a tenant with its rules, in the same database."""
    digest = hashlib.sha256(model.secret.encode()).hexdigest()
    prefix = f"gw:{{{model.subdomain}}}:"
    hashes = {}
    for name in client.scan_iter(f"{_escaped(prefix)}*", count=10_000):
        if client.type(name) == b"hash" and b":usage:" not in name:
            hashes[name] = client.hgetall(name)
    lookup = f"gw:index:key:{digest}"
    callers = []
    for numbers in _pieces(range(count)):
        pipeline = client.pipeline(transaction=False)
        for number in numbers:
            caller = _named(number)
            changed = replacements(model, caller)
            for name, fields in hashes.items():
                pipeline.hset(
                    _replaced(name, changed),
                    mapping={_replaced(key, changed): _replaced(value, changed) for key, value in fields.items()},
                )
            pipeline.set(_replaced(lookup.encode(), changed), caller.subdomain)
            callers.append(caller)
        pipeline.execute()
    return callers


def replacements(model: Caller, caller: Caller) -> list[tuple[bytes, bytes]]:
    """What differs between the copies: digest, id, hash tag and subdomain, in the order in which to replace them."""
    digests = [hashlib.sha256(one.secret.encode()).hexdigest().encode() for one in (model, caller)]
    return [
        (digests[0], digests[1]),
        (model.tenant_id.encode(), caller.tenant_id.encode()),
        (f"{{{model.subdomain}}}".encode(), f"{{{caller.subdomain}}}".encode()),
        (f'"{model.subdomain}"'.encode(), f'"{caller.subdomain}"'.encode()),
    ]


def write_senders(path: Path, callers: Sequence[Caller], most: int | None = None) -> Path:
    """The file from which wrk chooses: all, or so many of them at random."""
    chosen = callers if most is None or most >= len(callers) else random.sample(callers, most)
    lines = (f"{caller.subdomain}.{DOMAIN} {caller.secret}\n" for caller in chosen)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _named(number: int) -> Caller:
    subdomain = f"crowd{number:06d}"
    return Caller(f"{subdomain}-{secrets.token_hex(6)}", virtual_key.new_secret(), subdomain)


def _replaced(text: bytes, changed: Sequence[tuple[bytes, bytes]]) -> bytes:
    for old, new in changed:
        text = text.replace(old, new)
    return text


def _escaped(pattern: str) -> str:
    return pattern.replace("[", "\\[")


def _pieces(numbers: range) -> Iterator[list[int]]:
    remaining = iter(numbers)
    while piece := list(itertools.islice(remaining, AT_ONCE)):
        yield piece
