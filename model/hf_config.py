"""What a Hugging Face folder says of its model: config.json as our ModelConfig. Torch-free, so that planning can read it.

The one idea: whether a folder can be imported, and what the model in it can do, is known from its configuration alone. A
recipe that names the folder is refused by the rule by which the step `import` would refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model import durable, hf_bert, hf_gpt2, hf_llama
from model.config import ModelConfig
from model.vocabulary import ids_of

FAMILIES: dict[str, Any] = {"gpt2": hf_gpt2, "llama": hf_llama, "bert": hf_bert}
_TOKENS = {"cls_token_id": "[CLS]", "sep_token_id": "[SEP]", "mask_token_id": "[MASK]", "pad_token_id": "[PAD]"}

# What a tokenizer is read from. Where a folder has none of them, transformers makes an empty one and says nothing.
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")


class UnsupportedModel(ValueError):
    """A Hugging Face folder holds a model that Transformer does not compute, or that does not fit."""


def read_config(folder: Path) -> ModelConfig:
    """config.json of a folder as a ModelConfig. UnsupportedModel where it asks for another computation."""
    path = folder / "config.json"
    if not path.exists():
        raise UnsupportedModel(f"{folder} has no config.json; expected a Hugging Face model folder")
    fields = durable.read_json(path)
    family = fields.get("model_type") if isinstance(fields, dict) else None
    if family not in FAMILIES:
        raise UnsupportedModel(f"{path}: model_type={family!r} is not supported, only {', '.join(FAMILIES)}")
    theirs = FAMILIES[family]
    _require_computed(fields, path, theirs)
    heads = {name: head for head, name in theirs.ARCHITECTURES.items()}
    heads[theirs.BARE] = next(iter(theirs.ARCHITECTURES))
    named = (fields.get("architectures") or [next(iter(heads))])[0]
    if named not in heads:
        raise UnsupportedModel(f"{path}: architecture {named} is not supported, only {', '.join(heads)}")
    try:
        labels = _labels(fields) if heads[named] == "classification" else ()
        # What config.json says of a token goes before what its tokenizer does.
        known = _special(fields, path, family) | theirs.shape(fields) | _named_head(heads[named], family)
        _require_in_vocabulary(known, fields, path, family)
        return ModelConfig(
            family=family, vocab_size=fields["vocab_size"], num_labels=len(labels) or None, labels=labels, **known
        )
    except KeyError as error:
        raise UnsupportedModel(f"{path}: {error} is missing") from error
    except UnsupportedModel:
        raise
    except (ValueError, TypeError) as error:  # pydantic's errors are of the first kind
        raise UnsupportedModel(f"{path}: {error}") from error


def _require_computed(fields: Mapping[str, Any], path: Path, theirs: Any) -> None:
    """UnsupportedModel where an option asks for another computation than Transformer's, or weights are packed."""
    if fields.get("quantization_config"):
        raise UnsupportedModel(
            f"{path}: quantization_config is not supported; give a folder whose weights are in fp32, fp16 or bf16"
        )
    activations = getattr(theirs, "ACTIVATIONS", {}).values()
    for name in ("activation_function", "hidden_act"):
        if activations and name in fields and fields[name] not in activations:
            raise UnsupportedModel(f"{path}: {name}={fields[name]!r} is not supported, only {' or '.join(activations)}")
    for name, value in theirs.COMPUTED.items():
        if fields.get(name, value) != value:
            raise UnsupportedModel(f"{path}: {name}={fields[name]!r} is not supported, only {value!r}")


def _named_head(head: str, family: str) -> dict[str, Any]:
    """The head, where it is not the one that is meant without a word."""
    usual = ("classification", next(iter(FAMILIES[family].ARCHITECTURES)))
    return {} if head in usual else {"head": head}


def _special(fields: Mapping[str, Any], path: Path, family: str) -> dict[str, Any]:
    """The ids of EOT and padding. UnsupportedModel where there is not exactly one EOT in the vocabulary.

    BERT's EOT is its [SEP]. Its own files name neither: a folder that lacks them is completed from its tokenizer.
    """
    eot, pad = fields.get("eos_token_id"), fields.get("pad_token_id")
    special: dict[str, Any] = {"pad_token_id": pad} if isinstance(pad, int) and pad != eot else {}
    if family == "bert" and not isinstance(eot, int):
        ids = _tokenizer_ids(path.parent)
        special = {name: ids[token] for name, token in _TOKENS.items() if token in ids} | special
        eot = fields["sep_token_id"] if fields.get("sep_token_id") is not None else special.get("sep_token_id")
        if eot is None:
            raise UnsupportedModel(f"{path}: no eos_token_id, and no tokenizer beside it that has [SEP]")
    if not isinstance(eot, int) or not 0 <= eot < fields["vocab_size"]:
        raise UnsupportedModel(
            f"{path}: eos_token_id={eot!r} is not one id of the vocabulary of {fields['vocab_size']}"
        )
    return {"eot_token_id": eot} | special


def _require_in_vocabulary(known: Mapping[str, Any], fields: Mapping[str, Any], path: Path, family: str) -> None:
    """UnsupportedModel for a special token that the model has no weights of."""
    for name in _TOKENS:
        field = "bos_token_id" if (family, name) == ("llama", "cls_token_id") else name
        value = known.get(name)
        if value is not None and not (isinstance(value, int) and 0 <= value < fields["vocab_size"]):
            said = (
                "mend it, or leave it out" if fields.get(field) is not None else "its tokenizer says so; give its own"
            )
            raise UnsupportedModel(
                f"{path}: {field}={value!r} is not one id of the vocabulary of {fields['vocab_size']}; {said}"
            )


def _tokenizer_ids(folder: Path) -> dict[str, int]:
    """The ids of the tokens in a folder's tokenizer.json or vocab.txt; none if it has neither."""
    if (folder / "tokenizer.json").exists():
        return ids_of({"model": {"vocab": {}}} | durable.read_json(folder / "tokenizer.json"))
    if (folder / "vocab.txt").exists():
        return {token: place for place, token in enumerate((folder / "vocab.txt").read_text().splitlines())}
    return {}


def _labels(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes' names by index: as many as `num_labels` where they have none, two where it is silent, as in transformers.

    ValueError for a head that scores numbers, or several classes at once.
    """
    kind = fields.get("problem_type") or "single_label_classification"
    if kind != "single_label_classification":
        raise ValueError(f"problem_type={kind!r} is not supported, only 'single_label_classification'")
    unnamed = {str(index): f"LABEL_{index}" for index in range(fields.get("num_labels") or 2)}
    names: dict[str, str] = fields.get("id2label") or unnamed
    return tuple(names[str(index)] for index in range(len(names)))
