"""Nothing between client and upstream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from scripts.bench.bed import Bed, Endpoint
from scripts.bench.load import Request


class Direct:
    """The upstream itself."""

    name = "upstream"

    @contextlib.contextmanager
    def start(self, bed: Bed, *, streams: bool = False) -> Iterator[Endpoint]:
        yield Endpoint(None, Request(bed.target_port(streams)))
