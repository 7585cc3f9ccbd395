"""How many labels a task needs: what is drawn, how often, and from which weights, as a part of a Recipe.

The one idea: a point of the curve is the recipe's own fine-tuning on fewer examples, for as many passes as are given here.
Nothing else differs between two curves but the weights that they begin with.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from model.config import Config
from pipelines.finetune_config import FinetuneConfig
from pipelines.pretrained import Pretrained


class Start(Config):
    """One curve: where fine-tuning begins, and how it goes where that wants other settings than the recipe's."""

    name: str = Field(pattern=r"^[\w-]+$", description="the curve, as tables and step names have it")
    pretrained: Pretrained | None = Field(None, description="somebody else's model; none: what the recipe pre-trains")
    finetune: FinetuneConfig | None = Field(None, description="how it is fine-tuned; none: as the recipe says")
    draws: int | None = Field(
        None, ge=1, description="the first so many draws only, of a curve that takes long; none: all"
    )


class FewLabels(Config):
    """The curves, the numbers of labels on them, and how often each is drawn."""

    starts: tuple[Start, ...] = Field(min_length=1, description="the curves")
    labels: tuple[int, ...] = Field((100, 300, 1000, 3000), description="labelled examples; all of them come last")
    draws: int = Field(3, ge=1, description="draws of the labels, each with its own seed of the training")
    passes: int = Field(10, ge=1, description="passes over the labels, at most as many steps as finetune.max_steps")
    least_steps: int = Field(100, ge=1, description="optimizer steps for however few labels")

    @model_validator(mode="after")
    def _each_once(self) -> FewLabels:
        names = [start.name for start in self.starts]
        for what, given in (("starts", names), ("labels", list(self.labels))):
            if len(set(given)) < len(given):
                raise ValueError(f"few_labels.{what} has one twice: {', '.join(map(str, given))}")
        if min(self.labels, default=2) < 2:
            raise ValueError(f"few_labels.labels={min(self.labels)}: a class needs an example, give 2 labels and more")
        for start in self.starts:
            if start.draws and start.draws > self.draws:
                raise ValueError(
                    f"few_labels.starts: {start.name!r} has draws={start.draws}, more than few_labels.draws={self.draws}, which is how "
                    "many there are; raise that one"
                )
        return self

    def tuned(self, config: FinetuneConfig, labels: int | None, seed: int) -> FinetuneConfig:
        """The fine-tuning of one point: `config`'s, for as many steps as so many labels (None: all) are worth."""
        if labels is None:
            return config.model_copy(update={"seed": seed})
        wanted = max(self.least_steps, -(-self.passes * labels // config.global_batch_size))
        steps = min(wanted, config.max_steps)
        warmup = max(1, config.warmup_steps * steps // config.max_steps) if config.warmup_steps else 0
        return config.model_copy(update={"max_steps": steps, "warmup_steps": warmup, "seed": seed})
