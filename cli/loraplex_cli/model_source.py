"""Where the base model of the embedded service comes from."""

import asyncio
import sys
from pathlib import Path

from loraplex_cli.console import CommandFailed


def checked_model_folder(folder: Path) -> Path:
    """Raises CommandFailed if something that every process reads is missing."""
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise CommandFailed(
            f"{folder} is no Hugging Face model folder: {', '.join(missing)} missing; "
            "give another --model, or none for the demo model"
        )
    return folder.resolve()


async def demo_model_folder() -> Path:
    """The demo model, made on the first call (some seconds).

    In a process of its own: it needs a gigabyte for a moment, and the supervisor lives for weeks.
    """
    command = (sys.executable, "-m", "loraplex_cli.main", "model", "fetch")
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, problem = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = problem.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise CommandFailed(f"the demo model could not be made: {lines[-1].removeprefix('error: ')}")
    return Path(output.decode().strip().splitlines()[-1])
