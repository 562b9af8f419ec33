"""What is relied on in aiohttp beyond its documentation. An update that changes it must be read before it is let in."""

import asyncio
import hashlib
import inspect

import aiohttp
from aiohttp import base_protocol, client_proto, client_reqrep, connector, streams
from aiohttp.http import HttpResponseParser
from aiohttp.http_parser import HttpResponseParserPy
from yarl import URL

from gateway.config import UpstreamSettings
from gateway.forwarder.pool import Destination
from gateway.forwarder.protocol import TargetProtocol
from tests.forwarders import a_forwarder, target_at
from tests.wire import an_upstream

READ = {
    base_protocol.BaseProtocol: "b8cbe831e85f09b9",
    client_proto.ResponseHandler: "da5da6215c0ef3a0",
    client_reqrep.ConnectionKey: "4b3c0f409e1c18d9",
    connector.BaseConnector: "d94fe09eb61742df",
    connector.Connection: "b87e0588fdd9526b",
    connector.TCPConnector: "16832606a736af57",
    streams.DataQueue: "aefbcc09f06b5163",
    streams.StreamReader: "64f76413d16e4765",
}


def test_the_parts_of_aiohttp_that_are_relied_on_are_those_that_were_read():
    """If this fails after an update: read in `gateway/forwarder` what relies on these classes, then note the new digest."""
    found = {each: hashlib.sha256(inspect.getsource(each).encode()).hexdigest()[:16] for each in READ}
    assert found == READ, f"aiohttp {aiohttp.__version__} is not what was read"


def test_replies_are_parsed_by_the_parser_written_in_c():
    assert HttpResponseParser is not HttpResponseParserPy


async def test_connections_are_ours_and_a_target_is_asked_for_as_aiohttp_itself_would():
    async with an_upstream() as upstream, a_forwarder() as forwarder:
        target = target_at(upstream.port)
        reply = await forwarder.open(target, "GET", target.url("/", ""), [], None, 0)
        assert type(reply._connection.protocol) is TargetProtocol
        reply.close()
        loop = asyncio.get_running_loop()
        plain = aiohttp.ClientRequest("GET", URL(target.origin + "/"), loop=loop)
        shared = UpstreamSettings(share_connections=True)
        assert Destination(target, "owner", shared).connection_key == plain.connection_key
        assert Destination(target, "owner", UpstreamSettings()).connection_key != plain.connection_key
