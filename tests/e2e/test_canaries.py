"""Every kind of secret, taken through whatever can go wrong, is in the end found nowhere but where it belongs."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import http.server
import json
import secrets
import signal
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from click.testing import CliRunner

from gateway import virtual_key
from gateway.__main__ import main
from tests.e2e.calls import HOST, Answer
from tests.e2e.processes import (
    GATEWAY,
    Gateway,
    a_gateway,
    clean_environment,
    free_ports,
    run,
    running,
    settings_of,
)
from tests.single_server import Server, make_certificates, valkey_server

PLUGINS = """
from gateway.plugin import Exchange, Plugin, Settings

class Tells(Plugin[Settings]):
    name = "tells"
    needs_request_body = True

    async def pre_request(self, exchange: Exchange) -> None:
        try:
            bytes(exchange.request.body + b"\\xff").decode("utf-8")
        except UnicodeDecodeError as error:
            whole = f"{exchange!r} {exchange.request.body!r} {exchange.request.query} {list(exchange.request.headers)}"
            raise RuntimeError(whole) from error

class TellsLater(Plugin[Settings]):
    name = "tells_later"

    async def post_request(self, exchange: Exchange) -> None:
        raise KeyError(exchange, exchange.reply, exchange.request.query)

class TellsInTheEnd(Plugin[Settings]):
    name = "tells_in_the_end"

    async def post_response(self, exchange: Exchange) -> None:
        raise SystemExit(exchange.request.query)
