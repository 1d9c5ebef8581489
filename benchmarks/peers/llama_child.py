"""llama.cpp's server over HTTP, 32 slots, the request's adapter by its ``lora`` field. Always an explicit list."""

import concurrent.futures
import http.client
import json
import signal
import socket
import subprocess
import time
from typing import Any

from benchmarks.peers.line_protocol import Run, read_job, serve

START_TIMEOUT_S = 120


def main() -> None:
    job = read_job()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    num_slots = max(len(requests) for requests in job["runs"].values())
    command = [job["llama_server"], "--model", job["gguf"], "--host", "127.0.0.1", "--port", str(port)]
    command += ["--threads", str(job["num_threads"]), "--parallel", str(num_slots), "--ctx-size", str(num_slots * 1024)]
    command += ["--no-webui", "--lora-init-without-apply"]
    for adapter in job["gguf_adapters"]:
        command += ["--lora", adapter]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        serve(job, lambda: start(job, port, server))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


def start(job: dict[str, Any], port: int, server: "subprocess.Popen[bytes]") -> Run:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_healthy(port):
        assert server.poll() is None, f"llama-server ended with {server.returncode}"
        assert time.monotonic() < deadline, "llama-server does not answer"
        time.sleep(0.1)
    num_adapters = len(job["gguf_adapters"])

    def run(requests: list[dict[str, Any]]) -> list[list[int]]:
        with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(lambda request: complete(port, request, num_adapters, job), requests))

    return run


def is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def complete(port: int, request: dict[str, Any], num_adapters: int, job: dict[str, Any]) -> list[int]:
    body: dict[str, Any] = {
        "prompt": request["prompt_ids"],
        "n_predict": job["num_output_tokens"],
        "temperature": 0.0,
        "ignore_eos": True,
        "cache_prompt": False,
        "return_tokens": True,
    }
    if num_adapters:
        wanted = request["adapter"]
        body["lora"] = [{"id": number, "scale": float(number == wanted)} for number in range(num_adapters)]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status == 200, answer
    tokens: list[int] = answer["tokens"]
    return tokens


if __name__ == "__main__":
    main()
