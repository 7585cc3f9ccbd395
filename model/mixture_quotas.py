"""How many samples of each corpus a mixture's weights are: torch-free, so that a recipe is refused by the rule of the ranks.

The one idea: weights hold in every stretch of BLOCK samples, so a corpus with less than one sample in a block has none.
"""

from __future__ import annotations

from collections.abc import Mapping

BLOCK = 4096  # samples


def quotas(weights: Mapping[str, float]) -> dict[str, int]:
    """Samples of each corpus in a block, by largest remainder. ValueError if one would have none."""
    total = sum(weights.values())
    exact = {name: weight / total * BLOCK for name, weight in weights.items()}
    found = {name: int(share) for name, share in exact.items()}
    for name in sorted(exact, key=lambda name: (found[name] - exact[name], name))[: BLOCK - sum(found.values())]:
        found[name] += 1
    for name, count in found.items():
        if count == 0:
            raise ValueError(
                f"mixture: the weight {weights[name]} of {name!r} is less than 1/{BLOCK} of all; raise it or leave the corpus out"
            )
    return found
