"""The Transformer, in the shapes of GPT-2, Llama and BERT: one set of modules and a few options.

The one idea: what happens to a sequence of tokens stands here in the order it happens, and nothing else does.
What is made of the last hidden states is in `heads.py`, what is learned from them in `objectives.py`.

    gpt2   norm before each branch, learned positions, tanh-GELU; attention to what is before
    llama  RMSNorm before each branch, rotary positions, SwiGLU, keys and values shared by heads, no biases
    bert   norm after each branch and after the embeddings, learned positions, segments, erf-GELU; attention to all

A causal family needs no attention mask. A position sees itself and what is before it, and batches are padded on the
right, so no padded position is ever seen by a real one: what a mask would remove is not there. The fused
attention kernels are fastest with `is_causal` and no mask. BERT sees both sides and is told what is padding.

Formulas: Vaswani et al. 2017, Attention Is All You Need; Radford et al. 2019 (GPT-2) for the order of norms; Devlin et
al. 2018 (BERT); Touvron et al. 2023 (Llama); Su et al. 2021 (rotary positions); Shazeer 2020 (SwiGLU); Ainslie et al.
2023 (grouped-query attention); Zhang and Sennrich 2019 (RMSNorm).
Sizes: B sequences, T tokens, C = n_embd features, H heads of D = C / H features, K heads of keys and values.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig
from model.dropout import dropout, site_constants


def rotation(length: int, width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (T, D) of the angles t * theta^(-2i / D), the D / 2 of them twice: features i and i + D / 2 are a pair."""
    frequencies = theta ** -(torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)  # (D / 2,)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies  # (T, D / 2)
    angles = torch.cat((angles, angles), dim=-1)  # (T, D)
    return angles.cos(), angles.sin()


def _rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """x (B, H, T, D) with each pair of features turned by its position's angle."""
    cos, sin = (part.to(x.dtype) for part in turn)
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


@dataclass(frozen=True)
class Sight:
    """Which positions attend to which, and how they are turned: the same in all blocks."""

    mask: Tensor | None  # bool, broadcast to (B, H, T, T), true where the row's position sees the column's
    causal: bool  # with no mask: whether a position sees only itself and what is before it
    turn: tuple[Tensor, Tensor] | None  # rotary positions


