"""Workloads that take a moment, on a machine whose every limit is in reach."""

import dataclasses
from typing import Any

from loraplex_scheduler.simulation.presets import CPU
from loraplex_scheduler.simulation.workload import Arrival, Workload
from loraplex_scheduler.simulation.workloads.slora_synthetic import cycled_ranks, slora_arrivals

PRESET = dataclasses.replace(CPU.with_pool(num_adapters=4, rank=16, num_kv_tokens=640), max_sequences=6)


def small_workload(**changes: Any) -> Workload:
    """Eighty requests of three tenants over twelve adapters and none, more than the machine can do at a time."""
    arrivals = slora_arrivals(num_adapters=12, rate=4, duration_s=20, length_range=(8, 96), seed=5)
    mixed = tuple(
        dataclasses.replace(arrival, tenant=f"tenant-{index % 3}", adapter=None if index % 7 == 0 else arrival.adapter)
        for index, arrival in enumerate(arrivals)
    )
    fields = {
        "name": "small",
        "title": "small",
        "preset": PRESET,
        "arrivals": mixed,
        "ranks": cycled_ranks(12, (64, 32, 16, 8)),
    }
    return Workload(**{**fields, **changes})


def one_request(*, num_prompt: int, num_output: int, rank: int | None, **changes: Any) -> Workload:
    arrival = Arrival(
        time_ns=1_000_000,
        tenant="only",
        adapter=None if rank is None else "one",
        num_prompt_tokens=num_prompt,
        num_output_tokens=num_output,
    )
    fields = {
        "name": "one",
        "title": "one",
        "preset": CPU,
        "arrivals": (arrival,),
        "ranks": {} if rank is None else {"one": rank},
    }
    return Workload(**{**fields, **changes})
