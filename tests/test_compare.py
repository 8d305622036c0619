"""Comparisons on a tiny random model: what is recorded, going on after a stop, refusals, and budgets."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from rich.console import Console

from graft.compare import baselines, records, run, trials
from graft.compare.budget import Costs, Job, estimate, fit_budget, seconds
from graft.compare.grids import DEFAULT_RATES, grid
from graft.compare.run import compare
from graft.compare.settings import Bounds, CompareConfig
from graft.compare.starts import chosen, start
from graft.compare.trials import BaseChanged
from graft.errors import AdapterError, DataError, TrainingError
from graft.methods import METHODS

TIMES = {"seconds_per_step", "tokens_per_second", "train_seconds", "latency_ms", "peak_memory_bytes"}
WORDS = ("red", "blue", "green", "black", "white", "brown")


@pytest.fixture(scope="session")
def place(tmp_path_factory, tiny_llama, tiny_tokenizer):
    """A folder with a model, 60 training rows and 12 test rows."""
    folder = tmp_path_factory.mktemp("compare")
    tiny_llama.save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": f"Say {WORDS[n % 6]} {n}", "completion": WORDS[n % 6]} for n in range(72)]
    for name, part in (("train", rows[:60]), ("test", rows[60:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Latency is timed once; what it is does not matter here."""
    monkeypatch.setattr(trials, "forward_ms", lambda model, **kwargs: 1.0)
    monkeypatch.setattr(baselines, "forward_ms", lambda model, **kwargs: 1.0)


def config(place, out, **changes):
    start = CompareConfig(
        model=str(place / "model"),
        data=str(place / "train.jsonl"),
        eval_data=str(place / "test.jsonl"),
        output_dir=str(out),
        methods=("lora", "prompt", "bias"),
        trials=2,
        seeds=1,
        max_steps=3,
        eval_limit=6,
        batch_size=4,
        shots=(1, 2),
    )
    return replace(start, **changes)


def go(config):
    return records.read(compare(config, console=Console(quiet=True), progress=False))


def outcomes(found):
    """The records without what a clock measured."""
    return [{name: value for name, value in asdict(each).items() if name not in TIMES} for each in found.runs]


@pytest.fixture(scope="session")
def whole(place, tmp_path_factory):
    """One comparison from beginning to end."""
    out = tmp_path_factory.mktemp("whole")
    return go(config(place, out)), out


def test_every_run_is_recorded(whole):
    found, out = whole
    assert [each.run for each in found.runs] == [
        "zero-shot",
        "in-context",
        *(f"{name}/{kind}" for name in ("lora", "prompt", "bias") for kind in ("trial-0", "trial-1", "seed-0")),
    ]
    assert all(each.status == "done" for each in found.runs)
    assert found.plan.methods == ("zero-shot", "in-context", "lora", "prompt", "bias")
    assert found.plan.data["rows_eval"] == 6
    assert found.plan.data["rows_train"] + found.plan.data["rows_validation"] == 60
    final = found.find("lora/seed-0")
    assert len(final.per_item) == 6
    assert final.adapter_bytes == sum(file.stat().st_size for file in (out / "adapters/lora/seed-0").iterdir())
    assert final.trainable_parameters > 0
    assert final.mergeable
    assert final.latency_ms["merged"]
    assert {site["role"] for site in final.sites} >= {"query", "up"}
    assert final.config["kind"] == "lora"
    assert all(each.gated for each in found.runs)
    assert found.find("prompt/seed-0").context_positions == 20
    assert found.find("in-context").shots in (1, 2)
    assert found.find("in-context").context_positions > 0


def test_trials_choose_the_rate_by_validation_loss(whole):
    found, _ = whole
    for name in ("lora", "prompt", "bias"):
        tried = [found.find(f"{name}/trial-{n}") for n in (0, 1)]
        assert [each.learning_rate for each in tried] == list(grid(name, 2))
        assert not any(each.per_item for each in tried)
        assert found.find(f"{name}/seed-0").learning_rate == min(tried, key=lambda each: each.validation_loss).learning_rate


