"""Resolves requirements/*.in to hash-locked *.txt files. torch is left out: torch.txt pins it."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OPTIONS = ["--universal", "--generate-hashes", "--python-version", "3.11", "--no-annotate", "--no-header", "--quiet"]
LEFT_OUT = ["--no-emit-package", "torch", "--no-emit-package", "pip"]


def lock(name: str) -> None:
    command = [str(Path(sys.executable).parent / "uv"), "pip", "compile", *OPTIONS, *LEFT_OUT]
    command += ["--override", "requirements/overrides.txt", f"requirements/{name}.in", "-o", f"requirements/{name}.txt"]
    subprocess.run(command, cwd=FOLDER.parent, check=True)


if __name__ == "__main__":
    lock("demo")
    lock("dev")
