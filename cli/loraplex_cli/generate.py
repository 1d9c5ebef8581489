"""``loraplex generate``: one prompt, its answer streamed."""

from typing import Annotated

import typer

from loraplex_cli.console import CommandFailed
from loraplex_cli.sampling_options import AdapterName, MaxTokens, MinP, Seed, Stop, Temperature, TopK, TopP
from loraplex_cli.target import DEFAULT_TARGET, CaFile, Target, Token, UseTls, connect
from loraplex_client import Chat, Client, FinishReason, SamplingParams


def generate(
    prompt: Annotated[str, typer.Argument(help="The user's message, or with --raw the text to go on with.")],
    adapter: AdapterName = None,
    raw: Annotated[bool, typer.Option("--raw", help="Send the text as it is, without the chat template.")] = False,
    n: Annotated[int, typer.Option("--n", min=1, help="How many answers.")] = 1,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    seed: Seed = None,
    stop: Stop = None,
    target: Target = DEFAULT_TARGET,
    token: Token = None,
    ca: CaFile = None,
    tls: UseTls = False,
) -> None:
    """Answer one prompt."""
    sampling = SamplingParams(
        n=n,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop=stop,
    )
    with connect(target, token, ca, tls) as client:
        question = prompt if raw or not client.model().has_chat_template else _as_chat(prompt)
        if n == 1:
            _print_stream(client, question, sampling, adapter)
        else:
            _print_all(client, question, sampling, adapter)


def _as_chat(prompt: str) -> Chat:
    return Chat.of([{"role": "user", "content": prompt}])


def _print_stream(client: Client, question: str | Chat, sampling: SamplingParams, adapter: str | None) -> None:
    with client.stream(question, sampling, adapter=adapter) as stream:
        reason = None
        for delta in stream:
            typer.echo(delta.text, nl=False)
            reason = delta.finish.reason if delta.finish else None
    typer.echo()
    if reason is FinishReason.CANCELLED:
        raise CommandFailed("the request was cancelled by somebody else before it was done")


def _print_all(client: Client, question: str | Chat, sampling: SamplingParams, adapter: str | None) -> None:
    for sequence in client.generate(question, sampling, adapter=adapter).sequences:
        typer.echo(f"[{sequence.index}] {sequence.text}")
