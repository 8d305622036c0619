"""A base and adapters in folders, as a server is given them: tiny, of several methods, shaken so that each answers in its own way."""

import copy
from pathlib import Path

import torch

import graft
from settings import SETTINGS

METHODS = ("lora", "dora", "ia3", "houlsby", "bias", "prefix", "prompt")


def write_place(folder: Path, model, tokenizer, names=METHODS):
    """Write base/ and adapters/NAME/ into a folder; the folder."""
    model = copy.deepcopy(model)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for seed, name in enumerate(names):
        host = graft.adapt(model, SETTINGS[name])
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in host.parameters():
                value.add_(torch.empty_like(value).normal_(std=0.2, generator=generator))
        host.save(folder / "adapters" / name)
        host.detach()
    return folder
