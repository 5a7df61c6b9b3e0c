"""Asks a model the held-out questions and counts the right answers: word for word one of the intent's, ended by itself."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from engine.demo_model.build.dialogues import Question

MAX_NEW_TOKENS = 420


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a folder in float32 on the CPU, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Sequence[Mapping[str, object]]],
    *,
    tools: Sequence[Mapping[str, object]] | None = None,
    batch: int = 32,
    **sampling: object,
) -> Iterator[tuple[str, bool, int]]:
    """For each chat: the answer, whether the model ended it by itself, and its number of tokens."""
    for start in range(0, len(chats), batch):
        texts = [
            tokenizer.apply_chat_template(chat, tools=tools, tokenize=False, add_generation_prompt=True)
            for chat in chats[start : start + batch]
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        width = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            outputs = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **sampling)
        for row in outputs[:, width:].tolist():
            ended = tokenizer.eos_token_id in row
            tokens = row[: row.index(tokenizer.eos_token_id)] if ended else row
            yield tokenizer.decode(tokens), ended, len(tokens)


def wrong_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> list[tuple[Question, str]]:
    """The questions that were not answered right, each with what the model said."""
    # A batch takes as long as its longest answer: the long ones go together.
    questions = sorted(questions, key=lambda question: max(map(len, question.answers)))
    chats = [[{"role": "user", "content": question.text}] for question in questions]
    answers = answer(model, tokenizer, chats)
    return [
        (question, text)
        for question, (text, ended, _) in zip(questions, answers, strict=True)
        if not ended or text not in question.answers
    ]
