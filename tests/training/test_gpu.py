"""What a GPU would be asked to do, without one: tensors that have a device and a shape, no values.

Operations on tensors of different devices raise here as they would there. Backward passes need a
real device, so each gradient is made by hand.
"""

from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from src import build_model
from src.inference import preprocess
from src.pictures.classes import most_probable
from train_utils.metrics.measures.saliency import to_levels
from train_utils.training.losses import DeepSupervision
from train_utils.training.optim import MovingAverage, make_optimizer, make_scaler, make_scheduler
from train_utils.training.trainer import Trainer

GPU = torch.device("cuda:0")
CASES = {  # network, side of the pictures, classes, loss
    "lite": ("u2net_lite", 64, 1, "bce+dice+iou+ssim"),
    "classes": ("segnet", 64, 11, "ce+dice+iou"),
    "no padding": ("unet", 204, 1, "bce"),
}


@pytest.fixture
def waits():
    """The GPU's tensors whose values the program asked for, each a moment in which it waits."""
    asked = []

    def value(tensor):
        if tensor.device == GPU:
            asked.append(tensor.shape)
        return True

    def copied(tensor):
        value(tensor)
        return tensor.to("cpu")

    preprocess._mean_and_std.cache_clear()
    FakeTensorMode.__deepcopy__ = lambda self, memo: self  # the average is a copy of the network
    answers = {"__bool__": value, "item": value, "cpu": copied}
    with FakeTensorMode(), ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(Tensor, name, answer))
        yield asked
    del FakeTensorMode.__deepcopy__
    preprocess._mean_and_std.cache_clear()


# What torch's own copy of such a tensor does.
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_once(waits, case):
    """Of two batches, in bf16, clipped and averaged: devices don't mix; results are read once."""
    name, side, classes, loss = CASES[case]
    with GPU:
        model = build_model(name, out_ch=classes).train()
    optimizer = make_optimizer(model, 1e-3, 1e-4)
    ema = MovingAverage(model, 0.9)
    ema.n_averaged = torch.zeros((), dtype=torch.long)  # else known here, and copied for real
    weights = [1.0] * max(2, classes)
    criterion = DeepSupervision(None, loss, classes, None if classes == 1 else 255, weights).to(GPU)
    scaler = make_scaler(torch.device("cpu"), torch.float32)  # a GPU's asks for a driver
    schedule = make_scheduler(optimizer, 2, 10)
    trainer = Trainer(
        model=model,
        optimizer=optimizer,
        scheduler=schedule,
        scaler=scaler,
        loss=criterion,
        dtype=torch.bfloat16,
        ema=ema,
        clip_grad=1.0,
    )
    batch = [torch.zeros(2, channels, side, side, dtype=torch.uint8) for channels in (3, 1)]
    reached = []

    def backward(loss):
        reached.append(loss.device)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    with (
        patch.object(Tensor, "backward", backward),
        patch("torch.cuda.is_available", lambda: True),  # for autocast
        patch("torch.cuda.is_bf16_supported", lambda: True),
        patch("torch.cuda.is_current_stream_capturing", lambda: False),  # torch 2.11's optimizer
    ):
        step = trainer.step([(*batch, torch.arange(2))] * 2)
    assert reached == [GPU, GPU] and step.losses.device.type == "cpu"
    assert len(waits) == 1


def test_scoring_does_not_wait(waits):
    """Of a map on its way to 8 bits, and of maps to classes."""
    assert to_levels(torch.zeros(50, 70, device=GPU), stretch=True).device == GPU
    assert most_probable(torch.zeros(11, 50, 70, device=GPU)).device == GPU
    assert not waits