def test_a_finished_comparison_is_not_run_again(whole, place, monkeypatch):
    found, out = whole
    monkeypatch.setattr(trials, "train", None)
    assert go(config(place, out)) == found


@pytest.mark.parametrize("stop", ["in-context", "lora/trial-1", "prompt/seed-0"])
def test_killed_between_runs_it_goes_on_to_the_same_records(whole, place, tmp_path, monkeypatch, stop):
    real = run.perform

    def perform(bench, task, *rest):
        if task.name == stop:
            raise KeyboardInterrupt
        real(bench, task, *rest)

    monkeypatch.setattr(run, "perform", perform)
    with pytest.raises(KeyboardInterrupt, match=r"of 11 runs are recorded .* The same command goes on"):
        go(config(place, tmp_path))
    monkeypatch.undo()
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"kind":"run","run":"torn')
    again = go(config(place, tmp_path))
    assert outcomes(again) == [each for each in outcomes(whole[0])]


def test_other_settings_in_the_same_folder_are_refused(whole, place):
    _, out = whole
    before = (out / "records.jsonl").read_bytes()
    with pytest.raises(DataError, match=r"other settings \(batch_size was 4, is 5; max_steps was 3, is 4\)"):
        go(config(place, out, max_steps=4, batch_size=5))
    assert (out / "records.jsonl").read_bytes() == before


def test_records_without_their_settings_are_refused(whole, place, tmp_path):
    (tmp_path / "records.jsonl").write_bytes((whole[1] / "records.jsonl").read_bytes())
    with pytest.raises(DataError, match=r"no settings\.json"):
        go(config(place, tmp_path))


def test_a_failing_method_is_recorded_and_tried_again(place, tmp_path, monkeypatch):
    real = trials.adapt

    def adapt(model, method, **kwargs):
        if method.kind == "lora":
            raise AdapterError("no room for lora")
        if method.kind == "prompt":
            raise torch.OutOfMemoryError("tried to allocate too much\nmore")
        return real(model, method, **kwargs)

    monkeypatch.setattr(trials, "adapt", adapt)
    found = go(config(place, tmp_path))
    assert (found.find("lora/trial-1").status, found.find("lora/trial-1").reason) == ("failed", "no room for lora")
    assert found.find("lora/seed-0").status == "skipped"
    assert "none of its 2 trials finished: no room for lora" in found.find("lora/seed-0").reason
    assert found.find("prompt/trial-0").reason == "out of memory: tried to allocate too much"
    assert found.find("bias/seed-0").status == "done"
    monkeypatch.undo()
    assert all(each.status == "done" for each in go(config(place, tmp_path)).runs)


def test_rows_are_cut_to_the_context_beside_virtual_tokens_and_it_is_said(place, tmp_path):
    context = json.loads((place / "model" / "config.json").read_text())["max_position_embeddings"]
    asked = config(place, tmp_path, methods=("prefix",), max_length=2 * context, seeds=1)
    n = METHODS["prefix"].n
    said = f"rows have room for {context - n} tokens in the model's context, beside the virtual ones of any method"
    assert said in go(asked).plan.data["notes"]


def test_all_seeds_of_a_method_have_one_rate(place, tmp_path, monkeypatch):
    """Also where a trial that had failed is tried again between them, and does better."""
    rates = grid("lora", 2)
    asked = config(place, tmp_path, methods=("lora",), seeds=2)
    real, stopped = trials.final, []

    def once(bench, name, number):
        if number == 1 and not stopped:
            raise AdapterError("not now")
        return {"learning_rate": rates[number], "validation_loss": 2.0 - number}

    def final(bench, name, seed, rate):
        if seed == 1 and not stopped:
            stopped.append(seed)
            raise KeyboardInterrupt
        return real(bench, name, seed, rate)

    monkeypatch.setattr(run, "trial", once)
    monkeypatch.setattr(run, "final", final)
    with pytest.raises(KeyboardInterrupt):
        go(asked)
    found = {one.run: one for one in go(asked).runs}
    assert found["lora/trial-1"].status == "done"
    assert found["lora/seed-0"].learning_rate == found["lora/seed-1"].learning_rate == rates[0]


