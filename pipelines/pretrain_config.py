"""How a model is pre-trained on unlabelled text, and what does not go together in it.

The one idea: what cannot be learned is refused when the recipe is read, by the field that asks for it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from model.train_config import ObjectiveConfig, TrainConfig

# What each family of models can be pre-trained on.
OBJECTIVES = {
    "gpt2": ("causal_lm",),
    "llama": ("causal_lm",),
    "bert": ("masked_lm", "next_sentence", "masked_lm_next_sentence"),
}


class PretrainConfig(TrainConfig, ObjectiveConfig):
    """Pre-training on unlabelled text."""

    objective: Literal["causal_lm", "masked_lm", "next_sentence", "masked_lm_next_sentence"] = Field(
        "causal_lm", description="what is predicted"
    )

    @property
    def options(self) -> dict[str, Any]:
        """The objective's options that are not at their defaults."""
        return ObjectiveConfig(**{name: getattr(self, name) for name in ObjectiveConfig.model_fields}).model_dump(
            mode="json"
        )

    @model_validator(mode="after")
    def _options_are_the_objectives(self) -> PretrainConfig:
        paired, masked = self.objective.endswith("next_sentence"), self.objective.startswith("masked_lm")
        if not masked and (self.whole_words or self.mask_fraction != 0.15):
            raise ValueError(f"objective {self.objective} hides no tokens; leave out mask_fraction and whole_words")
        if paired and self.attention == "within_documents":
            raise ValueError(
                f"objective {self.objective}: a sample is a pair, not a stretch of documents; leave out attention"
            )
        if self.sequence_length < (8 if paired else 3):
            raise ValueError(f"objective {self.objective} needs a sequence_length of {8 if paired else 3} at least")
        return self


def check_family(pretrain: PretrainConfig, family: str, said: str, special_tokens: str | None) -> None:
    """ValueError if a family of models cannot learn the objective, or a tokenizer that is trained for it lacks its tokens.

    `said`: what makes the model one of that family.
    """
    if pretrain.objective not in OBJECTIVES[family]:
        raise ValueError(objective_misfit(pretrain.objective, family, said))
    if special_tokens is not None and (special_tokens == "bert") != (family == "bert"):
        raise ValueError(
            f"tokenizer.special_tokens={special_tokens!r} does not go with model.family={family!r}; "
            f"say {'bert' if family == 'bert' else 'gpt2'}"
        )


def objective_misfit(objective: str, family: str, said: str) -> str:
    """What to say of an objective that a family does not learn."""
    able = [name for name, known in OBJECTIVES.items() if objective in known]
    return (
        f"pretrain.objective={objective!r} cannot be learned by {said}, which learns {', '.join(OBJECTIVES[family])}; "
        f"choose one of these, or family {' or '.join(able)}"
    )


def check_mixture(pretrain: PretrainConfig, labels: set[str]) -> None:
    """ValueError unless each corpus, by its label, has a weight, and nothing else has."""
    if set(pretrain.mixture) != labels:
        raise ValueError(
            f"pretrain.mixture weighs {', '.join(sorted(pretrain.mixture))}; give a weight to each label of "
            f"shard.sources and to no other: {', '.join(sorted(labels))}"
        )
