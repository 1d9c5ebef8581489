"""``python -m loraplex_worker --scheduler ADDRESS --model FOLDER --store FOLDER``"""

import asyncio
import os
import sys
from typing import Final

import structlog

from loraplex_contract.errors import LoraplexError
from loraplex_contract.logs import configure_logs
from loraplex_contract.settings import SettingsError
from loraplex_worker.settings import WorkerSettings

EXIT_FAILED: Final = 1
EXIT_BAD_SETTINGS: Final = 2


def main(flags: list[str]) -> int:
    """0 after an orderly stop; 1 where the model cannot be served or the engine failed; 2 for bad settings."""
    try:
        settings = WorkerSettings.load(flags)
    except SettingsError as error:
        print(f"loraplex worker: {error}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    configure_logs("info")
    structlog.contextvars.bind_contextvars(worker_id=settings.worker_id)
    # Idle threads of OpenMP sleep instead of spinning: the worker uses every core, and what spins is taken from the
    # frontend and the scheduler on a shared machine. On two busy cores the same tokens took 9.7 s of CPU instead of
    # 14.2 s (2026-11-23). Read by OpenMP when torch is loaded, hence before the import below.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from loraplex_worker import worker
    from loraplex_worker.engine_port import EngineFailed

    log: structlog.stdlib.BoundLogger = structlog.get_logger("loraplex_worker")
    try:
        asyncio.run(worker.run(settings))
    except* LoraplexError as group:
        log.error("worker_cannot_serve", exc_info=group)
        return_code = EXIT_FAILED
    except* EngineFailed as group:
        log.critical("worker_failed", exc_info=group)
        return_code = EXIT_FAILED
    else:
        return_code = 0
    return return_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
