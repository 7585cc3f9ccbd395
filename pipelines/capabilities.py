"""What a family of models, the form of a task and the options of training can do together. Light: imports nothing heavy.

The one idea: what cannot be is said before anything is trained. A recipe whose model is known is refused when it is read: by
its own shape, or by config.json of somebody else's folder. A model that is known only once it is imported (a GGUF file, a
folder on another machine) is refused by the first step that trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model.config import ModelShape
from pipelines.finetune_config import FinetuneConfig
from pipelines.pretrain_config import OBJECTIVES, PretrainConfig
from pipelines.pretrained import Pretrained

_CAUSAL = tuple(family for family, learned in OBJECTIVES.items() if "causal_lm" in learned)
# Our own weights are read by our own code (model/own_weights.py), which knows no segments and no heads of several outputs.
_UNRELEASED = f"release=false measures with gptline's own code, which knows causal models ({', '.join(_CAUSAL)}) only"
# Which families can learn a form that not all of them can, what it does with text, and a sample to begin with.
_NEEDS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "span": (("bert",), "finds answers in a text", "minilm"),
    "response": (_CAUSAL, "answers prompts", "smollm2"),
    "dialogue": (_CAUSAL, "replies", "smollm2"),
    "text": (_CAUSAL, "goes on with texts", "smollm2"),
}


@dataclass(frozen=True)
class Known:
    """The family of a model, and what says so."""

    family: str
    said: str


def known(model: ModelShape | None, pretrained: Pretrained | None, pretrain: PretrainConfig | None) -> Known | None:
    """The family of a recipe's model, as far as the recipe tells it; none: the step `import` finds out."""
    if model is not None:
        return Known(model.family, f"model.family={model.family!r}")
    if pretrained is not None and pretrained.family is not None:
        return Known(pretrained.family, f"{pretrained.said} (of family {pretrained.family})")
    if pretrain is not None:  # the families that learn it are alike in what else they can
        family = next(name for name, learned in OBJECTIVES.items() if pretrain.objective in learned)
        return Known(family, f"a model that learns pretrain.objective={pretrain.objective!r}")
    return None


def family_misfits(model: Known, form: str, release: bool) -> Iterator[str]:
    """Why a model cannot learn a task of this form, or cannot be measured where nothing is released; and what to do."""
    able, does, sample = _NEEDS.get(form, ((model.family,), "", ""))
    if model.family not in able:
        yield (
            f"the task (form {form}) {does}, which {model.said} cannot; choose family {' or '.join(able)}, or begin "
            f"with one (pretrained.sample={sample})"
        )
    if not release and model.family not in _CAUSAL:
        yield f"{_UNRELEASED}, and not {model.said}; leave release on"


def segment_misfits(kinds: int | None, said: str, objective: str, form: str) -> Iterator[str]:
    """Why a BERT with so many kinds of segments (none: two) cannot learn from two texts at a time; `said` names it."""
    paired = {f"pretrain.objective={objective!r}": objective.endswith("next_sentence"), "form span": form == "span"}
    for learned in (name for name, asked in paired.items() if asked and kinds == 1):
        yield (
            f"{learned} tells two texts apart by their segments, and {said} has one kind (type_vocab_size=1); "
            "choose objective masked_lm or another task, or a model with two"
        )


def form_misfits(form: str, release: bool) -> Iterator[str]:
    """Why a task of this form is not measured where nothing is released, whatever the model."""
    if not release and form == "span":
        yield f"{_UNRELEASED}, and the task is of form span; leave release on"


def length_misfits(length: int, shape: ModelShape, said: str) -> Iterator[str]:
    """A sequence that is longer than the model has positions. `said` stands before the names of its fields."""
    if length > shape.n_positions:
        yield f"sequence_length={length} is longer than {said}n_positions={shape.n_positions}"


def untrained_misfits(length: int, shape: ModelShape) -> Iterator[str]:
    """Why a model of ours cannot be pre-trained on sequences that are shorter than it has learned positions.

    A causal one is measured, registered and asked on all of them. A BERT is measured on sequences of `length`, and other
    people's models have learned theirs before.
    """
    if shape.family == "gpt2" and length < shape.n_positions:
        yield (
            f"sequence_length={length} leaves the later ones of model.n_positions={shape.n_positions} as they were drawn, and "
            "the model is measured and used on all of them; make both equal, or choose model.family=llama, whose positions "
            "are not learned"
        )


def option_misfits(
    finetune: FinetuneConfig, form: str, shape: ModelShape | None, said: str = "model."
) -> Iterator[str]:
    """Options of fine-tuning that would do nothing for a task of this form, or that the model (none: not known) lacks.

    `said` stands before the names of the model's fields.
    """
    if finetune.class_weights != "none" and form != "classification":
        yield f"class_weights={finetune.class_weights} is of classes, and a task of form {form} has none; leave it out"
    if finetune.long_texts == "windows" and form not in ("classification", "span"):
        yield (
            f"long_texts=windows is of forms classification and span, and this task is of form {form}, whose long texts "
            "are learned in pieces or cut; leave it out"
        )
    early = finetune.early_stopping
    if early and early.metric == "accuracy" and form != "classification":
        yield f"early_stopping.metric=accuracy is of classes, and a task of form {form} has none; use loss"
    if shape is None:
        return
    yield from length_misfits(finetune.sequence_length, shape, said)
    if finetune.last_layers is not None and finetune.last_layers > shape.n_layer:
        yield f"last_layers={finetune.last_layers} is more than {said}n_layer={shape.n_layer}; choose fewer"
    if finetune.tune == "head" and _NEEDS.get(form, ((),))[0] == _CAUSAL and shape.tie_word_embeddings:
        yield (
            f"tune=head leaves nothing to train: the output layer is the token embedding ({said}tie_word_embeddings); "
            "choose last_layers, lora or all"
        )
