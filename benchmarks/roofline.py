"""The minimum time of a computation on a machine, from its operations' FLOPs and bytes."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Roofline(TorchDispatchMode):
    """Counts, while active, each operation's FLOPs and the bytes that it reads and writes.

    Works on the meta device, which computes nothing. Views are free; every operator counts as a
    separate pass over memory, which fused ones can beat.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[tuple[int, int]] = []  # FLOPs, bytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not func.is_view:
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **kwargs, out_val=out) if count else 0
            leaves = tree_leaves((args, kwargs, out))
            touched = sum(x.numel() * x.element_size() for x in leaves if isinstance(x, Tensor))
            self.counts.append((flops, touched))
        return out

    def seconds(self, flop_rate: float, byte_rate: float) -> float:
        """The time of all operations in sequence, each at the slower of the two limits."""
        return sum(max(flops / flop_rate, size / byte_rate) for flops, size in self.counts)
