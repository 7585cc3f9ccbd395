"""The model as an MLflow pyfunc, "models from code": a copy of this file lies in every registered package.

The one idea: the package is a plain Hugging Face directory, and this file only puts texts in and takes
predictions out. It is run where this project is not installed, so it imports nothing of ours, and there is
no pickle anywhere.

A stranger's text is data: a reserved token written in it (`<|endoftext|>`) stays text, or is left out by the chat template
of a model that has one. What is longer than the model's positions is cut: of a text to classify the end, of a prompt the
beginning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

_BATCH = 32  # texts in one forward pass; bounds memory, does not change predictions


class Export(mlflow.pyfunc.PythonModel):
    """A Hugging Face directory: classifies texts, continues prompts, fills in [MASK], finds answers, or (with a chat template)
    replies, as its files say."""

    def load_context(self, context: Any) -> None:
        """Load tokenizer and weights from the directory that holds the package."""
        folder = Path(context.artifacts["export"])
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.classifies = "SequenceClassification" in config["architectures"][0]
        self.fills = config["architectures"][0].endswith(("ForPreTraining", "ForMaskedLM"))
        kind = AutoModelForSequenceClassification if self.classifies else AutoModelForCausalLM
        self.finds = config["architectures"][0].endswith("ForQuestionAnswering")
        kind = AutoModelForMaskedLM if self.fills else AutoModelForQuestionAnswering if self.finds else kind
        self.model = kind.from_pretrained(folder, local_files_only=True).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # The beginning of a long text is classified; the end of a long prompt is continued.
        self.tokenizer.truncation_side = "right" if self.classifies else "left"
        self.longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)  # tokens

    def predict(self, context: Any, model_input: list[str], params: dict[str, Any] | None = None) -> Any:
        """A label and its probability for each text (DataFrame); or the continued prompts, or the replies (list of str).

        A model that finds answers takes JSON objects {"question", "context"}, and gives for each the answer, the character
        of the context that it begins at, and its probability (DataFrame).

        A model with a chat template takes a text as what a user says, or a JSON list of turns, each {"role", "content"}.

        `model_input`: a list, Series or array of str, or a DataFrame whose first column is taken; MLflow makes
        a list of any of them, by the signature in MLmodel and the type hint here.
        `params` (generation only): max_new_tokens, temperature (0: greedy), seed.
        """
        for row, text in enumerate(model_input):
            if not isinstance(text, str):
                raise ValueError(f"row {row} of the input is {text!r} ({type(text).__name__}), not a text; pass str")
        if self.classifies:
            return pd.DataFrame(self._classified(model_input), columns=["label", "score"])
        if self.finds:
            return pd.DataFrame(map(self._found, model_input), columns=["answer", "start", "score"])
        if self.fills:
            return [self._filled(text) for text in model_input]
        if self.tokenizer.chat_template:
            return [self._generated(self._turns(text), **(params or {})).strip() for text in model_input]
        return [text + self._generated(text, **(params or {})) for text in model_input]

    def _turns(self, text: str) -> list[dict[str, str]]:
        """A text as one turn, or a JSON list of turns as these."""
        try:
            turns = json.loads(text)
        except ValueError:
            turns = None
        if isinstance(turns, list) and turns and all(isinstance(turn, dict) and "content" in turn for turn in turns):
            return turns
        return [{"role": "user", "content": text}]

    def _encoded(self, text: str, longest: int) -> list[int]:
        how: dict[str, Any] = {"split_special_tokens": True, "truncation": True, "max_length": longest}
        # A text to classify stands between what its tokenizer puts around texts (BERT reads the class at [CLS]); a prompt
        # is not at its end.
        tokens = self.tokenizer(text, add_special_tokens=self.classifies, **how)["input_ids"]
        # No text at all is one end-of-text token: a model needs a position to look at.
        return tokens or [self.tokenizer.eos_token_id]

    @torch.inference_mode()
    def _classified(self, texts: list[str]) -> Iterator[tuple[str, float]]:
        for start in range(0, len(texts), _BATCH):
            rows = [self._encoded(text, self.longest) for text in texts[start : start + _BATCH]]
            width = max(map(len, rows))
            pad = self.model.config.pad_token_id  # the tokenizer of an imported model may have none
            tokens = torch.tensor([row + [pad] * (width - len(row)) for row in rows])  # (B, T)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])  # (B, T)
            logits = self.model(input_ids=tokens, attention_mask=mask).logits  # (B, labels)
            scores, best = logits.softmax(-1).max(-1)  # (B,), (B,)
            for index, score in zip(best.tolist(), scores.tolist(), strict=True):
                yield self.model.config.id2label[index], score

    def _prompt(self, asked: str | list[dict[str, str]], longest: int) -> list[int]:
        if isinstance(asked, str):
            return self._encoded(asked, longest)
        told = self.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
        return list(told["input_ids"])[-longest:]

    @torch.inference_mode()
    def _filled(self, text: str) -> str:
        """The text with the most probable token in the place of each [MASK]."""
        tokens = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=self.longest)  # (1, T)
        ids, hidden = tokens["input_ids"][0], tokens["input_ids"][0] == self.tokenizer.mask_token_id  # (T,), (T,)
        best = self.model(**tokens).logits[0].argmax(-1)  # (T,)
        return str(self.tokenizer.decode(ids.where(~hidden, best), skip_special_tokens=True))

    @torch.inference_mode()
    def _found(self, text: str) -> tuple[str, int, float]:
        """The best stretch of at most 30 tokens of a context, which is read in windows where it is long."""
        asked = json.loads(text)
        if not isinstance(asked, dict) or not all(isinstance(asked.get(name), str) for name in ("question", "context")):
            raise ValueError(f"{text[:80]!r} is no JSON object with the texts question and context")
        if not asked["context"].strip():
            raise ValueError(f"{text[:80]!r} has an empty context; an answer is a stretch of it")
        plain = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
        question = self.tokenizer(asked["question"], **plain)
        kept = question["offset_mapping"][: self.longest // 2 - 2]
        how: dict[str, Any] = {"truncation": "only_second", "max_length": self.longest, "stride": self.longest // 4}
        how |= {"return_overflowing_tokens": True, "return_offsets_mapping": True, "split_special_tokens": True}
        inputs = self.tokenizer(
            asked["question"][: kept[-1][1] if kept else 0], asked["context"], padding=True, return_tensors="pt", **how
        )
        places, _ = inputs.pop("offset_mapping"), inputs.pop("overflow_to_sample_mapping")  # (W, T, 2)
        inside = torch.tensor(
            [[part == 1 for part in inputs.sequence_ids(row)] for row in range(len(places))]
        )  # (W, T)
        said = self.model(**inputs)
        starts, ends = (one.masked_fill(~inside, -torch.inf) for one in (said.start_logits, said.end_logits))  # (W, T)
        scores = starts[:, :, None] + ends[:, None, :]  # (W, T, T)
        near = torch.ones(scores.shape[1:], dtype=torch.bool).triu().tril(29)  # (T, T)
        chances = scores.masked_fill(~near, -torch.inf).flatten().softmax(0)
        row, first, last = (int(place) for place in torch.unravel_index(chances.argmax(), scores.shape))
        begin, end = int(places[row, first, 0]), int(places[row, last, 1])
        # A stretch where windows overlap stands in several: its probability is that of all its places.
        same = (places[:, :, None, 0] == begin) & (places[:, None, :, 1] == end)  # (W, T, T)
        return asked["context"][begin:end].strip(), begin, float(chances[same.flatten()].sum())

    @torch.inference_mode()
    def _generated(
        self, asked: str | list[dict[str, str]], max_new_tokens: int = 50, temperature: float = 0.0, seed: int = 0
    ) -> str:
        new = min(max_new_tokens, self.longest - 1)
        tokens = torch.tensor([self._prompt(asked, self.longest - new)])  # (1, T)
        how: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            mask = torch.ones_like(tokens)  # (1, T)
            out = self.model.generate(tokens, attention_mask=mask, max_new_tokens=new, **how)  # (1, T')
        return str(self.tokenizer.decode(out[0, tokens.shape[1] :], skip_special_tokens=True))


mlflow.models.set_model(Export())
