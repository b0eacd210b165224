"""The operations between the convolutions of a CPU training step, in fewer passes over memory.

``kernels.cpp`` has the loops, ``library`` builds and loads them, ``functions`` makes them
differentiable, ``layers`` puts them into a network.
"""

from .layers import use_kernels

__all__ = ["use_kernels"]
