"""``python tied_child.py PARENT COMMAND...``: becomes COMMAND, killed by the kernel when the process PARENT dies.

Standard library only, since it runs before the environment is set up. Beyond Linux it only becomes COMMAND.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        # SIGKILL, since a parent that is gone can not follow up on anything softer. It survives the exec.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        # It died before the request was in place.
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
