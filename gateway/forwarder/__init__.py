"""The only user of aiohttp: reaches targets, and nothing but targets.

From aiohttp come the pool, name resolution, connecting, TLS and the reply parser, which is written in C. Its session, request
and response objects, which are most of what a request costs, are left out: ``request_head`` and ``upload`` write the request.
"""

from gateway.forwarder.forwarder import Forwarder
from gateway.forwarder.pool import ForbiddenAddress
from gateway.forwarder.relay import PassOn
from gateway.forwarder.reply import BodyBroken, UpstreamReply
from gateway.forwarder.upload import Body

__all__ = ["Body", "BodyBroken", "ForbiddenAddress", "Forwarder", "PassOn", "UpstreamReply"]
