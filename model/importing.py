"""A model that somebody else trained, as one of ours: a Hugging Face folder or a GGUF file of a family that Transformer computes.

The one idea: what comes in is read once and written as an export of ours, with its tokenizer, so that everything after it
(pre-training, fine-tuning, evaluation, registration) starts from what it knows. It counts only if `transformers` computes
the same from the files that came in, from our model and from what is written; equal models give equal bytes.

    import_model({"folder", "output", "threads"}): output/export/, output/tokenizer/, output/model.json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from model import durable, export, hf
from model.config import ModelConfig
from model.heads import Model, build
from model.hf import FAMILIES, UnsupportedModel, from_hugging_face, load_pretrained
from model.hf_config import VOCABULARIES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL = "model.json"  # the ModelConfig, without what a task or an objective decides
_DECIDED_LATER = {"head", "num_labels", "labels", "head_pdrop", "embd_pdrop", "resid_pdrop"}
_HEAD, _NO_HEAD = "logits.safetensors", "hidden.safetensors"  # probes
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def import_model(job: dict[str, Any]) -> dict[str, Any]:
    """Import the model in job["folder"] into job["output"]; returns figures.

    Weights that the files lack are those of seed 0 where their class has no head (BertModel). UnsupportedModel says what
    cannot be computed here, ExportMismatch that what was written is not the model.
    """
    torch.set_num_threads(job["threads"])
    output = Path(job["output"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = _without_gguf(Path(job["folder"]), Path(scratch) / "converted")
        tokenizer, config, model, fresh = _read(folder)
        kind = _class(folder, config, model, fresh)
        _write_tokenizer(tokenizer, output / "tokenizer", config, folder)
        export.write_export(output / "export", config, model.state_dict(), output / "tokenizer")
        _write_probes(Path(scratch), config, model)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        del model  # one at a time: each is as large as the memory that a large one leaves
        source = _source_difference(folder, kind, Path(scratch))
        difference = export.check_export(output / "export", Path(scratch) / _HEAD)
    durable.write_json(output / MODEL, config.model_dump(mode="json", exclude=_DECIDED_LATER))
    return {
        "family": config.family,
        "parameters": parameters,
        "vocab_size": config.vocab_size,
        "eot": config.eot_token_id,
        "weights_from_seed": len(fresh),
        "source_difference": source,
        "export_difference": difference,
    }


def _read(folder: Path) -> tuple[PreTrainedTokenizerBase, ModelConfig, Model, list[str]]:
    """The tokenizer and the model in a folder, in our shape, and the parameters that its files lack.

    UnsupportedModel by the files' own names for weights that are not what config.json says, or no numbers.
    """
    found, state = from_hugging_face(folder)  # first: transformers reads config.json for a tokenizer too
    tokenizer = _tokenizer(folder)
    config = _filled_up(found, tokenizer, folder)
    model = build(config, seed=0).eval()
    try:
        fresh = load_pretrained(model, state)
    except UnsupportedModel as error:
        said = hf.misfit(folder, config, model.state_dict()) or str(error)
        raise UnsupportedModel(
            f"{folder}: {said}; mend config.json, or give the folder that these weights were saved in"
        ) from error
    theirs = FAMILIES[config.family].to_theirs(config, model.state_dict())
    broken = sorted(name for name, tensor in theirs if not tensor.isfinite().all())
    if broken:
        raise UnsupportedModel(
            f"{folder}: NaN or infinity is in {len(broken)} of its weights ({', '.join(broken[:3])}); they were saved broken, "
            "give others"
        )
    return tokenizer, config, model, fresh


def _class(folder: Path, config: ModelConfig, model: Model, fresh: list[str]) -> str:
    """The class of `transformers` that the files are of: config.json's, or where it names none one that they fill.

    UnsupportedModel if it has a head that they lack: transformers would draw its weights, and only warn of it.
    """
    family, own = FAMILIES[config.family], model.state_dict()
    named = (durable.read_json(folder / "config.json").get("architectures") or [None])[0]
    if not fresh or named == family.BARE:
        return str(named or hf.architecture(config))
    if named is None:
        return str(family.BARE)
    lacking = sorted(name for name, _ in family.to_theirs(config, {name: own[name] for name in fresh}))
    raise UnsupportedModel(
        f"{folder}: config.json names {named}, and the files lack its {', '.join(lacking)}; give a folder that has them, or "
        f'say "architectures": ["{family.BARE}"] in config.json, of which the head is drawn anew'
    )


def _write_probes(folder: Path, config: ModelConfig, model: Model) -> None:
    """What our model computes: its logits, and its last hidden states for a source without a head."""
    tokens, mask = export.probe_inputs(config)
    for name, part in ((_HEAD, model), (_NO_HEAD, model.transformer)):
        export.write_probe(folder / name, tokens, mask, export.last_logits(part, tokens, mask, config.segments))


def _source_difference(folder: Path, kind: str, probes: Path) -> float:
    """How far what `transformers` computes from the source itself is from what our model does. UnsupportedModel beyond tolerance."""
    bare = kind in {family.BARE for family in FAMILIES.values()}
    model = _source(folder, kind)
    largest, allowed = export.difference(model, probes / (_NO_HEAD if bare else _HEAD), padded=False)
    if largest > allowed:
        raise UnsupportedModel(
            f"{folder}: {'hidden states' if bare else 'logits'} of transformers' {kind} and of our model differ by "
            f"{largest:.3g}, more than {allowed:.3g}: config.json or the weights ask for what Transformer does not compute"
        )
    return largest


def _source(folder: Path, kind: str) -> PreTrainedModel:
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = getattr(transformers, kind).from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # transformers has many kinds
        raise UnsupportedModel(f"{folder}: transformers does not load it as {kind}: {error}") from error
    return cast("PreTrainedModel", model.eval())


def _without_gguf(folder: Path, converted: Path) -> Path:
    """The folder itself, or what `transformers` makes of its one GGUF file. UnsupportedModel if there are several, or it lacks weights."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    files = sorted(folder.glob("*.gguf"))
    if not files:
        return folder
    if len(files) > 1:
        raise UnsupportedModel(f"{folder} holds {len(files)} GGUF files ({files[0].name}, ...); give a folder with one")
    logging.disable_progress_bar()
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=files[0].name, dtype=torch.float32, output_loading_info=True
        )
    except ImportError as error:
        raise UnsupportedModel(
            f"{files[0]}: {error}; install gptline's dependencies again (GGUF needs `gguf`)"
        ) from error
    if told["missing_keys"]:
        raise UnsupportedModel(f"{files[0]} lacks {', '.join(sorted(told['missing_keys']))}; give a file that has them")
    _write_converted(model, converted)
    _tokenizer(folder, files[0].name).save_pretrained(converted)
    return converted


