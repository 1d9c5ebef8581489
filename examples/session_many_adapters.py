"""Several adapters at once over one session, one of them cancelled midway, against `make serve`.

`python examples/session_many_adapters.py [HOST:PORT]`
"""

import asyncio
import sys

from loraplex_client import DEFAULT_TARGET, AsyncClient, Chat, SamplingParams

QUESTIONS = {
    "sql": "Table rivers(id, label, country, length). How many rivers are there?",
    "json": "Marlene Okafor, who is 47, lives in Lisbon.",
    "pirate": "What should I do on a rainy day?",
}
CANCELLED = "pirate"


async def answer(client: AsyncClient, name: str) -> None:
    """Reads one stream; leaving it early cancels the request on the server, and no other."""
    chat = Chat.of([{"role": "user", "content": QUESTIONS[name]}])
    sampling = SamplingParams(temperature=0.0, max_tokens=40)
    text = ""
    async with client.stream(chat, sampling, adapter=name) as stream:
        async for delta in stream:
            text += delta.text
            if name == CANCELLED and delta.first_token >= 8:
                print(f"{name}: {text!r} ... and that is enough")
                return
    print(f"{name}: {text!r}")


async def main(target: str) -> None:
    """All requests at once; the server puts them into the same steps."""
    async with AsyncClient(target) as client, asyncio.TaskGroup() as tasks:
        for name in QUESTIONS:
            tasks.create_task(answer(client, name))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_TARGET))
