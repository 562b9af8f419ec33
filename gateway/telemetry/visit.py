"""What is noted of a request, for the metrics and the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gateway.formats import Usage


class Called(NamedTuple):
    """A call to a model.

    ``is_estimate`` if the target did not tell how many tokens it took, ``is_priced`` is false if nobody knows what it costs.
    """

    model: str
    usage: Usage
    cost_nano_usd: int
    is_estimate: bool
    is_priced: bool


@dataclass(slots=True)
class Visit:
    """What is noted of one request on its way. Empty texts where it did not come that far; status 499: the client left.

    ``called`` is set if a model was called.
    """

    request_id: str
    method: str = ""
    path: str = ""
    client_ip: str = ""
    tenant: str = ""
    rule: str = ""
    key_id: str = ""
    status: int = 0
    code: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    admission_ms: float | None = None
    upstream_ms: float | None = None
    called: Called | None = None
