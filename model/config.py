"""What a model is, as frozen data. Torch-free, so that planning can read it in 0.2 s.

The one idea: a shape is a pure value, and says itself what of it decides the weights' sizes and what is computed with them.

Field names follow GPT-2's and Hugging Face's.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator


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
        if self.family == "llama" and self.initializer_range > 1:
            raise ValueError(
                f"initializer_range={self.initializer_range:g} is more than 1, and transformers loads no Llama whose "
                "config.json says so; choose a smaller one (0.02 is usual)"
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

    @property
    def computation(self) -> dict[str, Any]:
        """What decides, beside the weights, what is computed, by its name in a recipe: many sizes of weights would not tell."""
        return {
            "family": self.family,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_kv_head": self.kv_heads,
            "feed_forward": self.feed_forward_kind,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "rope_theta": (self.rope_theta or 10_000.0) if self.family == "llama" else None,
        }

    @property
    def sizes(self) -> dict[str, Any]:
        """What decides, beside `computation` and the vocabulary, how large the weights are, by its name in a recipe."""
        return {
            "n_positions": self.n_positions,
            "n_embd": self.n_embd,
            "n_inner": self.inner,
            "type_vocab_size": self.segments,
            "tie_word_embeddings": self.tie_word_embeddings,
        }


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
