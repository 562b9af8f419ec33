"""A client that speaks HTTP/2 over TLS, and says exactly what a test wants, right or wrong."""

import asyncio
import contextlib
import ssl
import struct
from collections import defaultdict
from typing import Any

import h2.connection
import h2.events
from h2.config import H2Configuration
from h2.connection import ConnectionState

PATIENCE_S = 10


class H2Client:
    """One connection. What comes back is kept by stream: ``status``, ``fields``, ``body``, ``ended``, ``reset``."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(
            H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding="latin-1")
        )
        self.streams: dict[int, dict[str, Any]] = defaultdict(dict)
        self.unsent = {}
        self.goaway = None
        self.is_over = self.is_by_hand = False
        self.reads = True
        self.news = asyncio.Event()
        self.h2.initiate_connection()
        self.flush()
        self.task = asyncio.create_task(self.read())

    def flush(self):
        self.pump()
        self.writer.write(self.h2.data_to_send())

    async def read(self):
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while head := await self.reader.read(9):
                    head += await self.reader.readexactly(9 - len(head))
                    frame = head + await self.reader.readexactly(int.from_bytes(head[:3], "big"))
                    for event in self.h2.receive_data(frame):
                        self.note(event)
                    if not self.writer.is_closing():
                        self.flush()
                    self.news.set()
        finally:  # whoever waits is told, also if the server says nonsense
            self.is_over = True
            self.news.set()

    def note(self, event):
        kept = self.streams[getattr(event, "stream_id", 0)]
        match event:
            case h2.events.ResponseReceived():
                kept["fields"] = dict(event.headers)
                kept["status"] = int(kept["fields"][":status"])
            case h2.events.DataReceived():
                kept["body"] = kept.get("body", b"") + event.data
                if self.reads:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                kept["ended"] = True
            case h2.events.StreamReset():
                kept["reset"] = event.error_code
            case h2.events.ConnectionTerminated():
                self.goaway = event.error_code
                self.h2.state_machine.state = ConnectionState.CLIENT_OPEN  # streams go on; h2 believes that all is over

    def begin(self, method="GET", path="/a", *more, body=None, ends=True, authority="x", scheme="https"):
        """Send a head; its stream."""
        head = [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path), *more]
        return self.begin_with(head, body=body, ends=ends)

    def begin_with(self, head, *, body=None, ends=True):
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, head, end_stream=ends and body is None)
        if body is not None:
            self.unsent[stream] = body, ends
        self.flush()
        return stream

    def pump(self):
        """Send what the windows let through."""
        for stream, (body, ends) in list(self.unsent.items()):
            at, is_sent = 0, False
            while not is_sent and (room := self.h2.local_flow_control_window(stream)):
                piece = body[at : at + min(room, self.h2.max_outbound_frame_size)]
                at += len(piece)
                is_sent = at == len(body)
                self.h2.send_data(stream, piece, end_stream=ends and is_sent)
            self.unsent[stream] = body[at:], ends
            if is_sent:
                del self.unsent[stream]

    async def until(self, condition):
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def reply(self, stream):
        """All of it, or what there is when the stream or the connection ends."""
        kept = self.streams[stream]
        await self.until(lambda: "ended" in kept or "reset" in kept or self.is_over)
        return kept

    async def ask(self, *args, **how):
        return await self.reply(self.begin(*args, **how))

    def raw(self, kind, flags, stream, payload):
        """A frame by hand; h2 knows nothing of it, so it may not understand the answer either."""
        self.is_by_hand = True
        self.writer.write(struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload)


@contextlib.asynccontextmanager
async def h2_connected(address):
    """A client. What it could not read is raised in the end, unless it has sent frames by hand."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection(*address, ssl=context)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    client = H2Client(reader, writer)
    try:
        yield client
    finally:
        client.task.cancel()
        await asyncio.wait([client.task])
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        if not client.task.cancelled() and not client.is_by_hand:
            client.task.result()
