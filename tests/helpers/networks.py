"""Networks with a fault."""

from torch import nn


def break_network(network):
    """Weights that are all finite, and maps that are not."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data *= 1e8
    return network
