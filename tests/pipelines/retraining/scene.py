"""What tests of retraining share: a small recipe over a folder that grows, a clock that is set by hand, and a desk.

The steps are the real ones, on a Ray of their own; only the clock is played.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model import durable
from model.config import ModelShape
from pipelines import recipes, registry, retrain, run, samples, slots
from pipelines.config import (
    Gate,
    Recipe,
    RegisterConfig,
    RetrainConfig,
    ShardConfig,
    Source,
    TaskConfig,
    TokenizerConfig,
)
from pipelines.engine.record import Record
from pipelines.execution import Execution
from pipelines.model_card import Card
from pipelines.package import build_package
from pipelines.run import Workspace
from pipelines.slots import Slot
from tests.pipelines.tiny_exports import write_base, write_classifier

ROOT = Path(__file__).parents[3]


def shakespeare(begin: int, end: int) -> str:
    """A stretch of the sample text."""
    return next((ROOT / ".cache" / "gptline").glob("tiny_shakespeare-*/input.txt")).read_text()[begin:end]


def small(corpus: Path, name: str, task: bool = True, **how: Any) -> Recipe:
    """The `tiny` recipe over a folder, with next to no training, registered as `<name>-base` and `<name>`."""
    tiny, text = recipes.tiny(), Source(path=str(corpus), label="files")
    few: dict[str, Any] = {"max_steps": 6, "warmup_steps": 2}
    changed: dict[str, Any] = {
        "name": name,
        "shard": ShardConfig(sources=(text,), document_bytes=512, shard_bytes=8192, heldout_fraction=0.05),
        "tokenizer": TokenizerConfig(sources=(text,), vocab_size=512),
        "model": ModelShape(n_positions=64, n_embd=32, n_layer=2, n_head=2),
        "pretrain": tiny.pretrain.model_copy(update=few),
        "task": TaskConfig(source=recipes.REVIEWS, max_examples=60) if task else None,
        "finetune": tiny.finetune.model_copy(update=few) if task and tiny.finetune else None,
        "register_as": RegisterConfig(
            base=f"{name}-base", task=name,
            base_gates=(Gate(metric="bits_per_byte", maximum=20.0), Gate(metric="export_bytes", maximum=1e7)),
            task_gates=(Gate(metric="accuracy", minimum=0.1), Gate(metric="latency_ms", maximum=1e4)),
        ),
        "retrain": RetrainConfig(**how),
    }  # fmt: skip
    return Recipe.model_validate_json(tiny.model_copy(update=changed).model_dump_json())


def _reviews() -> str:
    """The digest of the labelled sample."""
    return durable.sha256(samples.paths("rotten_tomatoes", ROOT / ".cache" / "gptline", True)[0])


@dataclass
class PlayedClock:
    """Time that passes when somebody sleeps, or by hand. `slept` are the seconds of each sleep."""

    at: datetime.datetime = datetime.datetime(2031, 1, 1, 3, 0, tzinfo=datetime.UTC)
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.slept.append(seconds)
        self.at += datetime.timedelta(seconds=seconds)

    def next_night(self) -> None:
        """The same hour of the next day."""
        self.at = self.at.replace(hour=3, minute=0, second=0, microsecond=0) + datetime.timedelta(days=1)


@dataclass
class Scene:
    """A corpus, a work directory and a registry through some nights."""

    folder: Path
    registry: Path
    name: str
    task: bool = True
    how: dict[str, Any] = field(default_factory=dict)
    clock: PlayedClock = field(default_factory=PlayedClock)
    said: list[str] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with six files."""
        if self.corpus.exists():
            return
        self.corpus.mkdir(parents=True)
        for index in range(6):
            self.add(f"{index}.txt", shakespeare(index * 20_000, (index + 1) * 20_000))

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def model(self) -> str:
        return self.name if self.task else f"{self.name}-base"

    @property
    def slots(self) -> list[Slot]:
        return slots.of_model(self.work, self.model)

    def add(self, name: str, text: str) -> None:
        """Put one more file into the corpus."""
        (self.corpus / name).write_text(text)

    def desk(self, do: Callable[[Workspace], Mapping[str, Record]] | None = None, **how: Any) -> retrain.Desk:
        """What a slot is worked on with; `do` in place of the real steps, `how` of the recipe's `retrain`."""
        execution = Execution(
            work=str(self.work), registry=str(self.registry), ranks=1, workers=2, threads=1, standby=False, lease_seconds=5.0
        )  # fmt: skip
        clock = retrain.Clock(lambda: self.clock.at, self.clock.sleep)
        recipe = small(self.corpus, self.name, self.task, **self.how | how)
        return retrain.Desk(recipe, execution, clock, do or self.steps, self.said.append)

    def night(
        self, force: bool = False, do: Callable[[Workspace], Mapping[str, Record]] | None = None, **how: Any
    ) -> Slot:
        """The timer fires: one slot."""
        self.clock.next_night()
        return retrain.retrain(self.desk(do, **how), force)

    def steps(self, workspace: Workspace) -> Mapping[str, Record]:
        """Do the slot's real steps."""
        outcomes = run.run(workspace, run.unwatched, lambda owner: None, lambda damage: None)
        self.records = {outcome.record.step: outcome.record for outcome in outcomes}
        return self.records

    def plant_champions(self) -> None:
        """Champions with random weights, as if trained on the files that are there: a slot less to wait for."""
        lineage = {
            "shard": {"sources": {"corpus": [durable.sha256(path) for path in self.corpus.iterdir()]}},
            "prepare_task": {"sources": {"labelled": [_reviews()]}},
        }
        makers = {
            f"{self.name}-base": (write_base, "text-generation"),
            self.name: (write_classifier, "text-classification"),
        }
        for name, (write, kind) in makers.items():
            export, package = (self.folder / f"{name}-{what}" for what in ("export", "package"))
            build_package(write(export), package, Card(name, kind, "A test.", lineage=lineage))  # type: ignore[arg-type]
            assert registry.promote(self.registry, registry.register(self.registry, name, package, {}), [])

    def finished(self) -> set[str]:
        """The folders of all finished steps."""
        return {path.parent.name for path in self.work.glob("steps/*/record.json")}
