"""What fills up a row is what the model takes for padding: a classifier reads a short row of any batch as it reads it alone.

An imported model says by itself what that is, and it need be neither its EOT nor called [PAD].
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model import evaluate, export, heads
from model.examples import Examples
from model.job import RankJob
from model.rank import loader
from model.validation import Validation
from tests.model.training_runs import Jobs

PAD = 240  # no token of an example, which have 1 to 200, nor the EOT, which is 0
FAMILIES: dict[str, dict[str, Any]] = {"gpt2": {}, "llama": {"family": "llama", "n_embd": 36}}
WORLD: Any = SimpleNamespace(rank=0, size=1, device=torch.device("cpu"), gather=lambda one: [one])


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("padding"))


def classifier(jobs: Jobs, name: str, family: str) -> tuple[RankJob, heads.Model, Path]:
    """A job of a classifier with a padding token of its own, a model for it that is sure of itself, and its export."""
    fields = jobs.classification(name)
    fields["model"] |= FAMILIES[family] | {"pad_token_id": PAD, "initializer_range": 0.5}
    job = RankJob.parse(fields)
    model = heads.build(job.model, seed=1).eval()
    folder = jobs.folder / name / "export"
    export.write_export(folder, job.model, model.state_dict(), jobs.tokenizer)
    return job, model, folder


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_short_row_is_read_in_a_batch_as_alone_and_as_evaluation_reads_it(jobs: Jobs, family: str) -> None:
    job, model, folder = classifier(jobs, f"read-{family}", family)
    tokens = loader(job, WORLD)(0).rows.tokens  # (B, T)
    rows = [[token for token in row if token != PAD] for row in tokens.tolist()]
    assert 0 not in tokens, "filled up with the EOT"
    assert len({len(row) for row in rows}) > 1, "rows of one length need no padding"
    alone = torch.cat([model(torch.tensor([row])) for row in rows])  # (B, K)
    torch.testing.assert_close(model(tokens), alone, rtol=1e-4, atol=1e-4)  # a wrong token is a tenth and more
    evaluated = evaluate.class_probabilities(export.load_export(folder), rows, batch_size=8)
    torch.testing.assert_close(torch.tensor(evaluated), alone.softmax(-1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_validation_measures_what_evaluation_will(jobs: Jobs) -> None:
    job, model, _ = classifier(jobs, "validated", "llama")
    path = jobs.folder / "examples.arrow"
    measured = Validation(path, "classification", 32, job.model.padding, WORLD).measure(model)
    examples = [Examples(path)[index] for index in range(64)]
    logits = torch.cat([model(torch.tensor(one.tokens[None].astype("int64"))) for one in examples])  # (64, K)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([one.label for one in examples]))
    assert measured["validation_loss"] == pytest.approx(float(loss), rel=1e-5)
