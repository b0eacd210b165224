"""One optimizer step and its parts: accumulation, clipping, decay, schedule, average."""

import pytest
import torch
from helpers.data import SMALL

from benchmarks.compute import train_step
from src import UserError, build_model
from train_utils.training import optim
from train_utils.training.checkpoint import load_checkpoint
from train_utils.training.losses import DeepSupervision
from train_utils.training.trainer import Trainer


def test_a_bad_gradient_of_a_sound_loss_is_seen():
    model = build_model("u2net_lite").train()
    trainer = make_trainer(model)
    model.out_conv.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = model.out_conv.bias.detach().clone()
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    step = trainer.step([(pictures, torch.ones(2, 1, 32, 32), torch.arange(2))])
    assert step.losses.isfinite().all() and not step.taken
    assert torch.equal(model.out_conv.bias, before)


def test_average_forgets_its_beginning():
    """After 20 updates of a constant, hardly any of the first weights is left, though 0.999^20 is
    0.98; after many the decay is the one asked for."""
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, 0.0)
    ema = optim.MovingAverage(layer, 0.999)
    ema.update_parameters(layer)
    torch.nn.init.constant_(layer.weight, 1.0)
    for _ in range(20):
        ema.update_parameters(layer)
    assert ema.module.weight.item() > 0.99
    ema.n_averaged.fill_(10**6)
    torch.nn.init.constant_(ema.module.weight, 0.0)
    ema.update_parameters(layer)
    assert ema.module.weight.item() == pytest.approx(0.001, rel=1e-3)


def test_average_of_batch_norm():
    """Its statistics too, which would else be those of a network that was never trained."""
    norm = torch.nn.BatchNorm1d(1)
    ema = optim.MovingAverage(norm, 0.9)
    ema.update_parameters(norm)
    norm.running_mean.fill_(1.0)
    ema.update_parameters(norm)
    assert ema.module.running_mean.item() == pytest.approx(1 - 2 / 11)  # (1 + n) / (10 + n), n = 1
    for _ in range(20):
        norm(torch.ones(2, 1))
        ema.update_parameters(norm)
    assert ema.module.num_batches_tracked == 20


def test_accumulation_equals_the_large_batch():
    """Without batch norm in the way, two half batches step like one whole one."""
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    masks = torch.randint(0, 2, (4, 1, 32, 32), dtype=torch.uint8)
    results = []
    for split in (4, 2):
        torch.manual_seed(1)
        model = build_model("u2net_lite").eval()
        model.training = True  # the top level alone: its list of logits, running statistics inside
        trainer = make_trainer(model)
        parts = zip(pictures.split(split), masks.split(split), strict=True)
        trainer.step([(picture, mask, torch.arange(len(mask))) for picture, mask in parts])
        results.append(model.out_conv.weight.detach().clone())
    assert torch.allclose(*results, atol=1e-6)


def make_trainer(model, dtype=torch.float32, **options):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = optim.make_scheduler(optimizer, 0, 10)
    scaler = optim.make_scaler(torch.device("cpu"), dtype)
    return Trainer(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=scaler,
        loss=DeepSupervision(),
        dtype=dtype,
        **options,
    )


def small_batch():
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    return pictures, torch.ones(2, 1, 32, 32, dtype=torch.uint8), torch.arange(2)


def length(model, before):
    """Of what a step has changed."""
    moved = zip(model.parameters(), before, strict=True)
    return sum(((p.detach() - b) ** 2).sum() for p, b in moved).sqrt().item()


def test_clipping_bounds_the_step():
    """The step of plain SGD is lr times the gradient, so its length shows the clipped norm."""
    model = build_model(SMALL).train()
    before = [p.detach().clone() for p in model.parameters()]
    make_trainer(model, clip_grad=0.01).step([small_batch()])
    assert length(model, before) == pytest.approx(0.1 * 0.01, rel=1e-2)


def test_float16_clips_the_true_gradient():
    """And not that of the loss that was scaled up."""
    model = build_model(SMALL).train()
    trainer = make_trainer(model, torch.float16, clip_grad=0.01)
    assert trainer.scaler.is_enabled() and trainer.scaler.get_scale() > 1000
    before = [p.detach().clone() for p in model.parameters()]
    step = trainer.step([small_batch()])
    assert step.taken and 0.01 < step.norm < 1000
    assert length(model, before) == pytest.approx(0.1 * 0.01, rel=1e-2)


def test_float16_lowers_its_scale_where_gradients_overflow():
    """Which is no bad step, but for scales below 1; and a resumed run goes on with its scale."""
    model = build_model(SMALL).train()
    trainer = make_trainer(model, torch.float16)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = [p.detach().clone() for p in model.parameters()]
    step = trainer.step([small_batch()])
    assert not step.taken and step.losses.isfinite().all() and length(model, before) == 0
    assert trainer.scaler.get_scale() == 2.0**59 and trainer.bad_steps == 0
    resumed = make_trainer(build_model(SMALL).train(), torch.float16)
    resumed.load_state_dict(trainer.state_dict())
    assert resumed.scaler.get_scale() == 2.0**59
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    trainer.loss = lambda *args: tuple(value * torch.inf for value in DeepSupervision()(*args))
    trainer.step([small_batch()])
    assert trainer.scaler.get_scale() == 0.5 and trainer.bad_steps == 1


