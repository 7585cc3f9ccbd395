"""A task's form decides how it is learned and measured: one module here for each form that a task's `FORM` can name.

The one idea: the stages `finetune`, `evaluate`, `compare` and `register` know no task and no form. They ask the form's
module, which has

    encode(source, tokenizer, settings, target)  tokenises a file of examples for the loop; returns what was counted
    training(attempt, tokenizer, settings)       the parts of the training job that the form decides (objective, model,
                                                 data), and what was counted; `settings` is the recipe's `finetune`
    evaluate(attempt)                            metrics of the export beside the baselines'; writes predictions.jsonl,
                                                 a line for each test example, and report.json
    compare(attempt, champion)                   the same figure of challenger and champion, paired
    figure(metrics), told(metrics)               what a run says of the evaluation: one figure; a few lines
    METRICS                                      which metrics a table shows, each beside which baselines; a task may have its own
    PIPELINE, CHAT, SUMMARY, LIMITS              of the model card: the task's name in `transformers`, and what it says
"""

from __future__ import annotations

import importlib
from types import ModuleType

FORMS = ("classification", "response", "dialogue", "text", "span")
# Raised by hand when a form's evaluation comes to mean something else, in place of the version of a stage that all forms share.
EVALUATION = {"response": 2, "dialogue": 2, "text": 2}


def of(form: str) -> ModuleType:
    """The module of a form."""
    return importlib.import_module(f"pipelines.forms.{form}")