"""


def canary(kind: str) -> str:
    """Nothing else contains it."""
    return f"cnry{secrets.token_hex(12)}{kind}"


@dataclass
class Canaries:
    """What must not get out, by its kind. ``clients`` are those that a client sends or gets."""

    gateways: dict[str, str] = field(default_factory=dict)
    clients: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in ("operator", "redis", "credential", "header"):
            self.gateways[kind] = canary(kind)
        self.gateways["master"] = secrets.token_hex(32)
        self.gateways["webhook"] = base64.b64encode(secrets.token_bytes(32)).decode()
        for kind in ("body", "query", "reply", "idempotency", "cookie", "anothers", "typed", "metadata", "damage"):
            self.clients[kind] = canary(kind)
        self.clients["wrong"] = virtual_key.new_secret()

    @property
    def all(self) -> dict[str, str]:
        return self.gateways | self.clients


class _Upstream(http.server.BaseHTTPRequestHandler):
    """Says what the end of the path says, and repeats what it was given where a target may do that; ``seen`` are the paths."""

    said = ""
    seen: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.seen.append(self.path)
        what = self.path.partition("?")[0].rpartition("/")[2]
        if what == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc" + self.said.encode())
        elif what == "garbage":
            self.wfile.write(self.said.encode() + b"\r\n\r\n")
        else:
            status = {"refused": 401, "broken": 500}.get(what, 200)
            # a target that repeats its credential where it does not refuse it is beyond anybody's help
            shown = {401: str(self.headers).encode() + body, 500: body}.get(status, self.said.encode())
            self.send_response(status)
            self.send_header("content-length", str(len(shown)))
            self.end_headers()
            self.wfile.write(shown)
        self.close_connection = True

    do_GET = do_POST  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class _TellingStore(socketserver.StreamRequestHandler):
    """A store whose every error repeats the password."""

    said = ""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while self.request.recv(65_536):
                self.request.sendall(f"-WRONGPASS invalid password {self.said}\r\n".encode() * 20)


@contextlib.contextmanager
def served(handler: Any, said: str, **more: Any) -> Iterator[int]:
    kind = type("Telling", (handler,), {"said": said, **more})
    with socketserver.ThreadingTCPServer((HOST, 0), kind) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


class Life:
    """All that a gateway is asked in this test, and its answers."""

    def __init__(self, gateway: Gateway, canaries: Canaries, upstream: int) -> None:
        self.gateway, self.canaries, self.upstream = gateway, canaries, upstream
        self.told: list[Answer] = []
        self.issued: list[str] = []

    def admin(self, method: str, path: str, body: Any = None, *, key: str | None = None, **how: Any) -> Answer:
        token = self.canaries.gateways["operator"] if key is None else key
        answer = self.gateway.admin(method, path, body, key=token, **how)
        if answer.status == 201 and "api_key" in answer.json:
            self.issued.append(answer.json["api_key"])
        else:
            self.told.append(answer)
        return answer

    def proxy(self, path: str, *, key: str | None, **how: Any) -> Answer:
        c = self.canaries.clients
        fields = [
            ("Cookie", f"session={c['cookie']}"),
            ("X-Api-Key", key or c["anothers"]),
            ("Content-Type", "application/json"),
        ]
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": c["body"]}]})
        data = how.pop("data", body.encode())
        answer = self.gateway.proxy("POST", f"{path}?q={c['query']}", key=key, data=data, headers=fields, tenant="acme", **how)
        self.told.append(answer)
        return answer

    def status(self, path: str, *, key: str) -> int | None:
        """None of an answer that breaks off."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.proxy(path, key=key).status
        return None

    def live(self, store: Server) -> None:
        g, c = self.canaries.gateways, self.canaries.clients
        once = [("Idempotency-Key", c["idempotency"])]
        tenant = self.admin("POST", "/tenants", {"name": "A", "subdomain": "acme"}, headers=once).json
        own, base = tenant["api_key"], f"/tenants/{tenant['id']}"
        headers = {"Authorization": f"Bearer {g['credential']}", "x-secret": g["header"]}
        target = f"http://{HOST}:{self.upstream}"
        limit = {"unit": "requests", "quota": {"daily": 20}, "alert_at": [0.05]}
        made = {}
        limiter = {"name": "rate_limiter", "settings": limit}
        plugins = {"/v1": limiter, "/t": {"name": "tells"}, "/l": {"name": "tells_later"}, "/e": {"name": "tells_in_the_end"}}
        for path, plugin in plugins.items():
            rule = {"path": path, "target": target, "headers": headers, "plugin_chain": [plugin]}
            made[path] = self.admin("POST", f"{base}/rules", rule)
            assert made[path].status == 201, made[path].body
        dead = {"path": "/dead", "target": f"http://{HOST}:9", "headers": headers}
        assert self.admin("POST", f"{base}/rules", dead).status == 201
        assert self.admin("POST", f"{base}/rules", dead, headers=once).refusal[:2] == (409, "idempotency_conflict")
        rule_path = f"{base}/rules/{made['/v1'].json['id']}"
        for expected, method, path, body in (
            (400, "PATCH", rule_path, {"headers": {"x-secret": g["header"] + "\n"}}),
            (400, "PATCH", rule_path, {"target": f"https://user:{g['credential']}@example.com"}),
            (400, "PATCH", rule_path, {"active": g["credential"], "methods": [g["credential"]]}),
            (400, "PATCH", base, {"metadata": {"note": c["metadata"]}, "tier": c["typed"] + " "}),
            (200, "PATCH", base, {"metadata": {"note": c["metadata"]}}),
            (200, "GET", rule_path, None),
            (200, "GET", f"{base}/rules", None),
            (200, "GET", base, None),
            (200, "GET", "/plugins", None),
            (200, "GET", "/openapi.json", None),
            (200, "GET", "/docs", None),
            (200, "POST", f"{base}/explain", {"path": "/v1/ok", "api_key_id": tenant["api_key_id"], "body": {"x": c["body"]}}),
            (404, "GET", f"/tenants/{c['typed']}", None),
            (200, "GET", f"/tenants?cursor={c['typed']}", None),
        ):
            assert self.admin(method, path, body).status == expected, (method, path)
        broken = b'{"headers": {"Authorization": "' + g["credential"].encode() + b'"'
        assert self.admin("POST", f"{base}/rules", data=broken).status == 400
        key = self.admin("POST", f"{base}/api-keys", {"name": "k"}, key=own, headers=once).json
        self.admin("POST", f"{base}/api-keys/{key['id']}/rotate", {}, key=own)
        for wrong in (c["wrong"], c["typed"], own[:-1] + "x", g["operator"] + "x"):
            assert self.admin("GET", base, key=wrong).status == 401
            assert self.proxy("/v1/ok", key=wrong).status == 401
        assert self.proxy("/v1/ok", key=own).body == c["reply"].encode()
        answered = {
            "/v1/chat/completions": 200,
            "/v1/refused": 502,
            "/v1/broken": 500,
            "/v1/cut": None,
            "/v1/garbage": 502,
            "/t/x": 500,
            "/l/x": 502,
            "/e/x": 200,
            "/dead": 502,
        }
        assert {path: self.status(path, key=own) for path in answered} == answered
        assert self.proxy("/nowhere", key=own).status == 404
        assert self.proxy("/v1/chat/completions", key=own, data=c["body"].encode()).status == 200
        assert self.proxy("/v1/%00", key=own).status == 400
        with store.admin() as client:  # a document that nobody can read
            (name,) = client.keys("gw:{acme}:rules")
            good = client.hgetall(name)
            client.hset(name, made["/v1"].json["id"], json.dumps({"headers": {"Authorization": c["damage"]}})[:-1])
            client.hset("gw:{acme}:tenant", "version", "damaged")
            assert self.admin("GET", f"{base}/rules").json["count"] == len(plugins)
            assert self.proxy("/v1/ok", key=own).status == 200
            client.hset(name, mapping=good)
        with store.hung():
            assert self.proxy("/v1/ok", key=own).status == 503
            assert self.admin("GET", base).status == 503
            assert self.admin("PATCH", base, {"name": "B"}).status == 503


