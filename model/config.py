"""What a model is and how it is trained, as frozen data. Torch-free, so that planning can read it in 0.2 s.

The one idea: these are pure values. `deepspeed_config` is a function of them and of nothing else, so the
same recipe on the same number of ranks configures the same engine everywhere.

Field names follow GPT-2's and Hugging Face's.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from model.mixture_quotas import quotas


class Config(BaseModel):
    """The base of every configuration here: frozen, strict about types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


Family = Literal["gpt2", "llama", "bert"]
FeedForward = Literal["gelu", "relu", "swiglu", "relu_relu"]
Head = Literal["language_model", "classification", "pretraining", "masked_lm", "span"]
# What each family can compute, its own feed-forward first. No Hugging Face family has relu_relu: it is trained and
# measured by our own code, and cannot be exported.
_FEED_FORWARDS: dict[str, tuple[FeedForward, ...]] = {
    "gpt2": ("gelu", "relu", "relu_relu"),
    "llama": ("swiglu",),
    "bert": ("gelu", "relu"),
}
_ONLY = {"n_kv_head": "llama", "rope_theta": "llama", "type_vocab_size": "bert"}
_HEADS: dict[str, tuple[Head, ...]] = {
    "gpt2": ("language_model", "classification"),
    "llama": ("language_model", "classification"),
    "bert": ("pretraining", "masked_lm", "classification", "span"),
}


