"""The tiny model and its adapters, and a service whose workers may be hit."""

from pathlib import Path

import pytest

from tests.e2e.tiny_model import save_tiny_adapters, save_tiny_model


@pytest.fixture(scope="module")
def tiny_model(smollm2_folder, tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"), smollm2_folder)


@pytest.fixture(scope="module")
def tiny_adapters(tiny_model, tmp_path_factory) -> dict[str, Path]:
    return save_tiny_adapters(tiny_model, tmp_path_factory.mktemp("tiny-adapters"))