def text_of_store(server: Server) -> str:
    """Every key with all it holds, as text; sealed values opened by nobody."""
    found: list[Any] = []
    with server.admin() as client:
        for name in client.keys("*"):
            kind = client.type(name).decode()
            read = {
                "hash": client.hgetall,
                "string": client.get,
                "stream": client.xrange,
                "zset": lambda n: client.zrange(n, 0, -1),
            }
            found.append((name, read.get(kind, lambda n: client.lrange(n, 0, -1))(name)))
        found.append(client.execute_command("CONFIG", "GET", "maxmemory"))
    return repr(found)


def files_below(folder: Path) -> str:
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            found.append(f"{path}: {data!r} {gzip.decompress(data)!r}" if data[:2] == b"\x1f\x8b" else f"{path}: {data!r}")
    return "\n".join(found)


def forms(secret: str) -> list[str]:
    """As it is, and as somebody might have written it down."""
    return [secret, base64.b64encode(secret.encode()).decode().rstrip("="), secret.encode().hex(), quote(secret, safe="")]


def assert_nowhere(places: dict[str, str], canaries: dict[str, str]) -> None:
    found = {
        (kind, where, form if kind != "master" else "…")
        for where, text in places.items()
        for kind, secret in canaries.items()
        for form in forms(secret)
        if form in text
    }
    assert not found, found


def test_no_secret_is_found_where_it_does_not_belong(folder: Path) -> None:
    canaries = Canaries()
    g, c = canaries.gateways, canaries.clients
    (folder / "plugins").mkdir()
    for name, source in zip(("a", "b", "c"), PLUGINS.split("\nclass ")[1:], strict=True):
        imports = PLUGINS.partition("\nclass ")[0]
        (folder / "plugins" / f"{name}.py").write_text(f"{imports}\n\nclass {source}")
    seen: list[str] = []
    with valkey_server(password=g["redis"], persistent=True) as store, served(_Upstream, c["reply"], seen=seen) as upstream:
        settings = {
            "REDIS__URL": store.url,
            "SERVER__ADMIN_TOKEN": g["operator"],
            "SECRETS__MASTER_KEY": g["master"],
            "ALERTS__WEBHOOK_URL": f"http://{HOST}:{upstream}/hook/broken",
            "ALERTS__WEBHOOK_SECRET": f"whsec_{g['webhook']}",
            "UPSTREAM__ALLOWED_NETWORKS": "127.0.0.0/8",
            "PLUGINS__PATHS": str(folder / "plugins"),
            "LOG__LEVEL": "debug",
        }
        # it dumps its threads when it aborts
        with a_gateway(folder, settings=settings, environment={"PYTHONFAULTHANDLER": "1"}) as gateway:
            life = Life(gateway, canaries, upstream)
            life.live(store)
            gateway.program.wait_until(lambda: "/hook/broken" in seen, "telling the webhook")
            metrics = gateway.proxy("GET", "/metrics").body.decode()
            command = Path(f"/proc/{gateway.program.process.pid}/cmdline")
            started_as = command.read_text() if command.exists() else ""
            store.kill()
            assert life.proxy("/v1/ok", key=life.issued[0]).status == 503
            assert life.admin("GET", "/tenants").status == 503
            gateway.program.signal(signal.SIGABRT)
            assert gateway.program.wait() == -signal.SIGABRT
            said = {"stdout": gateway.program.stdout(), "stderr": gateway.program.stderr()}
            assert not list(folder.rglob("core*"))
        store.start()
        stored = {"store": text_of_store(store), "files of the store": files_below(store.directory)}
        stored["data folder"] = files_below(folder / "data")
    assert "Fatal Python error: Aborted" in said["stderr"]
    for kind in ("RuntimeError", "KeyError", "SystemExit", "UnicodeDecodeError"):
        assert f"{kind}\\n" in said["stderr"], "this plugin did not fail"
    keys = {f"issued {number}": secret for number, secret in enumerate(life.issued)}
    assert len(keys) == 3
    answers = {f"answer {n}": f"{a.status} {a.headers} {a.body!r}" for n, a in enumerate(life.told)}
    # a client may be told what it has sent itself, and by its target
    assert_nowhere(answers, g | keys)
    metrics_and_arguments = {"metrics": metrics, "arguments": started_as}
    assert_nowhere(said | metrics_and_arguments, canaries.all | keys)
    in_clear = {"metadata", "damage"}  # what a tenant's documents are for, and what this test has written itself
    assert_nowhere(stored, {kind: secret for kind, secret in (canaries.all | keys).items() if kind not in in_clear})


