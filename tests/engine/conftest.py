"""The models that the engines' tests run on: the shipped one when it is there, else two random layers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine.local import LocalEngine
from engine.openai import OpenAIEngine
from engine.prompt import PromptEncoder
from engine.scripted import ScriptedEngine
from engine.vllm import VllmEngine
from tests.engine.subjects import SERVED, Scripted, Served, Vllm, vllm_serve
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


@pytest.fixture(scope="session")
def scripted_subject() -> Scripted:
    return Scripted(ScriptedEngine(tokens_per_s=2000))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def local_engine() -> AsyncIterator[LocalEngine]:
    async with LocalEngine(str(DEMO_MODEL), "demo") as engine:
        yield engine


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_subject(model_folder: Path) -> AsyncIterator[Vllm]:
    """vLLM takes half a minute to start: one for all tests, which share one event loop."""
    async with VllmEngine(str(model_folder), "tiny", max_model_len=2048) as engine:
        yield Vllm(engine)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def served_subject(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    log = tmp_path_factory.mktemp("serve") / "log"
    async with vllm_serve(model_folder, log) as url, OpenAIEngine(f"{url}/v1", None, SERVED) as engine:
        yield Served(engine, url)
