"""Muon: an optimizer that makes the updates of matrix-shaped weights orthogonal.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024
(kellerjordan.github.io/posts/muon); weight decay as in J. Liu et al., "Muon is scalable for LLM
training", arXiv:2502.16982. torch.optim.Muon takes 2-D parameters only and iterates in bfloat16.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Adam):
    """Muon for the kernels of a network's inner convolutions, Adam for every other parameter.

    A kernel G, reshaped to (out, in * height * width), is updated as follows:

        M <- momentum * M + (1 - momentum) * gradient
        U <- orthogonalize((1 - momentum) * gradient + momentum * M)          Nesterov
        G <- (1 - lr * weight_decay) * G - lr * U

    Before that, the gradient of the whole network is scaled down to `clip` times its running norm
    if it exceeds that: one flat patch under SSIM gives a gradient that would fill the momentum for
    dozens of steps. Without weight decay the kernels' norms grow until training diverges.

    lr, adam_lr: the highest learning rates of the two parts, stored as initial_lr in their groups.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 0.01,
        adam_lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.02,
        clip: float = 2.5,
    ) -> None:
        kernels = [p for p in network.parameters() if is_inner_kernel(p)]
        others = [p for p in network.parameters() if not is_inner_kernel(p)]
        muon = {"params": kernels, "lr": lr, "initial_lr": lr, "momentum": momentum}
        muon |= {"weight_decay": weight_decay, "clip": clip, "running_norm": 0.0}
        super().__init__([muon, {"params": others, "lr": adam_lr, "initial_lr": adam_lr}])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, and drop the gradients of the kernels."""
        muon, adam = self.param_groups
        kernels = [p for p in muon["params"] if p.grad is not None]
        others = [p for p in adam["params"] if p.grad is not None]
        self._clip([p.grad for p in kernels + others], muon)
        for shape in {kernel.shape for kernel in kernels}:
            self._update([kernel for kernel in kernels if kernel.shape == shape], muon)
        super().step()

    def _clip(self, gradients: list[Tensor], group: dict[str, Any]) -> None:
        """Scale the gradients down to `clip` times the running mean of their norm."""
        norm = float(nn.utils.get_total_norm(gradients))
        mean = group["running_norm"] or norm
        limit = group["clip"] * mean
        if norm > limit:
            for gradient in gradients:
                gradient.mul_(limit / norm)
        group["running_norm"] = 0.98 * mean + 0.02 * min(norm, limit)

    def _update(self, kernels: list[Tensor], group: dict[str, Any]) -> None:
        """Take Muon's step with kernels of one shape."""
        directions = []
        for p in kernels:
            if not self.state[p]:  # Adam expects the number of steps in each state it loads
                self.state[p] = {"step": torch.zeros(()), "momentum": torch.zeros_like(p)}
            momentum = self.state[p]["momentum"].lerp_(p.grad, 1 - group["momentum"])
            directions.append(p.grad.lerp(momentum, group["momentum"]).flatten(1))
            p.grad = None  # hides the kernel from Adam's step, which follows
        for p, update in zip(kernels, orthogonalize(torch.stack(directions)), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.view(p.shape), alpha=-group["lr"])


def is_inner_kernel(parameter: Tensor) -> bool:
    """Return whether it is a kernel, but not of the first layer, the last one, or depthwise."""
    return parameter.dim() == 4 and parameter.shape[1] > 3 and len(parameter) > 3


def orthogonalize(matrices: Tensor) -> Tensor:
    """Move every singular value of matrices, (N, rows, columns), to about 1.

    Five steps of Newton-Schulz, X <- a X + (b X X' + c (X X')^2) X, in float32, begin with the
    matrices divided by their Frobenius norms.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT).mT
    a, b, c = 3.4445, -4.7750, 2.0315  # steepest at 0; singular values end in about [0.7, 1.2]
    x = matrices.float()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(matrices.dtype)
