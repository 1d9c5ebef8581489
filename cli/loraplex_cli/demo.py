"""``loraplex demo``: three processes, several adapters and the base model in one batch, and the proof of it."""

import asyncio
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Final

import typer
from rich.console import Console

from loraplex_cli.console import CommandFailed
from loraplex_cli.demo_adapters import register_demo_adapters
from loraplex_cli.demo_streams import Board, board
from loraplex_cli.service import Service, ServiceSettings, running_service
from loraplex_client import AsyncClient, Chat, Cluster, SamplingParams, TokenStream

BASE: Final = "base"
PROMPTS: Final = {
    "sql": "Table rivers(id, label, country, length, depth). What is the average length of all rivers?",
    "json": "Marlene Okafor, who is 47, lives in Lisbon.",
    "pirate": "How do I make a good cup of tea?",
    "french": "The blue house is small.",
    BASE: "How do I make a good cup of tea?",
}
"""What shows each demo adapter's behaviour; the base model gets the pirate's question."""
MIN_ADAPTERS: Final = 3
MAX_TOKENS: Final = 64
SETTLE_TIMEOUT_S: Final = 5.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What the workers counted."""

    num_steps: int
    num_mixed_steps: int
    max_adapters_in_step: int
    num_output_tokens: int
    duration_s: float
    versions: tuple[str, ...]

    @property
    def is_shared(self) -> bool:
        """Whether adapters and base model ran in the same steps."""
        return self.num_mixed_steps > 0 and self.max_adapters_in_step >= MIN_ADAPTERS

    def __str__(self) -> str:
        speed = self.num_output_tokens / self.duration_s
        return (
            f"proof: {self.num_steps} steps, {self.num_mixed_steps} mixed, up to {self.max_adapters_in_step} adapters "
            f"in one step, {self.num_output_tokens} tokens at {speed:.0f} tokens/s; versions {' '.join(self.versions)}"
        )


async def run_demo() -> int:
    """0 if the streams shared steps, else 1. Leaves no process and no file."""
    began_s = time.monotonic()
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="loraplex-demo-") as folder:
        settings = ServiceSettings(data_dir=Path(folder))
        typer.echo("starting scheduler, worker and frontend ...")
        async with running_service(settings, _tell) as service:
            typer.echo(f"serving after {time.monotonic() - began_s:.1f} s on {service.target}")
            proof = await service.supervisor.watch(show(service, console))
    typer.echo(str(proof))
    if not proof.is_shared:
        raise CommandFailed(f"the streams did not share steps: fewer than {MIN_ADAPTERS} adapters were in one step")
    return 0


async def show(service: Service, console: Console) -> Proof:
    """Registers the adapters, streams all answers at once, and asks the workers what happened."""
    async with AsyncClient(service.target, admin_target=service.admin_target) as client:
        adapters = [adapter.name for adapter in await register_demo_adapters(client)]
        names = [*(name for name in PROMPTS if name in adapters), BASE]
        if len(names) <= MIN_ADAPTERS:
            raise CommandFailed(f"the demo needs {MIN_ADAPTERS} of {', '.join(PROMPTS)} in examples/adapters")
        for name in names:
            typer.echo(f"  {name:>6} < {PROMPTS[name]}")
        began_s = time.monotonic()
        streams = await _start_all(client, names)
        with board(names, console) as lines:
            async with asyncio.TaskGroup() as tasks:
                counts = [tasks.create_task(_follow(name, streams[name], lines)) for name in names]
        duration_s = time.monotonic() - began_s
        num_tokens = sum(count.result() for count in counts)
        return _proof(await _settled(client, num_tokens), streams, num_tokens, duration_s)


async def _start_all(client: AsyncClient, names: list[str]) -> dict[str, TokenStream]:
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    streams = {}
    for name in names:
        chat = Chat.of([{"role": "user", "content": PROMPTS[name]}])
        stream = client.stream(chat, sampling, adapter=None if name == BASE else name)
        streams[name] = await stream.start()
    return streams


async def _follow(name: str, stream: TokenStream, lines: Board) -> int:
    num_tokens = 0
    async for delta in stream:
        num_tokens += delta.num_tokens
        lines.add(name, delta.text)
        if delta.finish is not None:
            lines.end(name, f"{delta.finish.reason}, {num_tokens} tokens")
    return num_tokens


async def _settled(client: AsyncClient, num_tokens: int) -> Cluster:
    """The counts once they hold all that arrived here: a worker's last report may be on its way."""
    deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        cluster = await client.cluster()
        if sum(worker.num_output_tokens for worker in cluster.workers) >= num_tokens:
            return cluster
        if time.monotonic() > deadline_s:
            raise CommandFailed(f"the workers report fewer tokens than the {num_tokens} that arrived")
        await asyncio.sleep(0.02)


def _proof(cluster: Cluster, streams: dict[str, TokenStream], num_tokens: int, duration_s: float) -> Proof:
    resolved = [adapter for stream in streams.values() if stream.prompt for adapter in stream.prompt.adapters]
    return Proof(
        num_steps=sum(worker.num_steps for worker in cluster.workers),
        num_mixed_steps=sum(worker.num_mixed_steps for worker in cluster.workers),
        max_adapters_in_step=max(worker.max_adapters_in_step for worker in cluster.workers),
        num_output_tokens=num_tokens,
        duration_s=duration_s,
        versions=tuple(f"{adapter.name}@{adapter.version}:{adapter.digest[:8]}" for adapter in resolved),
    )


def _tell(line: str) -> None:
    typer.echo(line, err=True)