def test_no_message_about_a_configuration_or_a_store_repeats_a_secret(folder: Path) -> None:
    word, said = canary("word"), {}
    files = {
        "broken yaml": f"redis:\n  password: '{word}\nserver: {{}}",
        "tab": f"redis:\n\tpassword: {word}",
        "alias": f"redis:\n  password: *{word}",
        "tag": f"redis:\n  password: !{word} a",
        "list": f"redis:\n  password: [{word}]",
        "token": f"server:\n  admin_token: [{word}]",
        "port": f"redis:\n  port: {word}",
        "master": f"secrets:\n  master_key: {word}",
        "webhook": f"alerts:\n  webhook_secret: '{word}!'",
        "url": f"alerts:\n  webhook_url: https://u:{word}@example.com/",
        "section": f"redis: {word}",
        **{f"url {number}": f"redis:\n  url: {url}" for number, url in enumerate(wrong_urls(word))},
    }
    env = clean_environment(folder)
    for name, text in files.items():
        (folder / "config.yaml").write_text(text)
        refused = CliRunner().invoke(main, ["check", str(folder / "config.yaml")])
        assert (refused.exit_code, bool(refused.output)) == (1, True), (name, refused)
        said[name] = refused.output
    said["environment"] = CliRunner().invoke(main, ["check"], env={"GATEWAY_REDIS": word}).output
    with served(_TellingStore, word) as port:
        more = {"REDIS__URL": f"redis://:{word}@{HOST}:{port}/0", "LOG__LEVEL": "debug"}
        admin_port, proxy_port = free_ports(2)
        settings = settings_of(admin_port, proxy_port, folder / "data", **more)
        code, output, errors = run(*GATEWAY, "run", env=env | settings, cwd=folder)
        assert code == 1
        said["store"] = output + errors
    assert_nowhere(said, {"word": word})


def wrong_urls(word: str) -> list[str]:
    return [
        f"http://:{word}@localhost",
        f"redis://:{word}@localhost:x/0",
        f"redis://:{word}@localhost/x",
        f"redis://:{word}@[::1/0",
        f"redis+sentinel://:{word}@h1,h2",
        f"rediss://:{word}@localhost?ssl_ca_certs=/nowhere",
        f"redis://localhost?password={word}",
    ]


def test_the_key_of_a_certificate_stays_in_its_file(folder: Path) -> None:
    files = make_certificates(folder)
    lines = [line for line in files.key.read_text().splitlines() if not line.startswith("-----")]
    good, broken = files.key.read_text(), files.key.read_text().replace(lines[1], lines[1][::-1])
    tls = {"SERVER__TLS_CERTIFICATE": str(files.certificate), "SERVER__TLS_KEY": str(files.key), "LOG__LEVEL": "debug"}
    (folder / "home").mkdir()
    env = clean_environment(folder / "home", PYTHONFAULTHANDLER="1")
    told: dict[str, str] = {}
    for key in (good, broken, good[: len(good) // 2], good.replace("BEGIN", lines[1])):
        files.key.write_text(key)
        admin_port, proxy_port, demo_port = free_ports(3)
        settings = settings_of(admin_port, proxy_port, folder / "home" / "data", **tls)
        for command in ("check", "doctor"):
            told[f"{command} {key}"] = "".join(run(*GATEWAY, command, env=env | settings, cwd=folder / "home")[1:])
        demo = ("--demo", "--demo-port", str(demo_port))
        with running(*GATEWAY, "run", *demo, env=env | settings, cwd=folder / "home") as program:
            if key == good:
                program.wait_until(lambda: "https://" in program.stdout(), "serving")
                trust = ssl.create_default_context(cafile=str(files.authority))
                client = http.client.HTTPSConnection("localhost", proxy_port, timeout=10, context=trust)
                client.request("GET", "/metrics")
                told["metrics"] = client.getresponse().read().decode()
                client.close()
                assert "gateway_requests_in_flight" in told["metrics"]
                for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", b"\x80"):
                    with socket.create_connection((HOST, proxy_port), 5) as sock, contextlib.suppress(OSError):
                        sock.sendall(said)
                        told[f"answer to {said!r}"] = repr(sock.recv(65_536))
                files.key.write_text(broken)  # a renewal that went wrong
                program.wait_until(lambda: "the last certificate stays in force" in program.stderr(), "renewing", 30)
                program.signal(signal.SIGABRT)
            program.wait(30)
            told[f"run {key}"] = program.stdout() + program.stderr()
    told["data folder"] = files_below(folder / "home")
    assert any("holds no key in PEM" in text for text in told.values())
    assert_nowhere(told, {f"line {number}": line for number, line in enumerate(lines)})
