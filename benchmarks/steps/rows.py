"""How the model of a row is set up: a Llama with random weights, built where it will run, and what is trained on it."""

from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import transformers

import graft
from graft.kernels import nf4
from graft.methods import METHODS
from graft.model.checkpointing import checkpointed
from graft.model.regional import regional
from steps.points import AS_THEY_COME, LIMIT, RECORDED, Point

SHAPES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
           "vocab_size": 128256, "tie_word_embeddings": True},
    "smollm2": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
                "vocab_size": 49152, "tie_word_embeddings": True},
    "tiny": {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512},
}  # fmt: skip
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Row(NamedTuple):
    """`runs` is called; `model` is the transformers model in it; `trained` are the parameters that get a gradient. `held` stays open.

    `recorded` says how steps are, on a card: as training's `cuda_graphs`, "off", "auto" or "on".
    """

    runs: Any
    model: Any
    trained: list[nn.Parameter]
    held: ExitStack
    recorded: str = "off"


def base_model(point: Point, device: torch.device) -> Any:
    """A Llama of the point's shape in bfloat16, frozen; its blocks' linear maps in 4 bits where the point says so."""
    config = transformers.LlamaConfig(**SHAPES[point.shape], max_position_embeddings=8192)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(before)
    if point.base == "nf4":
        pack(model)
    return model.requires_grad_(False)


def pack(model: Any) -> None:
    """Put the blocks' linear maps into 4 bits, as transformers does: NF4, double quantisation, bfloat16 arithmetic."""
    import bitsandbytes

    for layer in model.model.layers:
        for path, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                new = bitsandbytes.nn.Linear4bit(
                    module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta"
                )
                weight = bitsandbytes.nn.Params4bit(module.weight.data, quant_type="nf4", compress_statistics=True, module=new)
                new.weight = weight.to(module.weight.device)
                layer.set_submodule(path, new)
    model.is_loaded_in_4bit = True


def bits(model: Any) -> float:
    """Bits a parameter of the packed weights; 0 where there are none."""
    packed = [module.weight for module in model.modules() if isinstance(module, nn.Linear) and nf4.is_packed(module.weight)]
    numbers = sum(weight.quant_state.shape.numel() for weight in packed)
    return 8 * sum(nf4.stored_bytes(weight) for weight in packed) / numbers if packed else 0.0


def graft_row(model: Any, point: Point) -> Row:
    """The model adapted by one of Graft's methods, as the row's ending says."""
    made = {
        "lora": graft.LoRA(r=point.rank or 1, dropout=point.dropout),
        "dora": graft.DoRA(r=point.rank or 1, dropout=point.dropout),
        "bottleneck": graft.Bottleneck(size=64),
        "prefix": graft.Prefix(n=20),
        "prompt": graft.Prompt(n=20, init_embeds="random"),
        "last-k": graft.Selective("last", k=2),
    }
    nf4.own_forwards(model)
    adapted = graft.adapt(model, made.get(point.method) or METHODS[point.method])
    held = fast(adapted, fuses=not point.row.endswith(("-apart", "-plain")), compiles=not point.row.endswith(("-eager", "-plain")))
    return Row(model, model, adapted.parameters(), held, recorded(point))


def recorded(point: Point) -> str:
    """How a row of Graft's is recorded, as its ending says."""
    if point.row.endswith(AS_THEY_COME):
        return "off"
    return "on" if point.row.endswith(RECORDED) else "auto"


def fast(adapted: graft.Adapted, fuses: bool, compiles: bool) -> ExitStack:
    """What training sets up to be faster, while the result is open."""
    held = ExitStack()
    if fuses:
        adapted.fuse()
    held.enter_context(regional(adapted.model, compiles, strict=True, ahead=adapted.fused))
    return held


def compile_blocks(model: Any, whole: bool = True) -> None:
    """Compile each block by itself; `whole` refuses one that is not a single graph."""
    for layer in model.model.layers:
        layer.compile(fullgraph=whole)


def peft_row(model: Any, point: Point) -> Row:
    """The model adapted by HF PEFT, as it is by default or at its best."""
    import peft

    low_rank = {"r": point.rank or 1, "lora_alpha": 16, "lora_dropout": point.dropout, "target_modules": LINEARS}
    configs = {
        "lora": lambda: peft.LoraConfig(**low_rank),
        "dora": lambda: peft.LoraConfig(**low_rank, use_dora=True),
        "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20),
        "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20),
    }
    best = point.row.endswith("-best")
    adapted = peft.get_peft_model(model, configs[point.method](), autocast_adapter_dtype=not best)
    if best:
        compile_blocks(model, whole=False)
    return Row(adapted, model, [value for value in adapted.parameters() if value.requires_grad], ExitStack())


def bare_row(model: Any, point: Point) -> Row:
    """The base with nothing trained, or all of it."""
    nf4.own_forwards(model)
    if point.method == LIMIT:
        model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_(True))
    else:
        model.requires_grad_(True)
    if not point.row.endswith("-eager"):
        compile_blocks(model)
    trained = [value for value in model.parameters() if value.requires_grad]
    return Row(model, model, trained, ExitStack(), "on" if point.row.endswith(RECORDED) else "off")


def prepared(point: Point, device: torch.device) -> Row:
    """The row, ready to step, in training mode."""
    model = base_model(point, device)
    kind = peft_row if point.row.startswith("peft-") else bare_row if point.method in (LIMIT, "full") else graft_row
    row = kind(model, point)
    row.held.enter_context(checkpointed(model, point.checkpointing))
    row.runs.train()
    return row
