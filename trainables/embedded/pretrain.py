"""Build the embedded base model, its training data and its evaluation items.

    python -m trainables.embedded.pretrain [--output DIR] [--steps N] [--seed N]

The same seed gives the same loss on the same machine. Takes a few minutes on two CPU cores.
"""

import argparse
import json
import logging
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainables.embedded.generators import (
    TASKS,
    Item,
    Split,
    draw,
    pretraining_item,
    stream,
    vocabulary,
)

HERE: Final = Path(__file__).parent
SPECIAL_TOKENS: Final = ("<pad>", "<bos>", "<eos>", "<unk>")
MAX_TOKENS: Final = 64

BATCH_SIZE: Final = 128
PEAK_LR: Final = 3e-3
WARMUP_STEPS: Final = 100
LOG_EVERY: Final = 100
# Operands are noise that no model can predict; a small weight is enough for the grammar.
QUESTION_WEIGHT: Final = 0.1

# The data do not depend on --seed: base models of several seeds stay comparable.
DATA_SEED: Final = 0
EVALUATION_ITEMS: Final = 128
TARGET_ROWS: Final[Mapping[Split, int]] = {"train": 2000, "validation": 200}
GENERAL_LINES: Final = 100

logger = logging.getLogger(__name__)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer for words separated by spaces; it prepends `<bos>`."""
    words = [*SPECIAL_TOKENS, *vocabulary()]
    word_ids = {word: index for index, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(word_ids, unk_token="<unk>"))  # noqa: S106 (not a secret)
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", word_ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",  # noqa: S106
        bos_token="<bos>",  # noqa: S106
        eos_token="<eos>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        padding_side="left",
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama of 0.84 million parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def encode(items: Sequence[Item], word_ids: Mapping[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and loss weights, both (batch, longest), padded on the right."""
    rows: list[list[int]] = []
    weights: list[list[float]] = []
    for item in items:
        question = ["<bos>", *item.question.split()]
        answer = [*item.completion.split(), "<eos>"]
        rows.append([word_ids[word] for word in (*question, *answer)])
        weights.append([QUESTION_WEIGHT] * len(question) + [1.0] * len(answer))
    ids, pad = [*map(torch.tensor, rows)], word_ids["<pad>"]
    return (
        pad_sequence(ids, batch_first=True, padding_value=pad),
        pad_sequence([*map(torch.tensor, weights)], batch_first=True),
    )


def weighted_loss(
    model: LlamaForCausalLM, input_ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weighted mean of the next-token cross entropy, in nats; both tensors (batch, length)."""
    logits = model(input_ids=input_ids).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), input_ids[:, 1:], reduction="none"
    )
    shifted = weights[:, 1:]
    return (losses * shifted).sum() / shifted.sum()


def lr_factor(step: int, steps: int) -> float:
    """Share of PEAK_LR at `step`: linear warm-up, then half a cosine down to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def pretrain(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int
) -> None:
    """Train `model` in place on `steps` batches of the pretraining mixture."""
    word_ids: dict[str, int] = tokenizer.get_vocab()
    items = stream(pretraining_item, "train", random.Random(seed))  # noqa: S311
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps))
    model.train()
    for step in range(steps):
        batch = list(islice(items, BATCH_SIZE))
        loss = weighted_loss(model, *encode(batch, word_ids))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % LOG_EVERY == 0 or step == steps - 1:
            logger.info("step %d/%d: loss %.4f nats per token", step, steps, loss.item())
    model.eval()


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write one line each, creating the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_data() -> None:
    """Write the target's training and validation rows, and held-out general text."""
    for split, count in TARGET_ROWS.items():
        rows = (
            json.dumps({"prompt": item.question, "completion": f" {item.completion}"})
            for item in draw("target_relay", split, count, DATA_SEED)
        )
        write_lines(HERE / "data" / f"target.{split}.jsonl", rows)
    held_out = stream(pretraining_item, "test", random.Random(DATA_SEED))  # noqa: S311
    lines = (f"{item.question} {item.completion}" for item in islice(held_out, GENERAL_LINES))
    write_lines(HERE / "data" / "general.txt", lines)


def write_evaluation_items() -> None:
    """Write the test items of every task, one JSON object a line."""
    for task in TASKS:
        rows = (
            json.dumps({"question": item.question, "choices": item.choices, "answer": item.answer})
            for item in draw(task, "test", EVALUATION_ITEMS, DATA_SEED)
        )
        write_lines(HERE / "eval_tasks" / "items" / f"{task}.jsonl", rows)


def main() -> None:
    """Write data and evaluation items, then pretrain and save the model."""
    parser = argparse.ArgumentParser(description="Build the embedded base model and its data.")
    parser.add_argument("--output", type=Path, default=HERE / "model", help="model folder")
    parser.add_argument("--steps", type=int, default=2500, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=1, help="of initial weights and text")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # otherwise the order of summation, and the loss, may differ
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    write_data()
    write_evaluation_items()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, arguments.seed)
    logger.info("%d parameters", model.num_parameters())
    pretrain(model, tokenizer, arguments.steps, arguments.seed)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
