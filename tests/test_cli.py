"""The command line as a user meets it: its flags, its speed, a whole job from files to files, and its errors."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transformers
import typer.main
from rich.console import Console
from safetensors import SafetensorError

from graft import cli
from graft.errors import ModelError
from graft.evaluate import Scores
from graft.jobs import TrainJob, scored, state_of
from graft_rows import write_rows

FLAGS = {
    "compare": "bad-rows batch-size budget checkpointing compile config cuda-graphs data eval-data eval-limit full grad-accum max-length "
    "max-steps methods metric model nf4 output-dir seed seeds trials",
    "report": "",
    "demo": "output-dir",
    "preview": "bad-rows data max-length model rows",
    "train": "bad-rows batch-size checkpointing clip compile config cuda-graphs data epochs eval-data eval-every grad-accum learning-rate "
    "max-length max-steps method metric model nf4 optimizer output-dir overwrite patience save-every schedule seed set strict tracker "
    "warmup weight-decay",
    "eval": "adapter batch-size data eval-limit metric model nf4",
    "merge": "adapter data into max-gap model nf4 output-dir requantise rows",
    "combine": "adapter model output-dir rank weight",
    "export": "adapter data max-gap model nf4 output-dir rows to",
    "verify": "adapter data force model nf4",
    "plan": "data examples gpu html json memory model need why-not",
    "chat": "adapter adapters api-key-env dtype nf4 url",
    "serve": "adapters admin-key-file allow-host api-key-file batch-requests batch-tokens cached-tokens drain dtype host "
    "host-memory max-new-tokens max-requests max-waiting name nf4 port slots timeout",
    "doctor": "kernels",
}


def test_the_flags_are_these_and_no_others():
    commands = typer.main.get_command(cli.app).commands
    found = {
        name: sorted(option.removeprefix("--") for parameter in command.params for option in parameter.opts if option.startswith("--"))
        for name, command in commands.items()
    }
    assert found == {name: flags.split() for name, flags in FLAGS.items()}


def test_help_needs_no_torch_and_half_a_second():
    lines = ["import sys; sys.argv = ['graft', '--help']", "try:", "    from graft.cli import main; main()"]
    code = "\n".join([*lines, "finally:", "    print('torch' in sys.modules)"])
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert run.stdout.rstrip().endswith("False")
        assert "compare" in run.stdout
    assert min(spent) < 0.5


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_llama, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("cli")
    tiny_llama.save_pretrained(folder / "base")
    tiny_tokenizer.save_pretrained(folder / "base")
    write_rows(folder / "train.jsonl", 24)
    write_rows(folder / "test.jsonl", 6)
    return folder


@pytest.fixture
def graft(place, monkeypatch, capsys):
    """Runs a command in the folder; gives its exit code and everything it printed."""

    def run(*words):
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["graft", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code or 0, printed.out + printed.err

    monkeypatch.setattr(cli.out, "_file", None)
    return run


JOB = ("--model", "base", "--data", "train.jsonl", "--max-steps", "2", "--batch-size", "4")
DELIVERED = ("--model", "base", "--adapter", "nowhere", "--data", "test.jsonl")


def test_train_then_eval_then_merge(graft, place):
    code, printed = graft("train", *JOB, "--output-dir", "a", "--set", "r=2", "--eval-data", "test.jsonl", "--metric", "loss")
    assert code == 0, printed
    assert json.loads((place / "a" / "run.json").read_text())["job"]["set"] == ["r=2"]
    assert json.loads((place / "a" / "adapter_config.json").read_text())["r"] == 2
    code, printed = graft("eval", "--model", "base", "--adapter", "a", "--data", "test.jsonl", "--metric", "loss")
    assert code == 0
    assert "loss" in printed
    code, printed = graft("merge", "--model", "base", "--adapter", "a", "--data", "test.jsonl", "--output-dir", "merged", "--rows", "3")
    assert code == 0, printed
    assert "largest gap" in printed
    code, printed = graft("eval", "--model", "merged", "--data", "test.jsonl", "--metric", "loss")
    assert code == 0


def test_what_was_trained_keeps_its_record_where_the_scoring_fails(graft, place, monkeypatch):
    def fails(*args, **kwargs):
        raise ModelError("no score today")

    monkeypatch.setattr("graft.jobs.score", fails)
    code, printed = graft("train", *JOB, "--output-dir", "unscored", "--eval-data", "test.jsonl")
    assert code == 2
    assert "no score today" in printed
    made = json.loads((place / "unscored" / "run.json").read_text())
    assert made["training"]["steps"] == 2
    assert "scores" not in made


def test_an_adapter_is_only_replaced_where_that_is_asked_for(graft, place):
    assert graft("train", *JOB, "--output-dir", "kept", "--set", "r=2")[0] == 0
    before = {path.name: path.read_bytes() for path in (place / "kept").iterdir()}
    code, printed = graft("train", *JOB, "--output-dir", "kept", "--set", "r=4")
    assert code == 2
    assert "kept holds an adapter already: name another folder, or replace it with --overwrite" in " ".join(printed.split())
    assert {path.name: path.read_bytes() for path in (place / "kept").iterdir()} == before
    assert graft("train", *JOB, "--output-dir", "kept", "--set", "r=4", "--overwrite")[0] == 0
    assert json.loads((place / "kept" / "adapter_config.json").read_text())["r"] == 4


def test_a_run_that_was_stopped_goes_on_by_the_same_command(graft, place, monkeypatch):
    from graft.train import loop

    update, words = loop.Steps.update, ("train", *JOB, "--max-steps", "4", "--save-every", "50", "--output-dir", "long/run")

    def stopped(steps, step, *told):
        update(steps, step, *told)
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Steps, "update", stopped)
        code, printed = graft(*words)
    assert code == 130
    assert "training stopped before step 3); the same command goes on from long/run.unfinished.safetensors\n" in printed
    assert [path.name for path in (place / "long").iterdir()] == ["run.unfinished.safetensors"]
    code, printed = graft(*words, "--learning-rate", "0.5")
    assert code == 2
    assert "delete it to begin anew" in " ".join(printed.split())
    code, printed = graft(*words)
    assert code == 0, printed
    assert "lora goes on after step 2 of 4" in printed
    assert [path.name for path in (place / "long").iterdir()] == ["run"]
    assert json.loads((place / "long" / "run" / "run.json").read_text())["training"]["steps"] == 4


def test_a_run_that_is_stopped_before_it_is_saved_goes_on_to_be_saved(graft, place, monkeypatch):
    words = ("train", *JOB, "--save-every", "50", "--output-dir", "almost", "--eval-data", "test.jsonl", "--metric", "loss")

    def stopped(*given, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("graft.jobs.untouched", stopped)
        assert graft(*words)[0] == 130
    assert not (place / "almost").exists()
    with monkeypatch.context() as patched:
        patched.setattr("graft.jobs.score", stopped)
        code, printed = graft(*words)
    assert code == 130
    assert "Stopped while it was scored; the adapter is in almost" in printed
    assert (place / "almost" / "adapter_config.json").exists()
    assert not (place / "almost.unfinished.safetensors").exists()


def test_the_state_of_a_run_lies_beside_its_folder_whatever_that_is_called(tmp_path, monkeypatch):
    (tmp_path / "in" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in" / "here")
    beside = {".": tmp_path / "in/here", "..": tmp_path / "in", "a/..": tmp_path / "in/here", "a/": Path("a"), "b.c/d": Path("b.c/d")}
    for folder, named in beside.items():
        assert state_of(TrainJob("m", "d", folder, save_every=1)) == named.with_name(f"{named.name}.unfinished.safetensors")
        assert state_of(TrainJob("m", "d", folder)) is None


def test_rows_that_the_context_cuts_are_counted_beside_the_scores():
    for cut in (0, 1):
        with (console := Console(width=80)).capture() as printed:
            console.print(scored(Scores("loss", 1.0, (1.0, 1.0), {}, (), truncated=cut)))
        assert ("of these cut to the model's context │ 1" in printed.get()) == bool(cut)


def test_verify_proves_that_the_base_is_untouched(graft, place):
    assert graft("train", *JOB, "--output-dir", "v")[0] == 0
    base = json.loads((place / "v" / "run.json").read_text())["base"]
    assert base["digest_before"] == base["digest_after"]
    assert len(base["digest_before"]) == 64
    code, printed = graft("verify", "--model", "base", "--adapter", "v", "--data", "test.jsonl")
    assert code == 0, printed
    assert printed.count(base["digest_before"]) == 2
    assert "NO" not in printed


def test_training_that_changes_the_base_fails_loudly_and_saves_nothing(graft, place, monkeypatch):
    from graft import jobs

    def careless(adapted, *args, **kwargs):
        adapted.model.lm_head.weight.data[0, 0] += 1

    monkeypatch.setattr(jobs, "train", careless)
    code, printed = graft("train", *JOB, "--output-dir", "careless")
    assert code == 2
    assert "changed the base, which must not be: lm_head.weight" in " ".join(printed.split())
    assert not (place / "careless").exists()


def test_a_merge_over_the_bound_fails_and_saves_nothing(graft, place):
    assert graft("train", *JOB, "--output-dir", "b", "--learning-rate", "0.5")[0] == 0
    code, printed = graft(
        "merge", "--model", "base", "--adapter", "b", "--data", "test.jsonl", "--output-dir", "over", "--max-gap", "0", "--rows", "2"
    )
    assert code == 2
    assert "over the bound" in printed
    assert not (place / "over").exists()
    assert not [name for name in os.listdir(place) if name.endswith(".tmp")]


def test_a_comparison_and_its_report(graft, place):
    words = (
        "compare",
        *JOB,
        "--eval-data",
        "test.jsonl",
        "--methods",
        "lora,ia3",
        "--trials",
        "1",
        "--metric",
        "loss",
        "--output-dir",
        "runs",
    )
    code, printed = graft(*words)
    assert code == 0, printed
    table, _, sentence = printed.rpartition("Report: ")[0].strip().rpartition("\n\n")
    assert all(word in table for word in ("Method", "Against the best", "LoRA", "IA3", "Zero-shot", "(recommended)"))
    assert sentence.startswith("Use ")
    page = place / "runs" / "report.html"
    first = page.read_bytes()
    page.unlink()
    assert graft("report", "runs")[0] == 0
    assert page.read_bytes() == first
    code, printed = graft(*words)
    assert code == 0
    assert "Going on" in printed


def test_a_preview_of_some_rows_does_not_call_them_all(graft, place):
    write_rows(place / "many.jsonl", 80)
    assert "\nof the first 64 rows: " in graft("preview", "--model", "base", "--data", "many.jsonl")[1]
    assert "\nof the first 70 rows: " in graft("preview", "--model", "base", "--data", "many.jsonl", "--rows", "70")[1]
    write_rows(place / "all.jsonl", 64)
    assert "\n64 rows, " in graft("preview", "--model", "base", "--data", "all.jsonl")[1]


def test_preview_marks_tokens(graft):
    code, printed = graft("preview", "--model", "base", "--data", "train.jsonl", "--rows", "1")
    assert code == 0
    assert "trained" in printed


def test_plan_counts(graft):
    code, printed = graft("plan", "--model", "base")
    assert code == 0
    assert "39,072" in printed
    assert "Take lora." in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", *JOB, "--output-dir", "x", "--set", "rank=4"), "has the fields r, alpha"),
        (("train", *JOB, "--output-dir", "x", "--set", "targets=querry"), "matches nothing in this model. Roles here:"),
        (("train", *JOB, "--output-dir", "x", "--method", "lorra"), "there is no method 'lorra'"),
        (("train", *JOB, "--output-dir", "x", "--learing-rate", "1"), "No such option: --learing-rate"),
        (("train", "--model", "base", "--output-dir", "x"), "--data"),
        (("train", *JOB, "--output-dir", "x", "--method", "all"), "graft train trains one method"),
        (("train", *JOB, "--output-dir", "x", "--batch-size", "0"), "batch_size is 0; it must be at least 1"),
        (("train", *JOB, "--output-dir", "x", "--grad-accum", "0"), "grad_accum is 0; it must be at least 1"),
        (("train", *JOB, "--output-dir", "x", "--epochs", "nan"), "epochs is nan; it must be a positive number"),
        (("train", *JOB, "--output-dir", "x", "--epochs", "0"), "epochs is 0.0; it must be a positive number"),
        (("train", *JOB, "--output-dir", "x", "--max-steps", "0"), "max_steps is 0; it must be at least 1"),
        (("train", *JOB, "--output-dir", "x", "--learning-rate", "0"), "learning_rate is 0.0; it must be a positive number"),
        (("train", *JOB, "--output-dir", "x", "--save-every", "-1"), "save_every is -1; it must be at least 0"),
        (("train", *JOB, "--output-dir", "x", "--eval-every", "2"), "eval_every needs rows to evaluate: name them with --eval-data"),
        (("train", *JOB, "--output-dir", "x", "--weight-decay", "nan"), "weight_decay is nan; it must be at least 0"),
        (("train", *JOB, "--output-dir", "x", "--metric", "foo"), "unknown metric 'foo'"),
        (("train", *JOB, "--output-dir", "bad.jsonl"), "bad.jsonl is a file: name a folder"),
        (("train", *JOB, "--output-dir", "bad.jsonl/x"), "cannot be made: Not a directory"),
        (("train", *JOB, "--output-dir", "x", "--method", "prompt", "--set", "n=9999"), "leave no room for a text in a context of"),
        (("train", *JOB, "--output-dir", "x", "--config", "typed.yaml"), "learning_rate is 'two', which is not what learning_rate takes"),
        (("compare", *JOB, "--output-dir", "x", "--metric", "foo"), "unknown metric 'foo'"),
        (("compare", *JOB, "--output-dir", "x", "--config", "count.yaml"), "trials is 'two'"),
        (("eval", "--model", "base", "--data", "test.jsonl", "--batch-size", "-1"), "batch_size is -1; it must be at least 1"),
        (("eval", "--model", "base", "--data", "test.jsonl", "--eval-limit", "-3"), "eval_limit is -3, must be at least 1"),
        (("preview", "--model", "base", "--data", "test.jsonl", "--rows", "-3"), "rows is -3, must be at least 1"),
        (("eval", "--model", "base", "--data", "bad.jsonl"), "skip) where a command has it"),
        (("train", *JOB, "--output-dir", "x", "--max-length", "3"), "Raise max_length or shorten the rows (Python has truncate="),
        (("compare", *JOB[:2], "--data", "two.jsonl", "--output-dir", "x"), "two.jsonl has 2 rows; a comparison needs at least 3"),
        (("plan", "--model", "base", "--examples", "-3"), "examples is -3; it must be at least 1"),
        (("plan", "--model", "base", "--examples", "0"), "examples is 0; it must be at least 1"),
        (("plan", "--model", "base", "--html", "."), "--html names a file, and . is a folder"),
        (("plan", "--model", "base", "--html", "bad.jsonl/x.html"), "bad.jsonl is a file: name a folder"),
        (("merge", *DELIVERED, "--output-dir", "bad.jsonl/x"), "bad.jsonl/x cannot be made: Not a directory"),
        (("merge", *DELIVERED, "--output-dir", "x", "--rows", "0"), "rows is 0, must be at least 1"),
        (("export", *DELIVERED, "--to", "merged", "--output-dir", "bad.jsonl/x"), "bad.jsonl/x cannot be made: Not a directory"),
        (("train", *JOB, "--output-dir", "x", "--method", "bias", "--set", "add=false"), "BiasOnly(add=True)"),
        (("train", *JOB[:2], "--data", "bad.jsonl", "--output-dir", "x"), "bad.jsonl:2"),
        (("train", "--model", "nowhere/at/all", *JOB[2:], "--output-dir", "x"), "there is no model"),
        (("compare", *JOB, "--output-dir", "x", "--config", "typo.yaml"), "did you mean 'max_steps'"),
        (("eval", "--model", "base", "--adapter", "elsewhere", "--data", "test.jsonl"), "elsewhere"),
    ],
)
def test_each_mistake_gets_one_sentence_and_leaves_nothing(graft, place, words, said):
    (place / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    (place / "typo.yaml").write_text("max_step: 3\n")
    (place / "two.jsonl").write_text("".join((place / "test.jsonl").read_text().splitlines(keepends=True)[:2]))
    (place / "typed.yaml").write_text("learning_rate: two\n")
    (place / "count.yaml").write_text("trials: two\n")
    code, printed = graft(*words)
    assert code == 2
    assert said in " ".join(printed.split())
    assert "Traceback" not in printed
    assert not (place / "x").exists()


def test_a_file_of_settings_says_numbers_as_people_do(graft, place):
    (place / "rate.yaml").write_text('learning_rate: 2e-3\nmax_steps: "1"\nweight_decay: 1e-2\nset: [n=3]\nmethod: prompt\n')
    code, printed = graft("train", *JOB[:4], "--output-dir", "rated", "--config", "rate.yaml")
    assert code == 0, printed
    made = json.loads((place / "rated" / "run.json").read_text())["job"]
    assert (made["learning_rate"], made["max_steps"], made["weight_decay"], made["set"]) == (2e-3, 1, 1e-2, ["n=3"])


@pytest.mark.parametrize("changes", [(), ("--set", "init_embeds=vocabulary"), ("--set", "n=2")])
def test_methods_that_start_from_text_train_on_plain_text(graft, place, changes):
    (place / "plain.jsonl").write_text("".join(json.dumps({"text": f"a text of number {number}"}) + "\n" for number in range(8)))
    words = ("--model", "base", "--data", "plain.jsonl", "--max-steps", "1", "--method", "prompt", *changes)
    code, printed = graft("train", *words, "--output-dir", "plain", "--overwrite")
    assert code == 0, printed


def test_rows_are_cut_to_what_the_context_has_room_for(graft, place):
    context = json.loads((place / "base" / "config.json").read_text())["max_position_embeddings"]
    words = ("--max-length", str(2 * context), "--method", "prefix", "--set", "n=5", "--output-dir", "roomy")
    code, printed = graft("train", *JOB, *words)
    assert code == 0, printed
    assert f"rows have room for {context - 5} tokens in the model's context" in " ".join(printed.split())


def test_a_full_disk_while_saving_is_said_and_leaves_nothing_half_written(graft, place, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, printed = graft("train", *JOB, "--output-dir", "full")
    assert code == 2
    assert "No space left on device" in printed
    assert not (place / "full").exists()
    assert not [name for name in os.listdir(place) if name.endswith(".tmp")]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SafetensorError("I/O error: no space")])
@pytest.mark.parametrize("words", [("merge",), ("export", "--to", "merged")])
def test_a_full_disk_while_delivering_is_said_and_leaves_nothing(graft, place, monkeypatch, words, error):
    assert graft("train", *JOB, "--output-dir", "whole", "--overwrite")[0] == 0

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    code, printed = graft(*words, *DELIVERED[:2], "--adapter", "whole", *DELIVERED[4:], "--output-dir", "full")
    assert code == 2
    assert "cannot save to full: " in printed
    assert "nothing was saved" in printed
    assert not (place / "full").exists()
    assert not [name for name in os.listdir(place) if name.endswith(".tmp")]


def test_a_nan_in_training_names_the_step_and_the_rows(graft, place):
    code, printed = graft("train", *JOB, "--output-dir", "nan", "--learning-rate", "1e30", "--clip", "0", "--max-steps", "9")
    assert code == 2
    assert "train.jsonl:" in printed
    assert "step" in printed
    assert not (place / "nan").exists()


def test_an_adapter_on_another_base_is_refused(graft, place, tiny_llama, tiny_tokenizer):
    import copy

    assert graft("train", *JOB, "--output-dir", "own")[0] == 0
    other = copy.deepcopy(tiny_llama)
    other.lm_head.weight.data.mul_(1.5)
    other.save_pretrained(place / "other")
    tiny_tokenizer.save_pretrained(place / "other")
    code, printed = graft("eval", "--model", "other", "--adapter", "own", "--data", "test.jsonl", "--metric", "loss")
    assert code == 2
    assert "differs in its weights" in " ".join(printed.split())


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_ctrl_c_in_training_says_where_it_stopped_and_saves_nothing(place):
    words = [sys.executable, "-m", "graft.cli", "train", *JOB[:4], "--max-steps", "1000000", "--batch-size", "4", "--output-dir", "stopped"]
    run = subprocess.Popen(words, cwd=place, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    said = run.stderr.readline()
    assert "trained parameters" in said
    time.sleep(2)
    run.send_signal(signal.SIGINT)
    _, rest = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Stopped (training stopped before step" in rest
    assert "Traceback" not in rest
    assert not (place / "stopped").exists()


def test_adapters_are_combined_and_the_sum_is_an_adapter(graft, place):
    for name in ("first", "second"):
        assert graft("train", *JOB, "--output-dir", name, "--set", "r=2", "--seed", str(len(name)))[0] == 0
    both = ("--adapter", "first", "--weight", "0.5", "--adapter", "second", "--weight", "-1.5")
    code, printed = graft("combine", "--model", "base", *both, "--output-dir", "sum")
    assert code == 0, printed
    assert "2 adapters as lora at 14 sites: exact. Saved to sum." in printed
    assert json.loads((place / "sum" / "adapter_config.json").read_text())["r"] == 4
    code, printed = graft("combine", "--model", "base", *both, "--rank", "1", "--output-dir", "cut")
    assert code == 0
    assert "down_proj: relative error" in printed
    assert "of all changes together" in printed
    assert graft("eval", "--model", "base", "--adapter", "cut", "--data", "test.jsonl", "--metric", "loss")[0] == 0
    code, printed = graft("combine", "--model", "base", *both[:6], "--output-dir", "unequal")
    assert code == 2
    assert "2 adapters and 1 weights" in " ".join(printed.split())
    assert not (place / "unequal").exists()


def test_an_adapter_is_exported_with_what_was_measured(graft, place):
    assert graft("train", *JOB, "--output-dir", "small", "--set", "r=2")[0] == 0
    words = ("export", "--model", "base", "--adapter", "small", "--data", "test.jsonl", "--rows", "3")
    code, printed = graft(*words, "--to", "peft-lora", "--output-dir", "lora")
    assert code == 0, printed
    assert "logits on 3 rows: largest gap" in printed
    assert json.loads((place / "lora" / "graft_export.json").read_text())["measured"]["rows"] == 3
    for target in ("merged", "shards"):
        assert graft(*words, "--to", target, "--output-dir", f"to-{target}")[0] == 0
        assert graft("eval", "--model", f"to-{target}", "--data", "test.jsonl", "--metric", "loss")[0] == 0
    code, printed = graft(*words, "--to", "vocabulary", "--output-dir", "prompted")
    assert code == 2
    assert "has no prompt to export" in " ".join(printed.split())
    assert not (place / "prompted").exists()


def test_a_prompt_is_exported_as_words(graft, place):
    assert graft("train", *JOB, "--output-dir", "poet", "--method", "prompt", "--set", "n=3")[0] == 0
    words = ("export", "--model", "base", "--adapter", "poet", "--data", "test.jsonl", "--rows", "3", "--to", "vocabulary")
    code, printed = graft(*words, "--output-dir", "words")
    assert code == 0, printed
    assert "<|poet_0|><|poet_1|><|poet_2|>" in "".join(printed.split())
    assert graft("eval", "--model", "words", "--data", "test.jsonl", "--metric", "loss")[0] == 0


def test_a_4_bit_base_is_merged_both_ways_with_both_gaps_and_quantised_again(graft, place):
    pytest.importorskip("bitsandbytes")
    assert graft("train", *JOB, "--output-dir", "q", "--nf4", "--set", "r=2")[0] == 0
    words = ("merge", "--model", "base", "--adapter", "q", "--data", "test.jsonl", "--rows", "3", "--nf4")
    code, printed = graft(*words, "--output-dir", "deq")
    assert code == 0, printed
    assert "merged into the dequantised base, logits on 3 rows" in " ".join(printed.split())
    assert "merged into the original base, logits on 3 rows" in printed
    assert json.loads((place / "deq" / "config.json").read_text())["dtype"] == "bfloat16"
    assert "quantization_config" not in json.loads((place / "deq" / "config.json").read_text())
    code, printed = graft(*words, "--into", "base", "--output-dir", "orig")
    assert code == 0, printed
    assert "no bound, since it is another model" in " ".join(printed.split())
    code, printed = graft(*words, "--requantise", "--output-dir", "again")
    assert code == 0, printed
    assert "re-quantised to NF4: logits on 3 rows" in printed
    assert json.loads((place / "again" / "config.json").read_text())["quantization_config"]["load_in_4bit"] is True
    assert sorted(path.name for path in (place / "again").iterdir() if path.is_dir()) == []
    for name in ("deq", "orig", "again"):
        assert graft("eval", "--model", name, "--data", "test.jsonl", "--metric", "loss")[0] == 0
    code, printed = graft("merge", "--model", "base", "--adapter", "q", "--data", "test.jsonl", "--into", "base", "--output-dir", "no")
    assert code == 2
    assert "give --nf4 too" in " ".join(printed.split())
    for command in (("merge",), ("export", "--to", "merged")):  # it would be another model, and the gap to the merge would not tell
        code, printed = graft(*command, "--model", "base", "--adapter", "q", "--data", "test.jsonl", "--output-dir", "no")
        assert code == 2
        assert "q was trained on a base held in 4 bits, and base is not: give --nf4" in " ".join(printed.split())
    assert not (place / "no").exists()


def test_a_cpu_keeps_few_of_the_kernels_that_it_makes_for_each_shape(monkeypatch):
    found = {"LRU_CACHE_CAPACITY": "7"}
    monkeypatch.setattr(cli.os, "environ", found)
    monkeypatch.setattr(cli, "app", lambda: None)
    cli.main()
    assert (found["ONEDNN_PRIMITIVE_CACHE_CAPACITY"], found["LRU_CACHE_CAPACITY"]) == ("128", "7")
