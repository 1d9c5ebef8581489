"""A model folder without weights, and a frontend around it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loraplex_frontend.model_folder import ModelFolder
from loraplex_frontend.text.chat_template import ChatTemplate
from loraplex_frontend.text.tokenizer import Tokenizer
from tests.frontend.service import Service, started
from tests.frontend.tiny_model import write_model_folder


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("frontend") / "tiny")


@pytest.fixture(scope="session")
def model(model_path) -> ModelFolder:
    return ModelFolder.read(model_path)


@pytest.fixture(scope="session")
def tokenizer(model) -> Tokenizer:
    return Tokenizer(model.tokenizer_json, vocab_size=model.vocab_size)


@pytest.fixture(scope="session")
def template(model, tokenizer) -> ChatTemplate:
    return ChatTemplate(
        model.chat_template,
        special_tokens=model.special_tokens,
        tokenizer=tokenizer,
        max_output_chars=1_000_000,
    )


@pytest.fixture
async def service(model_path, tmp_path) -> AsyncIterator[Service]:
    """With a fake scheduler that does nothing by itself."""
    async with started(model_path, tmp_path) as running:
        yield running
