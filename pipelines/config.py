"""What to make: a Recipe, frozen, strict, every field with its unit.

The one idea: a Recipe holds everything that decides the result and nothing else; an Execution (`execution.py`) holds
the rest.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator

from model.config import Config, ModelShape
from pipelines import capabilities, pretrain_config
from pipelines.finetune_config import FinetuneConfig as FinetuneConfig
from pipelines.labels_config import FewLabels
from pipelines.pretrain_config import PretrainConfig as PretrainConfig
from pipelines.pretrained import Pretrained
from pipelines.release_config import MEASURED, RegisterConfig, RetrainConfig
from pipelines.release_config import Gate as Gate
from pipelines.task_config import Source, TaskConfig
from pipelines.tasks import task as tasks


class ShardConfig(Config):
    """How documents are cut, split and grouped into text shards."""

    sources: tuple[Source, ...] = Field(min_length=1, description="the corpus")
    document_bytes: int = Field(
        8192, ge=64, description="longest document, in UTF-8 bytes; longer ones are cut at paragraph ends"
    )
    shard_bytes: int = Field(32 << 20, ge=4096, description="aimed-at text in one shard, in bytes")
    heldout_fraction: float = Field(
        0.01, gt=0, lt=1, description="documents held out for evaluation, by a hash of their content"
    )
    decontaminate_min_words: int = Field(
        8, ge=1, description="evaluation examples of at least so many words remove documents that contain them"
    )


class TokenizerConfig(Config):
    """Where the tokenizer comes from: trained on its own sources, or pinned by digest."""

    sources: tuple[Source, ...] = Field(
        (), description="what it is trained on; its own, so that new documents do not change it"
    )
    vocab_size: int = Field(8192, ge=257, description="tokens in the vocabulary, at most")
    min_frequency: int = Field(2, ge=1, description="occurrences a pair needs to be merged")
    max_bytes: int = Field(64 << 20, ge=1024, description="text that it is trained on, in bytes, at most")
    pinned: str | None = Field(None, description="directory of a tokenizer to use as it is")
    digest: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the pinned directory's tokenizer.json"
    )
    special_tokens: Literal["gpt2", "bert"] = Field(
        "gpt2", description="gpt2: <|endoftext|>; bert: [PAD], [CLS], [SEP] (which ends documents) and [MASK]"
    )

    @model_serializer(mode="wrap")
    def _as_it_was(self, dump: Any) -> dict[str, Any]:
        """An option that came later changes no older tokenizer's fingerprint."""
        fields: dict[str, Any] = dump(self)
        return {name: value for name, value in fields.items() if name != "special_tokens" or value != "gpt2"}

    @model_validator(mode="after")
    def _one_origin(self) -> TokenizerConfig:
        if bool(self.sources) == bool(self.pinned):
            raise ValueError("give either sources (to train a tokenizer) or pinned (to use one), not both or neither")
        if self.pinned and not self.digest:
            raise ValueError("a pinned tokenizer needs digest=<SHA-256 of its tokenizer.json>")
        return self


class EvaluateConfig(Config):
    """What is measured on held-out data, beside the baselines."""

    continuations: int = Field(3, ge=0, description="texts that the base model is asked to continue")
    continuation_tokens: int = Field(48, ge=1, description="new tokens in each continuation")


