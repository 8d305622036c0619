"""How a plan is said: the terminal, the page, JSON, and what training says when a card was too small."""

import dataclasses
import io
import json
import re
import shlex
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from graft import jobs
from graft.errors import ModelError, TargetError, TrainingError
from graft.methods import LoRA, Prefix, Prompt, Selective
from graft.plan import NEEDS, after_oom, page, plain, plan, plan_and_show
from graft.plan.advice import Situation, why_not
from graft.plan.memory import PARTS
from graft.plan.search import room
from graft.plan.setup import Setup
from graft.plan.show import duration
from graft_rows import write_rows
from planned import FEW, SMALL, by_name, llama, printed

DOCS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tight():
    """A 7B model on a card of 16 GB."""
    return plan(llama(), memory="16GB", gpu="4080", examples=100_000, methods=FEW)


def test_a_command_can_be_pasted_from_a_narrow_terminal(tight):
    spaced = dataclasses.replace(tight, entries=tuple(plan(SMALL, memory="80GB", methods={"lora r=8": LoRA()}).entries))
    config = llama(256, 2, 512)
    config.name_or_path = "my models/base"
    found = plan(config, methods={"lora r=8": LoRA()})
    assert shlex.split(found.entries[0].command)[:4] == ["graft", "train", "--model", "my models/base"]
    assert f"\n{spaced.entries[0].command}\n" in printed(spaced, 60)


def test_a_command_leaves_room_for_virtual_tokens_in_the_context():
    config = llama(256, 2, 512)
    config.max_position_embeddings = 128
    found = by_name(plan(config, methods={"lora r=8": LoRA(), "prompt n=20": Prompt(), "prefix n=200": Prefix(n=200)}))
    assert "--max-length 128 " in found["lora r=8"].command
    assert "--max-length 108 " in found["prompt n=20"].command
    assert "200 virtual tokens leave no room" in found["prefix n=200"].counted.refused


def test_what_is_not_known_is_refused_with_what_is():
    with pytest.raises(TargetError, match=f"no need 'fun' is known: name any of {', '.join(NEEDS)}"):
        Situation(needs=frozenset({"fun"}))
    with pytest.raises(TargetError, match="there is no method 'lorra'"):
        why_not(Situation(), "lorra")
    console = Console(file=io.StringIO())
    with pytest.raises(TargetError, match="there is no method 'qlora'"):
        plan_and_show("smollm2", console, why_not="qlora")
    assert console.file.getvalue() == ""
    with pytest.raises(ModelError, match="no card 'z9'"):
        plan(SMALL, gpu="z9")
    with pytest.raises(ModelError, match="write a size such as 24GB"):
        plan(SMALL, memory="much")
    with pytest.raises(TrainingError, match="batch is 0"):
        Setup(batch=0)


@pytest.mark.parametrize("width", [80, 120, 140, 170])
def test_the_terminal_has_a_line_a_method_and_bars_that_fill_the_room(tight, width):
    text = printed(tight, width, "dora")
    for name in FEW:
        (line,) = [each for each in text.splitlines() if each.strip().startswith(f"{name} ")]
        assert len(line) <= width
        if name != "full":
            filled, left = line.count("█"), line.count("·")
            assert filled + left == (24 if width > 130 else 12 if width > 99 else 8)
            peak = by_name(tight)[name].choice.memory.peak
            assert filled / (filled + left) == pytest.approx(peak / room(16 * 10**9), abs=0.07)
    assert re.search(r"needs 11\d\.\d GB \(H200\)", text) or width == 80  # two lines
    assert "6,738,415,616" in text
    assert "checkpointing" in text
    assert "Why not dora?" in text
    assert "scaled from an H100's" in " ".join(text.split())


def test_times_are_said_in_units_that_fit_them():
    assert [duration(hours) for hours in (0.001, 0.5, 3.25, 72)] == ["1 min", "30 min", "3.2 h", "3.0 days"]


