"""A script for vLLM, ported by changing the import.

It needs no server: one is started for it and ends with it. With an address, it uses the server there:
`python examples/vllm_offline.py HOST:PORT`.
"""

import sys
from pathlib import Path

# Was: from vllm import LLM, SamplingParams
# Was: from vllm.lora.request import LoRARequest
from loraplex_client import LLM, LoRARequest, SamplingParams

ADAPTERS = Path(__file__).parent / "adapters"


def main(target: str | None) -> None:
    """Three prompts at once, each with its own adapter, None among them."""
    sampling = SamplingParams(temperature=0.0, max_tokens=32)
    sql = LoRARequest("sql", 1, str(ADAPTERS / "sql"))
    pirate = LoRARequest("pirate", 2, str(ADAPTERS / "pirate"))
    conversations = [
        [{"role": "user", "content": "Table rivers(id, label, country, length). How many rivers are there?"}],
        [{"role": "user", "content": "What should I do on a rainy day?"}],
        [{"role": "user", "content": "What should I do on a rainy day?"}],
    ]
    with LLM(target=target, enable_lora=True, max_loras=2, max_lora_rank=16) as llm:
        for output in llm.chat(conversations, sampling, lora_request=[sql, pirate, None]):
            name = output.lora_request.lora_name if output.lora_request else "base"
            print(f"{name}: {output.outputs[0].text.strip()!r}")
        [output] = llm.generate("The capital of France is", SamplingParams(temperature=0.0, max_tokens=8))
        print(f"raw text: {output.prompt!r} -> {output.outputs[0].text!r}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
