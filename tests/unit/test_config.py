"""The configuration: file, environment, and what is refused."""

import base64
import ipaddress

import pytest

from gateway.composition import check
from gateway.config import Config, LimitsSettings, RedisSettings, ServerSettings, UpstreamSettings, load_config
from gateway.config.loading import sections
from gateway.errors import ConfigurationError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder without config.yaml, an environment without settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATEWAY_CONFIG", raising=False)
    return tmp_path


def written(folder, text, name="config.yaml"):
    path = folder / name
    path.write_text(text)
    return path


MINIMAL = """
server:
  admin_port: 8080
  proxy_port: 8081
  base_domain: "example.com"
redis:
  host: "localhost"
  port: 6379
  password: ""
  db: 0
"""


def test_the_documented_file_alone_is_the_same_as_none(elsewhere):
    assert load_config(written(elsewhere, MINIMAL)) == Config()


def test_the_file_is_found_by_argument_then_environment_then_folder(elsewhere, monkeypatch):
    written(elsewhere, "server: {proxy_port: 1001}")
    assert load_config().server.proxy_port == 1001
    monkeypatch.setenv("GATEWAY_CONFIG", str(written(elsewhere, "server: {proxy_port: 1002}", "other.yaml")))
    assert load_config().server.proxy_port == 1002
    assert load_config(written(elsewhere, "server: {proxy_port: 1003}", "third.yaml")).server.proxy_port == 1003


def test_without_a_file_the_defaults_hold():
    assert load_config() == Config()
    server = Config().server
    assert (server.admin_host, server.proxy_host, server.tenant_domains) == (
        "127.0.0.1",
        "0.0.0.0",
        ("example.com", "localhost"),
    )


