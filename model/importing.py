"""A model that somebody else trained, as one of ours: a Hugging Face folder or a GGUF file of a family that Transformer computes.

The one idea: what comes in is read once and written as an export of ours, with its tokenizer, so that everything after it
(pre-training, fine-tuning, evaluation, registration) starts from what it knows. It counts only if what is written computes
what came in, and equal models give equal bytes.

    import_model({"folder", "output", "threads"}): output/export/, output/tokenizer/, output/model.json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model import durable, export
from model.config import ModelConfig
from model.heads import Model, build
from model.hf import UnsupportedModel, from_hugging_face, load_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL = "model.json"  # the ModelConfig, without what a task or an objective decides
_DECIDED_LATER = {"head", "num_labels", "labels", "head_pdrop", "embd_pdrop", "resid_pdrop"}
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def import_model(job: dict[str, Any]) -> dict[str, Any]:
    """Import the model in job["folder"] into job["output"]; returns figures.

    Weights that the files lack (a head that BertModel has not) are those of seed 0. UnsupportedModel says what cannot be
    computed here, ExportMismatch that what was written is not the model.
    """
    torch.set_num_threads(job["threads"])
    output = Path(job["output"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = _without_gguf(Path(job["folder"]), Path(scratch) / "converted")
        config, state = from_hugging_face(folder)
        model = build(config, seed=0).eval()
        fresh = load_pretrained(model, state)
        _write_tokenizer(folder, output / "tokenizer", config)
        export.write_export(output / "export", config, model.state_dict(), output / "tokenizer")
        difference = _checked(output / "export", config, model, Path(scratch) / "probe.safetensors")
    durable.write_json(output / MODEL, config.model_dump(mode="json", exclude=_DECIDED_LATER))
    return {
        "family": config.family,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": config.vocab_size,
        "eot": config.eot_token_id,
        "weights_from_seed": len(fresh),
        "export_difference": difference,
    }


def _checked(folder: Path, config: ModelConfig, model: Model, probe: Path) -> float:
    """How far what `transformers` computes from the export is from what our model computes. ExportMismatch."""
    tokens, mask = export.probe_inputs(config)
    export.write_probe(probe, tokens, mask, export.last_logits(model, tokens, mask, config.segments))
    return export.check_export(folder, probe)


def _without_gguf(folder: Path, converted: Path) -> Path:
    """The folder itself, or what `transformers` makes of its one GGUF file. UnsupportedModel if there are several."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    files = sorted(folder.glob("*.gguf"))
    if not files:
        return folder
    if len(files) > 1:
        raise UnsupportedModel(f"{folder} holds {len(files)} GGUF files ({files[0].name}, ...); give a folder with one")
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=files[0].name, dtype=torch.float32)
    except ImportError as error:
        raise UnsupportedModel(
            f"{files[0]}: {error}; install gptline's dependencies again (GGUF needs `gguf`)"
        ) from error
    # Not save_pretrained: it still takes the model for a quantised one.
    converted.mkdir()
    fields = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    durable.write_json(converted / "config.json", fields | {"architectures": [type(model).__name__]})
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    with durable.writing(converted / "model.safetensors") as draft:
        save_file(tensors, draft, metadata={"format": "pt"})
    _tokenizer(folder, files[0].name).save_pretrained(converted)
    return converted


def _tokenizer(folder: Path, gguf: str | None = None) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, **({"gguf_file": gguf} if gguf else {}))


def _write_tokenizer(folder: Path, target: Path, config: ModelConfig) -> None:
    """The folder's tokenizer in two files: what it does to text in tokenizer.json, what its tokens are for in the other.

    A cut or a padding that was left in tokenizer.json (as sentence encoders do) is taken out: it would apply to whatever
    is encoded with it. UnsupportedModel if it is not a tokenizer of the `tokenizers` library, or not this model's.
    """
    tokenizer: Any = _tokenizer(folder)
    if not tokenizer.is_fast:
        raise UnsupportedModel(f"{folder}: its tokenizer has no tokenizer.json, and transformers makes none of it")
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    special = {name: str(token) for name in _SPECIAL if (token := getattr(tokenizer, name, None)) is not None}
    special["eos_token"] = _ending(tokenizer, config, folder)
    if config.family == "bert":
        _require_frame(tokenizer, folder)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", *(["token_type_ids"] if config.family == "bert" else []), "attention_mask"],
        "model_max_length": config.n_positions,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.chat_template:
        settings["chat_template"] = tokenizer.chat_template
    target.mkdir(parents=True)
    durable.write_json(target / "tokenizer.json", state)
    durable.write_json(target / "tokenizer_config.json", settings | special)


def _ending(tokenizer: Any, config: ModelConfig, folder: Path) -> str:
    """The token that ends documents, which is the model's to say: of a BERT its [SEP]."""
    if len(tokenizer) > config.vocab_size:
        raise UnsupportedModel(
            f"{folder}: its tokenizer has {len(tokenizer)} ids, its model only {config.vocab_size}; they do not belong together"
        )
    return str(tokenizer.convert_ids_to_tokens(config.eot_token_id))


def _require_frame(tokenizer: Any, folder: Path) -> None:
    """UnsupportedModel for a BERT's tokenizer that puts no [CLS] and [SEP] around texts: downstream would leave them out."""
    made = tokenizer("a", "a")["input_ids"]
    if [made[0], made[-1]] != [tokenizer.cls_token_id, tokenizer.sep_token_id] or made.count(made[-1]) < 2:
        raise UnsupportedModel(
            f"{folder}: of a pair of texts its tokenizer makes {' '.join(tokenizer.convert_ids_to_tokens(made))}; "
            "give its tokenizer.json a post_processor that makes [CLS] A [SEP] B [SEP], as the model has learned to read"
        )
