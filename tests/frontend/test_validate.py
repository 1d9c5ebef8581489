"""Each rule of a request at its borders, and everything that is wrong reported at once."""

import math
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from loraplex.v1 import adapter_ref_pb2, generation_pb2, sampling_pb2
from loraplex_contract import token_bytes
from loraplex_contract.errors import InvalidArgument, NotFound
from loraplex_frontend.request import TokenPrompt
from loraplex_frontend.request_limits import RequestLimits
from loraplex_frontend.text.chat_template import Conversation
from loraplex_frontend.validate import check_stream_options, check_submit
from loraplex_frontend.validate_prompt import check_length

VOCAB, CONTEXT = 400, 64
LIMITS = RequestLimits(
    model_name="tiny",
    vocab_size=VOCAB,
    max_context_tokens=CONTEXT,
    max_prompt_bytes=1_000,
    max_timeout_s=100.0,
    roles=frozenset({"user", "assistant", "system"}),
    reserved_template_names=frozenset({"messages", "bos_token"}),
)
DIGEST = "a" * 64
NAN, INF = math.nan, math.inf
HUGE = 3.0e38


def base(**fields) -> generation_pb2.SubmitRequest:
    return generation_pb2.SubmitRequest(**({"text": "hi"} | fields))


def with_field(path: str, value) -> generation_pb2.SubmitRequest:
    """The base request with one field set: ``sampling.top_p``."""
    request = base()
    *parents, name = path.split(".")
    target = request
    for parent in parents:
        target = getattr(target, parent)
    if isinstance(value, (list, tuple)):
        getattr(target, name).extend(value)
    elif isinstance(value, dict):
        getattr(target, name).update(value)
    elif isinstance(value, Duration):
        getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)
    return request


def seconds(value: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(value * 1e9))
    return duration


