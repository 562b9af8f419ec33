"""redis-py's cluster client, changed where it does not fit a gateway that never retries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from redis.asyncio.cluster import ClusterNode, ClusterPipeline, PipelineCommand, RedisCluster
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MaxConnectionsError,
    MovedError,
    RedisClusterException,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.store.breaker import NotSent

REDIRECTIONS = 8
_REFRESH_SECONDS = 1.0


class ClusterClient(RedisCluster):
    """A cluster client. What differs from redis-py 8.1, where

    * ASKING and the command it is for may leave on two connections, so that a slot on the move is not reached;
    * a pipeline of which one node is lost loses the replies of all nodes, and never learns of a failover unless it retries;
    * the fifth MOVED and every CLUSTERDOWN close the connections under everybody's commands, and the latter sleeps 250 ms;
    * no wait for a free connection is possible;
    * one dead primary may keep the topology from being known, because what the commands are is asked of one node each time.

    A command is sent again only after MOVED or ASK, which say that it did not run. TRYAGAIN is left to the caller.
    """  # noqa: D400, D415

    def __init__(
        self,
        hosts: Sequence[tuple[str, int]],
        *,
        node_options: Mapping[str, Any],
        pool_size: int,
        pool_wait: float,
        **options: Any,
    ) -> None:
        # One more connection than commands: the client's own questions about the topology do not queue.
        super().__init__(
            startup_nodes=[ClusterNode(host, port) for host, port in hosts], max_connections=pool_size + 1, **options
        )
        self.connection_kwargs.update(node_options)  # the dict that every node made later is given
        for node in self.startup_nodes:
            rest = dict(node_options)
            node.connection_class = rest.pop("connection_class", node.connection_class)
            node.connection_kwargs.update(rest)
        self._pool_size, self._pool_wait = pool_size, pool_wait
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._stale_since = float("-inf")
        self._initializing = asyncio.Lock()
        self._asking: asyncio.Task[ClusterClient] | None = None
        self.is_refused: Callable[[str, int], bool] = lambda _host, _port: False
        """Whether a node is not to be asked now."""

    @property
    def is_stale(self) -> bool:
        """Whether the topology must be asked for."""
        return self._initialize

    async def initialize(
        self, additional_startup_nodes_info: Any = None, last_failed_node_name: str | None = None
    ) -> ClusterClient:
        """Ask for the topology if it must be asked for; once, of any primary, what the commands are.

        Connections stay, whatever happens. Raises RedisClusterException, or what the last primary did.
        """
        async with self._initializing:
            if self._initialize:
                await self.nodes_manager.initialize(additional_startup_nodes_info, last_failed_node_name)
                if not self.commands_parser.commands:
                    await self._know_commands()
                self._initialize = False
        return self

    async def _know_commands(self) -> None:
        *others, last = self.get_primaries()
        for node in others:
            with suppress(RedisError, OSError):
                await self.commands_parser.initialize(node)
                return
        await self.commands_parser.initialize(last)

    async def know_topology(self) -> None:
        """Ask for the topology unless that is under way; wait for the answer only where none is known.

        Raises RedisClusterException.
        """
        asking = self._ask()
        if not (self.nodes_manager.slots_cache and self.commands_parser.commands):
            await asyncio.shield(asking)

    async def ask_topology(self) -> None:
        """Ask for the topology if it must be asked for, and wait for the answer. Raises RedisClusterException."""
        if self._initialize:
            await asyncio.shield(self._ask())

    def has_primary(self, host: str, port: int) -> bool:
        """Whether a node is one of the primaries, as far as they are known."""
        return any((node.host, int(node.port)) == (host, port) for node in self.get_primaries())

    def _ask(self) -> asyncio.Task[ClusterClient]:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self.initialize())
            self._asking.add_done_callback(lambda asking: asking.cancelled() or asking.exception())
        return self._asking

    def primary_of(self, slot: int) -> tuple[str, int]:
        """Host and port of the primary that has a slot, as far as it is known."""
        node = self.nodes_manager.get_node_from_slot(slot)
        return node.host, int(node.port)

    async def moved(self, redirection: MovedError) -> tuple[str, int]:
        """Host and port of the primary that MOVED names; remembered."""
        await self.nodes_manager.move_slot(redirection)
        return self.primary_of(redirection.slot_id)

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> ClusterPipeline:
        """A pipeline without transaction: commands are grouped by node, each node gets its own in one write."""
        if transaction or shard_hint:
            raise RedisClusterException("pipelines of the cluster client have no transactions")
        return _Pipeline(self)  # type: ignore[abstract]  # redis-py declares an attribute it does not define

    async def aclose(self) -> None:
        """Close every connection. What redis-py has in its place does nothing while the topology is stale."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        self._initialize = True
        manager = self.nodes_manager
        nodes = [*manager.nodes_cache.values(), *manager.startup_nodes.values()]
        closing = manager._background_tasks.union(*(node._background_tasks for node in nodes))
        await asyncio.gather(*(node.disconnect() for node in nodes), *closing, return_exceptions=True)

    async def send(self, commands: Sequence[PipelineCommand]) -> None:
        """Run commands with keys, each on the node of its keys; ``result`` of each becomes its reply or exception."""
        if self._initialize:
            await self.know_topology()
        batches: dict[str, tuple[ClusterNode, list[PipelineCommand]]] = {}
        for command in commands:
            try:
                node = self.nodes_manager.get_node_from_slot(await self._determine_slot(*command.args))
            except RedisClusterException as error:
                command.result = error
            else:
                batches.setdefault(node.name, (node, []))[1].append(command)
        if len(batches) == 1:
            ((node, batch),) = batches.values()
            await self._deliver(node, batch)
        else:
            await asyncio.gather(*(self._deliver(node, batch) for node, batch in batches.values()))

    async def _execute_command(self, target_node: ClusterNode, *args: Any, **kwargs: Any) -> Any:
        command = PipelineCommand(0, *args, **kwargs)
        await self._deliver(target_node, [command])
        if isinstance(command.result, Exception):
            raise command.result
        return command.result

    async def _deliver(self, node: ClusterNode, commands: list[PipelineCommand]) -> None:
        await self._write(node, commands)
        for command in commands:
            for _ in range(REDIRECTIONS):
                if isinstance(command.result, MovedError):
                    moved = command.result
                    await self.nodes_manager.move_slot(moved)
                    await self._write(self.nodes_manager.get_node_from_slot(moved.slot_id), [command])
                elif isinstance(command.result, AskError):
                    await self._write(self._node_at(command.result), [PipelineCommand(0, "ASKING"), command])
                else:
                    break

    async def _write(self, node: ClusterNode, commands: list[PipelineCommand]) -> None:
        if self.is_refused(node.host, int(node.port)):
            for command in commands:
                command.result = NotSent("the server does not answer")
            self.forget_topology()
            return
        slot = self._slots.setdefault(node.name, asyncio.Semaphore(self._pool_size))
        try:
            async with asyncio.timeout(self._pool_wait):
                await slot.acquire()
        except TimeoutError:
            for command in commands:
                command.result = MaxConnectionsError("all connections are in use")
            return
        try:
            await node.execute_pipeline(commands)
        except (RedisError, OSError) as error:  # before the first reply was read
            for command in commands:
                command.result = error
        finally:
            slot.release()
        if any(is_lost(command.result) for command in commands):
            self.forget_topology()

    def forget_topology(self) -> None:
        """A node was lost: the topology may have changed."""
        # A refresh makes every connection reconnect, so a slow node must not cause one for each of its commands.
        now = asyncio.get_running_loop().time()
        if now - self._stale_since > _REFRESH_SECONDS:
            self._stale_since = now
            self._initialize = True  # the next command asks for the topology first

    def _node_at(self, redirection: AskError) -> ClusterNode:
        node = self.get_node(redirection.host, redirection.port)
        if node is None:
            node = ClusterNode(redirection.host, redirection.port, "primary", **self.connection_kwargs)
            self.nodes_manager.set_nodes(self.nodes_manager.nodes_cache, {node.name: node})
        return node


class _Pipeline(ClusterPipeline):
    async def execute(self, raise_on_error: bool = True, allow_redirections: bool = True) -> list[Any]:  # noqa: ARG002
        """Replies in the order of the commands; with ``raise_on_error=False`` exceptions stand in the place of replies."""
        commands: list[PipelineCommand] = self._execution_strategy._command_queue  # type: ignore[attr-defined]
        try:
            await cast("ClusterClient", self.cluster_client).send(commands)
        finally:
            await self.reset()  # type: ignore[no-untyped-call]
        results = [command.result for command in commands]
        if raise_on_error:
            for result in results:
                if isinstance(result, Exception):
                    raise result
        return results


def is_lost(result: Any) -> bool:
    """Whether a reply or exception says that the node cannot be asked, so that another may have its slots."""
    if isinstance(result, NotSent) and result.__cause__ is not None:
        return is_lost(result.__cause__)
    lost = (RedisConnectionError, RedisTimeoutError, ClusterDownError)
    return isinstance(result, lost) and not isinstance(result, (MaxConnectionsError, BusyLoadingError))
