"""Sampling flags that ``generate`` and ``chat`` share."""

from typing import Annotated

import typer

MaxTokens = Annotated[int, typer.Option(min=1, help="Output tokens at most.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 = the most likely token, always.")]
TopP = Annotated[float, typer.Option(help="Keep the smallest set of tokens that reaches this probability.")]
TopK = Annotated[int, typer.Option(help="Keep this many tokens; 0 = all.")]
MinP = Annotated[float, typer.Option(help="Drop tokens less likely than this times the most likely.")]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same answer.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")]
AdapterName = Annotated[str | None, typer.Option(help="NAME or NAME@VERSION; none = the base model.")]