def test_a_base_that_a_run_changed_stops_everything(place, tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "fingerprint", lambda model: "other")
    with pytest.raises(BaseChanged, match="not what it was before lora"):
        go(config(place, tmp_path))


def test_one_trial_means_the_default_rate_and_no_search(place, tmp_path):
    found = go(config(place, tmp_path, methods=("norms",), trials=1, seeds=2, eval_data=None, eval_limit=None))
    assert [each.run for each in found.runs] == ["zero-shot", "in-context", "norms/seed-0", "norms/seed-1"]
    assert {each.learning_rate for each in found.runs} == {None, DEFAULT_RATES["norms"]}
    assert found.plan.data["rows_eval"] == 12
    assert found.plan.data["eval"] == "held out of the training file"


def test_every_method_has_a_rate_and_all_is_all_but_full():
    assert set(DEFAULT_RATES) == set(METHODS)
    assert set(chosen(["all"])) == set(METHODS) - {"full"}
    assert chosen(["lora"], full=True) == ("lora", "full")
    assert start("prefix", "a text").text == "a text"
    with pytest.raises(TrainingError, match="there is no method 'laro'"):
        chosen(["laro"])


def test_grids_start_at_the_default_and_spread_around_it():
    assert grid("lora", 5) == (4e-3, 1.33e-3, 1.2e-2, 4.44e-4, 3.6e-2)
    with pytest.raises(TrainingError, match="trials is 0"):
        grid("lora", 0)


@pytest.mark.parametrize(("text", "expected"), [("30m", 1800), ("1h30m", 5400), ("90s", 90)])
def test_budgets_are_times(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "30", "m", "1.5h", "-3m"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(DataError, match="budget is"):
        seconds(text)


JOB = Job(methods=9, rows_train=9000, rows_test=3000, rows_validation=200, rows_step=16, shots=4)
COSTS = Costs(step=0.05, run=5.0, row=0.02)


@pytest.mark.parametrize("minutes", [10, 30, 120, 600])
def test_a_plan_fits_its_budget_and_uses_it(minutes):
    made = CompareConfig("m", "d", "o", budget=f"{minutes}m")
    bounds = fit_budget(made, COSTS, JOB, 60 * minutes)
    expected = estimate(COSTS, JOB, bounds)
    assert expected <= 60 * minutes
    assert expected >= 30 * minutes or bounds.max_steps == 3 * 9000 // 16


def test_more_time_buys_more():
    plans = [fit_budget(CompareConfig("m", "d", "o"), COSTS, JOB, 60 * minutes) for minutes in (3, 10, 30, 120, 600)]
    assert [plan.trials * plan.seeds for plan in plans] == sorted(plan.trials * plan.seeds for plan in plans)
    assert plans[0].trials == 1
    assert plans[-1].seeds == 3


def test_bounds_by_hand_stay_and_too_short_a_budget_is_refused():
    made = CompareConfig("m", "d", "o", budget="10m", trials=2, seeds=1, max_steps=40, eval_limit=50)
    assert fit_budget(made, COSTS, JOB, 600) == Bounds(2, 1, 40, 50)
    with pytest.raises(DataError, match=r"20s is too short: 10 steps of each method take about .* --max-steps"):
        fit_budget(CompareConfig("m", "d", "o", budget="20s"), COSTS, JOB, 20)


def test_a_budget_is_planned_once_and_kept(place, tmp_path, monkeypatch):
    made = config(place, tmp_path, methods=("bias",), budget="30s", trials=None, seeds=None, max_steps=None, eval_limit=None)
    first = go(made)
    monkeypatch.setattr(run, "warm_up", None)
    assert go(made) == first
    assert first.plan.budget == "30s"
    assert first.plan.max_steps <= 3 * first.plan.data["rows_train"] // 4
