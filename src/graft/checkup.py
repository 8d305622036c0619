"""Every method on this machine's device beside plain torch in float32 on its CPU: what `graft doctor --kernels` runs.

A tiny Llama with random weights is adapted three times with the same values: on the device, as training runs it there (kernels where there
are any, in the dtype that models are loaded in), and on the CPU with neither kernel nor fusing, in that dtype and in float32, which is what
is right. Compared are the logits and the gradients of all trained tensors, each as the norm of the difference to the norm of what is
right. Then one engine answers for all methods at once, and the log-probability of each token that it chose is compared with that of the
same adapter alone, in nats. The device may be off by twice what rounding alone is, and a little.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

from graft.doctor import Check
from graft.method import Method
from graft.methods import IA3, BiasOnly, Bottleneck, DoRA, LoRA, Prefix, Prompt
from graft.model.adapted import Adapted, adapt
from graft.model.load import computes_bf16, pick_device
from graft.serve import Engine, Room, Sampling
from graft.serve.answers import Answer

SHAPE = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS: dict[str, Method] = {
    "lora": LoRA(r=8), "dora": DoRA(r=8), "bottleneck": Bottleneck(size=16), "ia3": IA3(), "bias": BiasOnly(add=True),
    "prefix": Prefix(n=8), "prompt": Prompt(n=8, init_embeds="random"),
}  # fmt: skip
TIMES, SPARE = 2.0, {"logits and gradients": 1e-3, "log-probabilities": 1e-2}
ROWS, LENGTH, NEW = 2, 40, 12
STD = 0.05  # of what is added to fresh adapters, so that each does something


REPORT = "train with TrainConfig(fuse=False), compile off and cuda_graphs off, and report this with the versions above"


class Three(NamedTuple):
    """What is right, the same in another dtype, and the copy of the base on the device that training adapts."""

    right: Adapted
    rounded: Adapted
    ours: Adapted


def checkup(device: str = "auto") -> Iterator[Check]:
    """One check a method, and one for serving; whatever goes wrong is said in the check."""
    where = pick_device(device)
    dtype = torch.bfloat16 if computes_bf16(where) else torch.float32
    base, made = model(), {}
    for name, method in KINDS.items():
        copies = [(torch.device("cpu"), torch.float32), (torch.device("cpu"), dtype), (where, dtype)]
        made[name] = alike(Three(*(adapt(copy.deepcopy(base).to(*each), method, seed=1) for each in copies)))
        yield checked(f"kernels: {name}", "logits and gradients", partial(trained, made[name]))
    yield checked("kernels: serving", "log-probabilities", partial(served, base, made, where, dtype))


def checked(name: str, what: str, run: Callable[[], tuple[float, float]]) -> Check:
    """A check of how far the device is off, beside how far rounding is."""
    try:
        found, rounding = run()
    except Exception as error:  # a compiler, a driver: whatever it is, it is what was found
        return Check(name, "failed", f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", REPORT)
    bound = TIMES * rounding + SPARE[what]
    said = f"{what} {found:.2g} off plain float32; rounding explains up to {bound:.2g}"
    return Check(name, "ok", said) if found <= bound else Check(name, "failed", said, REPORT)


def model() -> Any:
    """The tiny model, in float32 with values that bfloat16 has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**SHAPE, num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0)
        made = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for value in made.parameters():
            value.copy_((4 * value if value.dim() > 1 else value).bfloat16())
    return made


@torch.no_grad()
def alike(made: Three) -> Three:
    """The same three, with the same trained tensors: fresh ones changed a little, so that each does something."""
    generator = torch.Generator().manual_seed(2)
    for first, *others in zip(*(each.parameters() for each in made), strict=True):
        first.add_(torch.empty_like(first).normal_(std=STD, generator=generator))
        for other in others:
            other.copy_(first)
    return made


def trained(made: Three) -> tuple[float, float]:
    """The larger difference of logits and gradients: trained as on this device, and rounded alone."""
    made.ours.fuse()
    right, rounded, ours = map(results, made)
    made.ours.unfuse()
    off = [max(float((a - b).norm() / b.norm()) for a, b in zip(found, right, strict=True)) for found in (ours, rounded)]
    return off[0], off[1]


def results(adapted: Adapted) -> tuple[Tensor, Tensor]:
    """Logits and the gradients of all trained tensors, each as one row in float64 on the CPU."""
    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) * 37 % SHAPE["vocab_size"]
    adapted.model.train()
    logits = adapted.model(input_ids=ids.to(adapted.model.device), use_cache=False).logits.float()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten().to(logits.device))
    gradients = torch.autograd.grad(loss, adapted.parameters())
    adapted.model.eval()
    return logits.detach().flatten().cpu().double(), torch.cat([value.flatten().cpu().double() for value in gradients])


def served(base: Any, made: dict[str, Three], where: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """The mean difference of a chosen token's log-probability, all methods and the base in one batch, and that of rounding alone."""
    prompt = [token * 29 % SHAPE["vocab_size"] for token in range(1, LENGTH)]
    sampling = Sampling(max_tokens=NEW, logprobs=1, ignore_end=True)
    room = Room(cached=2048, batch=128, requests=len(made) + 1)
    with torch.no_grad(), Engine(copy.deepcopy(base).to(where, dtype), slots=len(made), room=room) as engine:
        for named, three in made.items():
            engine.load(named, three.right.adapter())
        handles = {name: engine.submit(prompt, name, sampling) for name in (None, *made)}
        answers = {name: handle.result(300).answers[0] for name, handle in handles.items()}
    alone: dict[str | None, tuple[Any, Any]] = {name: (three.right.model, three.rounded.model) for name, three in made.items()}
    alone[None], off, rounding = (base, copy.deepcopy(base).to(dtype)), list[Tensor](), list[Tensor]()
    for name, answer in answers.items():
        right, rounded = (told(each, prompt, answer) for each in alone[name])
        off.append(right - torch.tensor([token.logprob for token in answer.tokens]))
        rounding.append(right - rounded)
    return float(torch.cat(off).abs().mean()), float(torch.cat(rounding).abs().mean())


@torch.no_grad()
def told(alone: Any, prompt: list[int], answer: Answer) -> Tensor:
    """The log-probabilities of an answer's tokens by a model that runs alone."""
    logits: Tensor = alone(input_ids=torch.tensor([prompt + answer.ids]), use_cache=False).logits[0, -NEW - 1 : -1].float()
    return logits.log_softmax(-1)[torch.arange(NEW), torch.tensor(answer.ids)]
