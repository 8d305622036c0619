"""The plan as a whole: what fits, what is given up for it, which method is advised and why, and how all of it is said."""

import dataclasses
import io
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from rich.console import Console

from graft import jobs
from graft.errors import ModelError, TargetError, TrainingError
from graft.methods import LoRA, Selective
from graft.plan import NEEDS, USUAL, after_oom, page, plain, plan, plan_and_show, show
from graft.plan.advice import METHODS, RULES, Situation, advise, spoken, why_not
from graft.plan.memory import PARTS
from graft.plan.rows import Rows, rows_of
from graft.plan.search import room
from graft.plan.setup import Setup
from graft.plan.show import duration
from graft_rows import write_rows

DOCS = Path(__file__).parent.parent
FEW = {name: USUAL[name] for name in ("lora r=16", "dora r=16", "bottleneck", "prompt n=20", "last-k", "full")}


def llama(width=4096, layers=32, mlp=11008):
    heads = width // 128
    return transformers.LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=mlp, vocab_size=32000
    )


SMALL = llama(2048, 16, 8192)


@pytest.fixture(scope="module")
def tight():
    """A 7B model on a card of 16 GB."""
    return plan(llama(), memory="16GB", gpu="4080", examples=100_000, methods=FEW)


def by_name(found):
    return {each.counted.name: each for each in found.entries}


def test_what_fits_is_within_the_memory_and_loses_the_least(tight):
    found = by_name(tight)
    for name, each in found.items():
        if each.choice:
            assert each.choice.memory.peak <= room(16 * 10**9) < 15 * 10**9
            assert each.choice.setup.batch * each.choice.setup.accum == 16, name
    assert found["lora r=16"].choice.setup.checkpointing
    assert not found["lora r=16"].choice.setup.nf4  # 13.5 GB of weights and checkpointing just fit
    assert found["full"].choice is None
    assert found["full"].card.name == "H200"
    roomy = by_name(plan(llama(), gpu="h100", examples=100_000, methods=FEW))
    assert roomy["lora r=16"].choice.given_up == ()
    assert roomy["lora r=16"].choice.setup.batch == 16
    assert not roomy["lora r=16"].choice.setup.checkpointing


def test_less_memory_gives_up_more_and_in_the_order_that_is_said():
    given = [by_name(plan(llama(), memory=f"{size}GB", methods={"lora r=16": LoRA(r=16)}))["lora r=16"] for size in (40, 15, 8, 5.6)]
    assert [each.choice and each.choice.setup.nf4 for each in given] == [False, True, True, True]
    assert given[0].choice.given_up == ()
    assert given[1].choice.given_up == ("the base in 4 bits",)
    assert given[1].choice.setup.batch >= given[2].choice.setup.batch
    assert plan(llama(), memory="4GB", methods={"lora r=16": LoRA(r=16)}).entries[0].card.name == "RTX 3060 12GB"


def test_rank_is_the_last_thing_given_up():
    big = {"lora r=64": LoRA(r=64)}
    sizes = [size / 10 for size in range(48, 80, 2)]
    found = [plan(llama(), memory=f"{size}GB", methods=big).entries[0] for size in sizes]
    ranks = [each.choice.method.r for each in found if each.choice]
    assert ranks == sorted(ranks)
    assert {ranks[0], ranks[-1]} == {4, 64}
    cheapest = next(each for each in found if each.choice)
    assert "rank 4" in cheapest.choice.given_up
    assert "--set r=4" in cheapest.command


def test_a_job_too_short_to_compile_keeps_more_unless_it_is_compiled_for_it():
    short = plan(SMALL, memory="80GB", examples=100, methods={"lora r=16": LoRA(r=16)}).entries[0]
    long = plan(SMALL, memory="80GB", examples=1_000_000, methods={"lora r=16": LoRA(r=16)}).entries[0]
    assert not short.choice.setup.compiled
    assert long.choice.setup.compiled
    assert short.choice.memory.activations > long.choice.memory.activations
    between = (short.choice.memory.peak + long.choice.memory.peak) // 2
    forced = plan(SMALL, memory=round((between + 6e8) / 0.97), examples=100, methods={"lora r=16": LoRA(r=16)}).entries[0]
    assert forced.choice.memory.peak < between


def test_blocks_are_not_compiled_for_less_time_a_step_where_the_run_is_too_short():
    for each in plan(SMALL, memory="80GB", gpu="h100", examples=100).entries:
        assert (each.choice.setup.compiled, each.choice.given_up) == (False, ()), each.name


def test_data_gives_the_lengths(tmp_path, tiny_llama, tiny_tokenizer):
    tiny_llama.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    write_rows(tmp_path / "rows.jsonl", 24)
    found = plan(str(tmp_path), data=str(tmp_path / "rows.jsonl"), memory="1GB", methods={"lora r=8": LoRA()})
    assert found.rows.count == 24
    assert found.rows.mean <= found.rows.longest == found.entries[0].choice.setup.tokens
    assert found.situation.examples == 24
    assert found.entries[0].command.startswith(f"graft train --model {tmp_path} --data {tmp_path / 'rows.jsonl'} --method lora --set r=8")
    setup = found.entries[0].choice.setup
    assert setup.supervised * setup.tokens == pytest.approx(found.rows.answer)
    assert 0 < found.rows.answer < setup.tokens
    assert plan(str(tmp_path), data=str(tmp_path / "rows.jsonl"), examples=7, methods={"l r=8": LoRA()}).rows.count == 7
    bare = tmp_path / "bare"
    llama().save_pretrained(bare)
    with pytest.raises(ModelError, match="without a tokenizer leave --data out"):
        plan(str(bare), data=str(tmp_path / "rows.jsonl"))


