"""Learns from the reply of a target what a call has used."""

from __future__ import annotations

from gateway.formats import WINDOW, Delivered, Endpoint, StreamMeter, StreamReader, Usage, usage_at_end
from gateway.headers import RawHeaders
from gateway.money import format_usd
from gateway.policy import NOTHING, Accounting, Call, Demand, Spent
from gateway.prices import Quote


class LongReply:
    """The two ends of a reply that is too long to be kept."""

    __slots__ = ("_first", "_last")

    def __init__(self) -> None:
        self._first = b""
        self._last = b""

    def feed(self, chunk: bytes) -> bytes:
        """Look at a part of it, which goes on as it is."""
        if len(self._first) < WINDOW:
            self._first += chunk[: WINDOW - len(self._first)]
        self._last = (self._last + chunk[-WINDOW:])[-WINDOW:]
        return chunk

    def usage(self, endpoint: Endpoint) -> Usage | None:
        """What the ends tell."""
        return usage_at_end(endpoint, self._last, self._first)


class Metering:
    """What one call uses. Until it is forwarded that is nothing.

    A target that refuses or fails has used nothing. One that answers has, also if it does not tell what: then it is counted
    here, and so is what was delivered of a stream that was cut. A client that leaves before there is a reply has made the
    model read its input.
    """

    __slots__ = (
        "_accounting",
        "_delivered",
        "_demand",
        "_has_read",
        "_long",
        "_quote",
        "_reader",
        "_spent",
        "_told",
        "call",
    )

    def __init__(self, accounting: Accounting, call: Call, quote: Quote, demand: Demand | None) -> None:
        self._accounting = accounting
        self._quote = quote
        self._demand = demand
        self._told: Usage | None = None
        self._delivered = Delivered()
        self._reader: StreamReader | None = None
        self._long: LongReply | None = None
        self._has_read = False
        self._spent: Spent | None = None
        self.call = call

    @property
    def is_priced(self) -> bool:
        """False if nobody knows what the model costs."""
        return self._quote.known

    def forwarded(self) -> None:
        """The target is being sent the request."""
        self._has_read = True

    def refused(self) -> None:
        """The target has failed to answer, or has refused to."""
        self._has_read = False

    def stream(self, *, hides_usage: bool) -> StreamMeter:
        """For a reply that comes in events, all of which is to be fed to this."""
        self._reader = self.call.endpoint.stream()
        return StreamMeter(self._reader, hides_usage=hides_usage)

    def whole(self, body: bytes) -> None:
        """The whole reply."""
        self._told = self.call.endpoint.usage_of(body)
        if self._told is None and body[:1] in b"{[":
            text = body.decode("utf-8", "replace")
            narrow = len(text.encode("ascii", "ignore"))
            self._delivered = Delivered(0, narrow, len(text) - narrow)
        self._spent = self.spent()

    def unreadable(self) -> None:
        """The reply cannot be read, so that the most is taken for what it tells."""
        self._delivered = Delivered(self._accounting.most_output_tokens(self.call, self._demand))

    def long(self) -> LongReply:
        """For a whole reply that is too long to be kept, all of which is to be fed to this."""
        self._long = LongReply()
        return self._long

    def spent(self) -> Spent:
        """What the call has used, as far as is known by now."""
        if not self._has_read:
            return NOTHING
        if self._spent is not None:
            return self._spent
        told, delivered, reader = self._told, self._delivered, self._reader
        if reader is not None:
            told, delivered = reader.usage, reader.delivered()
        elif self._long is not None:
            told = self._long.usage(self.call.endpoint)
        if told is None:
            return self._accounting.counted(self.call, self._quote.price, self._demand, delivered)
        if reader is not None and not reader.ended:
            return self._accounting.at_least(self.call, self._quote.price, told, self._demand, delivered)
        return self._accounting.spent(self._quote.price, told)


def usage_fields(spent: Spent) -> RawHeaders:
    """What the head of a reply tells of its usage."""
    return [
        (b"x-gateway-cost-usd", format_usd(spent.cost_nano_usd).encode()),
        (b"x-gateway-tokens-input", b"%d" % spent.usage.input_tokens),
        (b"x-gateway-tokens-output", b"%d" % spent.usage.output_tokens),
    ]


def usage_comment(spent: Spent) -> bytes:
    """The same as a comment at the end of an event stream, which readers of events skip (WHATWG HTML §9.2.6)."""
    return b"".join(b": %s=%s\n" % field for field in usage_fields(spent)) + b"\n"
