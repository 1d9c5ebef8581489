"""The adapters of ``examples/adapters``: they come with the repository, not with the installed package."""

from pathlib import Path

from loraplex_cli.console import CommandFailed
from loraplex_client import Adapter, AsyncClient


def demo_adapter_folders() -> dict[str, Path]:
    """Name to folder, by name.

    Raises:
        CommandFailed: there is no repository around this package.
    """
    root = Path(__file__).resolve().parents[2]
    folders = {
        path.parent.name: path.parent for path in sorted(root.glob("examples/adapters/*/adapter_model.safetensors"))
    }
    if not folders:
        raise CommandFailed(
            f"no demo adapters in {root / 'examples' / 'adapters'}: they are in loraplex's repository and not in the "
            "installed package; clone it and run `make demo` there"
        )
    return folders


async def register_demo_adapters(client: AsyncClient) -> list[Adapter]:
    """Registers all, moving a name that an older checkout registered."""
    return [
        await client.register_adapter(name, folder, allow_update=True)
        for name, folder in demo_adapter_folders().items()
    ]
