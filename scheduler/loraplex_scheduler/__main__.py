"""``python -m loraplex_scheduler``; ``--help`` lists the settings."""

import asyncio
import sys

from loraplex_contract.logs import configure_logs
from loraplex_contract.settings import SettingsError
from loraplex_scheduler.server import serve
from loraplex_scheduler.settings import SchedulerSettings


def main() -> int:
    try:
        settings = SchedulerSettings.load(sys.argv[1:])
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    configure_logs(settings.log_level)
    asyncio.run(serve(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