GOOD = [
    ("request_id", ""),
    ("request_id", "!"),
    ("request_id", "x" * 128),
    ("model", ""),
    ("model", "tiny"),
    ("sampling.temperature", 0.0),
    ("sampling.temperature", 100.0),
    ("sampling.top_k", 0),
    ("sampling.top_k", 2**32 - 1),
    ("sampling.top_p", 1e-6),
    ("sampling.top_p", 1.0),
    ("sampling.min_p", 0.0),
    ("sampling.min_p", 1.0),
    ("sampling.repetition_penalty", 1e-6),
    ("sampling.repetition_penalty", 10.0),
    ("sampling.presence_penalty", -2.0),
    ("sampling.presence_penalty", 2.0),
    ("sampling.frequency_penalty", -2.0),
    ("sampling.frequency_penalty", 2.0),
    ("sampling.n", 1),
    ("sampling.n", 16),
    ("sampling.seed", 2**64 - 1),
    ("sampling.logit_bias", {0: -100.0, VOCAB - 1: 100.0}),
    ("sampling.allowed_token_ids", [0, VOCAB - 1]),
    ("sampling.banned_token_ids", [0] * 4096),
    ("stop.max_tokens", 1),
    ("stop.max_tokens", CONTEXT - 1),
    ("stop.min_tokens", CONTEXT),
    ("stop.stop_strings", ["x"] * 16),
    ("stop.stop_strings", ["x" * 256]),
    ("stop.stop_token_ids", [VOCAB - 1] * 64),
    ("stop.time_limit", seconds(1e-9)),
    ("stop.time_limit", seconds(100)),
    ("output.top_logprobs", 0),
    ("output.top_logprobs", 20),
    ("output.prompt_logprobs", 20),
    ("scheduling.priority", -100),
    ("scheduling.priority", 100),
    ("scheduling.timeout", seconds(100)),
    ("scheduling.queue_timeout", seconds(1e-9)),
    ("scheduling.first_token_timeout", seconds(1e-9)),
    ("scheduling.first_token_timeout", seconds(100)),
    ("labels", {"k" * 128: "v" * 128}),
    ("labels", {str(i): "" for i in range(16)}),
    ("adapter.name", "a"),
    ("adapter.name", "a" * 63),
    ("adapter.uri", "file:///a"),
]
BAD = [
    # path, value, reason, field that is named
    ("request_id", "x" * 129, "FIELD_INVALID", "request_id"),
    ("request_id", "with space", "FIELD_INVALID", "request_id"),
    ("request_id", "é", "FIELD_INVALID", "request_id"),
    ("sampling.temperature", -0.001, "SAMPLING_INVALID", None),
    ("sampling.temperature", 100.1, "SAMPLING_INVALID", None),
    ("sampling.top_p", 0.0, "SAMPLING_INVALID", None),
    ("sampling.top_p", 1.001, "SAMPLING_INVALID", None),
    ("sampling.min_p", -0.001, "SAMPLING_INVALID", None),
    ("sampling.min_p", 1.001, "SAMPLING_INVALID", None),
    ("sampling.repetition_penalty", 0.0, "SAMPLING_INVALID", None),
    ("sampling.repetition_penalty", 10.1, "SAMPLING_INVALID", None),
    ("sampling.presence_penalty", -2.01, "SAMPLING_INVALID", None),
    ("sampling.presence_penalty", 2.01, "SAMPLING_INVALID", None),
    ("sampling.frequency_penalty", -2.01, "SAMPLING_INVALID", None),
    ("sampling.frequency_penalty", 2.01, "SAMPLING_INVALID", None),
    *[
        (f"sampling.{name}", value, "SAMPLING_INVALID", None)
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        )
        for value in (NAN, INF, -INF, HUGE)
    ],
    ("sampling.n", 0, "SAMPLING_INVALID", None),
    ("sampling.n", 17, "SAMPLING_INVALID", None),
    ("sampling.logit_bias", {1: 100.1}, "SAMPLING_INVALID", "sampling.logit_bias[1]"),
    ("sampling.logit_bias", {1: -100.1}, "SAMPLING_INVALID", "sampling.logit_bias[1]"),
    ("sampling.logit_bias", {1: NAN}, "SAMPLING_INVALID", "sampling.logit_bias[1]"),
    ("sampling.logit_bias", {VOCAB: 1.0}, "TOKEN_OUT_OF_VOCAB", None),
    ("sampling.logit_bias", dict.fromkeys(range(1025), 0.0), "SAMPLING_INVALID", None),
    ("sampling.allowed_token_ids", [VOCAB], "TOKEN_OUT_OF_VOCAB", None),
    ("sampling.allowed_token_ids", [0] * 4097, "SAMPLING_INVALID", None),
    ("sampling.banned_token_ids", [VOCAB], "TOKEN_OUT_OF_VOCAB", None),
    ("sampling.banned_token_ids", [0] * 4097, "SAMPLING_INVALID", None),
    ("stop.max_tokens", 0, "SAMPLING_INVALID", None),
    ("stop.min_tokens", CONTEXT + 1, "SAMPLING_INVALID", None),
    ("stop.stop_strings", [""], "SAMPLING_INVALID", "stop.stop_strings[0]"),
    ("stop.stop_strings", ["x" * 257], "SAMPLING_INVALID", "stop.stop_strings[0]"),
    ("stop.stop_strings", ["é" * 129], "SAMPLING_INVALID", "stop.stop_strings[0]"),
    ("stop.stop_strings", ["x"] * 17, "SAMPLING_INVALID", None),
    ("stop.stop_token_ids", [VOCAB], "TOKEN_OUT_OF_VOCAB", None),
    ("stop.stop_token_ids", [0] * 65, "SAMPLING_INVALID", None),
    ("stop.time_limit", seconds(0), "SAMPLING_INVALID", None),
    ("stop.time_limit", seconds(-1), "SAMPLING_INVALID", None),
    ("stop.time_limit", seconds(100.001), "SAMPLING_INVALID", None),
    ("stop.time_limit", Duration(seconds=1, nanos=-1), "SAMPLING_INVALID", None),
    ("stop.time_limit", Duration(seconds=1, nanos=2_000_000_000), "SAMPLING_INVALID", None),
    ("output.top_logprobs", 21, "FIELD_INVALID", None),
    ("output.prompt_logprobs", 21, "FIELD_INVALID", None),
    ("scheduling.priority", -101, "FIELD_INVALID", None),
    ("scheduling.priority", 101, "FIELD_INVALID", None),
    ("scheduling.timeout", seconds(0), "FIELD_INVALID", None),
    ("scheduling.timeout", seconds(100.001), "FIELD_INVALID", None),
    ("scheduling.queue_timeout", seconds(0), "FIELD_INVALID", None),
    ("scheduling.first_token_timeout", seconds(0), "FIELD_INVALID", None),
    ("scheduling.first_token_timeout", seconds(100.001), "FIELD_INVALID", None),
    ("labels", {"k" * 129: ""}, "FIELD_INVALID", None),
    ("labels", {"k": "v" * 129}, "FIELD_INVALID", None),
    ("labels", {"": "v"}, "FIELD_INVALID", None),
    ("labels", {str(i): "" for i in range(17)}, "FIELD_INVALID", None),
    ("adapter.name", "A", "ADAPTER_REF_INVALID", None),
    ("adapter.name", "a" * 64, "ADAPTER_REF_INVALID", None),
    ("adapter.name", "../a", "ADAPTER_REF_INVALID", None),
    ("adapter.uri", "x" * 4097, "ADAPTER_REF_INVALID", None),
    ("text", "", "PROMPT_MISSING", None),
    ("text", "x" * 1001, "PROMPT_TOO_LONG", None),
]


