"""The Transformer decoder in GPT-2's shape: pre-norm blocks, learned positions, tanh-GELU.

The one idea: what happens to a sequence of tokens stands here in the order it happens, and nothing else does.
What is made of the last hidden states is in `heads.py`, what is learned from them in `objectives.py`.

There is no attention mask. A position sees itself and what is before it, and batches are padded on the
right, so no padded position is ever seen by a real one: what a mask would remove is not there. The fused
attention kernels are fastest with `is_causal` and no mask.

Formulas: Vaswani et al. 2017, Attention Is All You Need; Radford et al. 2019 (GPT-2) for the order of norms.
Sizes: B sequences, T tokens, C = n_embd features, H heads of D = C / H features.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig
from model.dropout import dropout, site_constants


class Attention(nn.Module):
    """Multi-head causal self-attention: softmax(Q K^T / sqrt(D)) V in each head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # Q, K and V in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        batch, length, width = x.shape
        heads = self.c_attn(x).view(batch, length, 3, self.n_head, width // self.n_head)  # (B, T, 3, H, D)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, D) each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """W2 gelu(W1 x + b1) + b2, at each position alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.inner)
        self.c_proj = nn.Linear(config.inner, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), with dropout on each branch."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = FeedForward(config)
        self.resid_pdrop = config.resid_pdrop
        self.sites = site_constants(1 + 2 * layer), site_constants(2 + 2 * layer)

    def forward(self, x: Tensor, row_keys: Tensor | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x = x + dropout(self.attn(self.ln_1(x)), self.resid_pdrop, row_keys, self.sites[0])
        return x + dropout(self.mlp(self.ln_2(x)), self.resid_pdrop, row_keys, self.sites[1])


class Transformer(nn.Module):
    """Embeddings, blocks, final norm. `activation_checkpointing`: blocks are run again in the backward pass."""

    def __init__(self, config: ModelConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.n_positions = config.n_positions
        self.embd_pdrop = config.embd_pdrop
        self.site = site_constants(0)
        self.activation_checkpointing = activation_checkpointing

    def forward(self, tokens: Tensor, row_keys: Tensor | None = None) -> Tensor:
        """tokens (B, T), padded on the right if at all -> hidden states after the last norm (B, T, C).

        `row_keys` (B, 2) from `DropoutKey.row_keys` turn dropout on. ValueError if T exceeds n_positions.
        """
        length = tokens.shape[1]
        if length > self.n_positions:
            raise ValueError(f"{length} tokens do not fit into n_positions={self.n_positions}; cut the sequence")
        positions = torch.arange(length, device=tokens.device)  # (T,)
        x = self.wte(tokens) + self.wpe(positions)  # (B, T, C)
        x = dropout(x, self.embd_pdrop, row_keys, self.site)
        for block in self.h:
            if self.activation_checkpointing and torch.is_grad_enabled():
                # Dropout is a function of the keys: there is no random state to keep for the second run.
                x = checkpoint(block, x, row_keys, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, row_keys)
        return self.ln_f(x)


def _generator(seed: int, name: str) -> torch.Generator:
    """A generator of one parameter's own, so that another head or layer does not change its initial value."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@torch.no_grad()
def initialize(module: nn.Module, config: ModelConfig, seed: int) -> None:
    """Set every parameter as GPT-2 does: a pure function of (seed, parameter's name, its shape).

    Weights are normal(0, initializer_range), those that end a residual branch divided by sqrt(2 n_layer) so
    that the sum over the branches keeps its variance; biases are 0, norms are 1.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        scale = 1 / math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 1.0
        draw = torch.empty(parameter.shape).normal_(
            0.0, config.initializer_range * scale, generator=_generator(seed, name)
        )
        parameter.copy_(draw)
