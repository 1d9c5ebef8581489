"""docs/metrics.md and the dashboard name exactly the metrics that the code has."""

import json
import re

from tests.contract.test_layout import ROOT

from loraplex_contract.metrics import Kind, MetricSpec
from loraplex_contract.process_metrics import SPECS as PROCESS_SPECS
from loraplex_frontend.metrics import SPECS as FRONTEND_SPECS
from loraplex_scheduler.metrics import OWN_SPECS, VLLM_SPECS
from loraplex_worker.metrics import SPECS as WORKER_SPECS

SECTIONS = {
    "Scheduler: the names of vLLM's server": VLLM_SPECS,
    "Scheduler": OWN_SPECS,
    "Frontend": FRONTEND_SPECS,
    "Worker": WORKER_SPECS,
    "All processes": PROCESS_SPECS,
}
ALL: dict[str, MetricSpec] = {spec.name: spec for specs in SECTIONS.values() for spec in specs}
NAME = re.compile(r"\b(?:vllm:|loraplex_)[a-z0-9_]+")
BOUNDED = {
    *("tenant", "adapter", "code", "reason", "kind", "adapter_state", "finish_reason", "finished_reason", "phase"),
    *("method", "worker", "stage", "state", "tier", "found", "peer", "device", "cause", "result", "rows", "part"),
    *("block_size", "num_gpu_blocks", "max_lora", "running_lora_adapters", "waiting_lora_adapters"),
    *("process", "name", "version"),
}
COMPATIBLE = """
num_requests_running num_requests_waiting num_requests_waiting_by_reason kv_cache_usage_perc prompt_tokens_total
generation_tokens_total prompt_tokens_cached_total prefix_cache_queries_total prefix_cache_hits_total
num_preemptions_total request_success_total time_to_first_token_seconds inter_token_latency_seconds
request_time_per_output_token_seconds e2e_request_latency_seconds request_queue_time_seconds
request_prefill_time_seconds request_decode_time_seconds request_inference_time_seconds request_prompt_tokens
request_generation_tokens request_params_n request_params_max_tokens iteration_tokens_total corrupted_requests_total
cache_config_info lora_requests_info
"""


def sections() -> dict[str, str]:
    page = (ROOT / "docs" / "metrics.md").read_text()
    return dict(part.split("\n", 1) for part in page.split("\n## ")[1:])


def rows(text: str) -> dict[str, tuple[str, set[str], str]]:
    found = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            name, kind, labels, what = (cell.strip() for cell in line.strip("|").split(" | "))
            found[name.strip("`")] = (kind, set(re.findall(r"`(\w+)`", labels)), what)
    return found


def test_the_page_lists_every_metric_and_no_other_with_its_type_labels_and_meaning():
    page = sections()
    assert page.keys() == SECTIONS.keys()
    for title, specs in SECTIONS.items():
        expected = {spec.name: (spec.kind.value, set(spec.labels), spec.help) for spec in specs}
        assert rows(page[title]) == expected, title


def test_every_name_in_the_text_of_the_page_exists():
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"`((?:vllm:|loraplex_)[a-z0-9_]+)`", page)) - ALL.keys() == set()


def test_every_name_in_the_dashboard_exists_with_the_suffix_that_it_has_there():
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "loraplex.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 30
    shown = set()
    for spec in ALL.values():
        suffixes = ("_bucket", "_sum", "_count") if spec.kind is Kind.HISTOGRAM else ("",)
        shown |= {spec.name + suffix for suffix in suffixes}
    assert {name for expression in expressions for name in NAME.findall(expression)} - shown == set()


def test_the_dashboard_groups_only_by_labels_that_the_metric_has():
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "loraplex.json").read_text())
    from_collector = {"le", "job", "instance"}
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            for labels, metric in re.findall(r"by \(([\w, ]+)\) \((?:rate\(|increase\()?([\w:]+)", target["expr"]):
                spec = ALL.get(metric) or ALL[re.sub(r"_(bucket|sum|count)$", "", metric)]
                assert {label.strip() for label in labels.split(",")} <= {*spec.labels, *from_collector}, target["expr"]


def test_the_compatible_names_are_all_there():
    assert {spec.name for spec in VLLM_SPECS} == {f"vllm:{name}" for name in COMPATIBLE.split()}


def test_no_metric_has_a_label_that_nobody_has_bounded():
    assert {label for spec in ALL.values() for label in spec.labels} - BOUNDED == set()