def _write_converted(model: Any, converted: Path) -> None:
    """config.json and weights of a model that was read from a GGUF file. Not save_pretrained: it still takes it for a quantised one."""
    from safetensors.torch import save_file

    converted.mkdir()
    fields = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    durable.write_json(converted / "config.json", fields | {"architectures": [type(model).__name__]})
    tied = {"lm_head.weight"} if model.get_output_embeddings().weight is model.get_input_embeddings().weight else set()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    with durable.writing(converted / "model.safetensors") as draft:
        save_file(tensors, draft, metadata={"format": "pt"})


def _tokenizer(folder: Path, gguf: str | None = None) -> PreTrainedTokenizerBase:
    """The folder's tokenizer. UnsupportedModel for one with no vocabulary: transformers makes that where a file is missing."""
    from transformers import AutoTokenizer

    if not gguf and not any((folder / name).exists() for name in VOCABULARIES):
        raise UnsupportedModel(f"{folder} has no tokenizer ({', '.join(VOCABULARIES)}); give the model's own beside it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, **({"gguf_file": gguf} if gguf else {})
        )
    except Exception as error:  # transformers has many kinds
        raise UnsupportedModel(
            f"{folder}: transformers does not load its tokenizer ({error}); give a tokenizer.json"
        ) from error
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    if len(tokenizer) <= len(added):
        raise UnsupportedModel(
            f"{folder}: its tokenizer has no vocabulary, only {len(added)} added tokens ({' '.join(added[:5])}); "
            "give the files of the model's own, tokenizer.json the first"
        )
    return tokenizer


