"""How texts are read that are longer than the window: cut, or in windows, each of which begins some tokens after the last.

The one idea: a model is asked as it learned. What decides that is a part of the configuration of its evaluation, so a
champion is asked in its own windows, whatever its challenger reads in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ASKED = ("window", "stride")  # tokens, of an evaluation's configuration; both or none
PLAIN = "plain"  # of an evaluation's configuration: that the model is measured as whoever loads the export reads, too


def stride(settings: Mapping[str, Any]) -> int:
    """Tokens from one window to the next, of a recipe's `finetune`; 0 where texts are cut."""
    if settings.get("long_texts", "cut") == "cut":
        return 0
    return int(settings.get("window_stride") or settings["sequence_length"] // 2)


def asked(config: Mapping[str, Any]) -> dict[str, Any]:
    """How an evaluation of this configuration reads a text; without windows cut at what the model takes, as whoever loads the
    export does, not at what it was fine-tuned on."""
    return {"max_length": config["window"], "stride": config["stride"]} if "stride" in config else {}


def limits(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a model card says of figures that were measured in windows."""
    if "stride" not in config:
        return ()
    said = f"The row `this model` is of texts that were read in windows of {config['window']} tokens, one every {config['stride']}."
    if not config.get(PLAIN):
        return (f"{said} The code above reads as much of a text as the model takes at once.",)
    return (f"{said} The row `plain` is of as much of a text as the model takes at once, as the code above asks it.",)


def champion_asked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same of the champion in a comparison, which may read otherwise than its challenger."""
    return asked(config.get("champion_windows", config))
