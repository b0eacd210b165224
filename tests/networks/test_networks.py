"""The contract that every network keeps, and what the published ones are."""

import copy
from weakref import ref

import pytest
import torch
from helpers.data import same_state
from torch.nn.functional import binary_cross_entropy_with_logits

from src import (
    LITE,
    NETWORKS,
    RSU,
    RSU4F,
    StageConfig,
    U2NetConfig,
    UserError,
    build_model,
    load_model,
    save_model,
)
from src.networks.u2net import ConvBNReLU

TINY = U2NetConfig(
    name="tiny",
    encoder=(
        StageConfig("En1", 3, 3, 4, 8, side=True),
        StageConfig("En2", 2, 8, 4, 12, dilated=True, side=True),
    ),
    decoder=(StageConfig("De1", 4, 20, 4, 8, side=True),),
    out_ch=3,
    activation="softmax",
)
NARROW = {  # the networks without a stage table, an eighth as wide: the same code, 1/64 the weights
    name: {"name": name, "width": 8} for name in ("unet", "unet_bn", "fcn8s", "segnet")
}
EVERY = {**{name: NARROW.get(name, name) for name in NETWORKS}, "custom table": TINY}


@pytest.fixture(scope="module", params=EVERY)
def network(request):
    torch.manual_seed(0)
    return build_model(EVERY[request.param])


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (45, 61)])
def test_shapes(network, size):
    """Training gives logits of the fused map and all sides, eval probabilities; odd sizes too."""
    picture = torch.randn(2, 3, *size)
    config = network.config
    stages = (*config.encoder, *config.decoder) if hasattr(config, "encoder") else ()
    sides = sum(s.side for s in stages)
    maps = network.train()(picture)
    seen = (4, 4) if network.margin else size
    count = sides + getattr(config, "fuse_sides", True)  # IS-Net's answer is the finest side map
    assert [tuple(m.shape) for m in maps] == [(2, config.out_ch, *seen)] * count
    assert network.num_maps == len(maps) == len(set(network.map_names))
    assert min(m.min() for m in maps) < 0, "training must give logits"
    with torch.no_grad():
        fused = network.eval()(picture)
        logits = network.logits(picture)[0]
    assert fused.shape == (2, config.out_ch, *size) and fused.dtype == torch.float32
    expected = logits.softmax(1) if config.activation == "softmax" else logits.sigmoid()
    assert torch.equal(fused, expected)


def test_gradient_reaches_every_parameter(network):
    picture = torch.randn(2, 3, 64, 64)
    maps = network.train()(picture)
    target = torch.rand_like(maps[0])
    sum(binary_cross_entropy_with_logits(m, target) for m in maps).backward()
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    network.zero_grad(set_to_none=True)
    assert not dead


@pytest.mark.parametrize("name", ["custom table", "isnet_lite", *NARROW])
def test_recomputed_stages_give_the_same_step(name):
    """To the bit: maps, gradients, batch norm's statistics, dropout and all; and less is kept."""
    all_kept, plain = _step(name, recompute=False)
    few_kept, recomputed = _step(name, recompute=True)
    assert few_kept < all_kept
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def _step(name, recompute):
    """How many tensors a training step keeps for the gradient, and all that comes of it."""
    torch.manual_seed(0)
    network = build_model(EVERY[name]).train()
    network.recompute = recompute
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        maps = network(torch.randn(2, 3, 64, 64))
    sum(m.square().mean() for m in maps).backward()
    return len(kept), [*maps, *(p.grad for p in network.parameters()), *network.buffers()]


def test_maps_that_a_hook_keeps_stay_as_they_are(network):
    """Without gradients too, where a sum may be made in place; of all blocks and stages."""
    blocks = [m for m in network.modules() if isinstance(m, ConvBNReLU | RSU)]
    blocks += [m for m in network.children() if not isinstance(m, torch.nn.ModuleList)]
    kept = []

    def keep(module, args, output):
        kept.append((output, output.clone()))

    hooks = [block.register_forward_hook(keep) for block in blocks]
    for mode in (network.train, network.eval):
        with torch.no_grad():
            mode()(torch.randn(2, 3, 64, 48))
    for hook in hooks:
        hook.remove()
    assert kept and all(torch.equal(output, before) for output, before in kept)