class Recipe(Config):
    """Everything that decides what comes out."""

    name: str = Field(pattern=r"^[\w.-]+$", description="for people; enters no fingerprint")
    pretrained: Pretrained | None = Field(
        None, description="somebody else's model to start from; none: all is made here"
    )
    shard: ShardConfig | None = Field(None, description="the corpus; given exactly when pretrain is")
    tokenizer: TokenizerConfig | None = Field(None, description="the tokenizer, unless it comes with `pretrained`")
    model: ModelShape | None = Field(None, description="the model's shape, unless it comes with `pretrained`")
    pretrain: PretrainConfig | None = Field(None, description="how the base is learned; none: `pretrained` is the base")
    release: bool = Field(
        True, description="export and register what is made; false: only train and measure it, with gptline's own code"
    )
    export_precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of the weights that are released, a base's and a task's; bf16: half the bytes, rounded"
    )
    task: TaskConfig | None = Field(None, description="the labelled task; none: only a base model is made")
    finetune: FinetuneConfig | None = Field(None, description="how the task is learned; given exactly when task is")
    few_labels: FewLabels | None = Field(
        None, description="measure how many labels the task needs, and register nothing; none: make the models"
    )
    evaluate: EvaluateConfig = EvaluateConfig()
    register_as: RegisterConfig = RegisterConfig()
    retrain: RetrainConfig = RetrainConfig()

    @model_serializer(mode="wrap")
    def _as_it_was(self, dump: Any) -> dict[str, Any]:
        """What came later is left out at its default: a recipe that says nothing of it is what it was."""
        usual = {"pretrained": None, "release": True, "export_precision": "fp32", "few_labels": None}
        return {name: value for name, value in dump(self).items() if name not in usual or value != usual[name]}

    @model_validator(mode="after")
    def _begins_somewhere(self) -> Recipe:
        for data, how in (("task", "finetune"), ("shard", "pretrain")):
            if (getattr(self, data) is None) != (getattr(self, how) is None):
                raise ValueError(f"{data} and {how} belong together: give both or neither")
        own = [name for name in ("tokenizer", "model") if getattr(self, name) is not None]
        missing = [name for name in ("shard", "tokenizer", "model", "pretrain") if getattr(self, name) is None]
        if self.pretrained is None and missing:
            raise ValueError(f"{', '.join(missing)} missing; give them, or somebody else's model as `pretrained`")
        if self.pretrained is not None and own:
            raise ValueError(f"{' and '.join(own)} come with `pretrained`; leave them out, or leave `pretrained` out")
        if self.pretrain is None and self.task is None:
            raise ValueError("nothing is to be made of `pretrained`; give shard and pretrain, or task and finetune")
        if self.export_precision != "fp32" and not self.release:
            raise ValueError(
                f"export_precision={self.export_precision} is of what is released, and release=false releases nothing; "
                "leave one of them out"
            )
        if self.few_labels is not None and (self.task is None or not self.release):
            raise ValueError(
                "few_labels needs a task, finetune and release: it fine-tunes and measures what is exported"
            )
        most = self.task.max_examples if self.task else None
        if self.few_labels is not None and most and max(self.few_labels.labels, default=0) > most:
            raise ValueError(
                f"few_labels.labels asks for {max(self.few_labels.labels)} and task.max_examples={most} keeps fewer; change one of both"
            )
        if self.few_labels is not None and self.task and tasks.form_of(self.task.name) != "classification":
            raise ValueError(
                f"few_labels draws accuracy over the number of labels, and task {self.task.name} (form "
                f"{tasks.form_of(self.task.name)}) has no classes; leave it out, or choose a classification"
            )
        return self

    @model_validator(mode="after")
    def _model_can(self) -> Recipe:
        shape, said = self._shape(self.pretrained)
        if shape is None:
            return self
        for misfit in capabilities.length_misfits(self.pretrain.sequence_length, shape, said) if self.pretrain else ():
            raise ValueError(f"pretrain.{misfit}")
        if self.pretrain and self.model:
            for misfit in capabilities.untrained_misfits(self.pretrain.sequence_length, self.model):
                raise ValueError(f"pretrain.{misfit}")
        continues = self.pretrain and "causal_lm" in pretrain_config.OBJECTIVES[shape.family]
        if continues and self.evaluate.continuation_tokens >= shape.n_positions:
            raise ValueError(
                f"evaluate.continuation_tokens={self.evaluate.continuation_tokens} leaves no room for a prompt in "
                f"{said}n_positions={shape.n_positions}; choose fewer"
            )
        if self.release and self.model and not self.model.exportable:
            unknown = (
                f"model.feed_forward={self.model.feed_forward!r} is in no Hugging Face family and cannot be exported"
            )
            raise ValueError(f"{unknown}; set release=false (it is only trained and measured), or choose another")
        return self

    @model_validator(mode="after")
    def _family_can(self) -> Recipe:
        known = capabilities.known(self.model, self.pretrained, self.pretrain)
        form = tasks.form_of(self.task.name) if self.task else ""
        misfits = [*capabilities.form_misfits(form, self.release)]
        misfits += capabilities.family_misfits(known, form, self.release) if known else []
        shape = self._shape(self.pretrained)[0]
        if shape:
            said = self.pretrained.said if self.pretrained else "model"
            objective = self.pretrain.objective if self.pretrain else ""
            misfits += capabilities.segment_misfits(shape.type_vocab_size, said, objective, form)
        if misfits:
            raise ValueError(misfits[0])
        return self

    @model_validator(mode="after")
    def _options_apply(self) -> Recipe:
        if self.task is None or self.finetune is None:
            return self
        tuned = {"finetune": (self.finetune, self.pretrained)}
        for start in self.few_labels.starts if self.few_labels else ():
            begun = (start.finetune or self.finetune, start.pretrained or self.pretrained)
            tuned |= {f"few_labels.starts {start.name}: finetune": begun}
        for name, (finetune, pretrained) in tuned.items():
            for misfit in capabilities.option_misfits(
                finetune, tasks.form_of(self.task.name), *self._shape(pretrained)
            ):
                raise ValueError(f"{name}.{misfit}")
        return self

    def _shape(self, pretrained: Pretrained | None) -> tuple[ModelShape | None, str]:
        """The shape of a model that training begins with (none: the step `import` finds it out), and whose its fields are."""
        return (pretrained.shape, f"{pretrained.path}/config.json's ") if pretrained else (self.model, "model.")

    @model_validator(mode="after")
    def _released_under_names(self) -> Recipe:
        if self.task is not None and self.register_as.base == self.register_as.task:
            raise ValueError(
                f"register_as.base and register_as.task are both {self.register_as.base!r}: they are two models, give them two names"
            )
        if self.register_as.adapter is not None and not self.release:
            raise ValueError(
                f"register_as.adapter={self.register_as.adapter!r} is to be registered, and release=false; leave one of both out"
            )
        if self.register_as.adapter is not None and self.pretrain is None:
            self._check_imported_base()
        if self.register_as.adapter is not None and (self.finetune is None or self.finetune.tune != "lora"):
            raise ValueError(
                f"register_as.adapter={self.register_as.adapter!r} needs finetune.tune=lora: nothing else has an adapter"
            )
        if self.register_as.adapter in (self.register_as.base, self.register_as.task):
            raise ValueError(
                f"register_as.adapter={self.register_as.adapter!r} is another model's name too; give it its own"
            )
        return self

    def _check_imported_base(self) -> None:
        """ValueError unless the model that others trained has a name of its own and gates that can be looked at."""
        usual = RegisterConfig().base
        if self.register_as.base == usual:
            raise ValueError(
                f"register_as.adapter={self.register_as.adapter!r} registers the imported model as its base too, and "
                f"{usual!r} is what those are called that are pre-trained here; give it a name: register_as.base=..."
            )
        for gate in self.register_as.base_gates:
            if gate.metric not in MEASURED:
                raise ValueError(
                    f"register_as.base_gates: nobody measures {gate.metric} of an imported model; it has {' and '.join(MEASURED)}"
                )

    @model_validator(mode="after")
    def _objective_fits(self) -> Recipe:
        known = capabilities.known(self.model, self.pretrained, self.pretrain)
        if self.pretrain is not None and known is not None:
            trained = self.tokenizer.special_tokens if self.tokenizer and self.tokenizer.sources else None
            pretrain_config.check_family(self.pretrain, known.family, known.said, trained)
        if self.pretrain is not None and self.shard is not None and self.pretrain.mixture:
            sources = self.shard.sources
            labels = {one.label or one.sample or ("dataset" if one.dataset else "text") for one in sources}
            pretrain_config.check_mixture(self.pretrain, labels)
        return self


class ConfigError(ValueError):
    """A recipe, an override or a file that cannot be used; the message says which field, what was seen, what to do."""
