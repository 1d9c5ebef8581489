"""Every token is its own version's, while adapters are loaded, evicted and updated: the short run of `churn`."""

import asyncio

import pytest

from tests.lifecycle.churn import HOST_CACHE_BYTES, NUM_ADAPTERS, POOL_PAGES, churn
from tests.lifecycle.service import lifecycle_service

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_no_token_is_foreign_while_64_adapters_churn_through_a_pool_for_eight(watermarks, watermark_model, tmp_path):
    service = lifecycle_service(
        tmp_path / "run", watermark_model, pool_pages=POOL_PAGES, host_cache_bytes=HOST_CACHE_BYTES
    )
    with service as running:
        report = asyncio.run(asyncio.wait_for(churn(running, watermarks, num_requests=500, seed=1), 120))
    assert report.num_updates >= 5, report
    assert report.num_loads > NUM_ADAPTERS, report
    assert report.num_evictions > NUM_ADAPTERS, report
    assert report.num_prefix_tokens > 0, report
    assert report.max_adapters_in_step > 1, report
