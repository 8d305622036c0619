"""The model stays the object that transformers' Trainer and any torch loop train."""

import warnings

import pytest
import torch

import graft
from settings import SETTINGS
from tiny import tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import Trainer, TrainingArguments

CHOSEN = ("lora", "dora", "houlsby", "ia3", "bias", "last", "prefix_mlp", "prompt", "lora+head")


def rows():
    ids = torch.randint(3, 64, (8, 9), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]


@pytest.mark.parametrize("setting", CHOSEN)
@pytest.mark.filterwarnings("ignore")
def test_trainer_trains_the_adapter_and_leaves_the_base(setting, tmp_path):
    model = tiny("llama")
    base = {key: value.clone() for key, value in model.state_dict().items()}
    adapted = graft.adapt(model, SETTINGS[setting])
    before = [value.detach().clone() for value in adapted.parameters()]
    options = TrainingArguments(
        str(tmp_path), max_steps=6, per_device_train_batch_size=4, learning_rate=0.02, report_to="none", save_strategy="no",
        use_cpu=True, disable_tqdm=True, logging_strategy="no", seed=0,
    )  # fmt: skip
    trainer = Trainer(model, options, train_dataset=rows())
    first = trainer.evaluate(rows())["eval_loss"]
    trainer.train()
    assert trainer.evaluate(rows())["eval_loss"] < first
    assert any(not torch.equal(a, b) for a, b in zip(before, adapted.parameters(), strict=True))
    adapted.save(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    adapted.detach()
    assert all(torch.equal(value, base[key]) for key, value in model.state_dict().items())
