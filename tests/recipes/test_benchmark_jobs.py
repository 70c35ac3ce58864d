"""In which order the benchmark of the recipes runs its jobs, and what it makes of them."""

from threading import Lock

import pytest

from benchmarks import recipes
from benchmarks.recipes import FLOAT, PRESETS, Job, run_all

RECIPE = "mackey_glass"
FIRST = PRESETS[RECIPE][0]


@pytest.mark.parametrize("at_once", [1, 3])
def test_every_job_runs_once_after_the_one_whose_float_stage_it_shares(at_once, monkeypatch):
    begun, ended, lock = [], [], Lock()

    def run(job):
        with lock:
            begun.append(job)
            if job.preset not in (FLOAT, FIRST):
                assert job._replace(preset=FIRST) in ended
        with lock:
            ended.append(job)
        return "failed" if job.preset == FIRST else "done"

    monkeypatch.setattr(recipes, "run", run)
    jobs = [Job(RECIPE, preset, seed) for preset in ("int8", FLOAT, "int16") for seed in (1, 2)]
    yielded = dict(run_all(jobs, at_once))
    shared = [Job(RECIPE, FIRST, seed) for seed in (1, 2)]
    assert sorted(begun) == sorted(yielded) == sorted([*jobs, *shared])
    assert {job for job, how in yielded.items() if how == "failed"} == set(shared)


def test_a_jobs_settings():
    first, other, searched = (Job(RECIPE, preset, 3) for preset in (FIRST, "int16", "auto at 0.8"))
    assert Job(RECIPE, FLOAT, 3).overrides == [f"recipe={RECIPE}", "seed=3"]
    assert first.overrides[:3] == [f"recipe={RECIPE}", "seed=3", f"+quant={FIRST}"]
    assert "every_n_epochs:42}" in first.overrides[3]
    checkpoint = f"ckpt_path={first.folder / 'float-stage' / 'end.ckpt'}"
    assert other.overrides[2:] == ["+quant=int16", checkpoint]
    assert searched.overrides[2:] == ["+quant=auto", "quant.budget=0.8", checkpoint]


def test_folders_hold_nothing_that_hydra_takes_for_syntax():
    jobs = [Job(RECIPE, "auto at 0.8", 1), Job(RECIPE, "a/b/mine.json", 1, ("model.num_layers=2",))]
    folders = [str(job.folder.relative_to(recipes.RUNS)) for job in jobs]
    assert folders == [f"{RECIPE}/auto-at-0.8/seed-1", f"{RECIPE}-model.num_layers_2/mine.json/seed-1"]
