"""Where data come from, and what a task makes of them: the parts of a Recipe that point at files.

The one idea: a source says where, a task says which fields and splits. What a task does not know is refused here, when the
recipe is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from model.config import Config

SourceFormat = Literal[
    "auto", "txt", "md", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "csv", "csv.bz2", "tab", "json"
]

USUAL_FRACTION = 0.1  # of the groups, for validation and for test, where a recipe says nothing else


class Source(Config):
    """Where documents come from: files, a Hugging Face dataset, or a named sample. Exactly one of the three."""

    path: str | None = Field(None, description="a file, a glob, or a directory (searched for all known formats)")
    dataset: str | None = Field(None, description="a Hugging Face dataset: a local path, or a hub name with `revision`")
    sample: str | None = Field(None, description="a named sample that gptline fetches, see pipelines/samples.py")
    config: str | None = Field(None, description="of a dataset: its configuration")
    split: str = Field("train", description="of a dataset: its split")
    revision: str | None = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="of a hub dataset: the commit, 40 hex digits"
    )
    format: SourceFormat = Field("auto", description="of files; auto goes by the file name's ending")
    text_column: str = Field("text", description="field or column that holds the text, where records have fields")
    on_bad_record: Literal["fail", "skip"] = Field(
        "fail", description="stop at a bad record, or count it and keep it in rejects"
    )
    label: str = Field("", description="name of this source in shards and statistics; counts as content")

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        given = [name for name in ("path", "dataset", "sample") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, dataset or sample, not {' and '.join(given) or 'none'}")
        if self.dataset and not Path(self.dataset).expanduser().exists() and not self.revision:
            raise ValueError(
                f"dataset={self.dataset!r} is no local path, so it is a hub name: pin it with revision=<commit, 40 hex digits>"
            )
        return self


# Fields that came after the first tasks were made: a step's config has them only where they are set, or it would be another.
ADDED_TO_TASK = (
    "validation_source", "test_source", "benchmark_source", "text_column", "label_column", "prompt_column", "response_column",
    "messages_column", "group_column", "options",
)  # fmt: skip


class TaskConfig(Config):
    """A labelled task: which one, from which data, how it is split."""

    name: str = Field("sentiment", description="the task, a file in pipelines/tasks/")
    source: Source = Field(description="its data, of which validation and test are split off")
    validation_source: Source | None = Field(None, description="the validation split, where it is a file of its own")
    test_source: Source | None = Field(None, description="the test split, where it is a file of its own")
    benchmark_source: Source | None = Field(
        None, description="a second test set, measured beside the first: nothing is ever trained on it"
    )
    validation_fraction: float = Field(
        USUAL_FRACTION, gt=0, lt=0.5, description="of groups (films), by a hash of the group"
    )
    test_fraction: float = Field(USUAL_FRACTION, gt=0, lt=0.5, description="of groups (films), by a hash of the group")
    text_column: str | None = Field(None, description="of your own data: field that holds the text; `text` if none")
    label_column: str | None = Field(None, description="of your own data: field that holds the class; `label` if none")
    prompt_column: str | None = Field(None, description="of your own data: field of the prompt; `prompt` if none")
    response_column: str | None = Field(None, description="of your own data: field of the response; `response` if none")
    messages_column: str | None = Field(None, description="of your own data: field of the turns; `messages` if none")
    group_column: str | None = Field(
        None,
        description="of your own data: field of what a split must not divide (an author, a film); the text if none",
    )
    options: dict[str, str | int | float | bool] = Field(
        {}, description="what else the task lets one choose, by the names of its prepare()"
    )
    max_examples: int | None = Field(
        None, ge=10, description="examples kept in each split, the first by hash; all if none"
    )

    @model_validator(mode="after")
    def _one_way_to_read(self) -> TaskConfig:
        for source in self.sources.values():
            if source.on_bad_record != "fail" or source.text_column != "text":
                raise ValueError(
                    "task.source takes neither on_bad_record nor text_column: the task knows its own columns, and of your "
                    "own data task.text_column names it"
                )
        return self

    @model_validator(mode="after")
    def _split_once(self) -> TaskConfig:
        for name in ("validation", "test"):
            usual, given = type(self).model_fields[f"{name}_fraction"].default, getattr(self, f"{name}_fraction")
            if getattr(self, f"{name}_source") and given != usual:
                raise ValueError(
                    f"task.{name}_fraction={given} splits nothing off: task.{name}_source is the {name} split; leave one out"
                )
        return self

    @model_validator(mode="after")
    def _known_to_the_task(self) -> TaskConfig:
        from pipelines.tasks import task

        known = task.options_of(self.name)
        for field in ADDED_TO_TASK:
            name = field.replace("_source", "_files")
            if field != "options" and getattr(self, field) is not None and name not in known:
                raise ValueError(f"task {self.name} has no {field}: {self._takes(known)}")
        for option in self.options:
            if option not in known or option.endswith(("_column", "_files")):
                raise ValueError(f"task {self.name} has no option {option!r}: {self._takes(known)}")
            if misfit := task.option_misfit(self.name, option, self.options[option]):
                raise ValueError(f"task.options: {option} of task {self.name} {misfit}")
        return self

    def _takes(self, known: list[str]) -> str:
        return f"it takes {', '.join(name.replace('_files', '_source') for name in known) or 'none'}"

    @property
    def test_sets(self) -> tuple[str, ...]:
        """What it is measured on, and what is taken out of anything that is learned."""
        return ("test", "benchmark") if self.benchmark_source else ("test",)

    @property
    def sources(self) -> dict[str, Source]:
        """Its sources, by the name of the group that steps know them by."""
        given = {
            "labelled": self.source,
            "labelled_validation": self.validation_source,
            "labelled_test": self.test_source,
            "labelled_benchmark": self.benchmark_source,
        }
        return {group: source for group, source in given.items() if source}
