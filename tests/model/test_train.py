"""Real ranks train: every ZeRO stage learns the same, stops when asked, and goes on as if nothing had happened."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from model.checkpoint import newest_good, published
from model.job import RankJob
from model.monitor import DivergenceGuard, TrainingDiverged
from model.rank import run
from model.train import learning_rate
from model.train_config import TrainConfig
from tests.model.conftest import Trained
from tests.model.training_runs import MIDDLE, STEPS, finish, metrics, start, weights

STAGES = ["zero0", "zero1", "zero2", "zero3"]


@pytest.fixture(scope="module")
def interrupted(trained: Trained) -> dict[str, Any]:
    """The job `zero2` again, one of whose two ranks gets a SIGTERM after a few steps."""
    job = trained.jobs.job("interrupted", train={"zero_stage": 2}, checkpoint_every=0)
    process = start([job], ranks=2)
    lines = Path(job["attempt"], "metrics.jsonl")
    while not lines.exists() or lines.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    psutil.Process(process.pid).children()[-1].terminate()
    (result,), _ = finish(process)
    return {"job": job, "result": result}


@pytest.fixture(scope="module")
def alone(trained: Trained) -> dict[str, dict[str, Any]]:
    """The middle checkpoints of two ranks, continued to the end by one."""
    jobs = {
        stage: trained.jobs.continuation(f"alone-{stage}", trained.job[stage], MIDDLE, checkpoint_every=2)
        for stage in [*STAGES, "bf16"]
    }
    results, _ = finish(start(list(jobs.values()), ranks=1))
    assert [result["resumed_from"] for result in results] == [MIDDLE] * len(jobs)
    return jobs


@pytest.fixture(scope="module")
def resumed(
    trained: Trained, interrupted: dict[str, Any], alone: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Two ranks go on from checkpoints: their own, those of one rank, and that of the SIGTERM."""
    make = trained.jobs.continuation
    jobs = {
        stage: make(f"resumed-{stage}", trained.job[stage], MIDDLE)
        for stage in [*STAGES, "bf16", "finetuned", "answers"]
    }
    jobs |= {f"back-{stage}": make(f"back-{stage}", alone[stage], MIDDLE + 2) for stage in STAGES}
    jobs["interrupted"] = make("after-sigterm", interrupted["job"], interrupted["result"]["steps"])
    results, _ = finish(start(list(jobs.values()), ranks=2))
    assert all(result["resumed_from"] for result in results)
    return jobs


@pytest.mark.parametrize("stage", STAGES)
def test_loss_goes_down_at_every_zero_stage(trained: Trained, stage: str) -> None:
    lines = metrics(trained.job[stage])
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[0]["loss"] == pytest.approx(math.log(trained.jobs.vocab_size), abs=0.2)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert trained.result[stage]["final_loss"] == lines[-1]["loss"]


@pytest.mark.parametrize("stage", STAGES[1:])
def test_zero_stages_agree_in_loss_and_gradient_norm(trained: Trained, stage: str) -> None:
    for line, reference in zip(metrics(trained.job[stage]), metrics(trained.job["zero0"]), strict=True):
        assert line["loss"] == pytest.approx(reference["loss"], abs=1e-5)
        assert line["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)


def test_bf16_stays_close_to_fp32(trained: Trained) -> None:
    for line, reference in zip(metrics(trained.job["bf16"]), metrics(trained.job["zero2"]), strict=True):
        assert line["loss"] == pytest.approx(reference["loss"], abs=0.05)


@pytest.mark.parametrize("name", [*STAGES, "bf16", "finetuned", "answers"])
def test_the_export_of_every_stage_computes_what_the_live_model_did(trained: Trained, name: str) -> None:
    assert 0 <= trained.result[name]["export_difference"] <= 1e-4


def test_a_classifier_learns_from_a_base_models_export(trained: Trained) -> None:
    lines = metrics(trained.job["finetuned"])
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.3)
    assert lines[-1]["loss"] < 0.3
    assert trained.result["finetuned"]["tokens"] == sum(line["tokens"] for line in lines)


@pytest.mark.parametrize("name", [*STAGES, "bf16", "finetuned", "answers"])
def test_a_resumed_run_ends_with_identical_weights_and_metrics(
    trained: Trained, resumed: dict[str, Any], name: str
) -> None:
    assert weights(resumed[name]) == weights(trained.job[name])
    assert metrics(resumed[name]) == metrics(trained.job[name])


def test_a_sigterm_to_one_rank_stops_all_after_a_whole_step_with_a_checkpoint(interrupted: dict[str, Any]) -> None:
    result, job = interrupted["result"], interrupted["job"]
    assert result["stopped"] == "sigterm" and 2 <= result["steps"] < STEPS
    assert [path.name for path in Path(job["checkpoints"]).iterdir()] == [f"step-{result['steps']:06d}"]
    assert not Path(job["outputs"]).exists()


def test_a_run_stopped_by_sigterm_resumes_to_identical_weights(trained: Trained, resumed: dict[str, Any]) -> None:
    assert weights(resumed["interrupted"]) == weights(trained.job["zero2"])
    assert metrics(resumed["interrupted"]) == metrics(trained.job["zero2"])