def test_a_loss_that_is_not_finite_though_its_gradient_is():
    model = build_model(SMALL).train()
    trainer, sound = make_trainer(model), DeepSupervision()
    trainer.loss = lambda *args: (sound(*args)[0] + torch.inf, sound(*args)[1])
    before = [p.detach().clone() for p in model.parameters()]
    assert not trainer.step([small_batch()]).taken and length(model, before) == 0


def test_a_compiled_step_is_built_for_each_size(monkeypatch):
    """Inductor cannot build it for a size that varies, which torch would ask for at the second."""
    built, original = [], torch.nn.Module.compile

    def backend(graph, inputs):
        values = [i for i in inputs if not isinstance(i, torch.Tensor)]
        sizes = [size for i in inputs if isinstance(i, torch.Tensor) for size in i.shape]
        built.append(all(type(value) is int for value in [*values, *sizes]))
        return graph

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda net, **options: original(net, backend=backend, **options)
    )
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2):  # to give up after, usually 8
        trainer = make_trainer(build_model(SMALL), compile=True)
        for side in (32, 40, 48, 56):
            count = len(built)
            batch = torch.zeros(2, 3, side, side, dtype=torch.uint8)
            assert trainer.step([(batch, batch[:, :1], torch.arange(2))]).taken
            assert len(built) > count, side
    torch._dynamo.reset()
    assert all(built)


def test_a_checkpoint_of_an_older_version_is_refused(tmp_path):
    """Whichever part it lacks."""
    state = make_trainer(build_model(SMALL)).state_dict()
    torch.save(state, tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt").keys() == state.keys()
    for part in state.keys() - {"img_size", "optimizer"}:
        torch.save({k: v for k, v in state.items() if k != part}, tmp_path / "last.pt")
        with pytest.raises(UserError, match=rf"an older version's state of a run \(no {part}\)"):
            load_checkpoint(tmp_path / "last.pt")


def test_random_numbers_go_on_where_they_were():
    """Dropout's, say."""
    trainer = make_trainer(build_model(SMALL))
    state = trainer.state_dict()
    expected = torch.rand(3)
    trainer.load_state_dict(state)
    assert torch.equal(torch.rand(3), expected)


def test_no_decay_on_norms_and_biases():
    model = build_model("u2net_lite")
    decayed, free = optim.make_optimizer(model, 1e-3, 0.1).param_groups
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0
    names = {id(p): name for name, p in model.named_parameters()}
    kinds = (torch.nn.BatchNorm2d,)
    norms = {f"{n}.weight" for n, module in model.named_modules() if isinstance(module, kinds)}
    expected = norms | {name for name in names.values() if name.endswith("bias")}
    assert {names[id(p)] for p in free["params"]} == expected
    assert {names[id(p)] for p in decayed["params"]} == set(names.values()) - expected


def rates(warmup, total):
    """The learning rate of each step of a run, and the one after its last."""
    optimizer = optim.make_optimizer(torch.nn.Linear(2, 2), 1.0, 0)
    scheduler = optim.make_scheduler(optimizer, warmup, total)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(total):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_schedule():
    """Linear from almost nothing to the peak at the end of warm-up, then down to almost nothing."""
    *found, after = rates(10, 110)
    assert found[0] == pytest.approx(1e-3) and found[5] == pytest.approx(0.5, abs=1e-3)
    assert found.index(max(found)) == 10 and max(found) == pytest.approx(1)
    assert found[60] == pytest.approx(0.5, abs=2e-3) and found[-1] < 2e-3
    assert after == pytest.approx(1e-3)


def test_a_short_run_warms_up_for_half_of_it():
    *found, _ = rates(100, 10)
    assert found.index(max(found)) == 5 and max(found) == pytest.approx(1)


def test_statistics_that_are_not_finite_though_loss_and_gradient_are():
    """Batch norm turns activations of 1e20 into sound ones, but their variance is beyond float32:
    the network would train on, and its saved weights could never be used."""
    model = build_model(SMALL).train()
    trainer = make_trainer(model)
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    conv = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    conv.weight.data *= 1e20
    before = [p.detach().clone() for p in model.parameters()]
    variance = norm.running_var.clone()
    step = trainer.step([small_batch()])
    assert step.losses.isfinite().all() and not step.taken
    assert length(model, before) == 0 and torch.equal(norm.running_var, variance)
    assert trainer.bad_steps == 1 and trainer.is_finite()
    norm.running_var.fill_(torch.inf)
    assert not trainer.is_finite()


def test_benchmarked_steps():
    """What the benchmark takes for our step is one, and the tutorials' too."""
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    masks = torch.ones(2, 1, 32, 32, dtype=torch.uint8)
    for make in (train_step.our_step, train_step.tutorial_step):
        model = build_model(SMALL).train()
        before = [parameter.clone() for parameter in model.parameters()]
        make(model, images, masks)()
        pairs = zip(before, model.parameters(), strict=True)
        assert not any(torch.equal(old, new) for old, new in pairs if new.ndim == 4)
