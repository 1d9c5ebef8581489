"""Deletes from the store what no name points at: at once what this frontend unregistered, and now and then the rest.

Abandoned uploads go with it, and what fetches of dead processes left.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

import structlog

from loraplex_contract.errors import LoraplexError
from loraplex_frontend.adapter_ingest import AdapterIngest
from loraplex_frontend.registry_client import RegistryClient
from loraplex_frontend.sources.remote_sources import RemoteSources
from loraplex_frontend.uploads.upload_store import UploadStore

_log = structlog.get_logger(__name__)
SWEEP_INTERVAL_S: Final = 60.0


class StoreSweeper:
    """Deletes under a claim alone, which the registry gives to one at a time: no commit can meet a deletion.

    Args:
        interval_s: between looks for what others left behind.
    """

    def __init__(
        self,
        *,
        ingest: AdapterIngest,
        registry: RegistryClient,
        uploads: UploadStore,
        remote: RemoteSources,
        interval_s: float = SWEEP_INTERVAL_S,
    ) -> None:
        self._ingest = ingest
        self._registry = registry
        self._uploads = uploads
        self._remote = remote
        self._interval_s = interval_s

    async def delete(self, digests: Sequence[str] = ()) -> None:
        """These, as far as they are still garbage; any garbage, if none are named."""
        asked_s = time.monotonic()
        claim = await self._registry.claim_garbage(digests)
        if claim.digests:
            until_s = asked_s + claim.ttl.ToNanoseconds() / 1e9
            deleted = await self._ingest.delete(list(claim.digests), until_s=until_s)
            await self._registry.confirm_deleted(claim.claim, deleted)
            _log.info("versions deleted", num_deleted=len(deleted))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s * random.uniform(0.5, 1.0))
            try:
                await self._uploads.sweep()
                await self._remote.sweep()
                await self.delete()
            except LoraplexError as error:
                _log.warning("the store was not swept", reason=error.reason)
            except OSError:
                _log.exception("the store was not swept")