class ModelShape(Config):
    """The shape of a Transformer, without what the data decides (vocabulary, labels).

    Fields that are None are left out when it is dumped: an option that came later changes no older model's fingerprint.
    """

    family: Family = Field("gpt2", description="Hugging Face family the weights are exported as")
    n_positions: int = Field(ge=8, description="longest sequence, in tokens")
    n_embd: int = Field(ge=8, description="width of the residual stream, in features")
    n_layer: int = Field(ge=1, description="number of blocks")
    n_head: int = Field(ge=1, description="attention heads in a block; divides n_embd")
    n_inner: int | None = Field(
        None,
        ge=1,
        description="width of the feed-forward layer, in features; 4 x n_embd if none, 8/3 x n_embd for swiglu",
    )
    embd_pdrop: float = Field(0.0, ge=0, le=0.99, description="dropout after the embeddings, a probability")
    resid_pdrop: float = Field(0.0, ge=0, le=0.99, description="dropout on each residual branch, a probability")
    layer_norm_epsilon: float = Field(
        default_factory=lambda given: 1e-12 if given.get("family") == "bert" else 1e-5,
        gt=0,
        description="added to the variance in norms; 1e-5 if none, in family bert 1e-12",
    )
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of the initial weights")
    tie_word_embeddings: bool = Field(True, description="output layer shares the token embedding's weights")
    feed_forward: FeedForward | None = Field(
        None, description="of the feed-forward layers; the family's own if none. relu_relu cannot be exported"
    )
    n_kv_head: int | None = Field(
        None, ge=1, description="llama: heads of keys and values, each shared by n_head / n_kv_head; n_head if none"
    )
    rope_theta: float | None = Field(None, gt=0, description="llama: base of the rotary positions; 10,000 if none")
    type_vocab_size: int | None = Field(None, ge=1, description="bert: kinds of segments; 2 if none")

    @model_serializer(mode="wrap")
    def _as_it_was(self, dump: Any) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        return {name: value for name, value in fields.items() if value is not None or name not in _LATER}

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelShape:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head={self.n_head} does not divide n_embd={self.n_embd}; choose a divisor")
        return self

    @model_validator(mode="after")
    def _family_can(self) -> ModelShape:
        possible = _FEED_FORWARDS[self.family]
        if self.feed_forward not in (None, *possible):
            raise ValueError(
                f"family {self.family} has no feed_forward={self.feed_forward!r}; choose {' or '.join(possible)}, or "
                f"one of the families that have it: {', '.join(one for one, have in _FEED_FORWARDS.items() if self.feed_forward in have)}"
            )
        for name, family in _ONLY.items():
            if getattr(self, name) is not None and self.family != family:
                raise ValueError(f"family {self.family} has no {name}; leave it out, or choose family {family}")
        if self.n_kv_head and self.n_head % self.n_kv_head:
            raise ValueError(f"n_kv_head={self.n_kv_head} does not divide n_head={self.n_head}; choose a divisor")
        if self.family == "llama" and self.n_embd // self.n_head % 2:
            raise ValueError(
                f"rotary positions turn pairs of features, and n_embd / n_head = {self.n_embd // self.n_head} is odd; "
                "choose an even width of heads"
            )
        if self.family == "bert" and not self.tie_word_embeddings:
            raise ValueError(
                "family bert shares the output layer with the token embedding; leave tie_word_embeddings on"
            )
        return self

    @property
    def exportable(self) -> bool:
        """Whether a Hugging Face family computes this."""
        return self.feed_forward != "relu_relu"

    @property
    def feed_forward_kind(self) -> FeedForward:
        """The feed-forward layers' kind, decided."""
        return self.feed_forward or _FEED_FORWARDS[self.family][0]

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def segments(self) -> int:
        """Kinds of segments that tokens may be of; 0 where the family has none."""
        return (self.type_vocab_size or 2) if self.family == "bert" else 0

    @property
    def inner(self) -> int:
        """Width of the feed-forward layer, in features. SwiGLU's three matrices of 8/3 hold as many weights as two of 4."""
        if self.n_inner:
            return self.n_inner
        return 4 * self.n_embd if self.feed_forward_kind != "swiglu" else 8 * (-(-self.n_embd // 3))


class ModelConfig(ModelShape):
    """A complete model: the shape, and what the tokenizer and the task decide."""

    vocab_size: int = Field(ge=2, description="tokens in the vocabulary")
    eot_token_id: int = Field(
        ge=0, description="id of the end-of-text token; also padding, if there is no pad_token_id"
    )
    num_labels: int | None = Field(None, ge=2, description="classes of the classification head; none: a language model")
    head_pdrop: float = Field(0.0, ge=0, le=0.99, description="dropout before the classification head, a probability")
    labels: tuple[str, ...] = Field((), description="names of the classes, by class index")
    head: Head | None = Field(
        None,
        description="what stands on top; if none, classification where there are labels, else the family's language model",
    )
    pad_token_id: int | None = Field(None, ge=0, description="id of the padding token, if it has one of its own")
    cls_token_id: int | None = Field(
        None, ge=0, description="id of the token that opens a sequence, where there is one"
    )
    sep_token_id: int | None = Field(
        None, ge=0, description="id of the token that closes a segment, where there is one"
    )
    mask_token_id: int | None = Field(None, ge=0, description="id of the token that hides another, where there is one")

    @model_validator(mode="after")
    def _head_fits(self) -> ModelConfig:
        if self.head_kind not in _HEADS[self.family]:
            raise ValueError(
                f"family {self.family} has no {self.head_kind} head; it has {', '.join(_HEADS[self.family])}"
            )
        if (self.head_kind == "classification") != (self.num_labels is not None):
            raise ValueError(f"num_labels={self.num_labels} does not go with head {self.head_kind}")
        return self

    @property
    def head_kind(self) -> Head:
        """What stands on top of the Transformer, decided."""
        if self.head:
            return self.head
        return "classification" if self.num_labels is not None else _HEADS[self.family][0]

    @property
    def padding(self) -> int:
        """Id of the token that fills up rows."""
        return self.eot_token_id if self.pad_token_id is None else self.pad_token_id


_LATER = (
    "feed_forward", "n_kv_head", "rope_theta", "type_vocab_size",
    "head", "pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id",
)  # fmt: skip


class TrainConfig(Config):
    """How weights are learned. All of it decides the result, so all of it enters the fingerprint."""

    seed: int = Field(0, ge=0, description="seed of initial weights, data order and dropout")
    max_steps: int = Field(ge=1, description="optimizer steps")
    global_batch_size: int = Field(ge=1, description="sequences in one optimizer step, over all ranks")
    sequence_length: int = Field(ge=2, description="tokens in a sequence (longest, where sequences are padded)")
    learning_rate: float = Field(gt=0, description="peak learning rate")
    min_learning_rate: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.1, ge=0, description="AdamW weight decay, on matrices only")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta1")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW beta2")
    epsilon: float = Field(1e-8, gt=0, description="AdamW epsilon")
    grad_clip: float = Field(1.0, ge=0, description="largest global gradient norm; 0: no clipping")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of the forward and backward pass; bf16 keeps fp32 master weights"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="DeepSpeed ZeRO stage")
    offload: Literal["none", "optimizer", "optimizer_and_parameters"] = Field(
        "none", description="ZeRO state kept in host memory"
    )
    activation_checkpointing: bool = Field(False, description="recompute blocks in the backward pass to save memory")
    compile: bool = Field(False, description="compile the model with torch.compile (needs a C++ compiler)")

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        if self.warmup_steps > self.max_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} is more than max_steps={self.max_steps}")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate={self.min_learning_rate} is above learning_rate={self.learning_rate}")
        if self.offload == "optimizer_and_parameters" and self.zero_stage != 3:
            raise ValueError(f"offload of parameters needs zero_stage=3, not {self.zero_stage}")
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile needs zero_stage of 0, 1 or 2, not 3: its hooks break the graph at every layer, and it is slower"
            )
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "precision bf16 needs zero_stage of 1, 2 or 3, not 0: DeepSpeed keeps fp32 master weights only there"
            )
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload of the optimizer needs zero_stage of 1, 2 or 3, not 0")
        return self


