"""A tiny Llama with a tokenizer, made on the spot, as a model object and as a GGUF file."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
SPECIAL = 3
MERGES = ["a b", "ab a"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
VOCABULARY = [*TOKENS, "ab", "aba"]
WIDTH, HEADS, KV_HEADS, LAYERS = 64, 4, 2, 2


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
