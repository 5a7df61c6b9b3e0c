"""Trains the demo model from the dialogues that dialogues.py writes, and exports it in Hugging Face format.

`python -m engine.demo_model.build.train --out FOLDER` does all of it with a fixed seed, on one core.
"""

import argparse
import json
import re
import shutil
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.chat_template_utils import render_jinja_template

from engine.demo_model.build.dialogues import INTENTS, LANGUAGES, WORDS, Dialogue, held_out_questions, make_dialogue
from engine.demo_model.build.measure import load, wrong_answers

HERE = Path(__file__).parent
TEMPLATE = HERE.parent / "chat_template.jinja"
VOCABULARY = 3072
POSITIONS = 4096
# Qwen's pre-tokenizer: contractions, words, single digits, marks, line ends, spaces.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ANSWER = re.compile(r"(?<=<\|im_start\|>assistant\n)(.*?<\|im_end\|>)", re.DOTALL)


class Example(NamedTuple):
    """One dialogue as token ids, and for each whether the model must learn to write it."""

    ids: list[int]
    learned: list[bool]


def render(dialogue: Dialogue) -> str:
    """The dialogue as text, by the very template that is shipped."""
    texts, _ = render_jinja_template(
        conversations=[[message.as_dict() for message in dialogue.messages]],
        tools=[dict(tool) for tool in dialogue.tools] or None,
        chat_template=TEMPLATE.read_text(encoding="utf-8"),
    )
    return str(texts[0])


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of our own words, split as Qwen splits, with ChatML's and Hermes' marks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    marks = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(marks),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((re.sub(r"<\|\w+\|>|</?tool_(call|response)>", " ", text) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106 - a token of text, not a secret
        pad_token="<|endoftext|>",  # noqa: S106
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE.read_text(encoding="utf-8"),
    )


def encode(tokenizer: PreTrainedTokenizerFast, dialogues: list[Dialogue]) -> list[Example]:
    """The dialogues as examples; only whole answers of the assistant are learned."""
    pieces: list[str] = []
    marks: list[list[bool]] = []
    for dialogue in dialogues:
        split = _ANSWER.split(render(dialogue))
        trained = iter([message.trained for message in dialogue.messages if message.role == "assistant"])
        marks.append([index % 2 == 1 and next(trained) for index in range(len(split))])
        pieces += split
    encoded = iter(tokenizer(pieces, add_special_tokens=False)["input_ids"])
    examples = []
    for learned in marks:
        parts = [next(encoded) for _ in learned]
        ids = [token for part in parts for token in part]
        examples.append(Example(ids, [mark for part, mark in zip(parts, learned, strict=True) for _ in part]))
    return examples


def batches(examples: list[Example], num_tokens: int, rng: Random) -> Iterator[list[Example]]:
    """All examples once, in batches of about `num_tokens` of nearly equal lengths, in random order."""
    order = sorted(examples, key=lambda example: len(example.ids) + rng.random() * 8)
    found: list[list[Example]] = [[]]
    for example in order:
        if found[-1] and (len(found[-1]) + 1) * len(example.ids) > num_tokens:
            found.append([])
        found[-1].append(example)
    rng.shuffle(found)
    yield from found


def loss_of(model: Qwen3ForCausalLM, batch: list[Example], *, compiled: torch.nn.Module) -> torch.Tensor:
    """Mean cross-entropy over the learned tokens. Padding is on the right, where causal attention never looks."""
    width = max(len(example.ids) for example in batch)
    ids = torch.tensor([example.ids + [0] * (width - len(example.ids)) for example in batch])
    learned = torch.tensor([example.learned + [False] * (width - len(example.ids)) for example in batch])[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = compiled(ids[:, :-1], use_cache=False).last_hidden_state
        logits = functional.linear(hidden[learned], model.model.embed_tokens.weight)
    return functional.cross_entropy(logits.float(), ids[:, 1:][learned])


def optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    ids = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in ids]
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=0.003, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained Qwen3 of four million parameters."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def train(
    model: Qwen3ForCausalLM,
    examples: list[Example],
    *,
    num_tokens: int,
    minutes: float | None,
    peak: float,
    rng: Random,
) -> int:
    """One pass over the examples with a rate that rises, holds and falls to nothing; returns the number of steps."""
    model.train()
    plan = list(batches(examples, num_tokens, rng))
    rules = optimizers(model)
    rates = [rule.param_groups[0]["lr"] for rule in rules]
    compiled = torch.compile(model.model, dynamic=True)
    started, smooth = time.monotonic(), 0.0
    for step, batch in enumerate(plan):
        done = step / len(plan)
        if minutes:
            done = max(done, (time.monotonic() - started) / 60 / minutes)
        if done >= 1:
            return step
        scale = peak * min(1.0, (step + 1) / 40, (1 - done) / 0.6)
        for rule, rate in zip(rules, rates, strict=True):
            rule.param_groups[0]["lr"] = rate * scale
        loss = loss_of(model, batch, compiled=compiled)
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        for rule in rules:
            rule.step()
            rule.zero_grad()
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        if step % 50 == 0:
            print(f"step {step}/{len(plan)} loss {smooth:.4f} {time.monotonic() - started:.0f} s", flush=True)
    return len(plan)


