"""vLLM's offline interface against a server in another process."""

import math
import sys
from typing import Any

import pytest

from loraplex_client import LLM, LoRARequest, SamplingParams
from loraplex_client.sampling_params import UNSUPPORTED
from loraplex_contract import errors
from tests.client.conftest import ROOT, adapter_folder


@pytest.fixture(scope="module")
def llm(fake_server):
    with LLM(target=fake_server.target, enable_lora=True, max_loras=4, gpu_memory_utilization=0.5) as llm:
        yield llm


def test_answers_come_in_the_order_of_the_prompts_under_vllms_names(llm):
    outputs = llm.generate(["tokens=3", "tokens=1 stop"], SamplingParams(logprobs=2), use_tqdm=False)
    first, second = outputs
    assert (first.prompt, bytes(first.prompt_token_ids)) == ("tokens=3", b"tokens=3")
    assert first.finished
    assert first.lora_request is None
    assert first.prompt_logprobs is None
    [completion] = first.outputs
    assert (completion.index, completion.text) == (0, "base:0 base:1 base:2 ")
    assert completion.token_ids == [1000, 1001, 1002]
    assert (completion.finish_reason, completion.stop_reason) == ("length", None)
    assert math.isclose(completion.cumulative_logprob, -1.5)
    assert {token: entry.logprob for token, entry in completion.logprobs[0].items()} == {1000: -0.5, 1: -1.0, 2: -2.0}
    assert (second.outputs[0].finish_reason, second.outputs[0].stop_reason) == ("stop", "END")


def test_the_end_of_the_model_is_stop_without_a_reason(llm):
    [output] = llm.generate("tokens=1 eos", use_tqdm=False)
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", None)
    assert output.outputs[0].logprobs is None
    assert output.outputs[0].cumulative_logprob is None


def test_every_form_of_prompt_gives_one_answer(llm):
    ids = list(b"tokens=1")
    for prompts in ("tokens=1", ids, [ids], {"prompt": "tokens=1"}, [{"prompt_token_ids": ids}], ["tokens=1"]):
        [output] = llm.generate(prompts, use_tqdm=False)
        assert output.outputs[0].text == "base:0 "
        assert output.prompt_token_ids == ids


def test_prompt_logprobs_start_with_none(llm):
    [output] = llm.generate("ab", SamplingParams(prompt_logprobs=0), use_tqdm=False)
    assert output.prompt_logprobs[0] is None
    assert output.prompt_logprobs[1][98].logprob == -2.0


def test_a_list_of_lora_requests_may_hold_none_for_the_base_model(llm, tmp_path):
    sql = LoRARequest("llm-sql", 1, str(adapter_folder(tmp_path, "sql")))
    pirate = LoRARequest("llm-pirate", 2, str(adapter_folder(tmp_path, "pirate")))
    outputs = llm.generate(["tokens=1"] * 4, lora_request=[sql, None, pirate, sql], use_tqdm=False)
    assert [output.outputs[0].text for output in outputs] == ["llm-sql:0 ", "base:0 ", "llm-pirate:0 ", "llm-sql:0 "]
    assert [output.lora_request for output in outputs] == [sql, None, pirate, sql]


def test_one_lora_request_goes_to_every_prompt_and_is_registered_once(llm, tmp_path):
    lora = LoRARequest("llm-one", 3, str(adapter_folder(tmp_path, "one")))
    for _ in range(2):
        outputs = llm.generate(["tokens=1", "tokens=1"], lora_request=lora, use_tqdm=False)
        assert {output.outputs[0].text for output in outputs} == {"llm-one:0 "}
    assert llm.client.get_adapter("llm-one").version.number == 1


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("sampling_params", [SamplingParams()]),
        ("lora_request", [None, None, None]),
        ("priority", [1]),
    ],
)
def test_a_list_of_another_length_than_the_prompts_is_refused_by_name(llm, argument, value):
    with pytest.raises(errors.InvalidArgument, match=f"{argument}.*{len(value)} entries for 2 prompts"):
        llm.generate(["tokens=1"] * 2, use_tqdm=False, **{argument: value})


def test_sampling_params_may_differ_per_prompt(llm):
    params = [SamplingParams(max_tokens=1), SamplingParams(max_tokens=4)]
    outputs = llm.generate(["tokens=9"] * 2, params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 4]


def test_a_name_stands_for_one_folder(llm, tmp_path):
    folder, other = adapter_folder(tmp_path, "a"), adapter_folder(tmp_path, "b")
    llm.generate("tokens=1", lora_request=LoRARequest("llm-name", 5, str(folder)), use_tqdm=False)
    with pytest.raises(errors.AlreadyExists, match=r"llm-name.*already in use"):
        llm.generate("tokens=1", lora_request=LoRARequest("llm-name", 5, str(other)), use_tqdm=False)
    with pytest.raises(errors.AlreadyExists, match=r"lora_int_id 5.*llm-name"):
        llm.generate("tokens=1", lora_request=LoRARequest("llm-other", 5, str(other)), use_tqdm=False)