class ObjectiveConfig(Config):
    """What an objective makes of unlabelled text. A field at its default is left out when it is dumped: an option that
    came later changes no older recipe's fingerprint."""

    mask_fraction: float = Field(
        0.15, gt=0, le=0.5, description="masked_*: tokens that are targets, of a sequence's, as a fraction"
    )
    whole_words: bool = Field(False, description="masked_*: hide all tokens of a word, or none")
    attention: Literal["across_documents", "within_documents"] = Field(
        "across_documents", description="whether a token sees other documents of its sequence"
    )
    mixture: dict[str, float] = Field(
        {}, description="weight of each corpus, by the label of its source: its share of the samples; by size if empty"
    )

    def predicted(self, objective: str) -> float:
        """The fraction of a batch's tokens that the output layer is asked about."""
        if objective.startswith("masked_lm"):
            return self.mask_fraction
        return 0.0 if objective == "next_sentence" else 1.0

    @model_serializer(mode="wrap")
    def _what_was_chosen(self, dump: Any) -> dict[str, Any]:
        fields: dict[str, Any] = dump(self)
        plain = {name: one.default for name, one in ObjectiveConfig.model_fields.items()}
        return {name: value for name, value in fields.items() if name not in plain or value != plain[name]}

    @model_validator(mode="after")
    def _weights_are_weights(self) -> ObjectiveConfig:
        for name, weight in self.mixture.items():
            if not 0 < weight < math.inf:
                raise ValueError(f"mixture: the weight of {name!r} is {weight}; give each corpus a weight above 0")
        quotas(self.mixture)
        return self


def accumulation_steps(global_batch_size: int, world_size: int, micro_batch_size: int) -> int:
    """Micro-batches that a rank runs in one optimizer step. ValueError if the batch does not divide."""
    per_rank, rest = divmod(global_batch_size, world_size)
    if rest or per_rank == 0:
        raise ValueError(
            f"global_batch_size={global_batch_size} does not divide over {world_size} ranks; choose a multiple of {world_size}"
        )
    micro = min(micro_batch_size, per_rank)
    if per_rank % micro:
        raise ValueError(
            f"a rank's {per_rank} sequences (global_batch_size={global_batch_size} over {world_size} ranks) do not divide "
            f"into micro-batches of {micro}; choose micro_batch_size from the divisors of {per_rank}"
        )
    return per_rank // micro


def deepspeed_config(train: TrainConfig, world_size: int, micro_batch_size: int) -> dict[str, Any]:
    """The DeepSpeed configuration: a pure function of the recipe and of how the batch is sliced."""
    accumulation = accumulation_steps(train.global_batch_size, world_size, micro_batch_size)
    zero: dict[str, Any] = {"stage": train.zero_stage, "overlap_comm": False, "contiguous_gradients": True}
    if train.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if train.offload == "optimizer_and_parameters":
        zero["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_batch_size": train.global_batch_size,
        "train_micro_batch_size_per_gpu": train.global_batch_size // world_size // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": train.grad_clip,
        "zero_optimization": zero,
        "bf16": {"enabled": train.precision == "bf16"},
        # The optimizer is our own torch.optim.AdamW: no compiler is needed to build DeepSpeed's.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,
    }
    if train.precision == "bf16":
        # Micro-batches' gradients are summed in fp32: in bf16 a sum of many loses those that are small beside it.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