def refusal(request: generation_pb2.SubmitRequest) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        check_submit(request, LIMITS)
    return caught.value


@pytest.mark.parametrize(("path", "value"), GOOD)
def test_values_at_the_border_are_taken(path, value):
    check_submit(with_field(path, value), LIMITS)


@pytest.mark.parametrize(("path", "value", "reason", "field"), BAD)
def test_values_past_the_border_are_refused_by_name(path, value, reason, field):
    error = refusal(with_field(path, value))
    assert error.reason == reason
    assert error.violations[0].field == (field or path)


def test_all_violations_come_at_once_and_the_first_gives_the_reason():
    request = base(request_id="a b", text="", labels={"": ""})
    request.sampling.temperature, request.sampling.top_p = NAN, 2.0
    request.stop.stop_strings.append("")
    error = refusal(request)
    assert [violation.field for violation in error.violations] == [
        "request_id",
        "text",
        "sampling.temperature",
        "sampling.top_p",
        "stop.stop_strings[0]",
        "labels",
    ]
    assert error.reason == "FIELD_INVALID"


def test_a_thousand_violations_make_a_small_answer():
    messages = [generation_pb2.ChatMessage(role="nobody", content="x") for _ in range(1000)]
    error = refusal(generation_pb2.SubmitRequest(chat=generation_pb2.Chat(messages=messages)))
    assert len(error.violations) == 64
    assert "999 more" in error.message


def test_defaults_are_filled_in():
    request = check_submit(base(), LIMITS)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.repetition_penalty) == (1.0, 1.0, 1.0)
    assert (sampling.top_k, sampling.min_p, sampling.presence_penalty, sampling.frequency_penalty) == (0, 0, 0, 0)
    assert (sampling.num_sequences, sampling.seed) == (1, None)
    assert (request.output.text, request.output.token_ids, request.output.skip_special_tokens) == (True, True, True)
    assert (request.stop.max_tokens, request.stop.min_tokens) == (None, 0)
    assert request.adapters == ()


def test_explicit_zeroes_are_not_defaults():
    request = base()
    request.sampling.temperature = 0.0
    request.output.text = False
    request.output.top_logprobs = 0
    checked = check_submit(request, LIMITS)
    assert checked.sampling.temperature == 0.0
    assert not checked.output.text
    assert checked.output.top_logprobs == 0


def test_min_tokens_is_at_most_max_tokens():
    request = base(stop=sampling_pb2.StopCriteria(max_tokens=3, min_tokens=3))
    check_submit(request, LIMITS)
    request.stop.min_tokens = 4
    assert refusal(request).violations[0].field == "stop.min_tokens"


def test_banning_every_allowed_token_is_refused():
    request = base(sampling=sampling_pb2.SamplingParams(allowed_token_ids=[1, 2], banned_token_ids=[2, 1]))
    assert refusal(request).reason == "SAMPLING_INVALID"


def test_another_model_is_not_found():
    with pytest.raises(NotFound) as caught:
        check_submit(base(model="other"), LIMITS)
    assert caught.value.reason == "MODEL_NOT_FOUND"


# --- prompts ---


def tokens(**fields) -> generation_pb2.SubmitRequest:
    return generation_pb2.SubmitRequest(tokens=generation_pb2.TokenIds(**fields))


def test_a_request_without_a_prompt_is_refused():
    assert refusal(generation_pb2.SubmitRequest()).reason == "PROMPT_MISSING"
    assert refusal(tokens()).reason == "PROMPT_MISSING"


