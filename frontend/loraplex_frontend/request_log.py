"""One line in the log for every request that ends: ids, figures and the reason, never text."""

import structlog

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
