"""A process that only plans leaves out what it does not use, and says the same as one that has everything."""

import json
import subprocess
import sys

import torch
import transformers
from torch.fx.experimental import symbolic_shapes

from graft.deferred import STAND_INS, Deferred
from graft.plan import plain, plan

ARCHITECTURES = ("Llama", "Gemma3Text", "Phi3", "GPT2", "Roberta")
ALONE = f"""
import json, sys
from graft.deferred import defer
defer()
import transformers
from graft.plan import plain, plan
found = [plain(plan(getattr(transformers, name + "Config")(), gpu="h100", examples=50_000)) for name in {ARCHITECTURES}]
heavy = [name for name in ("sympy.core", "torch._dynamo.convert_frame", "torch.distributed.tensor") if name in sys.modules]
print(json.dumps([heavy, found]))
"""


def test_a_process_that_only_plans_leaves_out_what_is_heavy_and_says_the_same():
    heavy, found = json.loads(subprocess.run([sys.executable, "-c", ALONE], check=True, capture_output=True, text=True).stdout)
    assert heavy == []
    for name, alone in zip(ARCHITECTURES, found, strict=True):
        beside = plain(plan(getattr(transformers, f"{name}Config")(), gpu="h100", examples=50_000))
        assert alone == json.loads(json.dumps(beside)), name


def test_what_is_put_off_gets_the_real_module_where_there_is_no_stand_in(monkeypatch):
    name = "torch.fx.experimental.symbolic_shapes"
    real = sys.modules[name]
    put_off = Deferred(name, STAND_INS[name])
    monkeypatch.setitem(sys.modules, name, put_off)
    assert put_off.expect_true(True)
    assert sys.modules[name] is put_off
    assert put_off.ShapeEnv.__name__ == real.ShapeEnv.__name__
    assert sys.modules[name] is not put_off


def test_stand_ins_do_on_plain_values_what_the_real_ones_do():
    known = STAND_INS["torch.fx.experimental.symbolic_shapes"]
    for name in ("expect_true", "guard_or_false", "guard_or_true", "statically_known_true"):
        if real := getattr(symbolic_shapes, name, None):
            assert [known[name](value) for value in (True, False)] == [real(value) for value in (True, False)], name
    pairs = [(1, 1), (1, 2), ((1, 2), [1, 2]), ([1, 2], (2, 1)), ((1,), (1, 1))]
    for name, cases in {"sym_eq": pairs, "sym_and": [(True, True), (True, False)], "sym_or": [(False, True), (False, False)]}.items():
        if real := getattr(symbolic_shapes, name, None):
            assert [known[name](*case) for case in cases] == [real(*case) for case in cases], name
    mark = STAND_INS["torch._dynamo"]["disable"]
    assert mark(lambda: 1)() == mark(recursive=False)(lambda: 1)() == 1
    assert not isinstance(torch.ones(1), STAND_INS["sympy"]["Basic"])
