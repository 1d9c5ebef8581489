"""``python -m loraplex_frontend``: serves until SIGTERM or SIGINT, then drains and exits 0."""

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import Any

from loraplex_contract.errors import LoraplexError
from loraplex_contract.logs import configure_logs
from loraplex_contract.settings import SettingsError
from loraplex_frontend.auth_keys import AuthKeysError
from loraplex_frontend.model_folder import ModelFolderError
from loraplex_frontend.server import Frontend
from loraplex_frontend.settings import FrontendSettings
from loraplex_frontend.text.decode_table import DecoderUnsupported


def main() -> int:
    try:
        settings = FrontendSettings.load(sys.argv[1:])
    except SettingsError as error:
        print(f"loraplex frontend: {error}", file=sys.stderr)
        return 2
    configure_logs(settings.log_level)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings))
    except (ModelFolderError, AuthKeysError, DecoderUnsupported, LoraplexError, OSError) as error:
        print(f"loraplex frontend: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(settings: FrontendSettings) -> None:
    frontend = Frontend(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, frontend.stop)
    await frontend.run()


def _loop_factory() -> Callable[[], Any] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], Any] = uvloop.new_event_loop
    return factory


if __name__ == "__main__":
    sys.exit(main())
