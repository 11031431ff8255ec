"""Muon: an optimizer that makes the updates of matrix-shaped weights orthogonal.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024
(kellerjordan.github.io/posts/muon); weight decay as in J. Liu et al., "Muon is scalable for LLM
training", arXiv:2502.16982. torch.optim.Muon takes 2-D parameters only and iterates in bfloat16.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_KERNEL = 32  # rows and columns from which a kernel is updated by Muon
# Coefficients of the iteration: steepest at 0, singular values end in about [0.7, 1.2].
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Adam):
    """Muon for the kernels of a network's inner convolutions, Adam for every other parameter.

    A kernel G, reshaped to (out, in * height * width), is updated as follows:

        M <- momentum * M + (1 - momentum) * gradient
        U <- orthogonalize((1 - momentum) * gradient + momentum * M)          Nesterov
        G <- (1 - lr * weight_decay) * G - lr * U

    Before that, the gradient of the whole network is scaled down to `clip` times its running norm
    if it exceeds that: one flat patch under SSIM gives a gradient that would fill the momentum for
    dozens of steps. Without weight decay the kernels' norms grow until training diverges.

    network: its convolution kernels of at least 32 x 32 go to Muon, but for the first layer's.
    lr, adam_lr: the highest learning rates of the two parts, under initial_lr in their groups.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 0.01,
        adam_lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        clip: float = 2.5,
    ) -> None:
        parameters = list(network.parameters())
        kernels = [p for p in parameters if is_inner_kernel(p)]
        others = [p for p in parameters if not is_inner_kernel(p)]
        common = {"clip": clip, "running_norm": 0.0}
        muon = {"momentum": momentum, "weight_decay": weight_decay}
        groups = [
            {"params": kernels, "lr": lr, "initial_lr": lr, **muon, **common},
            {"params": others, "lr": adam_lr, "initial_lr": adam_lr, **common},
        ]
        super().__init__([group for group in groups if group["params"]])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, and drop the gradients of the kernels."""
        self._clip()
        for group in self.param_groups:
            if "momentum" in group:
                self._muon([p for p in group["params"] if p.grad is not None], group)
        super().step()

    def _clip(self) -> None:
        """Scale all gradients down to `clip` times the running mean of their norm."""
        state = self.param_groups[0]
        gradients = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        if not (gradients and state.get("clip")):
            return
        norm = float(nn.utils.get_total_norm(gradients))
        limit = state["clip"] * (state["running_norm"] or norm)
        if norm > limit:
            torch._foreach_mul_(gradients, limit / norm)
        state["running_norm"] = 0.98 * (state["running_norm"] or norm) + 0.02 * min(norm, limit)

    def _muon(self, kernels: Iterable[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for kernel in kernels:
            by_shape[tuple(kernel.shape)].append(kernel)
        for same in by_shape.values():
            for p in same:
                if not self.state[p]:  # Adam expects the number of steps in each state it loads
                    self.state[p] = {"step": torch.zeros(()), "momentum": torch.zeros_like(p)}
            momenta = [self.state[p]["momentum"] for p in same]
            gradients = [p.grad for p in same]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
            updates = orthogonalize(torch.stack([u.flatten(1) for u in nesterov]))
            torch._foreach_mul_(same, 1 - group["lr"] * group["weight_decay"])
            updates = [u.view(p.shape) for p, u in zip(same, updates, strict=True)]
            torch._foreach_add_(same, updates, alpha=-group["lr"])
            for p in same:
                p.grad = None  # because Adam takes a step with what has one


def is_inner_kernel(parameter: Tensor) -> bool:
    """Return whether a parameter is a convolution kernel of at least 32 x 32.

    It counts as (out, in * height * width), so the first layer, the last one and depthwise
    convolutions are none.
    """
    rows, columns = len(parameter), parameter[0].numel()
    return parameter.dim() == 4 and parameter.shape[1] > 3 and min(rows, columns) >= SMALLEST_KERNEL


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Move every singular value of matrices, (N, rows, columns), to about 1.

    The Newton-Schulz iteration X <- a X + (b X X' + c (X X')^2) X runs in float32, and begins with
    the matrices divided by their Frobenius norms.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.float()
    transposed = x.shape[1] > x.shape[2]
    x = x.mT if transposed else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if transposed else x).to(matrices.dtype)


def learning_rate_factor(
    schedule: str,
    step: int,
    epoch: float,
    progress: float,
    warmup: int,
    milestones: Sequence[float],
) -> float:
    """Return the share of the highest learning rate at a step.

    schedule: 'multistep' falls to a fifth at each of `milestones` (epochs); 'cosine' and 'linear'
    fall to 0 as `progress`, the share of the run, goes from 0 to 1. They begin with `warmup` steps
    of linear growth.
    """
    if schedule == "multistep":
        return 0.2 ** sum(epoch >= milestone for milestone in milestones)
    warm = min(1, (step + 1) / max(1, warmup))
    if schedule == "linear":
        return warm * (1 - progress)
    return warm * 0.5 * (1 + math.cos(math.pi * progress))
