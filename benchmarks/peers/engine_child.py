"""Our engine in process, without gRPC."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import in_process
from benchmarks.peers.line_protocol import Run, read_job, serve
from benchmarks.workload import Request


def main() -> None:
    job = read_job()
    torch.set_num_threads(job["num_threads"])
    with tempfile.TemporaryDirectory() as store:
        serve(job, lambda: start(job, Path(store)))


def start(job: dict[str, Any], store: Path) -> Run:
    engine = in_process.load_engine(Path(job["model"]), [Path(folder) for folder in job["adapters"]], store)

    def run(requests: list[dict[str, Any]]) -> list[list[int]]:
        parsed = [Request(prompt_ids=tuple(item["prompt_ids"]), adapter=item["adapter"]) for item in requests]
        return in_process.generate(engine, parsed, num_output_tokens=job["num_output_tokens"])

    return run


if __name__ == "__main__":
    main()
