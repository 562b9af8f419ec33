"""TLS on every engine: who gets a connection, what a stalled or foreign client does to others, and new certificates."""

import asyncio
import contextlib
import datetime
import json
import shutil
import socket
import ssl
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from gateway.config import ServerSettings
from gateway.errors import ConfigurationError
from gateway.serving import certificate as certificates
from gateway.serving import check_server
from gateway.serving.certificate import Certificate
from tests.single_server import make_certificates
from tests.unit.serving.wire_app import (
    REST,
    Endless,
    WireApp,
    exchange,
    seen_of,
    serving,
    settings_of,
    status_of,
    trusting,
    unverified,
)
from tests.wire import eventually

GET = "GET /a HTTP/1.1\r\n"


@pytest.fixture(params=["hypercorn", "granian", "uvicorn"])
def engine(request):
    return request.param


@pytest.fixture
def files(tmp_path):
    return make_certificates(tmp_path)


async def certificate_of(address):
    _, writer = await asyncio.open_connection(*address, ssl=unverified())
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return shown


def der_of(path):
    return ssl.PEM_cert_to_DER_cert(path.read_text())


async def test_the_app_learns_that_the_scheme_is_https(engine, files):
    async with serving(WireApp(), engine, **settings_of(files)) as address:
        seen = await seen_of(address, GET + REST, **trusting(files))
        assert (seen["scheme"], seen["http_version"]) == ("https", "1.1")
        long = "x" * 300_000
        reply = await exchange(
            address, f"POST /a HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(long)}\r\n{REST}{long}", **trusting(files)
        )
        assert json.loads(reply.partition(b"\r\n\r\n")[2])["body"] == long


async def test_http_1_1_is_agreed_on_whatever_else_the_client_offers(engine, files):
    offering = trusting(files)
    offering["ssl"].set_alpn_protocols(["h2", "http/1.1"])
    async with serving(WireApp(), engine, **settings_of(files)) as address:
        _, writer = await asyncio.open_connection(*address, **offering)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        writer.transport.abort()


@pytest.mark.parametrize("oldest", ["1.2", "1.3"])
async def test_versions_of_tls_below_the_oldest_one_are_refused(engine, files, oldest):
    async def version_of(most):
        how = trusting(files)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            how["ssl"].minimum_version = ssl.TLSVersion.TLSv1
            how["ssl"].maximum_version = most
        how["ssl"].set_ciphers("ALL:@SECLEVEL=0")
        try:
            _, writer = await asyncio.open_connection(*address, **how)
        except (ssl.SSLError, ConnectionError):
            return "refused"
        agreed = writer.get_extra_info("ssl_object").version()
        writer.transport.abort()
        return agreed

    async with serving(WireApp(), engine, tls_min_version=oldest, **settings_of(files)) as address:
        assert await version_of(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        assert await version_of(ssl.TLSVersion.TLSv1_2) == ("TLSv1.2" if oldest == "1.2" else "refused")
        assert await version_of(ssl.TLSVersion.TLSv1_1) == "refused"


@pytest.mark.parametrize(
    "cipher", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "AECDH-AES256-SHA"]
)
async def test_ciphers_without_forward_secrecy_or_authentication_are_refused(engine, files, cipher):
    async def connect(ciphers):
        context = unverified()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
        _, writer = await asyncio.open_connection(*address, ssl=context)
        writer.transport.abort()

    if "ECDSA" not in cipher:  # one that takes its secrets from the certificate's key can do so with RSA only
        self_signed(files, rsa.generate_private_key(65_537, 2_048))
    async with serving(WireApp(), engine, **settings_of(files)) as address:
        await connect("ECDHE+AESGCM")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await connect(cipher)


