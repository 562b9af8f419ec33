"""Where webhooks go: nowhere that a rule's target could not."""

import socket

import pytest

from gateway.config import Config, UpstreamSettings
from gateway.errors import BreakerOpen, ConfigurationError, InvalidField, UpstreamTimeout, UpstreamUnreachable
from gateway.proxy.webhook import Webhook, webhook_target
from gateway.targets import Target, parse_target
from tests.forwarders import a_forwarder
from tests.names import names_resolve_to
from tests.ssrf_forms import targets


def test_a_url_is_refused_exactly_where_a_target_would_be():
    refused = 0
    for text in targets(7, 400):
        config = Config.model_validate({"alerts": {"webhook_url": text}})
        try:
            expected = parse_target(text, UpstreamSettings())
        except InvalidField:
            refused += 1
            with pytest.raises(ConfigurationError, match=r"alerts\.webhook_url"):
                webhook_target(config)
        else:
            assert webhook_target(config) == expected
    assert refused > 300


async def test_a_name_that_leads_inside_gets_no_webhook():
    answers = ["127.0.0.1"], ["::1"], ["169.254.169.254"], ["::ffff:10.0.0.1", "64:ff9b::a00:1"]
    config = Config.model_validate({"alerts": {"webhook_url": "https://rebinding.example/hook"}})
    with socket.create_server(("127.0.0.1", 0)) as listening, names_resolve_to(*answers):
        target = Target("https", "rebinding.example", listening.getsockname()[1], "/hook", False)
        async with a_forwarder(allowed_networks="") as forwarder:
            webhook = Webhook(config, target, forwarder)
            for _ in range(8):
                with pytest.raises((UpstreamUnreachable, UpstreamTimeout, BreakerOpen)):
                    await webhook._send("evt_1", b"{}")
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
