"""``loraplex chat``: a conversation in the terminal."""

import typer

from loraplex_cli.console import describe
from loraplex_cli.interrupt import Interrupt
from loraplex_cli.sampling_options import AdapterName, MaxTokens, MinP, Seed, Temperature, TopK, TopP
from loraplex_cli.target import DEFAULT_TARGET, CaFile, Target, Token, UseTls, connect
from loraplex_client import Chat, ChatMessage, Client, SamplingParams
from loraplex_contract.errors import LoraplexError


def chat(
    adapter: AdapterName = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    seed: Seed = None,
    target: Target = DEFAULT_TARGET,
    token: Token = None,
    ca: CaFile = None,
    tls: UseTls = False,
) -> None:
    """Talk to the model. /reset forgets, /exit leaves, Ctrl-C stops an answer."""
    sampling = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed
    )
    with connect(target, token, ca, tls) as client:
        typer.echo(f"{client.model().name}{f' with {adapter}' if adapter else ''} at {target}. /reset, /exit")
        _converse(client, sampling, adapter)


def _converse(client: Client, sampling: SamplingParams, adapter: str | None) -> None:
    history: list[ChatMessage] = []
    while (line := _read_line()) != "/exit":
        if line == "/reset":
            history.clear()
        elif line:
            history.append(ChatMessage(role="user", content=line))
            _answer(client, sampling, adapter, history)


def _read_line() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        typer.echo()
        return "/exit"


def _answer(client: Client, sampling: SamplingParams, adapter: str | None, history: list[ChatMessage]) -> None:
    """Adds what was said to the history, also of an answer that was stopped; an answer that failed is forgotten."""
    parts: list[str] = []
    try:
        with (
            Interrupt() as interrupt,
            client.stream(Chat(messages=tuple(history)), sampling, adapter=adapter) as stream,
        ):
            for delta in stream:
                parts.append(delta.text)
                typer.echo(delta.text, nl=False)
                if interrupt.is_set:
                    break
    except LoraplexError as error:
        history.pop()
        typer.echo(f"error: {describe(error)}", err=True)
        return
    typer.echo()
    history.append(ChatMessage(role="assistant", content="".join(parts)))
