"""Saving: what is in the folder already stays, or is exchanged whole; a failure leaves it as it was and nothing beside it."""

import errno
import os

import pytest

import graft
from graft import IA3, LoRA
from graft.errors import AdapterError
from tiny import tiny


def adapted(method):
    """A fresh adapter in a tiny Llama."""
    return graft.adapt(tiny("llama"), method)


def test_an_own_folder_is_exchanged_whole(tmp_path):
    adapted(IA3()).save(tmp_path)
    second = adapted(LoRA(r=2))
    second.save(tmp_path)
    assert graft.load(tiny("llama"), tmp_path).adapter().parts[0][0] == second.adapter().parts[0][0]


def test_files_of_others_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "README.md").write_text("my own card")
    (tmp_path / "checkpoint").mkdir()
    adapted(IA3()).save(tmp_path)
    adapted(LoRA(r=2)).save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "README.md").read_text() == "my own card"
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors", "checkpoint", "generation_config.json", "notes.txt"]
    assert graft.load(tiny("llama"), tmp_path).adapter().parts[0][0].r == 2


def test_files_of_the_adapter_before_go_where_others_stay(tmp_path, tiny_tokenizer):
    (tmp_path / "run.json").write_text("{}")
    adapted(IA3()).save(tmp_path, tokenizer=tiny_tokenizer)
    (tmp_path / "chat_template.jinja").write_text("one of its own")
    (tmp_path / "model_head.safetensors").write_text("a head")
    adapted(LoRA(r=2)).save(tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()
    assert not (tmp_path / "model_head.safetensors").exists()
    assert (tmp_path / "run.json").read_text() == "{}"


def test_a_models_own_files_stay(tmp_path):
    """Beside a model, a template is the model's."""
    for name in ("config.json", "chat_template.jinja", "adapter_config.json"):
        (tmp_path / name).write_text("{}")
    adapted(LoRA(r=2)).save(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == "{}"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    adapted(IA3()).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "adapter_config.json").is_file()


def everything(folder):
    """Each file's name and bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def no_space(*args, **kwargs):
    """What a full disk says."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "graft.formats.folder.save_file", "pathlib.Path.write_text"])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_full_disk_leaves_what_was_there(where, foreign, tmp_path, monkeypatch):
    target = tmp_path / "a"
    adapted(IA3()).save(target)
    if foreign:
        (target / "notes.txt").write_text("mine")
    before = everything(tmp_path)
    made = adapted(LoRA(r=2))
    with monkeypatch.context() as patch:
        patch.setattr(where, no_space)
        with pytest.raises(AdapterError, match=r"cannot save to .*No space left on device"):
            made.save(target)
        with pytest.raises(AdapterError, match="No space left"):
            made.save(tmp_path / "new")
    assert everything(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    graft.load(tiny("llama"), target)


def test_values_that_are_not_finite_are_not_saved(tmp_path):
    made = adapted(LoRA(r=2))
    made.parameters()[0].data[0] = float("nan")
    with pytest.raises(AdapterError, match="not finite"):
        made.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_file_is_no_folder_to_save_to(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(AdapterError, match="cannot save"):
        adapted(LoRA(r=2)).save(path)
    assert path.read_text() == "x"
