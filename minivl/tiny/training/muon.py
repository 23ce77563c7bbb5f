"""Muon (Keller Jordan, 2024): momentum whose singular values are all made about 1, for the matrices inside a network.

PyTorch's own computes in bfloat16, which is emulated on a CPU without bfloat16 arithmetic; this one updates matrices of
one shape together, in bfloat16 only if asked to.
"""

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steep at 0; values end between 0.7 and 1.2 after five rounds


class Muon(torch.optim.Optimizer):
    """`lr` has the same meaning as in AdamW: the root mean square of an update is one typical of AdamW (0.2 lr).

    dtype   of the Newton-Schulz products; momentum and weights keep their own
    """

    def __init__(self, params, lr=1e-3, momentum=0.95, weight_decay=0.01, dtype=torch.float32):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append(p)
            for shape, matrices in alike.items():
                updates = orthogonal(
                    torch.stack([self.momentum(p, group["momentum"]) for p in matrices]).to(self.dtype)
                )
                for p, update in zip(matrices, updates):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-0.2 * max(shape) ** 0.5 * group["lr"])

    def momentum(self, p, share):
        """Nesterov momentum of a matrix's gradient."""
        average = self.state[p].setdefault("average", torch.zeros_like(p))
        average.lerp_(p.grad, 1 - share)
        return p.grad.lerp(average, share)


def orthogonal(x):
    """Matrices [..., M, N] with their singular values moved to about 1."""
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.mT).mT
    a, b, c = NEWTON_SCHULZ
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
