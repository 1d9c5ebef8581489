"""Log lines of this process: one JSON object a line on stderr, never a prompt, never a token."""

import logging
import sys

import structlog


def configure_logs(worker_id: str) -> None:
    """Send structlog and the standard library's records the same way. Call once, before anything logs."""
    shared: list[structlog.typing.Processor] = [
        _Origin(worker_id),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


class _Origin:
    """Adds who speaks. Not by context variables: the step thread and the loaders do not inherit them."""

    def __init__(self, worker_id: str) -> None:
        self._fields = {"process": "worker", "worker_id": worker_id}

    def __call__(self, logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**event, **self._fields}
