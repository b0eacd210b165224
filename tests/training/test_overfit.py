"""Every network learns four real pictures by heart, in seconds: small and narrow, on the CPU."""

import pytest
import torch
from helpers.data import ROOT

from my_dataset import find_splits, load_pair
from src import build_model
from src.device import pick_dtype
from src.inference.preprocess import normalize
from train_utils.training.losses import DeepSupervision
from transforms import TrainPreset

ECSSD = ROOT.parent / "shared/data/ECSSD"
pytestmark = pytest.mark.skipif(not ECSSD.is_dir(), reason="needs ../shared/data/ECSSD")

CASES = {  # network, side of the pictures, steps, learning rate
    "unet": ({"name": "unet", "width": 8}, 204, 130, 2e-3),  # learns their inner 20²
    "unet_bn": ({"name": "unet_bn", "width": 8}, 32, 100, 3e-3),
    "fcn8s": ({"name": "fcn8s", "width": 8}, 112, 220, 2e-3),
    "segnet": ({"name": "segnet", "width": 16}, 48, 80, 3e-3),
}


@pytest.mark.parametrize("name", CASES)
def test_four_pictures(name):
    torch.manual_seed(0)
    table, side, steps, rate = CASES[name]
    network = build_model(table).to(memory_format=torch.channels_last)
    pairs = [TrainPreset(side, side)(*load_pair(p)) for p in find_splits(ECSSD)[0].pairs[:4]]
    pictures, masks = (torch.stack(part) for part in zip(*pairs, strict=True))
    pictures = normalize(pictures)
    loss = DeepSupervision(loss="bce+dice")
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    dtype = pick_dtype("auto", torch.device("cpu"))
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # it is there to prevent just this
    for _ in range(steps):
        with torch.autocast("cpu", dtype, dtype != torch.float32):
            total, _ = loss(network(pictures), masks)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    network.train(network.margin > 0)  # unet learned what training mode sees of a picture
    with torch.no_grad():
        found = network.logits(pictures)[0] > 0
    edge = (side - found.shape[-1]) // 2
    truth = masks[..., edge : side - edge, edge : side - edge] > 0
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert dice > 0.95, float(dice)
