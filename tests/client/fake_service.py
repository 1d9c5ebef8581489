"""The ``loraplex`` command around stand-ins for the three processes: ``python -m tests.client.fake_service up ...``.

The scheduler and the workers only listen and wait; the frontend is the fake one. So the supervisor, the command line
and the demo run as they are, without a model.
"""

import os
import sys
from pathlib import Path
from typing import Any

from loraplex_cli import main, service

_IDLE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if "--port-file" in sys.argv:
    import json, os, socket
    server = socket.create_server(("127.0.0.1", 0))
    path = sys.argv[sys.argv.index("--port-file") + 1]
    with open(path + ".tmp", "w") as file:
        json.dump({"listen": "127.0.0.1:%d" % server.getsockname()[1]}, file)
    os.rename(path + ".tmp", path)
time.sleep(600)
"""


def _fake_module(name: str) -> tuple[str, ...]:
    if name == "loraplex_frontend":
        return (sys.executable, "-m", "tests.fakes.fake_frontend", *os.environ.get("FAKE_FLAGS", "").split())
    return (sys.executable, "-S", "-c", _IDLE, name)


async def _fake_model() -> Path:
    return Path("/nowhere")


def install() -> None:
    """Puts the stand-ins in the place of the real processes."""
    real: Any = service
    real._module = _fake_module
    real.demo_model_folder = _fake_model


if __name__ == "__main__":
    install()
    main.app()