def _filled_up(config: ModelConfig, tokenizer: Any, folder: Path) -> ModelConfig:
    """The model with its tokenizer's padding token where config.json names none; a BERT, which is told of padding, in any case.

    UnsupportedModel where both name one and they differ: by it a classifier finds the end of a text. Also for a BERT that
    has none but its [SEP], which training would not let it see.
    """
    said, named = durable.read_json(folder / "config.json").get("pad_token_id"), tokenizer.pad_token_id
    if config.family == "bert" and config.eot_token_id == (config.padding if named is None else named):
        raise UnsupportedModel(
            f"{folder}: rows are to be filled up with [SEP], which then is not read where it stands; say pad_token_id in "
            "config.json, and pad_token in tokenizer_config.json"
        )
    if named is None or named == config.padding:
        return config
    if isinstance(said, int) and config.family != "bert":
        raise UnsupportedModel(
            f"{folder}: config.json says pad_token_id={said}, and its tokenizer fills rows up with {tokenizer.pad_token} "
            f"({named}); mend config.json, or pad_token in tokenizer_config.json"
        )
    return config.model_copy(update={"pad_token_id": None if named == config.eot_token_id else named})


def _write_tokenizer(tokenizer: Any, target: Path, config: ModelConfig, folder: Path) -> None:
    """The folder's tokenizer in two files: what it does to text in tokenizer.json, what its tokens are for in the other.

    A cut or a padding that was left in tokenizer.json (as sentence encoders do) is taken out: it would apply to whatever
    is encoded with it. UnsupportedModel if it is not a tokenizer of the `tokenizers` library, or not this model's.
    """
    if not tokenizer.is_fast:
        raise UnsupportedModel(f"{folder}: its tokenizer has no tokenizer.json, and transformers makes none of it")
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    special = {name: str(token) for name in _SPECIAL if (token := getattr(tokenizer, name, None)) is not None}
    if config.family == "bert":
        _require_frame(tokenizer, folder)
        _require_same_marks(tokenizer, folder)
    special["eos_token"] = _ending(tokenizer, config, folder)
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
    token = tokenizer.convert_ids_to_tokens(config.eot_token_id)
    if token is None:
        raise UnsupportedModel(
            f"{folder}: config.json says eos_token_id={config.eot_token_id}, and its tokenizer has no token of that id "
            f"(it has {len(tokenizer)}); mend config.json, or give the tokenizer that has it"
        )
    return str(token)


def _require_frame(tokenizer: Any, folder: Path) -> None:
    """UnsupportedModel for a BERT's tokenizer that puts no [CLS] and [SEP] around texts: downstream would leave them out."""
    made = tokenizer("a", "a")["input_ids"]
    if [made[0], made[-1]] != [tokenizer.cls_token_id, tokenizer.sep_token_id] or made.count(made[-1]) < 2:
        raise UnsupportedModel(
            f"{folder}: of a pair of texts its tokenizer makes {' '.join(tokenizer.convert_ids_to_tokens(made))}; "
            "give its tokenizer.json a post_processor that makes [CLS] A [SEP] B [SEP], as the model has learned to read"
        )


def _require_same_marks(tokenizer: Any, folder: Path) -> None:
    """UnsupportedModel where a BERT's config.json and its tokenizer do not mean the same [CLS], [SEP] or [MASK]; [SEP] ends its texts."""
    fields = durable.read_json(folder / "config.json")
    marks = {"eos_token_id": "sep", "sep_token_id": "sep", "cls_token_id": "cls", "mask_token_id": "mask"}
    for field, mark in marks.items():
        said, own = fields.get(field), getattr(tokenizer, f"{mark}_token_id")
        if own is not None and isinstance(said, int) and said != own:
            token = getattr(tokenizer, f"{mark}_token")
            raise UnsupportedModel(
                f"{folder}: config.json says {field}={said}, and its tokenizer's {token} is {own}; mend config.json"
            )
