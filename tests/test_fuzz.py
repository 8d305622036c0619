"""Mutated folders: whatever is done to the bytes of one, it is refused with an AdapterError or gives an adapter with finite values."""

import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graft
from graft import IA3, LoRA, Selective, formats
from graft.errors import AdapterError
from graft.model.ground import ground
from tiny import tiny

NAMES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders to be mutated, and what they are read against."""
    root = tmp_path_factory.mktemp("fuzz")
    for name, methods in {"lora": LoRA(r=2), "own": [IA3(), LoRA(r=1), Selective("norm")]}.items():
        graft.adapt(tiny("llama"), methods).save(root / name)
    return root, ground(tiny("llama"))


@given(data=st.data())
@settings(max_examples=300, deadline=5000, database=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_folder_is_refused_or_read_whole(place, data):
    root, base = place
    kind, name = data.draw(st.sampled_from(["lora", "own"])), data.draw(st.sampled_from(NAMES))
    good = (root / kind / name).read_bytes()
    blob = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        # the first bytes matter most: a header's length, its names, its shapes
        at = data.draw(st.integers(0, min(len(blob) - 1, data.draw(st.sampled_from([8, 200, 4000, 10**6])))))
        act = data.draw(st.sampled_from(["set", "cut", "insert", "drop", "double"]))
        if act == "set":
            blob[at] = data.draw(st.integers(0, 255))
        elif act == "cut":
            del blob[at + 1 :]
        elif act == "insert":
            blob[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif act == "drop":
            del blob[at : at + data.draw(st.integers(1, 8))]
            blob = blob or bytearray(b"x")
        else:
            blob[at:at] = blob[at : at + 64]
    folder = root / "mutated"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / kind, folder)
    (folder / name).write_bytes(bytes(blob))
    try:
        origin = formats.origin(folder)
        adapter = formats.read(folder, base)
    except AdapterError:
        return
    assert origin is None or isinstance(origin.fingerprint, str)
    assert all(bool(torch.isfinite(value).all()) for _, _, value in adapter.walk())