class Attention(nn.Module):
    """Multi-head self-attention: softmax(Q K^T / sqrt(D)) V in each head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.kv_heads
        self.width = config.n_embd // config.n_head
        bias = config.family != "llama"
        # Q, K and V in one product
        self.c_attn = nn.Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * self.width, bias=bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=bias)

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        batch, length, width = x.shape
        heads = self.c_attn(x).view(batch, length, -1, self.width).transpose(1, 2)  # (B, H + 2 K, T, D)
        q, k, v = heads.split((self.n_head, self.n_kv_head, self.n_kv_head), dim=1)
        if sight.turn:
            q, k = _rotated(q, sight.turn), _rotated(k, sight.turn)
        if self.n_kv_head != self.n_head:
            k, v = (part.repeat_interleave(self.n_head // self.n_kv_head, dim=1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, sight.mask, is_causal=sight.causal)  # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """At each position alone: W2 f(W1 x + b1) + b2 with f a GELU or ReLU; or one of two variants.

    swiglu: W2 (silu(Wg x) * Wu x), Wg and Wu in one product. relu_relu: ReLU(W2 ReLU(W1 x + b1) + b2).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind, bias = config.feed_forward_kind, config.family != "llama"
        self.approximate = "none" if config.family == "bert" else "tanh"
        self.c_fc = nn.Linear(config.n_embd, config.inner * (2 if self.kind == "swiglu" else 1), bias=bias)
        self.c_proj = nn.Linear(config.inner, config.n_embd, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x = self.c_fc(x)
        if self.kind == "gelu":
            return self.c_proj(F.gelu(x, approximate=self.approximate))
        if self.kind == "swiglu":
            gate, up = x.chunk(2, dim=-1)
            return self.c_proj(F.silu(gate) * up)
        x = self.c_proj(F.relu(x))
        return F.relu(x) if self.kind == "relu_relu" else x


def _norm(config: ModelConfig) -> nn.Module:
    kind = nn.RMSNorm if config.family == "llama" else nn.LayerNorm
    return kind(config.n_embd, eps=config.layer_norm_epsilon)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), with dropout on each branch; BERT norms the sums instead."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = _norm(config)
        self.attn = Attention(config)
        self.ln_2 = _norm(config)
        self.mlp = FeedForward(config)
        self.norms_sums = config.family == "bert"
        self.resid_pdrop = config.resid_pdrop
        self.sites = site_constants(1 + 2 * layer), site_constants(2 + 2 * layer)

    def forward(self, x: Tensor, sight: Sight, row_keys: Tensor | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        if self.norms_sums:
            x = self.ln_1(x + dropout(self.attn(x, sight), self.resid_pdrop, row_keys, self.sites[0]))
            return self.ln_2(x + dropout(self.mlp(x), self.resid_pdrop, row_keys, self.sites[1]))
        x = x + dropout(self.attn(self.ln_1(x), sight), self.resid_pdrop, row_keys, self.sites[0])
        return x + dropout(self.mlp(self.ln_2(x)), self.resid_pdrop, row_keys, self.sites[1])


class Transformer(nn.Module):
    """Embeddings, blocks, final norm. `activation_checkpointing`: blocks are run again in the backward pass."""

    def __init__(self, config: ModelConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.family = config.family
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.family != "llama":
            self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        if config.family == "bert":
            self.wse = nn.Embedding(config.segments, config.n_embd)  # segments
            self.ln_e = _norm(config)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        if config.family != "bert":
            self.ln_f = _norm(config)
        self.n_positions = config.n_positions
        self.head_width, self.rope_theta = config.n_embd // config.n_head, config.rope_theta or 10_000.0
        self.embd_pdrop = config.embd_pdrop
        self.site = site_constants(0)
        self.activation_checkpointing = activation_checkpointing

    def forward(
        self,
        tokens: Tensor,
        row_keys: Tensor | None = None,
        *,
        token_types: Tensor | None = None,
        padding: Tensor | None = None,
        documents: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """tokens (B, T), padded on the right if at all -> hidden states after the last norm (B, P + T, C).

        `row_keys` (B, 2) from `DropoutKey.row_keys` turn dropout on. Of BERT: `token_types` (B, T), the segment of each
        token (0 if none), and `padding` (B, P + T), true where a position is real (all, if none). `documents`
        (B, P + T) keeps attention between equal numbers; positions still count from the row's beginning. `prefix`
        (B, P, C) are embeddings of something else that stand before the tokens. ValueError if P + T exceeds n_positions.
        """
        x = self.wte(tokens)  # (B, T, C)
        if token_types is not None or self.family == "bert":
            x = x + self.wse(torch.zeros_like(tokens) if token_types is None else token_types)
        if prefix is not None:
            x = torch.cat((prefix.to(x.dtype), x), dim=1)  # (B, P + T, C)
        length = x.shape[1]
        if length > self.n_positions:
            raise ValueError(f"{length} tokens do not fit into n_positions={self.n_positions}; cut the sequence")
        if self.family != "llama":
            x = x + self.wpe(torch.arange(length, device=tokens.device))  # (T,)
        if self.family == "bert":
            x = self.ln_e(x)
        x = dropout(x, self.embd_pdrop, row_keys, self.site)
        sight = self._sight(length, tokens.device, padding, documents)
        for block in self.h:
            if self.activation_checkpointing and torch.is_grad_enabled():
                # Dropout is a function of the keys: there is no random state to keep for the second run.
                x = checkpoint(block, x, sight, row_keys, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, sight, row_keys)
        return x if self.family == "bert" else self.ln_f(x)

    def _sight(self, length: int, device: torch.device, padding: Tensor | None, documents: Tensor | None) -> Sight:
        turn = rotation(length, self.head_width, self.rope_theta, device) if self.family == "llama" else None
        causal = self.family != "bert"
        mask = None if padding is None else padding[:, None, None, :]  # (B, 1, 1, T)
        if documents is not None:
            same = documents[:, None, :, None] == documents[:, None, None, :]  # (B, 1, T, T)
            mask = same if mask is None else same & mask
        if mask is not None and causal:
            mask = mask & torch.ones(length, length, dtype=torch.bool, device=device).tril()
        return Sight(mask, causal and mask is None, turn)


def _generator(seed: int, name: str) -> torch.Generator:
    """A generator of one parameter's own, so that another head or layer does not change its initial value."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@torch.no_grad()
def initialize(module: nn.Module, config: ModelConfig, seed: int) -> None:
    """Set every parameter as GPT-2 does: a pure function of (seed, parameter's name, its shape).

    Weights are normal(0, initializer_range), those that end a residual branch divided by sqrt(2 n_layer) so
    that the sum over the branches keeps its variance (BERT norms the sum, and divides nothing); biases are 0, norms are 1.
    """
    ending = 1.0 if config.family == "bert" else 1 / math.sqrt(2 * config.n_layer)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        scale = ending if name.endswith("c_proj.weight") else 1.0
        draw = torch.empty(parameter.shape).normal_(
            0.0, config.initializer_range * scale, generator=_generator(seed, name)
        )
        parameter.copy_(draw)