@pytest.mark.parametrize("name", [*STAGES, "bf16"])
def test_one_rank_continues_what_two_began(trained: Trained, alone: dict[str, Any], name: str) -> None:
    """Sums are taken in another order: losses differ in their last bits, and Adam makes a little more of that each step."""
    tolerance = 5e-3 if name == "bf16" else 2e-5
    for line, reference in zip(metrics(alone[name]), metrics(trained.job[name]), strict=True):
        assert line["loss"] == pytest.approx(reference["loss"], abs=tolerance)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_take_over_again_from_one(trained: Trained, resumed: dict[str, Any], stage: str) -> None:
    for line, reference in zip(metrics(resumed[f"back-{stage}"]), metrics(trained.job[stage]), strict=True):
        assert line["loss"] == pytest.approx(reference["loss"], abs=2e-5)


def test_a_run_that_changed_its_ranks_says_so_and_one_that_did_not_says_nothing(
    trained: Trained, alone: dict[str, Any]
) -> None:
    changed, same = (newest_good(published(Path(job["checkpoints"]))) for job in (alone["zero1"], trained.job["zero1"]))
    assert changed is not None and [entry["numerics"]["ranks"] for entry in changed.history] == [2, 1]
    assert same is not None and len(same.history) == 1 and "earlier" not in trained.result["zero1"]["numerics"]


def test_the_result_says_what_decided_its_last_bits(trained: Trained) -> None:
    numerics = trained.result["zero1"]["numerics"]
    assert (numerics["ranks"], numerics["threads"], numerics["accumulation_steps"]) == (2, 1, 2)
    assert numerics["device"] == "cpu" and numerics["instruction_set"]


def test_progress_tells_speed_and_only_outputs_are_outputs(trained: Trained) -> None:
    home = Path(trained.job["zero1"]["attempt"])
    assert (home / "progress.jsonl").read_bytes().count(b"\n") == STEPS
    assert sorted(path.name for path in Path(trained.job["zero1"]["outputs"]).iterdir()) == [
        "export",
        "metrics.jsonl",
        "probe.safetensors",
    ]
    assert not list(home.glob("staging-*")), "staging folders are renamed, never left"


def test_the_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    train = TrainConfig(
        max_steps=110, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.1, global_batch_size=1, sequence_length=2
    )
    assert [learning_rate(train, step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert learning_rate(train, 10) == 1.0
    assert learning_rate(train, 60) == pytest.approx(0.55)
    assert learning_rate(train, 110) == pytest.approx(0.1)


@pytest.mark.parametrize(("loss", "grad_norm"), [(math.nan, 1.0), (math.inf, 1.0), (51.0, 1.0), (5.0, math.nan)])
def test_a_loss_that_explodes_or_is_no_number_stops_the_run(loss: float, grad_norm: float, tmp_path: Path) -> None:
    guard = DivergenceGuard()
    for step in range(1, 30):
        guard.check(step, 5.0, 1.0, tmp_path)
    with pytest.raises(TrainingDiverged, match=f"at step 30, .*last good checkpoint is {tmp_path}"):
        guard.check(30, loss, grad_norm, tmp_path)


def test_a_hard_batch_is_no_explosion_when_the_loss_is_near_zero(tmp_path: Path) -> None:
    guard = DivergenceGuard()
    for step in range(30):
        guard.check(step, 0.01, 1.0, tmp_path)
    guard.check(30, 3.0, 1.0, tmp_path)
    assert guard.recent[-1] == 3.0 and guard.best < 0.02


def test_a_run_with_a_wild_learning_rate_names_the_step_and_the_last_good_checkpoint(trained: Trained) -> None:
    wild = {"learning_rate": 1e4, "grad_clip": 0.0, "warmup_steps": 0, "max_steps": 30}
    job = trained.jobs.job("wild", train=wild, checkpoint_every=1)
    with pytest.raises(TrainingDiverged, match=r"at step \d+, .*checkpoints/step-\d+"):
        run(RankJob.parse(job))


def test_a_rank_takes_steps_without_importing_what_it_does_not_use(trained: Trained) -> None:
    """Each of these costs 1 to 7 s of every start, and of every restart after a crash."""
    job = trained.jobs.job("imports", train={"max_steps": 2, "zero_stage": 2})
    program = (
        "import json, sys; from model.job import RankJob; from model.rank import Run; from model.world import join, leave\n"
        "this = Run(RankJob.parse(json.loads(sys.argv[1])), join('cpu')); this.steps(lambda: False); this.save()\n"
        "print([name for name in ('torch._dynamo', 'mlflow', 'transformers', 'pandas', 'ray') if name in sys.modules]); leave()"
    )
    command = [sys.executable, "-c", program, json.dumps(job)]
    answer = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "[]"


def test_a_process_that_was_warmed_up_imports_no_other_library_for_its_first_step(trained: Trained) -> None:
    job = trained.jobs.job("warm", train={"max_steps": 2, "zero_stage": 2})
    program = (
        "import json, sys; from model.train import warm_up; warm_up(None); import torch\n"
        "assert not torch.distributed.is_initialized(); warm = set(sys.modules)\n"
        "from model.job import RankJob; from model.rank import Run; from model.world import join, leave\n"
        "this = Run(RankJob.parse(json.loads(sys.argv[1])), join('cpu')); this.steps(lambda: False); this.save()\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - warm} - {'torch', 'deepspeed'})); leave()"
    )
    command = [sys.executable, "-c", program, json.dumps(job)]
    answer = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "[]"
