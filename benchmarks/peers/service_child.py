"""Our service end to end: three processes, one gRPC session, token by token."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.line_protocol import Run, read_job, serve
from loraplex_cli.service import ServiceSettings, running_service
from loraplex_client import AsyncClient


def main() -> None:
    job = read_job()
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        service = running_service(
            ServiceSettings(data_dir=Path(folder), model=Path(job["model"])), tell=lambda line: None
        )
        started = runner.run(service.__aenter__())
        try:
            client = runner.run(AsyncClient(started.target).__aenter__())
            serve(job, lambda: start(job, runner, client))
            runner.run(client.__aexit__(None, None, None))
        finally:
            runner.run(service.__aexit__(None, None, None))


def start(job: dict[str, Any], runner: asyncio.Runner, client: AsyncClient) -> Run:
    runner.run(register(client, job["adapters"]))

    def run(requests: list[dict[str, Any]]) -> list[list[int]]:
        return runner.run(generate_all(client, requests, job["num_output_tokens"]))

    return run


async def register(client: AsyncClient, folders: list[str]) -> None:
    for number, folder in enumerate(folders):
        await client.register_adapter(f"bench-{number}", Path(folder))
        await client.generate("Load it.", adapter=f"bench-{number}", max_tokens=1)


async def generate_all(client: AsyncClient, requests: list[dict[str, Any]], num_tokens: int) -> list[list[int]]:
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(generate(client, request, num_tokens)) for request in requests]
    return [task.result() for task in running]


async def generate(client: AsyncClient, request: dict[str, Any], num_tokens: int) -> list[int]:
    adapter = None if request["adapter"] is None else f"bench-{request['adapter']}"
    output = await client.generate(
        list(request["prompt_ids"]), adapter=adapter, temperature=0.0, max_tokens=num_tokens, ignore_eos=True
    )
    return list(output.sequences[0].token_ids)


if __name__ == "__main__":
    main()