def test_both_token_forms_at_once_are_ambiguous():
    assert refusal(tokens(ids=[1], ids_le32=token_bytes.pack([1]))).reason == "PROMPT_AMBIGUOUS"


def test_token_bytes_must_be_whole_ids():
    assert refusal(tokens(ids_le32=b"abc")).violations[0].field == "tokens.ids_le32"


@pytest.mark.parametrize("form", ["ids", "ids_le32"])
def test_the_first_token_out_of_the_vocabulary_is_named(form):
    ids = [1, 2, VOCAB, VOCAB + 1]
    error = refusal(tokens(**{form: ids if form == "ids" else token_bytes.pack(ids)}))
    assert error.reason == "TOKEN_OUT_OF_VOCAB"
    assert error.metadata == {"index": "2", "id": str(VOCAB), "vocabSize": str(VOCAB)}


@pytest.mark.parametrize("form", ["ids", "ids_le32"])
def test_both_token_forms_give_the_same_prompt(form):
    ids = [0, 1, VOCAB - 1]
    checked = check_submit(tokens(**{form: ids if form == "ids" else token_bytes.pack(ids)}), LIMITS)
    assert isinstance(checked.prompt, TokenPrompt)
    assert list(checked.prompt.token_ids) == ids


def test_a_prompt_leaves_room_for_one_token():
    check_submit(tokens(ids=[1] * (CONTEXT - 1)), LIMITS)
    error = refusal(tokens(ids=[1] * CONTEXT))
    assert error.reason == "PROMPT_TOO_LONG"
    assert error.metadata == {"promptTokens": str(CONTEXT), "maxPromptTokens": str(CONTEXT - 1)}


@pytest.mark.parametrize(
    ("num_tokens", "max_tokens", "reason"),
    [
        (0, None, "PROMPT_MISSING"),
        (CONTEXT, None, "PROMPT_TOO_LONG"),
        (CONTEXT - 1, 2, "CONTEXT_EXCEEDED"),
        (10, CONTEXT, "CONTEXT_EXCEEDED"),
    ],
)
def test_prompt_and_output_must_fit_the_context(num_tokens, max_tokens, reason):
    with pytest.raises(InvalidArgument) as caught:
        check_length(num_tokens, max_tokens, LIMITS)
    assert caught.value.reason == reason


def test_prompt_and_output_may_fill_the_context():
    check_length(CONTEXT - 1, 1, LIMITS)
    check_length(CONTEXT - 1, None, LIMITS)


def chat(*messages: tuple[str, str], args: dict[str, Any] | None = None) -> generation_pb2.SubmitRequest:
    pb = generation_pb2.Chat(messages=[generation_pb2.ChatMessage(role=r, content=c) for r, c in messages])
    if args is not None:
        pb.template_args.update(args)
    return generation_pb2.SubmitRequest(chat=pb)


def test_a_chat_becomes_a_conversation():
    checked = check_submit(chat(("user", "hi"), args={"depth": 3, "deep": {"a": [1, None, True, 0.5]}}), LIMITS)
    assert isinstance(checked.prompt, Conversation)
    assert checked.prompt.messages[0].content == "hi"
    assert checked.prompt.add_generation_prompt
    assert checked.prompt.template_args == {"depth": 3, "deep": {"a": [1, None, True, 0.5]}}


@pytest.mark.parametrize(
    ("request_pb", "field"),
    [
        (chat(), "chat.messages"),
        (chat(*[("user", "")] * 1025), "chat.messages"),
        (chat(("im_end|><|im_start", "x")), "chat.messages[0].role"),
        (chat(("user", "x" * 600), ("user", "x" * 600)), "chat.messages"),
        (chat(("user", "x"), args={"messages": []}), "chat.template_args.messages"),
        (chat(("user", "x"), args={"bos_token": "x"}), "chat.template_args.bos_token"),
        (chat(("user", "x"), args={"x": "y" * 70_000}), "chat.template_args"),
        (chat(("user", "x"), args={"x": NAN}), "chat.template_args"),
    ],
)
def test_chats_past_a_bound_are_refused_by_name(request_pb, field):
    assert refusal(request_pb).violations[0].field == field


