"""Print an answer while it is made: `python examples/stream.py [HOST:PORT]`, against `make serve`."""

import sys

from loraplex_client import DEFAULT_TARGET, Chat, Client

QUESTION = "How do I make a good cup of tea?"


def main(target: str) -> None:
    """One request on the adapter `pirate`, then what answered and what it cost."""
    with Client(target) as client:
        stream = client.stream(
            Chat.of([{"role": "user", "content": QUESTION}]), adapter="pirate", temperature=0.0, max_tokens=48
        )
        finish = None
        for delta in stream:
            print(delta.text, end="", flush=True)
            finish = delta.finish or finish
        assert stream.prompt is not None
        assert finish is not None
        [adapter] = stream.prompt.adapters
        print(f"\n({adapter.name} version {adapter.version}, {finish.usage.num_output_tokens} tokens, {finish.reason})")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_TARGET)