def export(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes bf16 weights, configs and tokenizer; the answer is greedy unless asked otherwise."""
    # As top_k 1, because vLLM reads no do_sample: without a number it would take temperature 1.
    folder.mkdir(parents=True, exist_ok=True)
    exported = Qwen3ForCausalLM(model.config).to(torch.bfloat16)
    exported.load_state_dict(model.state_dict())
    exported.generation_config.update(
        do_sample=True, top_k=1, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    exported.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not (folder / TEMPLATE.name).exists():
        shutil.copy(TEMPLATE, folder)


def report(folder: Path) -> None:
    """Prints the held-out accuracy of each language, and what went wrong."""
    model, tokenizer = load(folder)
    for language, blind in product(LANGUAGES, (False, True)):
        questions = held_out_questions(language, blind=blind)
        wrong = wrong_answers(model, tokenizer, questions)
        num_right = len(questions) - len(wrong)
        kind = "blind" if blind else "held out"
        print(f"{language}, {kind}: {num_right} of {len(questions)} = {num_right / len(questions):.3f}")
        for question, said in wrong:
            print(json.dumps([question.intent, question.text, said[:80]], ensure_ascii=False))


def begin(dialogues: list[Dialogue]) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """A tokenizer of the words that the dialogues and our lists hold, and an untrained model for it."""
    words = [word for language in LANGUAGES for word in (*WORDS[language].topics, *WORDS[language].cities) * 3]
    answers = [text for intents in INTENTS.values() for intent in intents.values() for text in intent.answers]
    tokenizer = train_tokenizer([render(dialogue) for dialogue in dialogues[:12_000]] + words + answers)
    return new_model(tokenizer), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE.parent)
    parser.add_argument(
        "--start", type=Path, help="go on from the model in this folder, with the dialogues of another seed"
    )
    parser.add_argument("--dialogues", type=int, default=47_000)
    parser.add_argument("--batch-tokens", type=int, default=3072)
    parser.add_argument(
        "--minutes", type=float, help="end the schedule by the clock; the result is then not reproducible"
    )
    parser.add_argument("--peak", type=float, default=1.0, help="scales the learning rates")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    rng = Random(arguments.seed)
    started = time.monotonic()
    dialogues = [make_dialogue(rng) for _ in range(arguments.dialogues)]
    model, tokenizer = load(arguments.start) if arguments.start else begin(dialogues)
    examples = encode(tokenizer, dialogues)
    num_tokens = sum(len(example.ids) for example in examples)
    learned = sum(sum(example.learned) for example in examples)
    print(f"{num_tokens} tokens, {learned} learned, {time.monotonic() - started:.0f} s", flush=True)
    steps = train(
        model, examples, num_tokens=arguments.batch_tokens, minutes=arguments.minutes, peak=arguments.peak, rng=rng
    )
    export(model, tokenizer, arguments.out)
    print(f"{steps} steps, {time.monotonic() - started:.0f} s in all", flush=True)
    report(arguments.out)


if __name__ == "__main__":
    main()
