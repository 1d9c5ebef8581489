"""Whether a request can run at all on the workers that there are, and how far."""

from collections.abc import Collection, Iterable

from loraplex_contract.errors import FailedPrecondition, InvalidArgument, LoraplexError
from loraplex_scheduler.core.catalog import Catalog
from loraplex_scheduler.core.ledger import num_pages_for
from loraplex_scheduler.core.request import Request
from loraplex_scheduler.core.worker import Worker


class Capacity:
    """Checks requests against the whole of each worker, whatever is on it now."""

    def __init__(self, catalog: Catalog, *, max_adapters_per_step: int) -> None:
        self._catalog = catalog
        self._max_adapters_per_step = max_adapters_per_step

    def adapter_pages(self, digests: Iterable[str], worker: Worker) -> int:
        return sum(worker.adapter_pages_for(self._catalog.num_parameters(digest)) for digest in digests)

    def settle(self, request: Request, workers: Collection[Worker]) -> LoraplexError | None:
        """Find the places of a request, and fix its output bound if it has none; say why there is no place, if so.

        To be asked again whenever the workers change. Nothing is decided while there is none.
        """
        request.places = frozenset()
        if not workers:
            return None
        context = max(worker.info.max_context_tokens for worker in workers)
        if len(request.prompt_ids) >= context:
            return _prompt_too_long(len(request.prompt_ids), context)
        if request.max_tokens is None:
            self._bound(request, workers)
        request.places = frozenset(worker.worker_id for worker in workers if self._fits_whole(request, worker))
        if request.max_tokens is None or not request.places:
            return self._too_big(request, workers, context)
        request.had_places = True
        if request.min_tokens > request.max_tokens:
            return _min_tokens_exceed(request, request.max_tokens)
        if 0 < self._max_adapters_per_step < len(request.digests):
            return self._too_many_adapters(request)
        return None

    def _fits_whole(self, request: Request, worker: Worker) -> bool:
        if request.max_tokens is None:
            return False
        return len(request.prompt_ids) + request.max_tokens <= self._room(request, worker)

    def _bound(self, request: Request, workers: Collection[Worker]) -> None:
        """As many tokens as every worker that can take the prompt has room for."""
        rooms = [self._room(request, worker) - len(request.prompt_ids) for worker in workers]
        request.max_tokens = min((room for room in rooms if room > 0), default=None)

    def _room(self, request: Request, worker: Worker) -> int:
        """Tokens that a sequence of the request could have there, prompt and output, if it were alone."""
        pages = worker.info.num_pages - self.adapter_pages(request.digests, worker)
        return min(worker.info.max_context_tokens, pages * worker.info.page_size)

    def _too_big(self, request: Request, workers: Collection[Worker], context: int) -> LoraplexError:
        num_tokens = len(request.prompt_ids) + (request.max_tokens or 1)
        if num_tokens > context:
            return _context_exceeded(request, context)
        largest = max(workers, key=lambda worker: self._room(request, worker))
        adapter_pages = self.adapter_pages(request.digests, largest)
        need = num_pages_for(num_tokens, largest.info.page_size) + adapter_pages
        message = (
            f"prompt and max_tokens of {num_tokens} tokens and the adapters need {need} pages; "
            f"the largest worker has {largest.info.num_pages}: lower max_tokens or shorten the prompt"
        )
        metadata = {"pages": str(need), "adapterPages": str(adapter_pages), "maxPages": str(largest.info.num_pages)}
        return FailedPrecondition(message, reason="KV_CAPACITY_EXCEEDED", metadata=metadata)

    def _too_many_adapters(self, request: Request) -> LoraplexError:
        message = (
            f"the composition has {len(request.digests)} adapters; a step may have {self._max_adapters_per_step}: "
            "use fewer"
        )
        return FailedPrecondition(message, reason="ADAPTERS_PER_STEP_EXCEEDED")


def _prompt_too_long(num_prompt_tokens: int, context: int) -> InvalidArgument:
    message = f"prompt: {num_prompt_tokens} tokens, at most {context - 1} leave room for an answer: shorten it"
    metadata = {"promptTokens": str(num_prompt_tokens), "maxPromptTokens": str(context - 1)}
    return InvalidArgument(message, reason="PROMPT_TOO_LONG", metadata=metadata)


def _context_exceeded(request: Request, context: int) -> InvalidArgument:
    num_prompt, max_tokens = len(request.prompt_ids), request.max_tokens or 1
    message = (
        f"stop.max_tokens: {max_tokens} after a prompt of {num_prompt} tokens exceeds the context of {context}: "
        f"at most {context - num_prompt}, or leave it out"
    )
    metadata = {"promptTokens": str(num_prompt), "maxTokens": str(max_tokens), "contextTokens": str(context)}
    return InvalidArgument(message, reason="CONTEXT_EXCEEDED", metadata=metadata)


def _min_tokens_exceed(request: Request, max_tokens: int) -> InvalidArgument:
    message = f"stop.min_tokens: {request.min_tokens} exceeds the {max_tokens} output tokens that have room"
    return InvalidArgument(message, reason="CONTEXT_EXCEEDED")
