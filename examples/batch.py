"""Classify a file of texts with sentiment@champion: JSON lines, CSV or Parquet in, Parquet out, the version in each row.

    MLFLOW_TRACKING_URI=http://registry:5000 python examples/batch.py reviews.jsonl labelled.parquet

Needs datasets, transformers, torch, and gptline on the PATH (or its command line in $GPTLINE). The column is `text`.
"""

import json
import os
import shlex
import subprocess
import sys

from datasets import load_dataset
from transformers import pipeline

FORMATS = {"jsonl": "json", "json": "json", "csv": "csv", "parquet": "parquet"}


def main(source, target):
    pull = [*shlex.split(os.environ.get("GPTLINE", "gptline")), "pull", os.environ.get("MODEL", "sentiment@champion")]
    pulled = json.loads(subprocess.check_output([*pull, os.environ.get("FOLDER", "models/sentiment"), "--json"]))
    classifier = pipeline("text-classification", pulled["dest"], truncation=True)

    def label(rows):
        answers = classifier(rows["text"], batch_size=32)
        columns = {name: [answer[name] for answer in answers] for name in ("label", "score")}
        return columns | {"version": [pulled["version"]] * len(answers)}

    texts = load_dataset(FORMATS[source.rsplit(".", 1)[-1]], data_files=source, split="train")
    texts.map(label, batched=True, batch_size=256).to_parquet(target + ".part")
    os.replace(target + ".part", target)  # whole or not there


if __name__ == "__main__":
    main(*sys.argv[1:])
