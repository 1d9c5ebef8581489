"""Answers of the fake frontend, as the prompt itself asks for.

A prompt is a row of words, ``key`` or ``key=value``:

    tokens=5     this many tokens, unless max_tokens is smaller
    endless      tokens until it is cancelled
    delay=0.01   seconds between tokens
    gap, repeat  breaks the order of tokens at index 2
    fail         ends with FINISH_REASON_ERROR (UNAVAILABLE / WORKER_LOST) after two tokens
    stop         ends with FINISH_REASON_STOP_STRING
    eos          ends with FINISH_REASON_EOS

Anything else is ignored. Token i has the id 1000 + i and the text "<adapter>:<i> ", so that an answer shows what
answered. Texts and token ids are each other's UTF-8 bytes.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from loraplex.v1 import adapter_pb2, generation_pb2
from loraplex_contract import errors, status, token_bytes

MODEL = "fake-model"
FIRST_TOKEN_ID = 1000


async def deltas(
    request: generation_pb2.SubmitRequest, handle: int, cancelled: asyncio.Event | None = None
) -> AsyncIterator[generation_pb2.SequenceDelta]:
    """The whole answer, all sequences side by side, the last delta of each with its finish."""
    words = _words(prompt_text(request))
    limit = request.stop.max_tokens or 1 << 30
    count = limit if "endless" in words else min(limit, int(words.get("tokens", "3")))
    sequences = range(max(1, request.sampling.n))
    for number in range(count):
        if words.get("delay") or "endless" in words:
            await asyncio.sleep(float(words.get("delay", "0.005")))
        if cancelled is not None and cancelled.is_set():
            for index in sequences:
                yield _end(handle, index, number, generation_pb2.FINISH_REASON_CANCELLED)
            return
        if "fail" in words and number == 2:
            lost = errors.Unavailable("the worker is gone", reason="WORKER_LOST", retry_delay_s=1.0)
            error = status.error_to_pb(lost)
            for index in sequences:
                yield _end(handle, index, number, generation_pb2.FINISH_REASON_ERROR, error=error)
            return
        for index in sequences:
            yield _token(request, handle, index, _shown_index(words, number))
    for index in sequences:
        yield _end(handle, index, count, *_finish_of(words))


def _shown_index(words: dict[str, str], number: int) -> int:
    if number < 2:
        return number
    return number + ("gap" in words) - ("repeat" in words)


def _finish_of(words: dict[str, str]) -> tuple[Any, str]:
    if "stop" in words:
        return generation_pb2.FINISH_REASON_STOP_STRING, "END"
    if "eos" in words:
        return generation_pb2.FINISH_REASON_EOS, ""
    return generation_pb2.FINISH_REASON_MAX_TOKENS, ""


def _token(request: generation_pb2.SubmitRequest, handle: int, index: int, number: int) -> Any:
    who = request.adapter.name or "+".join(part.name for part in request.adapter.composition) or "base"
    delta = generation_pb2.SequenceDelta(
        handle=handle,
        index=index,
        first_token=number,
        num_tokens=1,
        token_ids=[FIRST_TOKEN_ID + number],
        text=f"{who}:{number} ",
    )
    if request.output.HasField("top_logprobs"):
        top = range(1, 1 + request.output.top_logprobs)
        delta.logprobs.add(logprob=-0.5, rank=1, top_token_ids=top, top_logprobs=[-float(i) for i in top])
    return delta


def _end(handle: int, index: int, number: int, reason: Any, stop_string: str = "", error: Any = None) -> Any:
    usage = generation_pb2.Usage(num_output_tokens=number)
    finish = generation_pb2.Finish(reason=reason, stop_string=stop_string, usage=usage, error=error)
    if reason == generation_pb2.FINISH_REASON_EOS:
        finish.stop_token_id = 2
    return generation_pb2.SequenceDelta(handle=handle, index=index, first_token=number, finish=finish)


def prompt_text(request: generation_pb2.SubmitRequest) -> str:
    if request.HasField("chat"):
        return chat_text(request.chat)
    if request.HasField("tokens"):
        return bytes(list(token_bytes.unpack(request.tokens.ids_le32))).decode()
    return request.text


def prompt_info(request: generation_pb2.SubmitRequest, adapters: list[adapter_pb2.Adapter]) -> Any:
    if request.sampling.temperature < 0:
        raise errors.field_error("sampling.temperature", "is negative; 0 to 100", reason="SAMPLING_INVALID")
    num_tokens = len(prompt_text(request).encode())
    info = generation_pb2.PromptInfo(num_prompt_tokens=num_tokens, model=MODEL, seed=request.sampling.seed or 77)
    for adapter in adapters:
        info.adapters.add(name=adapter.name, version=adapter.version.number, digest=adapter.version.digest, weight=1)
    if request.output.HasField("prompt_logprobs"):
        info.logprobs.add()
        for _ in range(num_tokens - 1):
            info.logprobs.add(logprob=-2.0, rank=3)
    return info


def _words(text: str) -> dict[str, str]:
    return {key: value for key, _, value in (word.partition("=") for word in text.split())}


def chat_text(chat: generation_pb2.Chat) -> str:
    return " ".join(f"<{message.role}> {message.content}" for message in chat.messages)
