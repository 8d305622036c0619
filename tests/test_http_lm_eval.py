"""lm-eval's `local-completions`, through the server, finds the scores that Graft's own evaluation finds, row by row."""

import copy
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import graft
from graft import data
from graft.data.tokenise import answer_text, chat_of, prompt_text
from graft.evaluate import score
from graft.evaluate.answer import generate
from graft.evaluate.metrics import plain

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("lm_eval") is None, reason="pip install 'lm-eval[api]'")]
ROWS, NEW = 24, 10
LABELS = ("lost", "card arrival", "é 3")
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{text}}}}"
target_delimiter: ""
"""
CHOICE = 'output_type: multiple_choice\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\nmetric_list: [{metric: acc}]\n'
WRITE = (
    'output_type: generate_until\ndoc_to_target: "{{target}}"\nmetric_list: [{metric: exact_match}]\n'
    f'generation_kwargs: {{until: ["<|im_end|>"], do_sample: false, max_gen_toks: {NEW}}}\n'
)


def harness(server, folder, adapter, name, task, documents):
    """What lm-eval says of each document."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=folder / f"{name}.jsonl") + task)
    server.engine.tokenizer.save_pretrained(folder / "tokenizer")
    model = f"model={adapter},base_url={server.url}/v1/completions,tokenizer={folder / 'tokenizer'},tokenizer_backend=huggingface"
    words = [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        "--model",
        "local-completions",
        "--model_args",
        f"{model},num_concurrent=4,max_length=512",
    ]
    more = ["--tasks", name, "--include_path", str(folder), "--log_samples", "--output_path", str(folder / "out")]
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    run = subprocess.run([*words, *more], capture_output=True, text=True, cwd=folder, env=os.environ | offline, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (file,) = (folder / "out").rglob(f"samples_{name}_*.jsonl")
    return sorted((json.loads(line) for line in Path(file).read_text().splitlines()), key=lambda one: one["doc_id"])


@pytest.fixture(params=["cards", "soft", "front"])
def pair(request, served, adapters_folder, tiny_llama):
    """An adapter's name, and the model with it."""
    model = copy.deepcopy(tiny_llama)
    graft.load(model, adapters_folder / request.param)
    return request.param, model


def rows_of(folder, completions):
    lines = [json.dumps({"prompt": f"Where is card {number}?", "completion": text}) for number, text in enumerate(completions)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return data.read(folder / "rows.jsonl").rows


def test_a_multiple_choice_task(served, pair, tmp_path):
    adapter, model = pair
    tokenizer = served.engine.tokenizer
    rows = rows_of(tmp_path, [LABELS[number % 3] for number in range(ROWS)])
    right = score(model, tokenizer, rows, metric="accuracy", labels=LABELS)
    chat = chat_of(tokenizer)
    documents = []
    for number, row in enumerate(rows):
        text = prompt_text(row, chat, ())
        offered = [answer_text(data.Row(**{**vars(row), "completion": label}), text, chat, ()) for label in LABELS]
        documents.append({"text": text, "choices": offered, "gold": number % 3})
    found = harness(served, tmp_path, adapter, "choice", CHOICE, documents)
    assert [one["acc"] for one in found] == list(right.per_item)
    assert 0 < sum(right.per_item) < ROWS
    picked = [max(range(3), key=lambda k, one=one: float(one["filtered_resps"][k][0])) for one in found]
    assert [LABELS[pick] for pick in picked] == list(right.predictions)


def test_a_generation_task(served, pair, tmp_path):
    adapter, model = pair
    tokenizer = served.engine.tokenizer
    written, _ = generate(model, tokenizer, rows_of(tmp_path, ["x"] * ROWS), max_new_tokens=NEW)
    targets = [text if number % 2 and text == plain(text) else "lost" for number, text in enumerate(written)]
    rows = rows_of(tmp_path, targets)
    right = score(model, tokenizer, rows, metric="exact_match", max_new_tokens=NEW)
    chat = chat_of(tokenizer)
    documents = [{"text": prompt_text(row, chat, ()), "target": target} for row, target in zip(rows, targets, strict=True)]
    found = harness(served, tmp_path, adapter, "write", WRITE, documents)
    texts = [one["filtered_resps"][0] for one in found]
    assert [plain(text) for text in texts] == [plain(text) for text in right.predictions]
    alike = [number for number, text in enumerate(texts) if targets[number] == "lost" or text == plain(text)]
    assert len(alike) >= ROWS - 4  # lm-eval's exact match minds spaces at a text's end, ours does not
    assert [found[number]["exact_match"] for number in alike] == [right.per_item[number] for number in alike]
    assert 0 < sum(right.per_item[number] for number in alike) < len(alike)
