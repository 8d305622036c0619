"""What each adapter answers by itself: greedy tokens of forwards without a cache, one adapter in the model at a time.

A prompt is kept where the likeliest token leads by MARGIN at every step: what a batch's other rows change by rounding cannot turn it.
"""

from dataclasses import dataclass

import torch

import graft
from soaking.place import GUESTS, METHODS, SPECIAL, SWAPS, WORDS, base_model, word_tokenizer

MARGIN = 2e-3
PROMPTS = 5  # each model's
NEW = 20
LENGTHS = (3, 9, 17, 34, 70)


@dataclass(frozen=True)
class Case:
    """A model, a prompt's words and the words answered; `chat`: the prompt goes through the template."""

    model: str
    words: str
    chat: bool
    answer: str


def cases(place):
    """name -> its cases, for the base ("base") and all adapters; "swap" -> {version: its cases}, of the same prompts."""
    tokenizer, found = word_tokenizer(), {}
    folders = {name: place / "adapters" / name for name in {**METHODS, **GUESTS}}
    for seed, (name, folder) in enumerate([("base", None), *folders.items()]):
        (found[name],) = cases_of([name], [model_with(folder)], tokenizer, seed)
    models = [model_with(place / "versions" / name) for name in SWAPS]
    found["swap"] = dict(zip(SWAPS, cases_of(["swap"] * len(models), models, tokenizer, 1000), strict=True))
    return found


def model_with(folder):
    """The base with an adapter, or by itself."""
    model = base_model()
    if folder is not None:
        graft.load(model, folder)
    return model


def cases_of(names, models, tokenizer, seed):
    """PROMPTS prompts that all the models answer without a tie, the last two of them chats: a list of cases for each model."""
    generator, found = torch.Generator().manual_seed(seed), [[] for _ in models]
    while len(found[0]) < PROMPTS:
        number = len(found[0])
        chat = number >= PROMPTS - 2
        words = " ".join(f"t{one}" for one in torch.randint(0, WORDS, (LENGTHS[number],), generator=generator).tolist())
        message = [{"role": "user", "content": words}]
        ids = (
            tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False) if chat else tokenizer(words)["input_ids"]
        )
        answers = [greedy(model, list(ids)) for model in models]
        if all(answers):
            for name, cases, answer in zip(names, found, answers, strict=True):
                cases.append(Case(name, words, chat, tokenizer.decode(answer, skip_special_tokens=True)))
    return found


def greedy(model, ids):
    """NEW tokens, or fewer where the end comes; None where a step is nearly a tie, or chooses another special token."""
    found = list(ids)
    for _ in range(NEW):
        with torch.no_grad():
            best = model(input_ids=torch.tensor([found]), use_cache=False).logits[0, -1].topk(2)
        if best.values[0] - best.values[1] < MARGIN:
            return None
        if best.indices[0] == 0:
            break
        if best.indices[0] < len(SPECIAL):
            return None  # it is no text, which is all that a check sees
        found.append(int(best.indices[0]))
    return found[len(ids) :]