def test_many_rows_are_sampled_and_the_longest_is_found(tmp_path, tiny_tokenizer):
    lines = [{"prompt": "where is it?", "completion": "here"} for _ in range(3001)]
    lines[1234]["completion"] = "here " * 200
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = rows_of(str(file), tiny_tokenizer)
    assert found.count == 3001
    assert len(found.lengths) < 1100
    assert found.longest > 10 * found.share(0.95)
    assert found.answer > 100


def test_a_batch_is_as_long_as_its_longest_row():
    rows = Rows(4, (10, 20, 30, 40))
    assert rows.padded(1, 100) == pytest.approx(rows.mean) == pytest.approx(25)
    assert rows.padded(2, 100) == pytest.approx((10 * 1 + 20 * 3 + 30 * 5 + 40 * 7) / 16)
    assert rows.padded(64, 100) == pytest.approx(40, abs=1e-5)
    assert rows.padded(64, 25) == pytest.approx(25, abs=1e-5)


TEN = [
    (Situation(), ("lora",)),
    (Situation(examples=100), ("lora",)),
    (Situation(examples=10_000, needs=frozenset({"quality"})), ("lora",)),
    (Situation(examples=200_000, needs=frozenset({"knowledge"})), ("lora",)),
    (Situation(needs=frozenset({"form"})), ("ia3", "bias", "norms")),
    (Situation(needs=frozenset({"latency"})), ("lora",)),
    (Situation(needs=frozenset({"latency", "untouched"})), ("ia3", "bias")),
    (Situation(needs=frozenset({"adapters", "form"})), ("ia3",)),
    (Situation(needs=frozenset({"storage"})), ("ia3", "norms")),
    (Situation(needs=frozenset({"speed"})), ("lora", "last-k")),
]


@pytest.mark.parametrize(("situation", "best"), TEN)
def test_the_advice_in_ten_situations(situation, best):
    found = advise(situation)
    assert found.best == best
    assert found.reasons
    assert ("equal" in spoken(found)) == (len(best) > 1)
    assert any(rule.source.startswith("docs/") for rule in found.reasons), "measured evidence comes first"
    for name in METHODS:
        assert bool(why_not(situation, name)) == (name not in best)


def test_virtual_tokens_and_bottlenecks_are_ruled_out_where_they_cannot_serve():
    found = advise(Situation(needs=frozenset({"latency"})))
    assert set(found.ruled_out) == {"bottleneck", "prefix", "prompt"}
    assert "context" in why_not(Situation(needs=frozenset({"context"})), "prefix")[0].sentence
    assert advise(Situation(fits=frozenset({"prompt"}))).best == ("prompt",)
    assert advise(Situation(fits=frozenset())).best == ()
    assert spoken(advise(Situation(fits=frozenset()))) == "No method fits."
    assert "full" in advise(Situation(parameters=70 * 10**9)).ruled_out


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.sentence[:40])
def test_every_number_of_a_rule_stands_where_it_says(rule):
    assert {*rule.favours, *rule.against, *rule.out} <= set(METHODS)
    if rule.source == "docs/results.md":
        text = (DOCS / rule.source).read_text()
        for number in re.findall(r"\d+\.\d+", rule.sentence):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text), number
    assert rule.source.startswith(("docs/", "arXiv:"))
    if rule.source.startswith("docs/"):
        assert (DOCS / rule.source).exists()


def test_what_is_not_known_is_refused_with_what_is():
    with pytest.raises(TargetError, match=f"no need 'fun' is known: name any of {', '.join(NEEDS)}"):
        Situation(needs=frozenset({"fun"}))
    with pytest.raises(TargetError, match="there is no method 'lorra'"):
        why_not(Situation(), "lorra")
    with pytest.raises(ModelError, match="no card 'z9'"):
        plan(SMALL, gpu="z9")
    with pytest.raises(ModelError, match="write a size such as 24GB"):
        plan(SMALL, memory="much")
    with pytest.raises(TrainingError, match="batch is 0"):
        Setup(batch=0)


def printed(found, width=160, asked=""):
    console = Console(width=width, record=True, force_terminal=False, file=io.StringIO())
    show(found, console, asked)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120, 140, 170])
def test_the_terminal_has_a_line_a_method_and_bars_that_fill_the_room(tight, width):
    text = printed(tight, width, "dora")
    for name in FEW:
        (line,) = [each for each in text.splitlines() if each.strip().startswith(f"{name} ")]
        assert len(line) <= width
        if name != "full":
            filled, left = line.count("█"), line.count("·")
            assert filled + left == (24 if width > 130 else 12)
            peak = by_name(tight)[name].choice.memory.peak
            assert filled / (filled + left) == pytest.approx(peak / room(16 * 10**9), abs=0.05)
    assert "fits H200" in text
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
