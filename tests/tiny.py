"""Tiny models of every family, random and shaken: every parameter is randomised, since biases at 0 and norms at 1 hide real bugs."""

import functools

import torch
import transformers as T

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GQA = {"num_key_value_heads": 2, "intermediate_size": 48}
GEMMA = {"head_dim": 8, "sliding_window": 6, "attn_implementation": "eager"}

CONFIGS = {
    "llama": lambda: T.LlamaConfig(**SMALL, **IDS, **GQA),
    "llama_bias": lambda: T.LlamaConfig(**SMALL, **IDS, **GQA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": lambda: T.MistralConfig(**SMALL, **IDS, **GQA, sliding_window=None),
    "qwen2": lambda: T.Qwen2Config(**SMALL, **IDS, **GQA),
    "qwen3": lambda: T.Qwen3Config(**SMALL, **IDS, **GQA, head_dim=8),
    "smollm3": lambda: T.SmolLM3Config(**SMALL, **IDS, **GQA),
    "gemma2": lambda: T.Gemma2Config(**SMALL, **IDS, **GQA, **GEMMA),
    "gemma3": lambda: T.Gemma3TextConfig(**SMALL, **IDS, **GQA, **GEMMA),
    "phi3": lambda: T.Phi3Config(**SMALL, **IDS, **GQA),
    "gpt2": lambda: T.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **IDS
    ),
    "gpt_neox": lambda: T.GPTNeoXConfig(**SMALL, **IDS, intermediate_size=48),
    "opt": lambda: T.OPTConfig(**SMALL, **IDS, ffn_dim=48, word_embed_proj_dim=32, dropout=0, max_position_embeddings=64),
    "bert": lambda: T.BertConfig(
        **SMALL,
        **IDS,
        intermediate_size=48,
        num_labels=3,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
        max_position_embeddings=64,
    ),
    "roberta": lambda: T.RobertaConfig(
        **SMALL,
        **IDS | {"pad_token_id": 1, "bos_token_id": 0},
        intermediate_size=48,
        num_labels=3,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
        max_position_embeddings=64,
    ),
}
ENCODERS = ("bert", "roberta")
MODELS = tuple(CONFIGS)


@functools.cache
def template(name: str):
    torch.manual_seed(0)
    auto = T.AutoModelForSequenceClassification if name in ENCODERS else T.AutoModelForCausalLM
    config = CONFIGS[name]()
    model = auto.from_config(config, attn_implementation=config._attn_implementation).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.empty_like(value).normal_(std=0.1, generator=generator))
    return model


def tiny(name: str, dtype: torch.dtype = torch.float32):
    """A fresh copy of the family's tiny model, in evaluation mode."""
    import copy

    return copy.deepcopy(template(name)).to(dtype)


def inputs(name: str, rows: int = 2, length: int = 7, seed: int = 0):
    """Ids [rows, length] without special ones, and a mask of ones."""
    ids = torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
