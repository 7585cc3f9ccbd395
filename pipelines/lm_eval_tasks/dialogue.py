"""What lm-eval's task `gptline_dialogue` makes of a reply. Runs in lm-eval's process, beside its task file.

The one idea: log p(reply | turns) is what lm-eval finds for blanks and reply together, less what it finds for the blanks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def process_results(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """The reply's log-likelihood beside its tokens and beside its bytes."""
    whole, *blanks = [likelihood for likelihood, _ in results]
    found = whole - sum(blanks)
    return {"perplexity": (found, doc["tokens"]), "bits_per_byte": (found, doc["bytes"])}
