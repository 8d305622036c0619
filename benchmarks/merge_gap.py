"""How far a merged model is from the adapted one, for every method that merges, in every dtype.

    python benchmarks/merge_gap.py                     # a random GPT-2 of four layers, which computes in float64 throughout
    python benchmarks/merge_gap.py --model smollm2 --dtypes float32,bfloat16

Prints a Markdown table: the largest and the mean difference of logits, merged against unmerged in the same dtype, both divided by the
logits' standard deviation; and, to compare, the mean difference between the unmerged model in that dtype and in the widest one given.
"""

import argparse

import torch
import transformers as T

import graft
from graft.evaluate.gap import gap_of
from graft.methods import METHODS
from graft.model.load import load

TEXTS = (
    "The parcel was sent on Monday and has not arrived yet. Where is it?",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Water boils at 100 degrees Celsius at sea level, and at about 90 on a high mountain.",
    "My card was declined twice in a shop, although there is money on the account.",
)
MERGING = {name: method for name, method in METHODS.items() if name not in ("bottleneck", "prefix", "prompt")}


def small(dtype):
    torch.manual_seed(0)
    config = T.GPT2Config(n_embd=256, n_layer=4, n_head=8, vocab_size=1000, n_positions=128, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    model = T.GPT2LMHeadModel(config).double().eval()
    generator = torch.Generator().manual_seed(1)
    for value in model.parameters():
        value.data.add_(torch.empty_like(value).normal_(std=0.05, generator=generator))
    return model.to(dtype)


def rows_of(name):
    if name == "small":
        return list(torch.randint(1000, (8, 1, 48), generator=torch.Generator().manual_seed(2)))
    tokenizer = load(name, dtype=torch.float32).tokenizer
    return [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS]


@torch.no_grad()
def logits(model, rows):
    return [model(input_ids=row).logits.double() for row in rows]


def measured(name, method, dtype, rows):
    """The unmerged logits, and the gap that merging makes."""
    model = small(dtype) if name == "small" else load(name, dtype=dtype).model
    adapted = graft.adapt(model, method)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in adapted.parameters():
            value.add_(torch.empty(value.shape, dtype=torch.float64).normal_(std=0.02, generator=generator).to(value))
    before = logits(model, rows)
    return before, gap_of(before, logits(graft.merge(adapted), rows)), graft.merge_cost(adapted)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small")
    parser.add_argument("--dtypes", default="float64,float32,bfloat16,float16")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    dtypes = [getattr(torch, name) for name in chosen.dtypes.split(",")]
    rows = rows_of(chosen.model)
    print("| method | dtype | largest gap | mean gap | same next token | the dtype itself | bytes kept |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for kind, method in MERGING.items():
        widest = None
        for dtype in dtypes:
            before, gap, cost = measured(chosen.model, method, dtype, rows)
            widest = widest or before
            own = gap_of(widest, before)
            line = f"{gap.largest / gap.spread:.1e} | {gap.mean / gap.spread:.1e} | {gap.agreement:.1%} | {own.mean / own.spread:.1e}"
            print(f"| `{kind}` | {str(dtype).removeprefix('torch.')} | {line} | {cost:,} |", flush=True)


if __name__ == "__main__":
    main()
