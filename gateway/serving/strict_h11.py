"""h11, made to take lines of requests as RFC 9112 has them and not as old clients wrote them.

h11 0.16 itself accepts lines without CR, folded fields, most control characters, a length given several times, and white
space after the size of a chunk. Each of these is read otherwise by somebody, and what two servers read differently smuggles.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer

BAD_REQUEST = 400

READ_BYTES = 64 << 10
"""What is read at once, and about as much of what comes behind a request that is being answered."""

# all that may stand in a head: horizontal tab, CR, LF (which are counted), visible characters and what is not ASCII
_IN_HEADS = bytes([0x09, 0x0A, 0x0D, *range(0x20, 0x7F), *range(0x80, 0x100)])
_TORN = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_CHUNK = re.compile(rb"[0-9A-Fa-f]{1,16}(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_LENGTH = b"\r\ncontent-length:"
_CODING = b"\r\ntransfer-encoding:"


class StrictH11(h11.Connection):
    """The server's side of a connection."""

    def __init__(self, max_head_bytes: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=max_head_bytes)
        self._receive_buffer: StrictBuffer = StrictBuffer()

    def next_event(self) -> Any:
        """See h11. What follows the last request is dropped: h11 would call that an error, and the request's answer be lost."""
        if self.their_state is h11.MUST_CLOSE:
            self._receive_buffer.clear()
        return super().next_event()

    @property
    def unread_bytes(self) -> int:
        """What has come of a head, or behind a request."""
        return len(self._receive_buffer)


class Turn:
    """In the place of the event that Hypercorn waits for before it reads on behind a request that is being answered.

    Nobody would notice meanwhile that the client has left.
    """

    def __init__(self, reader: asyncio.StreamReader, connection: StrictH11) -> None:
        self._reader = reader
        self._h11 = connection
        self._event = asyncio.Event()

    async def clear(self) -> None:
        """A request is being answered."""
        self._event.clear()

    async def set(self) -> None:
        """It is answered."""
        self._event.set()

    async def wait(self) -> None:
        """Until it is answered. Raises ConnectionResetError if the client leaves before."""
        while not self._event.is_set() and self._h11.unread_bytes < READ_BYTES:
            reading = asyncio.ensure_future(self._reader.read(READ_BYTES))
            waiting = asyncio.ensure_future(self._event.wait())
            try:
                await asyncio.wait((reading, waiting), return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
                reading.cancel()
                await asyncio.wait((reading, waiting))
            if not reading.cancelled():
                if not reading.result():
                    raise ConnectionResetError
                self._h11.receive_data(reading.result())
        await self._event.wait()


class StrictBuffer(ReceiveBuffer):
    """Raises LocalProtocolError, which h11 passes on as the peer's mistake."""

    def clear(self) -> None:
        """Forget what has come."""
        self._extract(len(self))

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a head or of trailers; None while the empty one at the end has not come."""
        data = self._data
        if data[:2] == b"\r\n":
            self._extract(2)
            return []
        end = data.find(b"\r\n\r\n", self._multiple_lines_search)
        if end < 0:
            # who ends lines otherwise would wait for an answer as long as the gateway waits for the end of the head
            if _TORN.search(data, self._multiple_lines_search):
                raise _refusal("a line ends without CR and LF")
            self._multiple_lines_search = max(0, len(data) - 3)
            return None
        head = self._extract(end + 4)
        _check(head)
        del head[-4:]
        return head.split(b"\r\n")

    def maybe_extract_next_line(self) -> bytearray | None:
        """The line before a chunk."""
        line = super().maybe_extract_next_line()
        if line is not None and not _CHUNK.fullmatch(line):
            raise _refusal("illegal chunk header")
        return line


def _check(head: bytearray) -> None:
    ends = head.count(b"\n")
    if ends != head.count(b"\r\n") or ends != head.count(b"\r"):
        raise _refusal("a line ends without CR and LF")
    if head.translate(None, _IN_HEADS):
        raise _refusal("a control character")
    if b"\r\n " in head or b"\r\n\t" in head:
        raise _refusal("a folded field")
    lowered = head.lower()
    lengths, codings = lowered.count(_LENGTH), lowered.count(_CODING)
    if lengths + codings > 1:
        raise _refusal("more than one framing")
    if lengths:
        begin = lowered.index(_LENGTH) + len(_LENGTH)
        if not lowered[begin : lowered.index(b"\r", begin)].strip(b" \t").isdigit():
            raise _refusal("a length that is not one number")
    elif codings:
        begin = lowered.index(_CODING) + len(_CODING)
        if lowered[begin : lowered.index(b"\r", begin)].strip(b" \t") != b"chunked":
            raise _refusal("another transfer coding")
        if head[: head.index(b"\r")].endswith(b" HTTP/1.0"):
            raise _refusal("chunks in HTTP/1.0")


def _refusal(what: str) -> h11.LocalProtocolError:
    return h11.LocalProtocolError(what, error_status_hint=BAD_REQUEST)
