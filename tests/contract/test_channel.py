"""What the channel options promise, against real sockets."""

import asyncio
import contextlib
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from loraplex_contract.channel import CLIENT_OPTIONS, SERVER_OPTIONS

BUSY_S = 0.5


async def test_a_server_that_is_slow_to_greet_is_waited_for():
    """A busy machine may take half a second for its first HTTP/2 frame: that is no failure to connect."""
    async with (
        health_server() as port,
        slow_to_greet(port) as slow_port,
        grpc.aio.insecure_channel(f"127.0.0.1:{slow_port}", options=CLIENT_OPTIONS) as channel,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@contextlib.asynccontextmanager
async def health_server():
    server = grpc.aio.server(options=SERVER_OPTIONS)
    health = HealthServicer()
    health.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(None)


@contextlib.asynccontextmanager
async def slow_to_greet(port: int):
    """A TCP relay whose first bytes from the server come late."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pump(reader, to_server, 0.0))
            tasks.create_task(pump(from_server, writer, BUSY_S))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Copy until the end of either side."""
    await asyncio.sleep(delay_s)
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
