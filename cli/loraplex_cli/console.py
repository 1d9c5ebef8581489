"""How commands tell of success and failure: one line each, no tracebacks for the world's errors."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from loraplex_contract.errors import LoraplexError


class CommandFailed(Exception):
    """A command cannot go on. The message is one sentence with the reason and the fix."""


class ReportingGroup(TyperGroup):
    """Turns the errors of every command into ``error: ...`` and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (LoraplexError, CommandFailed) as error:
            typer.echo(f"error: {describe(error)}", err=True)
            raise typer.Exit(1) from None
        except BrokenPipeError:
            # `loraplex generate ... | head`: nobody reads on, which is no failure of ours.
            sys.stderr.close()
            raise typer.Exit(0) from None


def describe(error: Exception) -> str:
    """Message, reason and when to try again."""
    if not isinstance(error, LoraplexError):
        return str(error)
    text = f"{error.message} [{error.reason}]"
    if error.retry_delay_s is not None:
        text += f" (try again in {error.retry_delay_s:g} s)"
    return text