@contextlib.contextmanager
def stalled(address):
    """A hundred clients in the middle of their handshakes."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(address)) for _ in range(100)]
        for number, sock in enumerate(socks):
            sock.send(b"\x16\x03\x01\x02\x00\x01"[: number % 7])
            sock.setblocking(False)
        yield socks


async def test_handshakes_that_stall_hold_nobody(engine, files):
    async with serving(WireApp(), engine, **settings_of(files)) as address:
        with stalled(address):
            assert (await seen_of(address, GET + REST, **trusting(files)))["scheme"] == "https"


# Granian's own ten seconds cannot be shortened
@pytest.mark.parametrize("engine", ["hypercorn", pytest.param("granian", marks=pytest.mark.long), "uvicorn"])
async def test_handshakes_that_stall_are_cut(engine, files, monkeypatch):
    monkeypatch.setattr("gateway.serving.acceptor.HANDSHAKE_S", 0.5)
    async with serving(WireApp(), engine, **settings_of(files)) as address:
        with stalled(address) as socks:
            async with asyncio.timeout(30):
                for sock in socks:
                    with contextlib.suppress(ConnectionError):
                        while await asyncio.get_running_loop().sock_recv(sock, 64):
                            pass


async def test_handshakes_that_stall_do_not_hold_the_shutdown(engine, files):
    with contextlib.ExitStack() as stack:
        async with asyncio.timeout(8):
            async with serving(WireApp(), engine, **settings_of(files)) as address:
                sock = stack.enter_context(socket.create_connection(address))
                sock.send(b"\x16\x03")
                await seen_of(address, GET + REST, **trusting(files))


async def test_http_on_a_tls_port_ends_at_once_and_reaches_no_app(engine, files):
    async def reached(receive, send):
        raise AssertionError

    async with serving(WireApp(a=reached), engine, **settings_of(files)) as address, asyncio.timeout(8):
        reply = await exchange(address, GET + REST)
        assert b"HTTP/1.1 200" not in reply


async def test_tls_on_a_plain_port_ends_at_once(engine):
    async with serving(WireApp(), engine) as address, asyncio.timeout(8):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(*address, ssl=unverified())
        assert status_of(await exchange(address, GET + "Connection: close\r\n" + REST)) == 200


async def test_a_client_that_leaves_is_noticed_over_tls(engine, files):
    waiting, left = asyncio.Event(), asyncio.Event()

    async def patient(receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        waiting.set()
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with serving(WireApp(patient=patient), engine, **settings_of(files)) as address, asyncio.timeout(10):
        _, writer = await asyncio.open_connection(*address, **trusting(files))
        writer.write(f"GET /patient HTTP/1.1\r\n{REST}".encode())
        await waiting.wait()
        writer.transport.abort()
        await left.wait()


async def test_a_slow_reader_over_tls_holds_the_app_back(engine, files):
    endless = Endless(1 << 16)
    async with serving(WireApp(endless=endless), engine, drain_timeout="100ms", **settings_of(files)) as address:
        raw = socket.create_connection(address)
        client = unverified().wrap_socket(raw, do_handshake_on_connect=False)
        await asyncio.to_thread(client.do_handshake)
        client.send(f"GET /endless HTTP/1.1\r\n{REST}".encode())
        assert await endless.held_back() < 16 << 20
        client.close()


async def test_a_renewed_certificate_is_shown_without_a_restart_and_running_replies_go_on(engine, files, tmp_path, monkeypatch):
    monkeypatch.setattr(certificates, "LOOK_EVERY_S", 0.05)
    may_finish = asyncio.Event()

    async def streaming(receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first,", "more_body": True})
        await may_finish.wait()
        await send({"type": "http.response.body", "body": b"last"})

    (tmp_path / "new").mkdir()
    new = make_certificates(tmp_path / "new")
    async with serving(WireApp(streaming=streaming), engine, **settings_of(files)) as address, asyncio.timeout(20):
        assert await certificate_of(address) == der_of(files.certificate)
        reader, writer = await asyncio.open_connection(*address, ssl=unverified())
        writer.write(f"GET /streaming HTTP/1.1\r\n{REST}".encode())
        await reader.readuntil(b"first,")
        shutil.copyfile(new.certificate, files.certificate)
        shutil.copyfile(new.key, files.key)
        while True:
            # Granian cuts what is in its handshake at that moment
            with contextlib.nullcontext() if engine != "granian" else contextlib.suppress(ConnectionError):
                if await certificate_of(address) == der_of(new.certificate):
                    break
            await asyncio.sleep(0.05)
        for _ in range(20):  # and nothing shows the old one any more
            assert await certificate_of(address) == der_of(new.certificate)
        may_finish.set()
        assert (await reader.readuntil(b"last")).endswith(b"last")
        writer.transport.abort()


@pytest.mark.parametrize("damage", ["nonsense", "gone", "of another key", "a curve that Granian does not know"])
async def test_a_broken_new_certificate_leaves_the_old_one_in_force_and_is_logged(engine, files, damage, monkeypatch, caplog):
    monkeypatch.setattr(certificates, "LOOK_EVERY_S", 0.05)
    if damage.startswith("a curve") and engine != "granian":
        pytest.skip("OpenSSL knows it")
    async with serving(WireApp(), engine, **settings_of(files)) as address, asyncio.timeout(20):
        before = der_of(files.certificate)
        if damage == "nonsense":
            files.certificate.write_text("nonsense")
        elif damage == "gone":
            files.key.unlink()
        elif damage == "of another key":
            files.key.write_bytes(pem_of(ec.generate_private_key(ec.SECP256R1())))
        else:
            self_signed(files, ec.generate_private_key(ec.SECP521R1()))
        await eventually(lambda: "the last certificate stays in force" in caplog.text, 15)
        assert await certificate_of(address) == before
        assert await certificate_of(address) == before
    assert caplog.text.count("stays in force") == 1  # not every time that somebody looks


def pem_of(key, encryption=None):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def self_signed(files, key):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    end = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)
    certificate = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, end)
    files.key.write_bytes(pem_of(key))
    files.certificate.write_bytes(certificate.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))


def refusal_of(files, **more):
    with pytest.raises(ConfigurationError) as refusal:
        check_server(ServerSettings(**settings_of(files), **more))
    return str(refusal.value)


@pytest.mark.parametrize("missing", ["tls_certificate", "tls_key"])
def test_a_missing_file_is_named_with_its_key(files, missing):
    path = settings_of(files)[missing]
    path.unlink()
    assert refusal_of(files) == f"server.{missing}: cannot read {path}: No such file or directory"


def test_files_that_do_not_hold_what_they_should_are_named_with_their_keys(files):
    right, another = files.key.read_text(), ec.generate_private_key(ec.SECP256R1())
    files.key.write_bytes(pem_of(another))
    assert refusal_of(files) == f"server.tls_key: {files.key} is not the key of {files.certificate}"
    files.key.write_text("nonsense")
    assert refusal_of(files) == f"server.tls_key: {files.key} holds no key in PEM"
    files.key.write_bytes(pem_of(another, BestAvailableEncryption(b"secret")))
    assert refusal_of(files) == f"server.tls_key: {files.key} is encrypted"
    files.key.write_text(right)
    files.certificate.write_text(right)
    assert refusal_of(files) == f"server.tls_certificate: {files.certificate} holds no certificate in PEM"


def test_a_certificate_that_the_engine_cannot_use_is_refused_before_anything_is_served(files):
    self_signed(files, ec.generate_private_key(ec.SECP521R1()))
    check_server(ServerSettings(**settings_of(files)))
    assert "Granian's TLS library cannot use them" in refusal_of(files, engine="granian")


def test_a_key_that_everybody_may_read_is_warned_of(files, caplog):
    for mode, is_warned in ((0o600, False), (0o640, False), (0o644, True)):
        caplog.clear()
        files.key.chmod(mode)
        Certificate(ServerSettings(**settings_of(files)), lambda pair: None)
        assert ("may be read by every user" in caplog.text) == is_warned


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tls_key": "k"}, "tls_key needs tls_certificate"),
        ({"tls_certificate": "c"}, "tls_certificate needs tls_key"),
        ({"admin_tls": True}, "admin_tls needs tls_certificate and tls_key"),
        ({"tls_min_version": "1.1"}, "tls_min_version"),
    ],
)
def test_keys_that_need_each_other_are_asked_for(given, message):
    with pytest.raises(ValueError, match=message):
        ServerSettings(**given)


def test_the_admin_api_speaks_tls_unless_it_is_on_loopback():
    both = {"tls_certificate": "c", "tls_key": "k", "admin_token": "a-token-of-the-operator"}
    assert not ServerSettings(**both).has_tls("admin")
    assert ServerSettings(**both, admin_host="0.0.0.0").has_tls("admin")
    assert ServerSettings(**both, admin_tls=True).has_tls("admin")
    assert not ServerSettings(**both, admin_host="0.0.0.0", admin_tls=False).has_tls("admin")
    assert ServerSettings(**both).has_tls("proxy")
    assert not ServerSettings(**both).has_tls("demo")
    assert not ServerSettings().has_tls("proxy")
    assert ServerSettings(**both, tls_min_version=1.3).tls_min_version == "1.3"  # as YAML reads it
