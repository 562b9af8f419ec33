"""``redis.url`` and the border at which exceptions of redis-py become the gateway's."""

from __future__ import annotations

import logging

import pytest
from redis import exceptions as redis_errors

from gateway.config.sections import RedisSettings
from gateway.errors import ConfigurationError, GatewayError, InternalError, Overloaded, StoreUnavailable
from gateway.store.address import StoreAddress, parse_url
from gateway.store.connect import connect
from gateway.store.failures import store_error, store_errors

SECRET = "sw0rdfish"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", StoreAddress("single", (("h", 6379),))),
        ("redis://h:7000/3", StoreAddress("single", (("h", 7000),), db=3)),
        ("redis://[::1]:7000", StoreAddress("single", (("::1", 7000),))),
        ("redis://:pw@h", StoreAddress("single", (("h", 6379),), password="pw")),
        ("redis://:@h", StoreAddress("single", (("h", 6379),))),
        ("redis://u:p%40%2F%3F%3A@h", StoreAddress("single", (("h", 6379),), username="u", password="p@/?:")),
        ("redis://u:a:b@h", StoreAddress("single", (("h", 6379),), username="u", password="a:b")),
        ("rediss://h", StoreAddress("single", (("h", 6379),), tls=True)),
        (
            "rediss://h?ssl_ca_certs=/a%20b.pem&ssl_check_hostname=false",
            StoreAddress(
                "single", (("h", 6379),), tls=True, options={"ssl_ca_certs": "/a b.pem", "ssl_check_hostname": "false"}
            ),
        ),
        ("unix:///run/r.sock", StoreAddress("unix", path="/run/r.sock")),
        ("unix:///a%20b/r@1.sock?db=2", StoreAddress("unix", path="/a b/r@1.sock", db=2, options={"db": "2"})),
        ("unix://u:pw@/run/r.sock", StoreAddress("unix", path="/run/r.sock", username="u", password="pw")),
        (
            "redis+sentinel://u:pw@a:1,b/main/4",
            StoreAddress("sentinel", (("a", 1), ("b", 26379)), service="main", db=4, username="u", password="pw"),
        ),
        ("rediss+sentinel://a/main", StoreAddress("sentinel", (("a", 26379),), service="main", tls=True)),
        (
            "redis+sentinel://a/main?sentinel_password=x",
            StoreAddress("sentinel", (("a", 26379),), service="main", options={"sentinel_password": "x"}),
        ),
        ("redis+cluster://a:7000,b", StoreAddress("cluster", (("a", 7000), ("b", 6379)))),
        ("redis+cluster://a/0", StoreAddress("cluster", (("a", 6379),))),
        ("rediss+cluster://:pw@[::1],b", StoreAddress("cluster", (("::1", 6379), ("b", 6379)), password="pw", tls=True)),
    ],
)
def test_every_documented_form_of_the_url_is_understood(url, expected):
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        f"http://:{SECRET}@h",
        f"redis:{SECRET}@h",
        f"{SECRET}",
        f"redis://u:{SECRET}@",
        f"redis://u:{SECRET}@h:port",
        f"redis://u:{SECRET}@h:0",
        f"redis://u:{SECRET}@h:65536",
        f"redis://u:{SECRET}@h h",
        f"redis://u:{SECRET}@h/one",
        f"redis://u:{SECRET}@h/-1",
        f"redis://u:{SECRET}@h,i",
        f"redis://{SECRET}@h",
        f"redis://:a/{SECRET}@h",
        f"redis://:a?{SECRET}@h",
        f"redis://:a?{SECRET}=1@h",
        f"redis://:{SECRET}",
        f"redis://u:{SECRET}@h?retry_on_timeout=yes",
        f"redis://u:{SECRET}@h?ssl_ca_certs=/x",
        f"redis://u:{SECRET}@h?nothing",
        f"rediss://u:{SECRET}@h?ssl_cert_reqs=none",
        f"rediss://u:{SECRET}@h?ssl_check_hostname=maybe",
        f"unix://u:{SECRET}@host/path",
        f"unix://u:{SECRET}@",
        f"unix://u:{SECRET}@/path?db=x",
        f"redis+sentinel://u:{SECRET}@h",
        f"redis+sentinel://u:{SECRET}@h/",
        f"redis+sentinel://u:{SECRET}@h/main/x",
        f"redis+cluster://u:{SECRET}@h/1",
        f"redis+cluster://u:{SECRET}@a,,b",
    ],
)
def test_a_bad_url_is_refused_with_the_name_of_the_key_and_without_the_password(url):
    with pytest.raises(ConfigurationError, match=r"^redis\.url: ") as caught:
        parse_url(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None  # a traceback would print it


@pytest.mark.parametrize("password", ["a/b", "a?b", "a?b=c", "a/b?c"])
def test_a_password_that_was_not_encoded_is_told_how_to_be(password):
    with pytest.raises(ConfigurationError, match="percent-encode"):
        parse_url(f"redis://u:{password}@h")


def test_an_address_does_not_show_its_secrets():
    address = parse_url(f"redis+sentinel://u:{SECRET}@h/main?sentinel_password={SECRET}")
    assert SECRET not in repr(address)


def test_a_connection_does_not_show_its_password():
    assert SECRET not in repr(connect(RedisSettings(url=f"redis://u:{SECRET}@h")))


def test_without_a_url_host_port_password_and_database_count():
    settings = RedisSettings.model_validate({"host": "h", "port": 7000, "password": "pw", "db": 2})
    options = connect(settings).client.connection_pool.connection_kwargs
    assert [options[name] for name in ("host", "port", "password", "db")] == ["h", 7000, "pw", 2]


def test_an_explicit_url_goes_before_the_configured_one():
    connection = connect(RedisSettings(url="embedded"), url="unix:///s")
    assert connection.client.connection_pool.connection_kwargs["path"] == "/s"


def test_embedded_without_a_running_server_is_refused():
    with pytest.raises(ConfigurationError, match=r"^redis\.url: "):
        connect(RedisSettings(url="embedded"))


def test_certificates_that_cannot_be_read_are_refused_at_start(tmp_path):
    with pytest.raises(ConfigurationError, match=r"^redis\.url: .*No such file"):
        connect(RedisSettings(url=f"rediss://h?ssl_ca_certs={tmp_path}/missing.pem"))
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(ConfigurationError, match=r"^redis\.url: "):
        connect(RedisSettings(url=f"rediss://h?ssl_ca_certs={tmp_path}/bad.pem"))


@pytest.mark.parametrize("url", ["redis://h", "unix:///s", "rediss+sentinel://h/main"])
def test_no_form_of_the_client_retries_or_waits_longer_than_configured(url):
    waits = {"command_timeout": "70ms", "connect_timeout": "80ms", "pool_wait": "90ms"}
    settings = RedisSettings.model_validate({"url": url, "pool_size": 3, **waits})
    connection = connect(settings)
    for client in (connection.client, *connection.sentinels):
        pool = client.connection_pool
        made = pool.make_connection()
        assert made.retry.get_retries() == 0
        assert (made.socket_timeout, made.socket_connect_timeout) == (0.07, 0.08)
        assert (pool.timeout, pool.max_connections) == (0.09, 3)
        assert made.driver_info is None
        assert not pool.maint_notifications_enabled()


def reply(text: str) -> Exception:
    """The exception redis-py makes of an error reply."""
    from redis._parsers.base import BaseParser

    made = BaseParser.parse_error(text)
    assert isinstance(made, Exception)
    return made


@pytest.mark.parametrize(
    "error",
    [
        redis_errors.ConnectionError("Connection refused"),
        redis_errors.TimeoutError("Timeout reading from socket"),
        redis_errors.InvalidResponse("Protocol error"),
        redis_errors.RedisClusterException("Redis Cluster cannot be connected. Please provide at least one reachable node: x"),
        redis_errors.RedisClusterException("All slots are not covered after query all startup_nodes. 1 of 16384 covered..."),
        redis_errors.SlotNotCoveredError('Slot "1" not covered by the cluster.'),
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError(),
        reply("READONLY You can't write against a read only replica."),
        reply("LOADING Redis is loading the dataset in memory"),
        reply("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."),
        reply("CLUSTERDOWN The cluster is down"),
        reply("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
        reply("OOM command not allowed when used memory > 'maxmemory'."),
        reply("TRYAGAIN Multiple keys request during rehashing of slot"),
        reply("MISCONF Errors writing to the AOF file: No space left on device"),
        reply("NOREPLICAS Not enough good replicas to write."),
        reply("MOVED 1 127.0.0.1:1"),
        reply("ERR max number of clients reached"),
        reply("ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -OOM command not allowed"),
        redis_errors.ResponseError("Command # 1 (EVALSHA …) of pipeline caused error: BUSY Redis is busy running a script."),
    ],
    ids=repr,
)
def test_a_store_that_does_not_answer_or_may_not_be_asked_is_unavailable(error):
    assert type(store_error(error)) is StoreUnavailable


@pytest.mark.parametrize(
    "text",
    [
        "NOAUTH Authentication required.",
        "WRONGPASS invalid username-password pair or user is disabled.",
        "NOPERM this user has no permissions to run the 'evalsha' command",
    ],
)
def test_a_refused_login_is_unavailable_and_only_the_log_says_why(text, caplog):
    with caplog.at_level(logging.ERROR, logger="gateway.store"), pytest.raises(StoreUnavailable) as caught, store_errors():
        raise reply(text)
    assert caught.value.message == StoreUnavailable.default_message
    assert text.split(maxsplit=1)[1] in caplog.text


def test_an_exhausted_pool_is_overload_and_not_an_outage():
    assert type(store_error(redis_errors.MaxConnectionsError("all connections are in use"))) is Overloaded


def test_an_unknown_script_is_left_to_the_script_runner():
    with pytest.raises(redis_errors.NoScriptError), store_errors():
        raise reply("NOSCRIPT No matching script. Please use EVAL.")


@pytest.mark.parametrize(
    "error",
    [
        reply("ERR user_script:3: attempt to index a nil value (local 'x') script: 0, on @user_script:3."),
        reply("WRONGTYPE Operation against a key holding the wrong kind of value"),
        reply("CROSSSLOT Keys in request don't hash to the same slot"),
        redis_errors.RedisClusterException("EVALSHA - all keys must map to the same key slot"),
        redis_errors.DataError("Invalid input of type: 'NoneType'."),
    ],
    ids=repr,
)
def test_everything_else_is_a_bug_and_keeps_its_cause(error):
    with pytest.raises(InternalError) as caught, store_errors():
        raise error
    assert caught.value.__cause__ is error


def test_the_gateways_own_errors_pass_the_border_unchanged():
    own = GatewayError("own")
    with pytest.raises(GatewayError) as caught, store_errors():
        raise own
    assert caught.value is own
