"""Fails if the protos break the wire contract of the last commit on main (``buf breaking``, rule set FILE).

On main itself the baseline is the commit before, so that a break is seen by the run that follows it.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUF = Path(sys.executable).parent / "buf"


def git(*arguments: str) -> str | None:
    result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def baseline() -> str | None:
    """The newest released contract: the last tag, else what origin's main holds, else the commit before this one."""
    for name in (git("describe", "--tags", "--abbrev=0"), "origin/main", "HEAD~1"):
        commit = git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") if name else None
        if commit and commit != git("rev-parse", "HEAD") and git("ls-tree", commit, "proto/loraplex"):
            return commit
    return None


def main() -> int:
    commit = baseline()
    if commit is None:
        print("buf breaking: no earlier contract to compare with")
        return 0
    return subprocess.run([str(BUF), "breaking", "--against", f".git#ref={commit}"], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
