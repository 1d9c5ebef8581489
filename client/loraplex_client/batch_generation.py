"""Many prompts at once over one session, answers in the order of the prompts."""

import asyncio
import dataclasses
import uuid
from collections.abc import Iterator, Sequence
from typing import Final

from loraplex_client.async_client import AsyncClient
from loraplex_client.lora_request import LoRARegistrar, LoRARequest
from loraplex_client.progress import Progress
from loraplex_client.request_options import RequestOptions
from loraplex_client.request_output import RequestOutput, request_output
from loraplex_client.sampling_params import SamplingParams

TEXTS_PER_CALL: Final = 64
BYTES_PER_CALL: Final = 1 << 20
MAX_IN_FLIGHT: Final = 512


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BatchItem:
    """One prompt with all that belongs to it."""

    text: str | None
    token_ids: list[int] | None
    """None: the server tokenises ``text``."""
    sampling: SamplingParams
    lora_request: LoRARequest | None
    priority: int = 0


async def run_batch(
    client: AsyncClient, items: Sequence[BatchItem], loras: LoRARegistrar, progress: Progress
) -> list[RequestOutput]:
    """Registers the adapters, tokenises, generates. On an error the rest is cancelled and the error raised."""
    for lora in {item.lora_request.lora_name: item.lora_request for item in items if item.lora_request}.values():
        await loras.ensure(client, lora)
    token_ids = await tokenize_all(client, items)
    outputs: list[RequestOutput | None] = [None] * len(items)
    todo = iter(range(len(items)))

    async def work() -> None:
        for index in todo:
            outputs[index] = await _generate(client, items[index], token_ids[index])
            progress.update(1)

    try:
        async with asyncio.TaskGroup() as tasks:
            for number in range(min(len(items), MAX_IN_FLIGHT)):
                tasks.create_task(work(), name=f"batch/{number}")
    except BaseExceptionGroup as group:
        raise _first(group) from None
    return [output for output in outputs if output is not None]


async def tokenize_all(client: AsyncClient, items: Sequence[BatchItem]) -> list[list[int]]:
    """Token ids of every prompt: those given, and the server's for the texts."""
    texts = [(index, item.text) for index, item in enumerate(items) if item.token_ids is None and item.text is not None]
    result = [list(item.token_ids or ()) for item in items]
    for chunk in _chunks(texts):
        answers = await client.tokenize([text for _, text in chunk])
        for (index, _), token_ids in zip(chunk, answers, strict=True):
            result[index] = token_ids
    return result


async def _generate(client: AsyncClient, item: BatchItem, token_ids: list[int]) -> RequestOutput:
    options = RequestOptions(request_id=uuid.uuid4().hex, priority=item.priority)
    adapter = item.lora_request.lora_name if item.lora_request else None
    output = await client.generate(token_ids, item.sampling, adapter=adapter, options=options)
    return request_output(
        output,
        prompt=item.text,
        prompt_token_ids=token_ids,
        sampling=item.sampling,
        lora_request=item.lora_request,
    )


def _chunks(texts: Sequence[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    chunk: list[tuple[int, str]] = []
    num_bytes = 0
    for index, text in texts:
        size = len(text.encode("utf-8", errors="replace"))
        if chunk and (len(chunk) == TEXTS_PER_CALL or num_bytes + size > BYTES_PER_CALL):
            yield chunk
            chunk, num_bytes = [], 0
        chunk.append((index, text))
        num_bytes += size
    if chunk:
        yield chunk


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
