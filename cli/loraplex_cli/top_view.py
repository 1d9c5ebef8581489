"""Two looks at a service as one screen: levels are of the later, rates of what lies between."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from loraplex_cli.metrics_reading import ProcessSamples, Reading
from loraplex_client import Worker

UNKNOWN = "-"
BAR_CHARS = 20


def view(before: Reading, after: Reading) -> RenderableType:
    parts: list[RenderableType] = [_head(before, after), _workers(before, after)]
    if after.silent:
        parts.append(Text(f"no metrics from {', '.join(after.silent)}", style="red"))
    if not after.processes:
        parts.append(Text(f"{UNKNOWN} needs metrics: start with `loraplex up --metrics`, or give --metrics HOST:PORT"))
    return Group(*parts)


def _head(before: Reading, after: Reading) -> Text:
    cluster, passed_s = after.cluster, after.time_s - before.time_s
    tokens = sum(_delta(before, worker, "num_output_tokens") for worker in cluster.workers) / passed_s
    return Text(
        f"queue {cluster.num_queued_requests}   running {cluster.num_running_requests}   tokens/s {tokens:.0f}   "
        f"workers {len(cluster.workers)}   TTFT {_mean_ms(before, after, 'loraplex_ttft_seconds')}   "
        f"ITL {_mean_ms(before, after, 'loraplex_itl_seconds')}   errors {_num_errors(after)}   term {cluster.epoch}",
        style="bold",
    )


def _workers(before: Reading, after: Reading) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = ("running", "tokens/s", "steps/s", "step ms", "rows", "on device", "in host", "loading", "free %")
    table.add_column("worker")
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("pages: kv = adapters # free .")
    for worker in after.cluster.workers:
        table.add_row(*_row(worker, before, after))
    return table


def _row(worker: Worker, before: Reading, after: Reading) -> tuple[str, ...]:
    passed_s = after.time_s - before.time_s
    old, new = before.worker(worker.worker_id), after.worker(worker.worker_id)
    return (
        f"{worker.worker_id} ({worker.device})",
        str(worker.num_running_sequences),
        f"{_delta(before, worker, 'num_output_tokens') / passed_s:.0f}",
        f"{_delta(before, worker, 'num_steps') / passed_s:.0f}",
        _mean(old, new, "loraplex_step_seconds_sum", "loraplex_step_seconds_count", 1000),
        _mean(old, new, "loraplex_rows_total", "loraplex_steps_total", 1),
        str(len(worker.adapters)),
        _tier(new, "host"),
        _tier(new, "loading"),
        f"{100 * worker.num_pages_free / max(1, worker.num_pages_total):.0f}",
        _bar(worker),
    )


def _delta(before: Reading, worker: Worker, field: str) -> int:
    """Since the earlier look; since it joined, for a worker that came or came back in between."""
    now: int = getattr(worker, field)
    old = next((getattr(w, field) for w in before.cluster.workers if w.worker_id == worker.worker_id), 0)
    return now - old if now >= old else now


def _mean(old: ProcessSamples | None, new: ProcessSamples | None, amount: str, count: str, scale: float) -> str:
    """Of the interval; of everything so far where nothing happened in it."""
    if new is None:
        return UNKNOWN
    amounts, counts = new.total(amount), new.total(count)
    if old is not None and counts > old.total(count):
        amounts, counts = amounts - old.total(amount), counts - old.total(count)
    return f"{scale * amounts / counts:.1f}" if counts else UNKNOWN


def _mean_ms(before: Reading, after: Reading, name: str) -> str:
    amount, count = after.total("frontend", f"{name}_sum"), after.total("frontend", f"{name}_count")
    if not count or amount is None:
        return UNKNOWN
    old_amount, old_count = before.total("frontend", f"{name}_sum") or 0, before.total("frontend", f"{name}_count") or 0
    if count > old_count:
        amount, count = amount - old_amount, count - old_count
    return f"{1000 * amount / count:.0f} ms"


def _num_errors(after: Reading) -> str:
    total, fine = after.total("frontend", "loraplex_requests_total"), None
    if total is not None:
        fine = after.total("frontend", "loraplex_requests_total", code="OK")
    return UNKNOWN if total is None or fine is None else f"{total - fine:.0f}"


def _tier(samples: ProcessSamples | None, tier: str) -> str:
    return UNKNOWN if samples is None else f"{samples.total('loraplex_worker_adapters', tier=tier):.0f}"


def _bar(worker: Worker) -> str:
    total = max(1, worker.num_pages_total)
    num_kv = -(-worker.num_pages_kv * BAR_CHARS // total)
    num_adapter = min(BAR_CHARS - num_kv, -(-worker.num_pages_adapter * BAR_CHARS // total))
    return "=" * num_kv + "#" * num_adapter + "." * (BAR_CHARS - num_kv - num_adapter)
