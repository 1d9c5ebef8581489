"""One line in the log for every request that ends: ids, figures and the reason, never text."""

import structlog

from loraplex_contract import ids
from loraplex_frontend.generation import Generation

_log = structlog.get_logger("loraplex_frontend.request")


def log_end(generation: Generation, *, tenant: str) -> None:
    _log.info(
        "request ended",
        request_id=generation.request_id,
        tenant=tenant,
        num_prompt_tokens=generation.num_prompt_tokens,
        num_output_tokens=generation.num_output_tokens,
        error=generation.error.reason if generation.error is not None else None,
    )


def log_refused(request_id: str, *, tenant: str, reason: str) -> None:
    """A request that never came to the scheduler. What the client gave for an id is shown only if it is one."""
    shown = request_id if ids.is_request_id(request_id) else None
    _log.info("request refused", request_id=shown, tenant=tenant, error=reason)
