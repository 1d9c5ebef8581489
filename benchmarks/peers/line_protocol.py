"""How the comparison talks to one engine in a process of its own. Standard library only: it runs in the peers' venvs.

The child prints one JSON line ``{"ready": seconds}``, then answers each line it reads, ``{"run": name}``, with
``{"seconds": ..., "token_ids": [[...], ...]}``. It ends at the end of its input. Its own chatter goes to stderr.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[list[dict[str, Any]]], list[list[int]]]
"""Takes requests (``prompt_ids``, ``adapter``: number or None) and gives the output tokens of each."""


def read_job() -> dict[str, Any]:
    """The job file named on the command line: model and adapter folders, runs, counts."""
    with open(sys.argv[1], encoding="utf-8") as file:
        job: dict[str, Any] = json.load(file)
    return job


def serve(job: dict[str, Any], start: Callable[[], Run]) -> None:
    """Start the engine, then run what is asked for until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    began = time.perf_counter()
    run = start()
    print(json.dumps({"ready": time.perf_counter() - began}), file=answers)
    for line in sys.stdin:
        requests = job["runs"][json.loads(line)["run"]]
        began = time.perf_counter()
        token_ids = run(requests)
        print(json.dumps({"seconds": time.perf_counter() - began, "token_ids": token_ids}), file=answers)
