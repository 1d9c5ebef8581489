"""vLLM's way to name an adapter, and the registration behind it."""

import asyncio
import dataclasses

from loraplex_client.adapter_source import adapter_uri
from loraplex_client.async_client import AsyncClient
from loraplex_contract.errors import AlreadyExists, FailedPrecondition, field_error
from loraplex_contract.ids import ADAPTER_NAME_RULE, is_adapter_name


@dataclasses.dataclass(slots=True)
class LoRARequest:
    """An adapter's folder under a name. Equal by name, as in vLLM.

    Args:
        lora_name: letters a-z, digits, ``.``, ``_``, ``-``.
        lora_int_id: from 1, another for each name. It has no meaning here beyond this check.
        lora_path: folder with ``adapter_config.json`` and ``adapter_model.safetensors``, as the server sees it.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str

    def __post_init__(self) -> None:
        if not is_adapter_name(self.lora_name):
            raise field_error("lora_name", f"{self.lora_name!r} is no adapter name: {ADAPTER_NAME_RULE}")
        if self.lora_int_id < 1:
            raise field_error("lora_int_id", f"{self.lora_int_id!r} must be a whole number from 1")
        if not self.lora_path:
            raise field_error("lora_path", "is empty; give the adapter's folder")

    @property
    def name(self) -> str:
        return self.lora_name

    @property
    def adapter_id(self) -> int:
        return self.lora_int_id

    @property
    def path(self) -> str:
        return self.lora_path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoRARequest) and self.lora_name == other.lora_name

    def __hash__(self) -> int:
        return hash(self.lora_name)


class LoRARegistrar:
    """Registers each name on its first use, once, and holds it to its folder and id. Lives on one event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._uris: dict[str, str] = {}
        self._names: dict[int, str] = {}

    async def ensure(self, client: AsyncClient, lora: LoRARequest) -> None:
        """Raises AlreadyExists if the name or the id already stands for something else."""
        uri = adapter_uri(lora.lora_path)
        async with self._lock:
            self._check(lora, uri)
            if lora.lora_name in self._uris:
                return
            await self._register(client, lora, uri)
            self._uris[lora.lora_name] = uri
            self._names[lora.lora_int_id] = lora.lora_name

    def _check(self, lora: LoRARequest, uri: str) -> None:
        known = self._uris.get(lora.lora_name, uri)
        if known != uri:
            raise AlreadyExists(
                f"lora_name {lora.lora_name!r} is already in use for {known}; give {uri} another name",
                reason="ADAPTER_EXISTS",
            )
        owner = self._names.get(lora.lora_int_id, lora.lora_name)
        if owner != lora.lora_name:
            message = f"lora_int_id {lora.lora_int_id} is already that of {owner!r}; give {lora.lora_name!r} another id"
            raise AlreadyExists(message, reason="ADAPTER_EXISTS")

    @staticmethod
    async def _register(client: AsyncClient, lora: LoRARequest, uri: str) -> None:
        try:
            await client.register_adapter(lora.lora_name, uri)
        except AlreadyExists:
            message = (
                f"lora_name {lora.lora_name!r}: the server has other bytes under this name than those in {uri}; "
                "choose another name, or update it with `loraplex adapters register --allow-update`"
            )
            raise AlreadyExists(message, reason="ADAPTER_EXISTS") from None
        except FailedPrecondition as error:
            raise FailedPrecondition(
                f"lora_name {lora.lora_name!r}: {error.message}",
                reason=error.reason,
                metadata=error.metadata,
                violations=error.violations,
            ) from None
