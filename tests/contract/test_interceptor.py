"""The last-resort interceptor, over a real server: what a handler raises, what a client sees."""

import contextlib
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from loraplex.v1 import inference_pb2, inference_pb2_grpc, session_pb2
from loraplex_contract import errors, status
from loraplex_contract.interceptor import ErrorInterceptor

SECRET = "/var/secret/path"
SUBMIT = "/loraplex.v1.InferenceService/Submit"


class Broken:
    """An InferenceService of which only three methods are called."""

    Attach = Cancel = None

    def __init__(self, error):
        self.error = error

    async def Submit(self, request, context):
        raise self.error

    async def SubmitStream(self, request, context):
        yield inference_pb2.SubmitStreamResponse()
        raise self.error

    async def Session(self, request_iterator, context):
        async for _ in request_iterator:
            await context.write(session_pb2.SessionResponse())
        raise self.error


@contextlib.asynccontextmanager
async def serving(error):
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    servicer: Any = Broken(error)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)


async def call_stream(channel):
    async for _ in inference_pb2_grpc.InferenceServiceStub(channel).SubmitStream(inference_pb2.SubmitStreamRequest()):
        pass


async def call_session(channel):
    call = inference_pb2_grpc.InferenceServiceStub(channel).Session()
    await call.write(session_pb2.SessionRequest())
    await call.done_writing()
    async for _ in call:
        pass


async def call_submit_raw(channel):
    await channel.unary_unary(SUBMIT)(b"")


def seen_by(error: Any) -> errors.LoraplexError:
    pb = rpc_status.from_call(error)
    assert pb is not None
    return status.error_from_status(pb)


CALLS = [call_submit_raw, call_stream, call_session]


@pytest.mark.parametrize("call", CALLS)
async def test_a_known_error_becomes_its_status(call):
    error = errors.NotFound("no adapter 'x'", reason="ADAPTER_NOT_FOUND", metadata={"adapter": "x"})
    async with serving(error) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    seen = seen_by(caught.value)
    assert (seen.reason, seen.metadata) == ("ADAPTER_NOT_FOUND", {"adapter": "x"})


@pytest.mark.parametrize("call", CALLS)
async def test_the_text_of_a_bug_never_reaches_the_client(call, caplog):
    async with serving(ValueError(f"cannot open {SECRET}")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    seen = seen_by(caught.value)
    assert SECRET not in str(caught.value)
    assert seen.metadata["incident"] in caplog.text
    assert SECRET in caplog.text


async def test_an_error_in_a_task_group_is_told_apart():
    group = ExceptionGroup("tasks", [errors.Unavailable("away", reason="SCHEDULER_LOST", retry_delay_s=1)])
    async with serving(group) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_submit_raw(channel)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\xff\xff\xff\xff\x0f"])
async def test_bytes_that_do_not_parse_are_an_invalid_argument(data):
    async with serving(RuntimeError("never reached")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(SUBMIT)(data)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert seen_by(caught.value).reason == "MALFORMED_MESSAGE"


async def test_malformed_frames_end_a_stream_with_an_invalid_argument():
    async with serving(RuntimeError("never reached")) as channel:
        call = channel.stream_stream("/loraplex.v1.InferenceService/Session")()
        await call.write(b"\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