def test_fuse_changes_nothing(network):
    """Batch norm statistics far from 0 and 1, so that a wrong fold would show."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    picture = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        before = network.eval()(picture)
        after = network.fuse()(picture)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    assert (before - after).abs().max() < 1e-5


def test_synchronised_batch_norm_is_folded_too():
    """What several GPUs train with must be scored as what they ship."""
    model = build_model("u2net_lite").eval()
    picture = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        expected = model(picture)
        synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
        assert synchronised.state_dict().keys() == model.state_dict().keys()
        fused = synchronised.fuse()
        assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in fused.modules())
        assert torch.allclose(fused(picture), expected, atol=1e-5)


def test_half_the_size(tmp_path):
    """Convolutions in 16 bits, all else as it was; read as float32 again."""
    model = build_model("u2net_lite").eval()
    for half in (False, True):
        save_model(model, tmp_path / f"{half}.safetensors", half=half)
    sizes = [(tmp_path / f"{half}.safetensors").stat().st_size for half in (False, True)]
    assert sizes[1] < 0.55 * sizes[0] and sizes[1] < 2.6e6
    loaded = load_model(tmp_path / "True.safetensors")
    originals = model.state_dict()
    for name, value in loaded.state_dict().items():
        original = originals[name]
        assert value.dtype == original.dtype
        expected = original.half().float() if original.ndim > 1 else original
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_save_and_load(network, suffix, tmp_path):
    """A file alone rebuilds the network, bit for bit, and knows its size."""
    network.img_size = 160
    save_model(network, tmp_path / f"net{suffix}")
    loaded = load_model(tmp_path / f"net{suffix}")
    assert loaded.config == network.config and loaded.img_size == 160 and not loaded.training
    assert same_state(loaded.state_dict(), network.state_dict())


def test_a_fused_network_is_not_saved(tmp_path):
    """Its file would rebuild a network with batch norm, and fit nothing."""
    with pytest.raises(UserError, match="before fuse"):
        save_model(build_model("u2net_lite").fuse(), tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


def test_export_keeps_sizes_dynamic(network):
    """One exported program serves other batches and sizes, odd ones too."""
    network = copy.deepcopy(network).eval()
    dynamic = torch.export.Dim.DYNAMIC  # a size frozen into the program would be an error
    shapes = {"x": {0: dynamic, 2: dynamic, 3: dynamic}}
    stride = max(network.stride, 32)  # a map of one pixel would be taken for a constant
    example = torch.randn(2, 3, 2 * stride, 3 * stride)
    program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    program = program.module(check_guards=False)  # torch 2.11 makes one of ceil mode, see export.py
    picture = torch.randn(1, 3, 45, 61)
    with torch.no_grad():
        assert torch.allclose(program(picture), network(picture), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "channels", "count"),
    [
        ("u2net_full", {}, 43_995_469),
        ("u2net_lite", {}, 1_128_333),
        ("unet", {"in_ch": 1, "out_ch": 2}, 31_030_658),  # "31.03 M" everywhere
    ],
)
def test_parameter_counts(name, channels, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in build_model(name, **channels).parameters()) == count


@pytest.mark.parametrize(
    ("name", "classes", "megabytes"), [("fcn8s", 21, 539), ("segnet", 11, 117)]
)
def test_sizes_of_the_vgg_networks(name, classes, megabytes):
    """Against the model sizes in float32 that the SegNet paper gives for both."""
    with torch.device("meta"):
        network = build_model(name, out_ch=classes)
    own = 4 * sum(p.numel() for p in network.parameters()) / 1e6
    assert own == pytest.approx(megabytes, rel=0.01)


@pytest.mark.parametrize("bias", [False, True])
def test_two_inputs_are_a_concatenation(bias):
    """In training as in eval mode, outputs and gradients, up to the order of additions."""
    torch.manual_seed(0)
    block = ConvBNReLU(12, 7, dilation=2, bias=bias)
    x, skip = torch.randn(2, 5, 9, 8), torch.randn(2, 7, 9, 8)
    results = []
    for inputs in ([x, skip], torch.cat((x, skip), dim=1)):
        output = block.train()(inputs)
        block.zero_grad()
        output.square().sum().backward()
        results.append((output, block.conv.weight.grad.clone(), block.eval()(inputs)))
        block.bn.reset_running_stats()
    for pair, whole in zip(*results, strict=True):
        assert torch.allclose(pair, whole, atol=1e-4)


@pytest.mark.parametrize("height", [32, 51])
def test_maps_are_free_once_they_are_read(height):
    """What a stage concatenates is gone when its first convolution begins: 65 MB in float32 at the
    last stage for 320²."""
    network = build_model("u2net_lite").eval()
    upsampled, encoded, left = [], [], []

    def noting(refs):
        return lambda _, inputs, output: refs.append(ref(output))

    def count(_, inputs):
        left.append([sum(kept() is not None for kept in refs) for refs in (upsampled, encoded)])

    network.upsample.register_forward_hook(noting(upsampled))
    for stage in network.encoder:
        stage.register_forward_hook(noting(encoded))
    for stage in network.decoder:
        stage.conv_in.conv.register_forward_pre_hook(count)
    with torch.inference_mode():
        network(torch.randn(1, 3, height, 40))
    # The deepest map stays, for its side output.
    assert left == [[0, 5], [0, 4], [0, 3], [0, 2], [0, 1]]


def test_out_ch_is_free():
    network = build_model("u2net_lite", out_ch=4, in_ch=1).eval()
    assert network(torch.randn(1, 1, 32, 32)).shape == (1, 4, 32, 32)


def test_rsu4f_is_the_dilated_rsu():
    """The dilations of the paper, and every map at full size."""
    block = RSU4F(8, 4, 6).eval()
    convs = [*block.encoder, block.bottom, *block.decoder]
    assert [c.conv.dilation[0] for c in convs] == [1, 2, 4, 8, 4, 2, 1]
    assert block(torch.randn(1, 8, 5, 7)).shape == (1, 6, 5, 7)


@pytest.mark.parametrize("height", [2, 4, 7])
def test_rsu_layout(height):
    """Channels of each convolution as section 3.1 of the paper draws them."""
    block = RSU(height, 5, 3, 8)
    encoding = [(c.conv.in_channels, c.conv.out_channels) for c in block.encoder]
    decoding = [(c.conv.in_channels, c.conv.out_channels) for c in block.decoder]
    assert encoding == [(8, 3)] + [(3, 3)] * (height - 2)
    assert decoding == [(6, 3)] * (height - 2) + [(6, 8)]
    assert block.bottom.conv.dilation == (2, 2)


def test_sides_go_from_fine_to_coarse():
    """The side maps' own resolution, before they are brought to the picture's size, halves."""
    network = build_model(LITE).eval()
    sizes = []
    for side in network.sides:
        side.register_forward_hook(lambda m, args, out: sizes.append(out.shape[-1]))
    network(torch.randn(1, 3, 64, 64))
    assert sizes == [64, 32, 16, 8, 4, 2]
