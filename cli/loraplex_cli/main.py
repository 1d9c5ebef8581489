"""The ``loraplex`` command."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from loraplex_cli import adapters, processes, simulate
from loraplex_cli import model as model_commands
from loraplex_cli.chat import chat
from loraplex_cli.console import ReportingGroup
from loraplex_cli.data_dir import default_data_dir
from loraplex_cli.demo import run_demo
from loraplex_cli.doctor import doctor
from loraplex_cli.generate import generate
from loraplex_cli.service import LOOPBACK, ServiceSettings
from loraplex_cli.target import DEFAULT_TARGET
from loraplex_cli.top import top
from loraplex_cli.up import serve, until_stopped

app = typer.Typer(
    name="loraplex",
    cls=ReportingGroup,
    help="One base model, thousands of LoRA adapters, one gRPC API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def up(
    model: Annotated[Path | None, typer.Option(help="Hugging Face folder; none = the demo model.")] = None,
    listen: Annotated[str, typer.Option(help="Address of the API; port 0 = any free one.")] = DEFAULT_TARGET,
    admin_listen: Annotated[str, typer.Option(help="Address of the operators' API.")] = LOOPBACK,
    data_dir: Annotated[Path | None, typer.Option(help="Registry, adapters and logs.")] = None,
    demo_adapters: Annotated[bool, typer.Option("--demo-adapters", help="Register examples/adapters.")] = False,
    num_workers: Annotated[int, typer.Option(min=1, max=64)] = 1,
    dtype: Annotated[str | None, typer.Option(help="bf16 or fp32.")] = None,
    metrics: Annotated[bool, typer.Option("--metrics", help="Every process serves /metrics on a free port.")] = False,
    port_file: Annotated[Path | None, typer.Option(help="JSON file with the addresses, once it serves.")] = None,
    stop_with_stdin: Annotated[bool, typer.Option("--stop-with-stdin", hidden=True)] = False,
) -> None:
    """Start the whole service on this machine and keep it running."""
    settings = ServiceSettings(
        data_dir=(data_dir or default_data_dir()).absolute(),
        model=model,
        listen=listen,
        admin_listen=admin_listen,
        num_workers=num_workers,
        dtype=dtype,
        has_metrics=metrics,
    )
    work = serve(settings, demo_adapters=demo_adapters, port_file=port_file)
    raise typer.Exit(asyncio.run(until_stopped(work, watch_stdin=stop_with_stdin)))


@app.command()
def demo() -> None:
    """Show three adapters and the base model in one batch, and end."""
    raise typer.Exit(asyncio.run(until_stopped(run_demo(), code=130)))


app.command()(generate)
app.command()(chat)
app.command()(doctor)
app.command()(top)
app.add_typer(adapters.app, name="adapters")
app.add_typer(model_commands.app, name="model")
processes.add_to(app)
simulate.add_to(app)

if __name__ == "__main__":
    app()
