"""A gateway that speaks TLS, as it is started: several workers, and a SIGTERM while streams are running."""

import asyncio
import contextlib
import signal
import ssl
import time

import pytest

from tests.e2e.calls import call
from tests.e2e.processes import GATEWAY, Gateway, a_demo_upstream, clean_environment, free_ports, run, running, settings_of
from tests.servers import wait_until
from tests.single_server import make_certificates

BODY = (
    b'{"model": "demo-small", "stream": true, "messages": [{"role": "user", "content": "one two three four five six seven"}]}'
)
CLIENTS = 12
DRAIN_DELAY_S = 4.0


async def a_stream(port, key, trust, *, is_late=lambda: False):
    """What came of one: all that was said; None if nobody took the connection, or closed it before a late request."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname="localhost")
    except OSError:
        return None
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: testcompany.localhost\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\nconnection: close\r\n\r\n"
    )
    may_be_closed = is_late()
    writer.write(head.encode() + BODY)
    said = b""
    try:
        while part := await reader.read(1 << 16):
            said += part
    except OSError:
        pass
    writer.close()
    return said if said or not may_be_closed else None


@contextlib.contextmanager
def secured(folder, files, **settings):
    """Two workers, the demo upstream and its tenant, with TLS for the proxy."""
    admin_port, proxy_port, demo_port = free_ports(3)
    settings |= {"SERVER__TLS_CERTIFICATE": str(files.certificate), "SERVER__TLS_KEY": str(files.key), "SERVER__WORKERS": "2"}
    env = clean_environment(folder, **settings_of(admin_port, proxy_port, folder / "data", **settings))
    with running(*GATEWAY, "run", "--demo", "--demo-port", str(demo_port), env=env, cwd=folder) as program:
        program.wait_until(lambda: f"https://testcompany.localhost:{proxy_port}" in program.stdout(), "announced")
        yield Gateway(program, admin_port, proxy_port, demo_port, folder / "data")


@pytest.mark.parametrize("engine", ["hypercorn", "granian", "uvicorn"])
def test_sigterm_under_streams_over_tls_loses_nothing(engine, tmp_path):
    files = make_certificates(tmp_path)
    trust = ssl.create_default_context(cafile=str(files.authority))
    with (
        a_demo_upstream(tmp_path) as upstream,
        secured(tmp_path, files, SERVER__ENGINE=engine, SERVER__DRAIN_DELAY=f"{DRAIN_DELAY_S:g}s") as scene,
    ):
        program, proxy_port = scene.program, scene.proxy_port
        assert call(scene.admin_port, "GET", "/health/ready").status == 200  # on loopback, without TLS
        key = scene.demo_key()
        # the gateway's own demo upstream stops when the gateway does
        (tenant,) = scene.admin("GET", "/tenants").json["tenants"]
        (rule,) = scene.admin("GET", f"/tenants/{tenant['id']}/rules", key=key).json["rules"]
        elsewhere = {"target": f"http://127.0.0.1:{upstream}"}
        assert scene.admin("PATCH", f"/tenants/{tenant['id']}/rules/{rule['id']}", elsewhere, key=key).status == 200

        async def load():
            told_at = float("inf")

            def is_late():
                # what is sent when the delay ends may find its connection closed; half of it is for slow machines
                return time.monotonic() > told_at + DRAIN_DELAY_S / 2

            async def client():
                said = []
                while (one := await a_stream(proxy_port, key, trust, is_late=is_late)) is not None:
                    said.append(one)
                assert is_late(), "refused before or soon after somebody said stop"
                return said

            clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
            await asyncio.sleep(1)
            told_at = time.monotonic()
            program.signal(signal.SIGTERM)
            return [one for said in await asyncio.gather(*clients) for one in said]

        streams = asyncio.run(load())
        assert program.wait(30) == 0
    served = [one for one in streams if b" 200 " in one[:20]]
    limited = [one for one in streams if b" 429 " in one[:20]]
    assert len(served) >= CLIENTS
    assert len(served) + len(limited) == len(streams)
    assert all(b"data: [DONE]" in one and one.endswith(b"0\r\n\r\n") for one in served)


def test_check_and_start_say_what_is_wrong_with_a_certificate(tmp_path):
    files = make_certificates(tmp_path)
    both = {"GATEWAY_SERVER__TLS_CERTIFICATE": str(files.certificate), "GATEWAY_SERVER__TLS_KEY": str(files.key)}
    env = clean_environment(tmp_path, **both)
    code, output, _ = run(*GATEWAY, "check", env=env, cwd=tmp_path)
    assert code == 0
    assert "admin   http://127.0.0.1:8080" in output
    assert "proxy   https://0.0.0.0:8081" in output
    files.key.write_text("nonsense")
    # whatever starts nevertheless listens on loopback only
    admin_port, proxy_port = free_ports(2)
    own = settings_of(admin_port, proxy_port, tmp_path / "data")
    for command in ("check", "run"):
        code, _, complaint = run(*GATEWAY, command, env=env | own, cwd=tmp_path)
        assert code == 1
        assert f"server.tls_key: {files.key} holds no key in PEM" in complaint
        assert "Traceback" not in complaint


def test_a_renewed_certificate_reaches_every_worker(tmp_path):
    files = make_certificates(tmp_path)
    (tmp_path / "new").mkdir()
    new = make_certificates(tmp_path / "new")
    with secured(tmp_path, files) as scene:

        def shown():
            return {ssl.get_server_certificate(("127.0.0.1", scene.proxy_port)) for _ in range(12)}

        old = shown()
        files.certificate.write_bytes(new.certificate.read_bytes())
        files.key.write_bytes(new.key.read_bytes())

        # one worker may take all connections for a while, so what is shown does not tell of both
        renewed = "a new certificate is in force"
        scene.program.wait_until(lambda: scene.program.stderr().count(renewed) == 2, "renewed by both workers", 40)
        wait_until(lambda: not any(shown() & old for _ in range(5)), "both workers show the new one")
