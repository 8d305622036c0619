"""The way to train that a plan finds: what fits, what is given up for it, and the lengths of rows that it rests on."""

import itertools
import json
import math
import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from graft import data
from graft.errors import ModelError
from graft.methods import LoRA
from graft.model import families
from graft.model.load import default_dtype
from graft.model.recorded import SPARE
from graft.model.skeleton import skeleton
from graft.model.waits import HOST
from graft.plan import plan
from graft.plan.cards import named
from graft.plan.job import job
from graft.plan.pace import pace
from graft.plan.rows import Rows, rows_of
from graft.plan.search import fitting, room, weighed
from graft.plan.setup import Setup
from graft_rows import write_rows
from planned import FEW, SMALL, by_name, llama, printed


@pytest.fixture(scope="module")
def tight():
    """A 7B model on a card of 16 GB."""
    return plan(llama(), memory="16GB", gpu="4080", examples=100_000, methods=FEW)


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


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize(("batch", "accum"), [(16, 1), (4, 4), (1, 16)])
def test_batches_are_as_long_as_training_makes_them(batch, accum, multiple):
    rng = random.Random(batch)
    lengths = sorted(int(rng.lognormvariate(4.5, 0.6)) + 5 for _ in range(1000))
    rows = Rows(len(lengths), tuple(lengths))
    examples = [data.Example((1,) * length, 0, data.Row(str(number), (), "")) for number, length in enumerate(lengths)]
    updates = itertools.islice(data.epochs(examples, batch * accum, 0), 400)
    parts = [part[start : start + batch] for part in updates for start in range(0, batch * accum, batch)]
    made = [data.collate(part, 0, multiple=multiple, most=rows.longest)["input_ids"].shape[1] for part in parts]
    assert rows.padded(batch, 10**6, 8 * 16, multiple) == pytest.approx(sum(made) / len(made), rel=0.05)
    assert rows.padded(batch, 60, 8 * 16, multiple) <= 60


@pytest.mark.parametrize(("longest", "plainest"), [(800, True), (4000, False)])
def test_of_ways_that_are_about_as_fast_the_plainest_is_taken(longest, plainest):
    lengths = tuple(sorted([*range(256, 556), *[longest] * 8]))
    rows = Rows(10**6, lengths, answer=50, source="rows")
    model = skeleton(SMALL)
    makes = partial(job, model, families.sites(model))
    setup = Setup(tokens=rows.longest)
    chosen = fitting(makes, LoRA(r=16), setup, rows, None, named("h100"))
    first = {each.setup.batch: each.seconds for each in reversed([*weighed(chosen.job, LoRA(r=16), setup, rows, named("h100"), ())])}
    least = min(first.values())
    assert first[16] > least, "a smaller batch is faster, for less padding"
    assert (first[16] <= 1.05 * least) == plainest
    assert (chosen.setup.batch == 16) == plainest
    assert chosen.seconds <= 1.05 * least


def test_steps_are_recorded_where_the_memory_has_room_for_a_recording():
    lora = {"lora r=16": LoRA(r=16)}
    roomy = plan(SMALL, gpu="h100", examples=100_000, methods=lora).entries[0].choice
    held = roomy.memory.peak + roomy.memory.step + SPARE
    assert roomy.setup.recorded
    for size, recorded in ((held + 10**8, True), (held - 10**8, False)):
        found = plan(SMALL, memory=round((size + 6e8) / 0.97), examples=100_000, methods=lora).entries[0].choice
        assert (found.setup.batch, found.setup.recorded) == (16, recorded)
    assert not plan(SMALL, gpu="cpu", methods=lora).entries[0].choice.setup.recorded


def test_on_a_card_steps_are_recorded_where_the_host_needs_its_share_of_the_time():
    lora, model, found = LoRA(r=16), skeleton(SMALL), set()
    for length in (16, 512, 4096):
        setup, rows = Setup(batch=1, tokens=length), Rows(0, (length,))
        makes = partial(job, model, families.sites(model))
        for each in weighed(makes(lora, setup), lora, setup, rows, named("h100"), ()):
            launched = pace(each.job.under(replace(each.setup, recorded=False)), named("h100"))
            assert each.setup.recorded == (launched.host > HOST * launched.card)
            found.add(each.setup.recorded)
    assert found == {True, False}


def test_on_a_cpu_nothing_is_compiled_or_held_in_fewer_bits():
    found = plan(SMALL, gpu="cpu", memory="8GB", methods=FEW)
    for each in found.entries:
        if each.choice:
            setup = each.choice.setup
            assert (setup.cpu, setup.compiled, setup.nf4, setup.optimizer, each.hours) == (True, False, False, "adamw", None)
            assert "--compile" not in each.command
    assert by_name(found)["full"].least > 8 * 10**9
    assert by_name(found)["full"].card is None
    assert room(8 * 10**9, cpu=True) < room(8 * 10**9)
    wide = plan(SMALL, gpu="cpu", methods=FEW)
    assert wide.entries[0].choice.setup.bytes == default_dtype(torch.device("cpu")).itemsize
    assert "on a CPU" in printed(wide)


def test_what_does_not_fit_says_how_much_would():
    small = plan(SMALL, memory="1GB", methods={"lora r=16": LoRA(r=16)})
    least = small.entries[0].least
    assert plan(SMALL, memory=least, methods={"lora r=16": LoRA(r=16)}).entries[0].choice
    assert plan(SMALL, memory=round(0.98 * least), methods={"lora r=16": LoRA(r=16)}).entries[0].choice is None or least
    assert f"needs {math.ceil(least / 1e8) / 10:g} GB (RTX 3060 12GB)" in printed(small)


def test_a_command_for_rows_that_nobody_counted_trains_as_was_planned():
    """Training leaves short runs uncompiled, which takes more memory than was promised."""
    unknown, known, cpu = (
        by_name(plan(SMALL, methods={"lora r=16": LoRA(r=16)}, **given))["lora r=16"]
        for given in ({"memory": "80GB"}, {"memory": "80GB", "examples": 1_000_000}, {"gpu": "cpu"})
    )
    assert unknown.choice.setup.compiled
    assert "--compile on" in unknown.command
    assert known.choice.setup.compiled
    assert "--compile" not in known.command
    assert "--compile" not in cpu.command
