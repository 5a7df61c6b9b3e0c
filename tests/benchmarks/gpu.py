"""`make bench-gpu`: bare AsyncLLM against this server on a GPU, with dummy weights in the shape of Qwen3-4B. Skipped where there is none.

Both engines share the GPU, started once, and take turns as in `make bench`. Without a Redis on the machine the journal is the embedded one,
and the results say so.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import uvloop

from server.settings import DEMO_MODEL
from tests.benchmarks.__main__ import HEADINGS, RESULTS, rows, take_turns
from tests.benchmarks.contenders import Contender, bare, flueman
from tests.services import redis_server

STREAMS = (1, 64, 256, 512)
MAX_TOKENS = 256
ENGINE_ARGS = {"load_format": "dummy", "max_model_len": 8192, "max_num_seqs": 512, "gpu_memory_utilization": 0.42}
# Qwen3-4B's config.json: hidden, feed-forward, layers, heads, KV heads, head size.
SHAPE = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_window_layers": 36,
    "max_position_embeddings": 32_768,
}


def gpu_name() -> str | None:
    """The GPU's name, or None when there is no GPU or no vLLM to use it."""
    program = shutil.which("nvidia-smi")
    if program is None or importlib.util.find_spec("vllm") is None:
        return None
    found = subprocess.run([program, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    return found.stdout.splitlines()[0].strip() if found.returncode == 0 and found.stdout.strip() else None


def make_model(folder: Path) -> Path:
    """A model folder of that shape without weights: the demo model's tokenizer and the larger configuration."""
    demo = Path(DEMO_MODEL)
    config = json.loads((demo / "config.json").read_text())
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps({**config, **SHAPE}))
    for path in demo.iterdir():
        if path.name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
            shutil.copy(path, folder)
    return folder


async def main() -> None:
    """Compare, and append the figures to the results."""
    parser = argparse.ArgumentParser(prog="make bench-gpu", description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--args", default="{}", help="JSON of further AsyncEngineArgs for both")
    options = parser.parse_args()
    gpu = gpu_name()
    if gpu is None:
        print("make bench-gpu: skipped, there is no GPU with vLLM on this machine")
        return
    engine_args = {**ENGINE_ARGS, **json.loads(options.args)}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = folder / "qwen3-4b-shape"
        model.mkdir()
        make_model(model)
        environment = {
            "FLUEMAN_ENGINE": "vllm",
            "FLUEMAN_MODEL": str(model),
            "FLUEMAN_MODEL_NAME": "demo",
            "FLUEMAN_VLLM_ARGS": msgspec.json.encode(engine_args).decode(),
            "FLUEMAN_DATA_DIR": str(folder / "data"),
        }
        journal = "the embedded journal (SQLite)"
        if shutil.which("redis-server") is not None:
            environment["FLUEMAN_REDIS_URL"] = stack.enter_context(redis_server(folder, unix_socket=True)).unix_url
            journal = "Redis with appendfsync always"
        contenders: list[Contender] = [
            await stack.enter_async_context(bare(str(model), engine_args)),
            await stack.enter_async_context(flueman(environment)),
        ]
        lines = [
            f"## {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC: `make bench-gpu`",
            "",
            f"{gpu}, Qwen3-4B's shape with dummy weights, {MAX_TOKENS} tokens an answer, {options.turns} turns; {journal}.",
            "",
            *HEADINGS,
        ]
        for streams in STREAMS:
            lines += rows(await take_turns(contenders, streams, options.turns, max_tokens=MAX_TOKENS))
    print("\n".join(lines))
    with RESULTS.open("a") as file:
        file.write("\n" + "\n".join([*lines, ""]))


if __name__ == "__main__":
    uvloop.run(main())
