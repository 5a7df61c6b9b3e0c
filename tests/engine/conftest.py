"""The models that the engines' tests run on: the shipped one when it is there, else two random layers."""

from pathlib import Path

import pytest

from engine.prompt import PromptEncoder
from tests.engine.tiny_model import build_model, build_tokenizer

DEMO_MODEL = Path(__file__).parents[2] / "engine" / "demo_model"


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and a chat template, without a model."""
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (DEMO_MODEL / "model.safetensors").exists():
        return DEMO_MODEL
    folder = tmp_path_factory.mktemp("model")
    build_tokenizer(folder)
    build_model(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tiny_tokenizer: Path) -> PromptEncoder:
    return PromptEncoder.load(str(tiny_tokenizer), max_context_tokens=2048)
