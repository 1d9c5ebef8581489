"""vLLM's offline engine on the CPU, in the venv that ``make bench-peers`` makes."""

import os
from typing import Any

from benchmarks.peers.line_protocol import Run, read_job, serve


def main() -> None:
    job = read_job()
    # Both are read when vllm is imported.
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    serve(job, lambda: start(job))


def start(job: dict[str, Any]) -> Run:
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    adapters = job["adapters"]
    lora: dict[str, Any] = {}
    if adapters:
        lora = {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": job["rank"]}
    engine = LLM(
        model=job["model"],
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=64,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **lora,
    )
    requests_of = [LoRARequest(str(number), number + 1, folder) for number, folder in enumerate(adapters)]
    num_tokens = job["num_output_tokens"]
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, min_tokens=num_tokens, ignore_eos=True)

    def run(requests: list[dict[str, Any]]) -> list[list[int]]:
        prompts = [TokensPrompt(prompt_token_ids=request["prompt_ids"]) for request in requests]
        chosen = [None if request["adapter"] is None else requests_of[request["adapter"]] for request in requests]
        outputs = engine.generate(prompts, sampling, lora_request=chosen if adapters else None, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return run


if __name__ == "__main__":
    main()
