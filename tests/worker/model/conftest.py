"""Every test of a model that asks for it runs twice: on the native CPU kernels, and as on a machine without them."""

import pytest


@pytest.fixture(params=["native", "torch"])
def both_cpu_paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr("loraplex_kernels.cpu_native.library._load", lambda: "switched off by the test")