def test_a_name_that_the_server_holds_with_other_bytes_is_refused(llm, tmp_path):
    llm.client.register_adapter("llm-held", adapter_folder(tmp_path, "held"))
    lora = LoRARequest("llm-held", 6, str(adapter_folder(tmp_path, "mine")))
    with pytest.raises(errors.AlreadyExists, match="other bytes"):
        llm.generate("tokens=1", lora_request=lora, use_tqdm=False)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [(("Bad Name", 1, "/x"), "lora_name"), (("a", 0, "/x"), "lora_int_id"), (("a", 1, ""), "lora_path")],
)
def test_a_bad_lora_request_is_refused_by_field(arguments, field):
    with pytest.raises(errors.InvalidArgument, match=field):
        LoRARequest(*arguments)


def test_lora_disabled_refuses_adapters(fake_server, tmp_path):
    lora = LoRARequest("x", 1, str(tmp_path))
    with (
        LLM(target=fake_server.target, enable_lora=False) as llm,
        pytest.raises(errors.InvalidArgument, match="enable_lora"),
    ):
        llm.generate("tokens=1", lora_request=lora, use_tqdm=False)


@pytest.mark.parametrize("field", sorted(UNSUPPORTED))
def test_every_field_of_vllm_that_has_no_counterpart_is_refused_by_name(field):
    with pytest.raises(errors.Unsupported, match=field):
        SamplingParams(**dict[str, Any]({field: "something"}))


def test_a_field_set_later_is_refused_too(llm):
    params = SamplingParams()
    params.bad_words = ["no"]
    with pytest.raises(errors.Unsupported, match="bad_words"):
        llm.generate("tokens=1", params, use_tqdm=False)


def test_defaults_are_vllms():
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (params.max_tokens, params.min_tokens, params.seed, params.logprobs) == (16, 0, None, None)
    assert params.clone() == params


@pytest.mark.parametrize(
    "options", [{"tensor_parallel_size": 2}, {"trust_remote_code": True}, {"quantization": "awq"}, {"made_up": 1}]
)
def test_an_argument_that_cannot_be_honoured_is_refused_by_name(options):
    with pytest.raises(errors.Unsupported, match=next(iter(options))):
        LLM(target="127.0.0.1:1", **options)


def test_another_model_than_the_served_one_is_not_found(fake_server):
    with pytest.raises(errors.NotFound, match="gpt-9"):
        LLM("gpt-9", target=fake_server.target)


def test_an_error_of_one_prompt_is_raised_as_itself_and_the_llm_goes_on(llm):
    with pytest.raises(errors.Unavailable):
        llm.generate(["tokens=3", "fail tokens=4", "endless"], SamplingParams(max_tokens=1000), use_tqdm=False)
    assert llm.generate("tokens=1", use_tqdm=False)[0].outputs[0].text == "base:0 "


def test_chat_renders_one_conversation_or_several(llm):
    one = [{"role": "user", "content": "tokens=1"}]
    [output] = llm.chat(one, use_tqdm=False)
    assert output.prompt == "<user> tokens=1"
    assert [answer.outputs[0].text for answer in llm.chat([one, one], use_tqdm=False)] == ["base:0 ", "base:0 "]
    with pytest.raises(errors.Unsupported, match="tools"):
        llm.chat(one, tools=[{}], use_tqdm=False)


def test_a_long_list_shows_its_progress_on_stderr(llm, capsys):
    llm.generate(["tokens=1"] * 70)
    captured = capsys.readouterr()
    assert "70/70" in captured.err
    assert captured.out == ""


def test_a_progress_factory_is_told_of_every_answer(llm):
    made = []

    class Bar:
        def __init__(self, total, desc):
            self.total, self.done, self.closed = total, 0, False
            made.append(self)

        def update(self, num_done):
            self.done += num_done

        def close(self):
            self.closed = True

    llm.generate(["tokens=1"] * 5, use_tqdm=Bar)
    assert [(bar.total, bar.done, bar.closed) for bar in made] == [(5, 5, True)]


def test_no_prompts_give_no_answers(llm):
    assert llm.generate([], use_tqdm=False) == []


def test_an_embedded_server_that_does_not_start_shows_the_end_of_its_log(tmp_path):
    from loraplex_client.embedded_server import EmbeddedServer

    command = [sys.executable, "-c", "import sys; sys.exit('error: the model folder is empty')"]
    with pytest.raises(errors.Unavailable, match="code 1:\nerror: the model folder is empty"):
        EmbeddedServer(command=command, data_dir=tmp_path)


def test_an_embedded_server_serves_and_ends_with_close(tmp_path, monkeypatch):
    from loraplex_client.embedded_server import EmbeddedServer

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    server = EmbeddedServer(command=[sys.executable, "-m", "tests.fakes.fake_frontend"], data_dir=tmp_path)
    with LLM(target=server.target) as llm:
        assert llm.generate("tokens=1", use_tqdm=False)[0].outputs[0].text == "base:0 "
    server.close()
    with pytest.raises(errors.Unavailable):
        LLM(target=server.target)
