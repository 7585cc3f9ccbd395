"""Weights that no Hugging Face family can hold, in a folder of our own: trained and measured here, released nowhere.

The one idea: such a model is measured by the same code as an export. `load` gives it the face that `transformers` gives
an export (called with ids and a mask, asked for its config), so that evaluation need not know which of them it has.

    weights/    model.json (a ModelConfig), model.safetensors (our own names, fp32), the tokenizer's files
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from model import durable
from model.config import ModelConfig
from model.heads import build

CONFIG, WEIGHTS = "model.json", "model.safetensors"


def are_in(folder: Path) -> bool:
    """Whether `folder` holds weights of ours, and is no Hugging Face folder."""
    return (folder / CONFIG).exists()


def write(folder: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Write configuration and weights into the empty folder `folder`."""
    from safetensors.torch import save_file

    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in state.items()
        if name not in tied
    }
    durable.write_json(folder / CONFIG, config.model_dump(mode="json"))
    with durable.writing(folder / WEIGHTS) as draft:
        save_file(tensors, draft, metadata={"format": "pt"})


def read(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The configuration and the state dict for the model that `heads.build` makes of it."""
    from safetensors.torch import load_file

    config = ModelConfig.model_validate_json((folder / CONFIG).read_bytes())
    state = load_file(folder / WEIGHTS)
    if config.tie_word_embeddings and config.head_kind == "language_model":
        state["lm_head.weight"] = state["transformer.wte.weight"]
    return config, state


def load(folder: Path, device: str = "cpu") -> WithHuggingFacesFace:
    """The model in `folder`, fp32, in eval mode, called as `transformers` models are."""
    config, state = read(folder)
    model = build(config)
    model.load_state_dict(state)
    return WithHuggingFacesFace(config, model.to(device).eval())


class WithHuggingFacesFace(nn.Module):
    """Our causal model as evaluation calls a model of `transformers`. It is asked for logits only, and generates plainly."""

    def __init__(self, config: ModelConfig, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(
            model_type=config.family,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.n_positions,
            eos_token_id=config.eot_token_id,
            pad_token_id=config.padding,
            id2label=dict(enumerate(config.labels)),
        )

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.model.parameters()).device

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **unused: Any) -> SimpleNamespace:
        """input_ids (B, T), padded on the right, where a causal model needs no mask (B, T) -> .logits (B, T, V) or (B, K).

        A mask (B, 1, T, T) says which positions see which: those before them in their document.
        """
        if attention_mask is None or attention_mask.ndim == 2:
            return SimpleNamespace(logits=self.model(input_ids))
        documents = (
            attention_mask[:, 0].int().argmax(-1)
        )  # (B, T): the first position that each sees names its document
        return SimpleNamespace(logits=self.model(input_ids, documents=documents))

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        max_new_tokens: int,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        logits_processor: Iterable[Callable[[Tensor, Tensor], Tensor]] = (),
        **unused: Any,
    ) -> Tensor:
        """input_ids (B, T), padded on the left -> (B, T + new tokens); after its EOT a row is filled up with EOT.

        Plain: each text is read again for each token.
        """
        rows = [ids[mask.bool()] for ids, mask in zip(input_ids, attention_mask, strict=True)]
        tokens, eot = input_ids, self.config.eos_token_id
        ended = torch.zeros(len(rows), dtype=torch.bool, device=tokens.device)
        for _ in range(max_new_tokens):
            logits = torch.stack([self.model(row[None])[0, -1] for row in rows]).float()  # (B, V)
            for process in logits_processor:
                logits = process(tokens, logits)
            found = _drawn(logits / temperature, top_k) if do_sample else logits.argmax(-1)  # (B,)
            found = found.masked_fill(ended, eot)
            tokens = torch.cat((tokens, found[:, None]), dim=1)
            rows = [torch.cat((row, token[None])) for row, token in zip(rows, found, strict=True)]
            ended |= found == eot
            if bool(ended.all()):
                break
        return tokens


def _drawn(logits: Tensor, top_k: int) -> Tensor:
    """A draw (B,) from the softmax of the `top_k` best of logits (B, V); 0: of all."""
    least = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1])).values[:, -1:]  # (B, 1)
    return torch.multinomial(logits.masked_fill(logits < least, -torch.inf).softmax(-1), 1)[:, 0]
