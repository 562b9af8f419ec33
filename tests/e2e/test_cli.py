"""The command line, as processes: what it prints, how it refuses, how it stops."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.__main__ import main
from tests.e2e.calls import call
from tests.e2e.processes import (
    GATEWAY,
    HOST,
    ROOT,
    Gateway,
    a_demo_upstream,
    a_gateway,
    answers_200,
    clean_environment,
    free_ports,
    is_free,
    run,
    settings_of,
)
from tests.servers import valkey_server

COMMAND = Path(sys.executable).with_name("gateway")
COMMANDS = ("run", "admin", "proxy", "check", "demo-upstream", "doctor", "export-usage")


def gateway(folder: Path, *args: str | Path, **env: str) -> tuple[int, str, str]:
    """``gateway`` with these arguments; log lines are left out of its standard error."""
    code, output, errors = run(COMMAND, *args, env=clean_environment(folder, **env), cwd=folder)
    return code, output, "".join(line for line in errors.splitlines(keepends=True) if not line.startswith("{"))


def refusal(folder: Path, *args: str | Path, **env: str) -> str:
    """The one line with which it refuses to start."""
    code, output, errors = gateway(folder, *args, **env)
    assert (code, output) == (1, "")
    assert errors.startswith("Error: ")
    assert errors.count("\n") == 1
    return errors.removeprefix("Error: ").strip()


def a_file(folder: Path, text: str) -> Path:
    path = folder / "gateway.yaml"
    path.write_text(text)
    return path


def test_help_names_every_command_and_python_dash_m_is_the_same_program(folder: Path):
    code, output, errors = gateway(folder, "--help")
    assert (code, errors) == (0, "")
    assert re.findall(r"^  ([a-z-]+) +", output.partition("Commands:\n")[2], re.MULTILINE) == sorted(COMMANDS)
    as_module = run(*GATEWAY, "--help", env=clean_environment(folder), cwd=folder)
    assert (as_module[0], as_module[1].replace("python -m gateway", "gateway")) == (0, output)


def test_every_command_takes_a_configuration():
    for name, command in main.commands.items():
        assert "--config" in [option for parameter in command.params for option in parameter.opts], name


def test_check_says_what_the_shipped_configuration_would_start(folder: Path):
    code, output, errors = gateway(folder, "check", ROOT / "config.yaml")
    assert (code, errors) == (0, "")
    assert "http://127.0.0.1:8080" in output
    assert "http://0.0.0.0:8081 for tenants under example.com, localhost" in output
    assert "content_validator, rate_limiter, security_validator" in output


def test_the_environment_wins_over_the_file_and_a_file_over_the_defaults(folder: Path):
    file = a_file(folder, "server: {admin_port: 9080, proxy_port: 9081}")
    _, output, _ = gateway(folder, "check", GATEWAY_CONFIG=str(file), GATEWAY_SERVER__PROXY_PORT="9082")
    assert ":9080" in output
    assert ":9082" in output
    assert ":9081" not in output


def test_check_names_every_key_at_fault(folder: Path):
    text = """
        server: {proxy_prot: 1, admin_port: 99999, admin_token: short}
        limits: {lease: soon}
        sever: {proxy_port: 1}
        """
    code, output, errors = gateway(folder, "check", a_file(folder, text))
    assert (code, output) == (1, "")
    assert sorted(errors.removeprefix("Error: ").replace(f"{folder}/", "").splitlines()) == [
        "gateway.yaml: limits.lease: a duration is a number of seconds or text such as 30s, 1m or 1h30m",
        "gateway.yaml: server.admin_port: Input should be less than or equal to 65535",
        "gateway.yaml: server.admin_token: an operator token has at least 16 characters",
        "gateway.yaml: server.proxy_prot: unknown key; did you mean server.proxy_port?",
        "gateway.yaml: sever: unknown key; did you mean server?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("redis: {url: 'http://localhost'}", "redis.url: must be embedded or start with one of redis://"),
        ("secrets: {master_key: short}", "secrets.master_key: "),
        ("- a\n- b", "must hold sections such as `server:`"),
    ],
)
def test_check_refuses_what_run_would_refuse(folder: Path, text: str, message: str):
    assert message in refusal(folder, "check", a_file(folder, text))


def test_a_misspelled_section_in_the_environment_is_refused_like_one_in_the_file(folder: Path):
    message = refusal(folder, "check", GATEWAY_SEVER__PROXY_PORT="1")
    assert message == "environment: sever.proxy_port: unknown key; did you mean server.proxy_port?"


def test_a_configuration_that_is_not_there_is_refused(folder: Path):
    assert "nothing.yaml: No such file or directory" in refusal(folder, "run", "--config", "nothing.yaml")


def test_an_admin_api_that_others_can_reach_needs_an_operator_token(folder: Path):
    message = refusal(folder, "run", GATEWAY_SERVER__ADMIN_HOST="0.0.0.0")
    assert "admin_host 0.0.0.0 is reachable from outside, so admin_token must be set" in message


def test_run_without_a_store_says_so_and_serves_nothing(folder: Path):
    admin_port, proxy_port = free_ports(2)
    message = refusal(folder, "run", **settings_of(admin_port, proxy_port, folder / "data"))
    assert "does not answer; `gateway run --local` starts one of its own" in message
    assert not (folder / "data").exists()


@pytest.mark.parametrize("command", ["run", "demo-upstream"])
def test_a_port_in_use_is_named_in_one_line(folder: Path, command: str):
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        if command == "run":
            (admin_port,) = free_ports(1)
            env = settings_of(admin_port, port, folder / "data", REDIS__URL="embedded")
            assert refusal(folder, "run", **env) == f"server.proxy_port: cannot listen on {HOST}:{port}: Address already in use"
            assert is_free(admin_port)
        else:
            code, _, errors = gateway(folder, "demo-upstream", "--port", str(port))
            assert code == 1
            assert f"cannot listen on {HOST}:{port}: Address already in use" in errors
            assert "Traceback" not in errors


def test_a_second_gateway_on_the_same_data_is_refused(local_gateway: Gateway, folder: Path):
    admin_port, proxy_port = free_ports(2)
    env = settings_of(admin_port, proxy_port, local_gateway.data_dir)
    assert "is in use by another running gateway" in refusal(folder, "run", "--local", **env)


def test_the_demo_upstream_answers_like_a_provider_and_wants_its_key(folder: Path):
    with a_demo_upstream(folder, "--api-key", "secret") as port:
        body = {"model": "demo-small", "messages": [{"role": "user", "content": "Hello"}]}
        assert call(port, "POST", "/v1/chat/completions", body).status == 401
        answer = call(port, "POST", "/v1/chat/completions", body, key="secret")
        assert answer.json["choices"][0]["message"]["role"] == "assistant"


def test_what_run_local_prints_makes_a_tenant_and_a_rule(folder: Path):
    with a_gateway(folder, "--local") as local:
        lines = [line for line in local.program.stdout().splitlines() if line.startswith("  ")]
        assert lines[-1].strip().startswith(f"curl http://testcompany.localhost:{local.proxy_port}/v1/models")
        env = clean_environment(folder, OPENAI_API_KEY="sk-canary")
        # all but the last line, which calls the real OpenAI
        code, output, _ = run("bash", "-ec", "\n".join(lines[:-1]), env=env, cwd=folder)
        assert code == 0
        rule = json.loads(output)
        assert (rule["path"], rule["target"], rule["headers"]) == ("/v1", "https://api.openai.com", {"Authorization": "•••"})
        assert "sk-canary" not in output + local.program.stderr()


def test_sigterm_is_announced_and_a_running_stream_is_finished(folder: Path):
    body = {"model": "demo-small", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    slow = [("x-demo-chunks", "30"), ("x-demo-chunk-delay-ms", "80")]
    with (
        a_gateway(folder, "--demo", settings={"SERVER__DRAIN_DELAY": "500ms"}) as local,
        ThreadPoolExecutor() as client,
    ):
        key = local.demo_key()
        stream = client.submit(local.proxy, "POST", "/v1/chat/completions", body, key=key, headers=slow)
        streaming = b"gateway_requests_in_flight 1.0"
        local.program.wait_until(lambda: streaming in local.proxy("GET", "/metrics").body, "streaming")
        local.program.signal(signal.SIGTERM)
        local.program.wait_until(lambda: not answers_200(local.proxy_port, "/health/ready"), "leaving")
        refusals = [call(port, "GET", "/health/ready").refusal for port in (local.admin_port, local.proxy_port)]
        meanwhile = local.proxy("GET", "/v1/models", key=key)
        assert local.program.wait() == 0
        assert refusals == [(503, "draining", None)] * 2
        assert (meanwhile.status, meanwhile.headers["connection"]) == (200, "close")
        assert stream.result().body.rstrip().endswith(b"data: [DONE]")
        assert [line["status"] for line in local.program.access_log()] == [200, 200]


def test_a_second_signal_does_not_wait_for_the_load_balancer(folder: Path):
    with a_gateway(folder, "--local", settings={"SERVER__DRAIN_DELAY": "1h"}) as local:
        local.program.signal(signal.SIGTERM)
        local.program.wait_until(lambda: not answers_200(local.proxy_port, "/health/ready"), "leaving")
        local.program.signal(signal.SIGTERM)
        assert local.program.wait() == 0


def test_with_a_redis_that_answers_the_first_steps_can_store_a_credential_too(folder: Path):
    with valkey_server() as server, a_gateway(folder, "--demo", settings={"REDIS__URL": server.url}) as local:
        tenant = local.admin("POST", "/tenants", {"name": "Acme", "subdomain": "acme"}).json
        rule = {"path": "/v1", "target": f"http://127.0.0.1:{local.demo_port}", "headers": {"Authorization": "Bearer x"}}
        assert local.admin("POST", f"/tenants/{tenant['id']}/rules", rule, key=tenant["api_key"]).status == 201
        assert (local.data_dir / "master.key").stat().st_mode & 0o777 == 0o600
        assert not (local.data_dir / "appendonlydir").exists()
