"""What stands on top of the Transformer: a language model, a classifier, BERT's pre-training heads, a span finder.

The one idea: all are called the same way, `model(tokens, targets, row_keys, **inputs)`, with the Transformer's own inputs
by name. Without targets they return logits; with targets they return the *sum* of the losses, a single number. The
division by the number of loss tokens belongs to the global batch and is done outside (rule 5), and the largest tensor
of a language model, its logits, need not leave it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.cross_entropy import IGNORE_INDEX, cross_entropy_sum, linear_cross_entropy_sum
from model.dropout import dropout, site_constants
from model.transformer import Transformer, initialize


class OutputLayer(nn.Linear):
    """Hidden states to logits, or straight to the loss. A module, so that ZeRO-3 gathers its weight for the call."""

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """hidden (B, T, C) -> logits (B, T, V); with `targets` (B, T) -> the sum of their losses, fp32."""
        if targets is None:
            return super().forward(hidden)
        return linear_cross_entropy_sum(hidden.flatten(0, 1), self.weight, targets.flatten())


class LanguageModel(nn.Module):
    """The next token at each position. The output layer shares the token embedding's weights if tied."""

    def __init__(self, config: ModelConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.transformer = Transformer(config, activation_checkpointing=activation_checkpointing)
        self.lm_head = OutputLayer(config.n_embd, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, row_keys: Tensor | None = None, **inputs: Any
    ) -> Tensor:
        """tokens (B, T) -> logits (B, T, V); with `targets` (B, T) -> the sum of their losses, fp32.

        `targets[b, t]` is the token that should follow `tokens[b, t]`, or IGNORE_INDEX. After a `prefix` its positions'
        logits come first, and targets have to be as long.
        """
        return self.lm_head(self.transformer(tokens, row_keys, **inputs), targets)


def last_token(tokens: Tensor, pad_token_id: int) -> Tensor:
    """Index (B,) of the rightmost token of each row of tokens (B, T) that is not padding; 0 if all are.

    Hugging Face's rule, word for word: padding is known by its id, so a text's own closing EOT is passed
    over as well where EOT is the padding.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device)  # (T,)
    return ((tokens != pad_token_id) * positions).argmax(dim=1)


class ClassificationModel(nn.Module):
    """The class of a sequence, from the hidden state of its last token: the only one that has seen all others.

    BERT's tokens all have: its first one, [CLS], is taken through a pooler.
    """

    def __init__(self, config: ModelConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        if config.num_labels is None:
            raise ValueError("a classification model needs num_labels; it is none")
        self.transformer = Transformer(config, activation_checkpointing=activation_checkpointing)
        self.pooler = nn.Linear(config.n_embd, config.n_embd) if config.family == "bert" else None
        self.score = nn.Linear(config.n_embd, config.num_labels, bias=config.family == "bert")
        self.pad_token_id = config.padding
        self.head_pdrop = config.head_pdrop
        self.site = site_constants(1 + 2 * config.n_layer)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        row_keys: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor:
        """tokens (B, T) padded on the right -> logits (B, K); with `targets` (B,) -> summed loss, fp32.

        `weights` (B,) is what each row's loss counts.
        """
        if self.pooler is not None:
            hidden = self.transformer(tokens, row_keys, **_told_padding(inputs, tokens, self.pad_token_id))  # (B, T, C)
            pooled = torch.tanh(self.pooler(hidden[:, 0]))  # (B, C)
        else:
            hidden = self.transformer(tokens, row_keys, **inputs)
            rows = torch.arange(tokens.shape[0], device=tokens.device)
            pooled = hidden[rows, last_token(tokens, self.pad_token_id)]
        logits = self.score(dropout(pooled, self.head_pdrop, row_keys, self.site))  # (B, K)
        return logits if targets is None else cross_entropy_sum(logits, targets, weights)


def _told_padding(inputs: dict[str, Any], tokens: Tensor, pad_token_id: int) -> dict[str, Any]:
    """The Transformer's inputs with what is padding among them: known by its id, unless it was said."""
    return inputs if inputs.get("padding") is not None else inputs | {"padding": tokens != pad_token_id}


class TokenPredictor(nn.Module):
    """BERT's masked language modelling head: a transform, then the token embedding's weights and a bias."""

    def __init__(self, config: ModelConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        self.transform = nn.Linear(config.n_embd, config.n_embd)
        self.ln = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.decoder = nn.Linear(config.n_embd, config.vocab_size)
        self.decoder.weight = embedding.weight
        self.bend = F.relu if config.feed_forward_kind == "relu" else F.gelu

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (.., C) -> logits (.., V)."""
        return self.decoder(self.ln(self.bend(self.transform(hidden))))


class MaskedLanguageModel(nn.Module):
    """BERT's heads: the tokens that were hidden, and (`pretraining`) whether the second segment follows the first."""

    def __init__(self, config: ModelConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.transformer = Transformer(config, activation_checkpointing=activation_checkpointing)
        self.predictor = TokenPredictor(config, self.transformer.wte)
        both = config.head_kind == "pretraining"
        self.pooler = nn.Linear(config.n_embd, config.n_embd) if both else None
        self.next_sentence = nn.Linear(config.n_embd, 2) if both else None
        self.pad_token_id = config.padding

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        row_keys: Tensor | None = None,
        *,
        sentence_targets: Tensor | None = None,
        sentence_weight: float = 1.0,
        **inputs: Any,
    ) -> Any:
        """tokens (B, T) padded on the right -> logits (B, T, V), and of both heads a pair with (B, 2).

        With `targets` (B, T), IGNORE_INDEX where nothing was hidden, and/or `sentence_targets` (B,), 0 where the second
        segment follows: the tokens' summed loss plus `sentence_weight` times the sentences' summed loss, fp32.
        """
        hidden = self.transformer(tokens, row_keys, **_told_padding(inputs, tokens, self.pad_token_id))  # (B, T, C)
        follows = None
        if self.pooler is not None and self.next_sentence is not None:
            follows = self.next_sentence(torch.tanh(self.pooler(hidden[:, 0])))  # (B, 2)
        if targets is None and sentence_targets is None:
            logits = self.predictor(hidden)
            return logits if follows is None else (logits, follows)
        loss = hidden.new_zeros((), dtype=torch.float32)
        if targets is not None:
            hidden_ones = targets != IGNORE_INDEX  # only what is asked about costs a row of logits
            loss = loss + cross_entropy_sum(self.predictor(hidden[hidden_ones]), targets[hidden_ones])
        if sentence_targets is not None:
            if follows is None:
                raise ValueError("this model has no head for the next sentence; build it with head='pretraining'")
            loss = loss + sentence_weight * cross_entropy_sum(follows, sentence_targets)
        return loss


class SpanModel(nn.Module):
    """Where an answer starts and ends: two scores for each token."""

    def __init__(self, config: ModelConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.transformer = Transformer(config, activation_checkpointing=activation_checkpointing)
        self.span = nn.Linear(config.n_embd, 2)
        self.pad_token_id = config.padding

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, row_keys: Tensor | None = None, **inputs: Any
    ) -> Tensor:
        """tokens (B, T) -> scores (B, T, 2) of start and end; with `targets` (B, 2) -> half their summed losses, fp32."""
        scores = self.span(
            self.transformer(tokens, row_keys, **_told_padding(inputs, tokens, self.pad_token_id))
        )  # (B, T, 2)
        if targets is None:
            return scores
        return sum(cross_entropy_sum(scores[..., end], targets[:, end]) for end in (0, 1)) / 2  # type: ignore[return-value]


Model = LanguageModel | ClassificationModel | MaskedLanguageModel | SpanModel
_KINDS: dict[str, type[Model]] = {
    "language_model": LanguageModel,
    "classification": ClassificationModel,
    "pretraining": MaskedLanguageModel,
    "masked_lm": MaskedLanguageModel,
    "span": SpanModel,
}


def build(config: ModelConfig, *, seed: int = 0, activation_checkpointing: bool = False) -> Model:
    """The model that `config` describes, with the initial weights of `seed`: a classifier if it has labels."""
    model = _KINDS[config.head_kind](config, activation_checkpointing=activation_checkpointing)
    initialize(model, config, seed)
    return model
