"""torch's fused AdamW, without torch's compiler.

The one idea: methods of `torch.optim` are wrapped so that the compiler leaves them alone, and the wrappers import it:
2 to 3 s of each start of a rank, and of each restart after a crash, for nothing. Here the functions under
the wrappers are called directly; what they compute is torch's own.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch


class AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) whose methods do not import `torch._dynamo`."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One optimizer step over all parameters that have gradients."""
        return _step(self, closure)


_step = inspect.unwrap(torch.optim.AdamW.step)
