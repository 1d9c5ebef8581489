"""The watermark model."""

from pathlib import Path

import pytest

from tests.lifecycle.watermark import Watermarks


@pytest.fixture(scope="session")
def watermarks(smollm2_folder) -> Watermarks:
    return Watermarks(smollm2_folder)


@pytest.fixture(scope="session")
def watermark_model(watermarks, tmp_path_factory) -> Path:
    return watermarks.save_model(tmp_path_factory.mktemp("watermark") / "model")
