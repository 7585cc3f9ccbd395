"""What stands on top of the Transformer: a language model or a classifier.

The one idea: both are called the same way. Without targets they return logits; with targets they return the
*sum* of the losses, a single number. The division by the number of loss tokens belongs to the global batch
and is done outside (rule 5), and the largest tensor of a language model, its logits, need not leave it.

Parameters bear the names that GPT2LMHeadModel and GPT2ForSequenceClassification give them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.cross_entropy import cross_entropy_sum, linear_cross_entropy_sum
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

    def forward(self, tokens: Tensor, targets: Tensor | None = None, row_keys: Tensor | None = None) -> Tensor:
        """tokens (B, T) -> logits (B, T, V); with `targets` (B, T) -> the sum of their losses, fp32.

        `targets[b, t]` is the token that should follow `tokens[b, t]`, or IGNORE_INDEX.
        """
        return self.lm_head(self.transformer(tokens, row_keys), targets)


def last_token(tokens: Tensor, pad_token_id: int) -> Tensor:
    """Index (B,) of the rightmost token of each row of tokens (B, T) that is not padding; 0 if all are.

    Hugging Face's rule, word for word: padding is known by its id, so a text's own closing EOT is passed
    over as well where EOT is the padding.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device)  # (T,)
    return ((tokens != pad_token_id) * positions).argmax(dim=1)


class ClassificationModel(nn.Module):
    """The class of a sequence, from the hidden state of its last token: the only one that has seen all others."""

    def __init__(self, config: ModelConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        if config.num_labels is None:
            raise ValueError("a classification model needs num_labels; it is none")
        self.transformer = Transformer(config, activation_checkpointing=activation_checkpointing)
        self.score = nn.Linear(config.n_embd, config.num_labels, bias=False)
        self.pad_token_id = config.eot_token_id
        self.head_pdrop = config.head_pdrop
        self.site = site_constants(1 + 2 * config.n_layer)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        row_keys: Tensor | None = None,
        *,
        weights: Tensor | None = None,
    ) -> Tensor:
        """tokens (B, T) padded on the right with EOT -> logits (B, K); with `targets` (B,) -> summed loss, fp32.

        `weights` (B,) is what each row's loss counts.
        """
        hidden = self.transformer(tokens, row_keys)  # (B, T, C)
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        pooled = hidden[rows, last_token(tokens, self.pad_token_id)]  # (B, C)
        logits = self.score(dropout(pooled, self.head_pdrop, row_keys, self.site))  # (B, K)
        return logits if targets is None else cross_entropy_sum(logits, targets, weights)


Model = LanguageModel | ClassificationModel


def build(config: ModelConfig, *, seed: int = 0, activation_checkpointing: bool = False) -> Model:
    """The model that `config` describes, with the initial weights of `seed`: a classifier if it has labels."""
    kind = LanguageModel if config.num_labels is None else ClassificationModel
    model = kind(config, activation_checkpointing=activation_checkpointing)
    initialize(model, config, seed)
    return model
