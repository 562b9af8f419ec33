"""The command line: ``gateway run`` and its siblings."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from gateway import __version__
from gateway.composition import Addresses, Runner, answers, check, export_usage, run_demo_upstream, run_servers
from gateway.config import Config, configured_file, load_config
from gateway.demo_upstream import DemoSettings
from gateway.doctor import Finding, as_json, as_lines, examine
from gateway.errors import ConfigurationError, InternalError, StoreUnavailable
from gateway.quick_start import first_steps, seed_demo
from gateway.serving import run_event_loop
from gateway.store import Stores, describe
from gateway.telemetry import start_logging
from gateway.units import parse_duration_ms, parse_size_bytes
from gateway.workers import run_workers

DEMO_PORT = 9000
LOCAL_ADVICE = "; `gateway run --local` starts one of its own"

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file; else $GATEWAY_CONFIG, else ./config.yaml if it exists, else the defaults.",
)


class Refusal(click.ClickException):
    """An expected failure: one message, no traceback, exit code 1."""

    exit_code = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gateway")
def main() -> None:
    """A multi-tenant AI gateway with exact limits shared by all replicas."""


@main.command()
@config_option
@click.option("--local", is_flag=True, help="Start the embedded store if no Redis answers; print first steps.")
@click.option("--demo", is_flag=True, help="As --local, with the demo upstream and a tenant that leads to it.")
@click.option("--demo-port", type=click.IntRange(1, 65535), default=DEMO_PORT, show_default=True)
def run(config_path: Path | None, local: bool, demo: bool, demo_port: int) -> None:
    """Serve the admin API and the proxy in one process."""
    config = _load(config_path)
    if demo:
        config = _with_loopback_targets(config)
    _run(
        config,
        _run_local(config, demo_port if demo else None) if local or demo else _run_configured(config, ("admin", "proxy")),
    )


@main.command()
@config_option
def admin(config_path: Path | None) -> None:
    """Serve the admin API alone."""
    config = _load(config_path)
    _run(config, _run_configured(config, ("admin",)))


@main.command()
@config_option
def proxy(config_path: Path | None) -> None:
    """Serve the proxy alone."""
    config = _load(config_path)
    _run(config, _run_configured(config, ("proxy",)))


@main.command(name="check")
@config_option
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
def check_command(config_path: Path | None, file: Path | None) -> None:
    """Read a configuration and say what it would start."""
    try:
        for line in check(load_config(file or config_path)):
            click.echo(line)
    except ConfigurationError as error:
        raise Refusal(str(error)) from None


@main.command()
@config_option
@click.option("--json", "as_document", is_flag=True, help="The findings as a JSON list.")
def doctor(config_path: Path | None, as_document: bool) -> None:
    """Look for what is wrong or unwise; exit code 1 if something fails."""
    found: list[Finding] = []

    async def look() -> None:
        found.extend(await examine(config, config_path or configured_file()))

    try:
        config = load_config(config_path)
    except ConfigurationError as error:
        found.extend(
            Finding("fail", "configuration", line, "correct it: no gateway starts") for line in str(error).splitlines()
        )
    else:
        start_logging("error")
        run_event_loop(look())
    click.echo(as_json(found) if as_document else "\n".join(as_lines(found)))
    if any(finding.level == "fail" for finding in found):
        sys.exit(1)


@main.command(name="demo-upstream")
@config_option
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=DEMO_PORT, show_default=True)
@click.option("--api-key", help="Answer 401 unless requests carry this key.")
@click.option("--chunk-delay-ms", type=click.IntRange(0), default=20, show_default=True)
@click.option("--latency-ms", type=click.IntRange(0), default=0, show_default=True)
def demo_upstream(
    config_path: Path | None, host: str, port: int, api_key: str | None, chunk_delay_ms: int, latency_ms: int
) -> None:
    """Serve an OpenAI-compatible mock provider."""
    settings = DemoSettings(api_key=api_key, chunk_delay_ms=chunk_delay_ms, latency_ms=latency_ms)
    config = _load(config_path)
    click.echo(f"demo upstream on http://{host}:{port}", err=True)
    _run(config, run_demo_upstream(config, host, port, settings))


def _measured(parse: Callable[[object], int]) -> Callable[[click.Context, click.Parameter, str], int]:
    """Durations and sizes as the configuration writes them."""

    def convert(_context: click.Context, _parameter: click.Parameter, text: str) -> int:
        try:
            measured = parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
        if measured <= 0:
            raise click.BadParameter("must be more than nothing")
        return measured

    return convert


@main.command(name="export-usage")
@config_option
@click.option("--to", "folder", required=True, type=click.Path(path_type=Path), help="Folder of the files; made if need be.")
@click.option("--follow/--once", default=False, show_default="once", help="Go on until a signal says stop.")
@click.option("--every", default="5s", show_default=True, callback=_measured(parse_duration_ms), help="How often to look.")
@click.option("--max-file-bytes", default="100MB", show_default=True, callback=_measured(parse_size_bytes))
def export_usage_command(config_path: Path | None, folder: Path, follow: bool, every: int, max_file_bytes: int) -> None:
    """Write receipts of settled requests to JSON Lines files, for billing."""
    config = _load(config_path)

    async def export() -> None:
        try:
            click.echo(await export_usage(config, folder, max_file_bytes, every if follow else None), err=True)
        except OSError as error:
            raise Refusal(f"{error.filename or folder}: {error.strerror}") from error
        except InternalError as error:
            raise Refusal("some receipts could not be exported; the log says why") from error

    _run(config, export(), store_advice="")


async def _run_configured(config: Config, parts: tuple[str, ...]) -> None:
    await _runner(config)(config, parts, embedded=config.redis.is_embedded)


async def _run_local(config: Config, demo_port: int | None) -> None:
    embedded = config.redis.is_embedded or not await answers(config.redis)
    folder = config.redis.data_dir

    async def prepare(stores: Stores) -> None:
        if demo_port is not None:
            await seed_demo(stores, folder, demo_port)

    def ready(_addresses: Addresses) -> None:
        click.echo(first_steps(config, folder, demo=demo_port is not None))
        sys.stdout.flush()

    await _runner(config)(
        config, ("admin", "proxy"), embedded=embedded, local=True, demo_port=demo_port, prepare=prepare, ready=ready
    )


def _runner(config: Config) -> Runner:
    return run_servers if config.server.workers == 1 else run_workers


def _with_loopback_targets(config: Config) -> Config:
    networks = (*config.upstream.allowed_networks, ipaddress.ip_network("127.0.0.0/8"))
    return config.model_copy(update={"upstream": config.upstream.model_copy(update={"allowed_networks": networks})})


def _load(path: Path | None) -> Config:
    try:
        config = load_config(path)
    except ConfigurationError as error:
        raise Refusal(str(error)) from None
    start_logging(config.log.level, exception_messages=config.log.exception_messages)
    return config


def _run(config: Config, work: Coroutine[Any, Any, None], store_advice: str = LOCAL_ADVICE) -> None:
    try:
        run_event_loop(work)
    except ConfigurationError as error:
        raise Refusal(str(error)) from None
    except StoreUnavailable as error:
        where = describe(config.redis)
        raise Refusal(f"the store ({where}) does not answer{store_advice}") from error
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
