"""How sure a figure is: the central 95 % of what it is for other draws of the same groups (a bootstrap).

The one idea: what succeeds and fails together (the sentences about a film, the lines of a package) is drawn together. Of
fewer than two groups nothing is drawn and there is no interval: all draws of one group are that group, and the figure
would be called certain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

RESAMPLES, _AT_A_TIME = 1000, 50


def drawn_sums(sums: np.ndarray, seed: int = 0) -> np.ndarray:
    """Sums (resamples, ...) of as many groups as there are, drawn with replacement from `sums` (G, ...); none of one group.

    Some resamples at a time: of many groups all draws would not fit.
    """
    import numpy as np

    groups, random = len(sums), np.random.default_rng(seed)
    flat: np.ndarray = sums.reshape(groups, -1).astype(float)
    drawn = [np.zeros((0, flat.shape[1]))]
    for _ in range(0, RESAMPLES if groups > 1 else 0, _AT_A_TIME):
        draws = random.multinomial(groups, [1 / groups] * groups, size=_AT_A_TIME)  # (some R, G)
        drawn.append(draws.astype(float) @ flat)
    return np.concatenate(drawn).reshape(-1, *sums.shape[1:])


def central(values: Sequence[float] | np.ndarray) -> list[float] | None:
    """The central 95 % of drawn values; none where nothing was drawn."""
    import numpy as np

    return [rounded(end) for end in np.quantile(np.asarray(values, float), [0.025, 0.975])] if len(values) else None


def rounded(value: Any) -> float:
    """Six digits: what is left of the last bits of a sum must not make two equal runs differ."""
    return round(float(value), 6)


def ends(name: str, interval: Sequence[float] | None) -> dict[str, float]:
    """An interval as two figures of a step, `name`_low and `name`_high; nothing where there is none."""
    return {f"{name}_low": interval[0], f"{name}_high": interval[1]} if interval else {}


def told(metrics: Mapping[str, Any], name: str, shown: Callable[[float], str]) -> str:
    """The interval of a step's figure in words, to stand behind it in parentheses."""
    if f"{name}_low" not in metrics:
        return "of one group, which has no interval"
    return f"{shown(metrics[f'{name}_low'])} to {shown(metrics[f'{name}_high'])}"