def test_deeply_nested_template_arguments_are_refused():
    request = chat(("user", "x"))
    inner = Struct()
    for _ in range(20):
        outer = Struct()
        outer.fields["a"].struct_value.CopyFrom(inner)
        inner = outer
    request.chat.template_args.CopyFrom(inner)
    assert refusal(request).violations[0].field == "chat.template_args"


# --- adapters ---


def adapter(**fields) -> generation_pb2.SubmitRequest:
    return base(adapter=adapter_ref_pb2.AdapterRef(**fields))


def part(name="a", **fields) -> adapter_ref_pb2.WeightedAdapter:
    return adapter_ref_pb2.WeightedAdapter(name=name, **fields)


@pytest.mark.parametrize(
    "request_pb",
    [
        adapter(name="a", version="1"),
        adapter(name="a", version=DIGEST, scale=0.0),
        adapter(name="a", scale=-16.0),
        adapter(uri="file:///x", scale=16.0),
        adapter(composition=[part()]),
        adapter(composition=[part(f"a{i}", weight=-16.0) for i in range(8)]),
        adapter(composition=[part(version="1"), part(version="2")]),
    ],
)
def test_well_formed_references_are_taken(request_pb):
    check_submit(request_pb, LIMITS)


@pytest.mark.parametrize(
    ("request_pb", "field"),
    [
        (adapter(), "adapter"),
        (adapter(scale=1.0), "adapter"),
        (adapter(name="a", uri="file:///x"), "adapter"),
        (adapter(name="a", composition=[part()]), "adapter"),
        (adapter(uri="file:///x", version="1"), "adapter.version"),
        (adapter(composition=[part()], version="1"), "adapter.version"),
        (adapter(composition=[part()], scale=1.0), "adapter.scale"),
        (adapter(name="a", version="0"), "adapter.version"),
        (adapter(name="a", version="A" * 64), "adapter.version"),
        (adapter(name="a", scale=16.1), "adapter.scale"),
        (adapter(name="a", scale=NAN), "adapter.scale"),
        (adapter(name="a", scale=-INF), "adapter.scale"),
        (adapter(composition=[part(weight=NAN)]), "adapter.composition[0].weight"),
        (adapter(composition=[part(), part("B")]), "adapter.composition[1].name"),
        (adapter(composition=[part(f"a{i}") for i in range(9)]), "adapter.composition"),
        (adapter(composition=[part(), part()]), "adapter.composition"),
    ],
)
def test_malformed_references_are_refused_and_never_become_the_base_model(request_pb, field):
    error = refusal(request_pb)
    assert (error.reason, error.violations[0].field) == ("ADAPTER_REF_INVALID", field)


# --- what this server does not know ---


@pytest.mark.parametrize("path", ["", "sampling", "stop", "output", "scheduling", "adapter", "chat"])
def test_fields_of_a_newer_client_are_refused_and_not_ignored(path):
    unknown = b"\xf8\x3f\x01"  # field 1023, varint 1
    request = chat(("user", "x"))
    request.adapter.name = "a"
    if path:
        getattr(request, path).MergeFromString(unknown)
    else:
        request.MergeFromString(unknown)
    error = refusal(request)
    assert error.reason == "FIELD_UNKNOWN"
    assert "1023" in error.message


# --- stream options ---


@pytest.mark.parametrize(("min_tokens", "delay"), [(0, None), (1, None), (1, 0.0), (2, 0.001), (1024, 1.0), (0, 1.0)])
def test_stream_options_at_the_border_are_taken(min_tokens, delay):
    options = generation_pb2.StreamOptions(min_tokens=min_tokens)
    if delay is not None:
        options.max_delay.CopyFrom(seconds(delay))
    assert check_stream_options(options).min_tokens == max(1, min_tokens)


@pytest.mark.parametrize(
    ("min_tokens", "delay", "field"),
    [
        (2, None, "stream.max_delay"),
        (2, 0.0, "stream.max_delay"),
        (1025, 0.5, "stream.min_tokens"),
        (1, 1.001, "stream.max_delay"),
        (1, -0.1, "stream.max_delay"),
    ],
)
def test_stream_options_past_the_border_are_refused(min_tokens, delay, field):
    options = generation_pb2.StreamOptions(min_tokens=min_tokens)
    if delay is not None:
        options.max_delay.CopyFrom(seconds(delay))
    with pytest.raises(InvalidArgument) as caught:
        check_stream_options(options)
    assert caught.value.violations[0].field == field