def test_the_page_says_the_same_and_escapes_what_it_is_given(tight):
    text = page(dataclasses.replace(tight, model="<b>model</b>"), "dora")
    assert "<b>model" not in text
    assert "&lt;b&gt;model" in text
    assert text.count('class="bar"') == 5
    assert all(f"{part} " in text for part in PARTS)
    assert "Take lora." in text
    assert "Why not dora?" in text
    for widths in re.findall(r'aria-label="[^"]*">(.*?)</div>', text):
        assert sum(float(width) for width in re.findall(r"width:([\d.]+)%", widths)) <= 100


def test_json_has_every_number(tight):
    found = json.loads(json.dumps(plain(tight, "dora")))
    lora = found["methods"][0]
    assert lora["trained"] == 39_976_960
    assert sum(lora["training"]["parts"].values()) == lora["training"]["peak_bytes"]
    assert lora["training"]["method"]["r"] == 16
    assert lora["served"]["latency"] == "beside"
    assert lora["training"]["hours"] > 0
    assert found["methods"][-1]["training"] is None
    assert found["advice"]["best"] == ["lora"]
    assert found["advice"]["reasons"][0]["source"] == "docs/results.md"
    assert found["why_not"]["dora"]


def test_a_plan_of_every_method_takes_little_time(tmp_path, capsys):
    llama().save_pretrained(tmp_path)
    before = time.process_time()
    plan_and_show(str(tmp_path), Console(width=120), gpu="4090", examples=10_000, need="quality", html=tmp_path / "plan.html")
    assert time.process_time() - before < 3
    assert "Take lora." in capsys.readouterr().out
    assert (tmp_path / "plan.html").read_text().startswith("<!doctype html>")
    plan_and_show(str(tmp_path), Console(), json=True)
    assert json.loads(capsys.readouterr().out)["model"]["parameters"] == 6_738_415_616


def test_after_an_out_of_memory_plan_and_actual_are_said_and_what_fits():
    known = {"card": 16 * 10**9, "held": 15_700_000_000, "model": "m", "source": "d.jsonl"}
    said = after_oom(llama(), "lora r=16", LoRA(r=16), Setup(batch=16, tokens=512), [512] * 10_000, **known)
    assert "15.7 of its 16.0 GB were held" in said
    assert re.search(r"the plan is 3\d\.\d GB \(activations 2\d\.\d, weights 13\.5", said)
    proposed = re.search(r"predicted to need (\d+\.\d) GB", said)
    assert float(proposed[1]) < 15
    assert "graft train --model m --data d.jsonl --method lora --set r=16 --batch-size" in said
    hopeless = after_oom(llama(), "full", Selective("full"), Setup(batch=1, tokens=512), [512], **known)
    assert "No smaller way to train this method is known" in hopeless


def test_training_that_runs_out_of_memory_says_what_fits(monkeypatch, tmp_path, tiny_llama, tiny_tokenizer):
    def too_large(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    tiny_llama.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    write_rows(tmp_path / "rows.jsonl", 24)
    monkeypatch.setattr(jobs, "train", too_large)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=16 * 10**9))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 15 * 10**9)
    job = jobs.TrainJob(str(tmp_path / "base"), str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), set=("r=4",), batch_size=16)
    with pytest.raises(TrainingError, match=r"15\.0 of its 16\.0 GB were held .* which fits: something else holds memory"):
        jobs.train_job(job, Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()


def test_a_base_in_4_bits_is_planned_from_its_config_too():
    config = llama()
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    setup = Setup(batch=4, nf4=True)
    assert "the plan is" in after_oom(config, "lora", LoRA(), setup, [512], card=5 * 10**9, held=5 * 10**9, model="m", source="d")


def test_the_example_of_the_page_runs(capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```$", (DOCS / "docs" / "planning.md").read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(block, "<document>", "exec"), {"config": SMALL})
    assert "lora r=16" in capsys.readouterr().out
