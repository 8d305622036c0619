"""Planted bugs: each is a change of one line that a careless edit could make. The laws must catch every one.

    python scripts/mutate.py [NUMBER ...]

Works on a copy of the sources; prints which law caught each bug, and exits with 1 if any survived.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUGS = [
    (
        "virtual_tokens.py",
        'call["position_ids"] = positions(call, text) + n * shift',
        'call["position_ids"] = positions(call, text)',
        "prefix does not shift positions",
    ),
    (
        "positions.py",
        "(mask.long().cumsum(1) - 1).clamp_min(0)",
        "torch.arange(mask.shape[1])[None].expand_as(mask)",
        "positions ignore the padding",
    ),
    ("pack.py", "torch.where(of == s[..., None], h, 0)", "h", "columns of other adapters are not masked"),
    ("pack.py", "shifted(out, self.b[s])", "shifted(out, self.b.sum(0))", "a row gets every adapter's bias"),
    ("dora.py", "b = None if base.bias is None else (1 - c) * base.bias.to(c.dtype)", "b = None", "DoRA scales the base's bias"),
    ("norms.py", "@torch.no_grad()\ndef row_norms", "def row_norms", "DoRA's norm is differentiated"),
    ("norms.py", "beta=2", "beta=1", "DoRA's norm loses half of the cross term"),
    (
        "forms.py",
        "scaled = None if bias is None else (bias if form.c is None else form.c * bias)",
        "scaled = bias",
        "a merge forgets to scale the bias",
    ),
    ("forms.py", "weight = weight if form.i is None else weight * form.i", "weight = weight", "a merge forgets the input's scale"),
    ("lora.py", "(math.sqrt(method.r) if method.rslora else method.r)", "method.r", "rsLoRA scales as LoRA"),
    (
        "forms.py",
        "return replace(form, c=spread(form.c, 1.0)",
        "return replace(form, c=spread(form.c, 0.0)",
        "rows outside a fused projection's own are zeroed",
    ),
    ("attention.py", "return None if self.seen is None else self.seen[:, None, :]", "return None", "a row sees another row's prefix"),
    (
        "virtual_tokens.py",
        "logits[:, logits.shape[1] - self.pending.text :]",
        "logits[:, : self.pending.text]",
        "a prompt's logits are trimmed at the wrong end",
    ),
    (
        "kept.py",
        "for name, value in self.config.items():",
        "for name, value in ():",
        "unmerging leaves the config's flags",
    ),
    (
        "families.py",
        "Rows(k * dim, dim, kv, 3 * dim)",
        "Rows(k * dim * kv, dim * kv)",
        "interleaved projections are taken for consecutive ones",
    ),
    (
        "virtual_tokens.py",
        "positions(call, text) + n * shift",
        "positions(call, text) + n",
        "a prefix shifts positions that it should leave alone",
    ),
    ("positions.py", "seen.cumsum(1) * seen + padding", "seen.cumsum(1) + padding", "RoBERTa's positions count its padding"),
    ("slots.py", "torch.where(pack.held[s][..., None], again, y)", "again", "a norm that runs again does so for every row"),
    (
        "families.py",
        '("pre_feedforward_layernorm", "post_attention_layernorm")',
        '("post_attention_layernorm",)',
        "Gemma's residual at another norm",
    ),
]


def places(root: Path, source: str, old: str) -> list[Path]:
    """The files of that name that have the line; one, once, unless the planted bug needs mending."""
    return [path for path in root.rglob(source) for _ in range(path.read_text().count(old))]


def caught(source: str, old: str, new: str) -> str:
    """The first law that fails with the bug in place; empty if none does."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "graft"
        shutil.copytree(ROOT / "src" / "graft", copy)
        (file,) = places(copy, source, old)
        file.write_text(file.read_text().replace(old, new))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-n",
            "2",
            "tests/test_laws.py",
            "tests/test_parity.py",
        ]
        run = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        failed = [line for line in run.stdout.splitlines() if line.startswith("FAILED")]
        return failed[0].removeprefix("FAILED tests/")[:110] if failed else ""


def main() -> int:
    chosen = [int(word) for word in sys.argv[1:]] or range(1, len(BUGS) + 1)
    survived = 0
    for number in chosen:
        source, old, new, what = BUGS[number - 1]
        law = caught(source, old, new)
        survived += not law
        print(f"{number:2} {'caught' if law else 'SURVIVED'}  {what}\n   {law}", flush=True)
    print(f"{len(list(chosen)) - survived} caught, {survived} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
