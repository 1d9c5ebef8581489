"""transformers and PEFT: one padded batch, a row's adapter by ``adapter_names``."""

from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.peers.line_protocol import Run, read_job, serve


def main() -> None:
    job = read_job()
    torch.set_num_threads(job["num_threads"])
    serve(job, lambda: start(job))


def start(job: dict[str, Any]) -> Run:
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16)
    model.eval()
    adapters = job["adapters"]
    if adapters:
        model = PeftModel.from_pretrained(model, adapters[0], adapter_name="0")
        for number, folder in enumerate(adapters[1:], start=1):
            model.load_adapter(folder, adapter_name=str(number))
        model.to(torch.bfloat16)
    num_tokens = job["num_output_tokens"]

    def run(requests: list[dict[str, Any]]) -> list[list[int]]:
        prompts = torch.tensor([request["prompt_ids"] for request in requests])
        options: dict[str, Any] = {"do_sample": False, "min_new_tokens": num_tokens, "max_new_tokens": num_tokens}
        if adapters:
            names = [request["adapter"] for request in requests]
            options["adapter_names"] = ["__base__" if name is None else str(name) for name in names]
        with torch.inference_mode():
            outputs = model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), **options)
        tokens: list[list[int]] = outputs[:, prompts.shape[1] :].tolist()
        return tokens

    return run


if __name__ == "__main__":
    main()