def test_the_environment_wins_over_the_file(elsewhere, monkeypatch):
    path = written(elsewhere, "server: {proxy_port: 1001, base_domain: a.example}\nlimits: {lease: 10s}")
    monkeypatch.setenv("GATEWAY_SERVER__PROXY_PORT", "9081")
    monkeypatch.setenv("GATEWAY_REDIS__URL", "embedded")
    monkeypatch.setenv("GATEWAY_UPSTREAM__ALLOWED_NETWORKS", "10.0.0.0/8, 127.0.0.1")
    monkeypatch.setenv("GATEWAY_SERVER__BASE_DOMAINS", '["b.example", "c.d.example"]')
    config = load_config(path)
    assert (config.server.proxy_port, config.server.base_domain, config.limits.lease) == (9081, "a.example", 10_000)
    assert config.redis.is_embedded
    assert config.upstream.allowed_networks == (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("127.0.0.1/32"))
    assert config.server.tenant_domains == ("c.d.example", "b.example")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server: {proxy_prot: 1}", "server.proxy_prot: unknown key; did you mean server.proxy_port?"),
        ("servr: {}", "servr: unknown key; did you mean server?"),
        ("server: {proxy_port: 0}", "server.proxy_port: "),
        ("server: {proxy_port: 8080}", "admin_port and proxy_port must differ"),
        ("server: {admin_host: 0.0.0.0}", "admin_token must be set"),
        ("server: {admin_token: short}", "at least 16 characters"),
        ("server: {base_domain: 'a..b'}", "base domain"),
        ("server: {base_domains: ['x y']}", "base domain"),
        ("limits: {lease: 10s, renew_every: 6s}", "at most half"),
        ("limits: {lease: soon}", "limits.lease: a duration"),
        ("usage: {retention: 31d}", "usage.retention: "),
        ("usage: {retention: 3661d}", "usage.retention: "),
        ("limits: {body_idle_timeout: 0}", "limits.body_idle_timeout: "),
        ("upstream: {connect_retries: 6}", "upstream.connect_retries: "),
        ("upstream: {allowed_networks: ['10.0.0.1/8']}", "upstream.allowed_networks"),
        ("limits: {ratelimit_headers: on}", "limits.ratelimit_headers: "),
        ("limits: {ratelimit_headers: draft-8}", "limits.ratelimit_headers: "),
        ("[1, 2]", "must hold sections"),
        ("server: [", "not valid YAML at line 1"),
        ("1: {}", "must hold sections"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(elsewhere, text, said):
    path = written(elsewhere, text)
    with pytest.raises(ConfigurationError) as refused:
        load_config(path)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_missing_file_is_named(elsewhere):
    with pytest.raises(ConfigurationError, match=r"absent\.yaml: No such file"):
        load_config(elsewhere / "absent.yaml")


def test_a_wrong_environment_variable_is_an_error_too(monkeypatch):
    monkeypatch.setenv("GATEWAY_SERVER__PROXY_PORT", "many")
    with pytest.raises(ConfigurationError, match=r"environment: server\.proxy_port"):
        load_config()


def test_an_error_does_not_repeat_a_secret(elsewhere):
    for text in ("redis: {password: [hunter2]}", "server: {admin_token: hunter2}", "secrets: {master_key: {a: hunter2}}"):
        with pytest.raises(ConfigurationError) as refused:
            load_config(written(elsewhere, text))
        assert "hunter2" not in str(refused.value)


def test_secrets_are_not_shown():
    config = Config(server=ServerSettings(admin_token="x" * 16), redis=RedisSettings(password="hunter2"))
    assert "hunter2" not in repr(config)
    assert "x" * 16 not in repr(config)
    config = Config(redis=RedisSettings(url="redis://user:hunter2@localhost"))
    assert "hunter2" not in f"{config!r} {config} {config.redis!r} {config.redis}"


@pytest.mark.parametrize("written_as", ["off", "'off'", "draft-6", "draft-7", "draft-10"])
def test_a_dialect_of_the_limit_headers_may_be_off_however_yaml_reads_that(elsewhere, monkeypatch, written_as):
    config = load_config(written(elsewhere, f"limits: {{ratelimit_headers: {written_as}}}"))
    assert config.limits.ratelimit_headers == written_as.strip("'")
    monkeypatch.setenv("GATEWAY_LIMITS__RATELIMIT_HEADERS", "off")
    assert load_config().limits.ratelimit_headers == "off"


def test_empty_sections_and_files_mean_the_defaults(elsewhere):
    assert load_config(written(elsewhere, "")) == load_config(written(elsewhere, "server:\nredis:\n")) == Config()


def test_a_numeric_password_is_text():
    assert RedisSettings.model_validate({"password": 12345}).password.get_secret_value() == "12345"


def test_everything_is_frozen():
    for section in sections().values():
        assert section.model_config.get("frozen")
        assert section.model_config.get("extra") == "forbid"


def test_an_admin_on_loopback_needs_no_token_and_elsewhere_one():
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        assert ServerSettings(admin_host=host).admin_token is None
    assert ServerSettings(admin_host="0.0.0.0", admin_token="x" * 16)


def test_the_defaults_are_the_documented_ones():
    upstream, limits = UpstreamSettings(), LimitsSettings()
    assert upstream.allowed_networks == ()
    assert (upstream.connect_timeout, upstream.first_byte_timeout, upstream.idle_timeout, upstream.total_timeout) == (
        5_000,
        120_000,
        300_000,
        1_800_000,
    )
    assert (limits.max_body_bytes, limits.max_inspected_bytes, limits.body_idle_timeout) == (32 << 20, 4 << 20, 15_000)
    assert (limits.max_in_flight, limits.max_in_flight_per_tenant, limits.plugin_timeout, limits.lease) == (
        1_000,
        200,
        1_000,
        60_000,
    )
    assert (RedisSettings().command_timeout, RedisSettings().connect_timeout, RedisSettings().pool_wait) == (250, 500, 50)


def test_webhooks_of_alerts_have_an_address_and_a_secret(elsewhere):
    key = bytes(range(32))
    secret = base64.b64encode(key).decode()
    assert (Config().alerts.webhook_url, Config().alerts.signing_key, Config().alerts.timeout) == (None, None, 15_000)
    for text in (secret, f"whsec_{secret}"):
        config = load_config(
            written(elsewhere, f"alerts: {{webhook_url: 'https://x.example', webhook_secret: {text}, timeout: 2}}")
        )
        assert (config.alerts.signing_key, config.alerts.timeout) == (key, 2_000)
        assert secret not in repr(config)


@pytest.mark.parametrize("secret", ["whsec_", "whsec_short", "not base64 at all", "whsec_" + "A" * 28, "whsec_" + "A" * 88])
def test_a_webhook_s_secret_that_is_none_is_refused_and_not_repeated(elsewhere, secret):
    with pytest.raises(ConfigurationError, match=r"alerts\.webhook_secret: must be whsec_") as caught:
        load_config(written(elsewhere, f"alerts: {{webhook_secret: '{secret}'}}"))
    assert "A" * 28 not in str(caught.value)


def test_check_names_the_receiver_of_alerts_or_the_key_at_fault(elsewhere):
    def checked(**alerts):
        return check(Config.model_validate({"alerts": alerts}))

    assert not any(line.startswith("alerts") for line in checked())
    assert "alerts  https://hooks.example.com (not signed)" in checked(webhook_url="https://hooks.example.com/T0/secret")
    signed = checked(webhook_url="https://hooks.example.com/T0", webhook_secret="whsec_" + "A" * 32)
    assert "alerts  https://hooks.example.com" in signed
    with pytest.raises(ConfigurationError, match=r"alerts\.webhook_url: must be https"):
        checked(webhook_url="http://hooks.example.com/")
