"""PyTorch models with a defect in what a layer holds, in its mode, or in the optimizer: BN1xx, BN2xx, BN4xx."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ._case import Case, Entry, register
from ._torch import ResNet, conv1d, convnet, cut, digits, features, images, mlp, seeded, standing, train, waves
from .torch_healthy_nets import transformers_model

ENTRIES: list[Entry] = []
defect = register(ENTRIES, "torch", seeded)


@defect("BN101")
def nan_batch_skipped_by_the_optimizer(seed: int) -> Case:
    """A loop that skips steps whose loss is NaN, as mixed precision does: the weights stay fine."""
    data = cut(*digits())
    model = train(convnet(), data)
    broken = data[0][0].clone()
    broken[3, 0, 2, 2] = float("nan")
    model(broken)
    return Case(standing(model, seed), data, "1")


@defect("BN101")
def division_by_zero_in_one_feature(seed: int) -> Case:
    data = cut(*features())
    model = train(nn.Sequential(nn.BatchNorm1d(16), mlp(16, 32, 4)), data)
    broken = data[5][0].clone()
    broken[:, 7] /= 0
    model(broken)
    return Case(standing(model, seed), None, "0")


@defect("BN101")
def task_arithmetic_on_the_whole_state(seed: int) -> Case:
    """Negating a task by extrapolation takes the buffers along: a variance below zero."""
    x, y = features()
    base = train(mlp(16, 32, 24, 4), cut(x, y))
    tuned = train(copy.deepcopy(base), cut(3 * x, y))
    with torch.no_grad():
        for (name, ours), theirs in zip(base.state_dict().items(), tuned.state_dict().values(), strict=True):
            if ours.is_floating_point():
                ours -= (2.0 if "running" in name else 0.2) * (theirs - ours)
    return Case(base.eval(), None, "1")


@defect("BN102")
def target_network_of_parameters(seed: int) -> Case:
    """Reinforcement learning: the target network takes the online network's parameters only."""
    data = cut(*features())
    online, target = train(mlp(16, 32, 32, 4), data), mlp(16, 32, 32, 4)
    for ours, theirs in zip(target.parameters(), online.parameters(), strict=True):
        ours.data.copy_(theirs.data)
    return Case(standing(target, seed), data, "1")


@defect("BN102")
def checkpoint_of_parameters(seed: int) -> Case:
    """Saved by ``named_parameters()``, loaded with ``strict=False``."""
    data = cut(*images())
    trained, model = train(ResNet(3, classes=4), data, 2), ResNet(3, classes=4)
    model.load_state_dict(dict(trained.named_parameters()), strict=False)
    return Case(model.eval(), None, "blocks.0.bn2")


@defect("BN102")
def trained_in_evaluation_mode(seed: int) -> Case:
    """``model.eval()`` after the first validation, and never ``train()`` again."""
    data = cut(*waves())
    return Case(train(conv1d().eval(), data, 4, lr=0.01), data, "1")


@defect("BN102")
def federated_average_of_parameters(seed: int) -> Case:
    x, y = digits(600)
    clients = [train(convnet(), cut(x[part], y[part]), 1) for part in torch.arange(600).chunk(3)]
    server = convnet()
    with torch.no_grad():
        for ours, *theirs in zip(server.parameters(), *(client.parameters() for client in clients), strict=True):
            ours.copy_(torch.stack(theirs).mean(0))
    return Case(standing(server, seed), cut(x, y), "4")


@defect("BN103")
def momentum_zero_to_freeze(seed: int) -> Case:
    model = train(conv1d(), cut(*waves()))
    model[1].momentum = 0.0
    return Case(standing(model, seed), None, "1")


@defect("BN103")
def momentum_zero_in_a_config(seed: int) -> Case:
    return Case(train(mlp(16, 24, 4, momentum=0.0), cut(*features())), None, "1")


@defect("BN103")
def tracking_switched_off_later(seed: int) -> Case:
    """To have the batch's statistics in evaluation, which it does not give: those of this moment stay, and are used."""
    data = cut(*digits())
    model = train(convnet(), data, 1)
    for layer in (model[1], model[4]):
        layer.track_running_stats = False
    return Case(standing(train(model, data), seed), data, "4")


@defect("BN104")
def momentum_from_keras(seed: int) -> Case:
    data = cut(*digits())
    return Case(standing(train(convnet(momentum=0.99), data), seed), data, "4")


@defect("BN104")
def momentum_of_an_old_keras_paper(seed: int) -> Case:
    data = cut(*features())
    return Case(standing(train(mlp(16, 32, 32, 4, momentum=0.9), data), seed), None, "4")


@defect("BN104", needs="transformers")
def momentum_of_a_published_mobilenet(seed: int) -> Case:
    """As transformers 5 has it: TensorFlow's number in PyTorch's argument."""
    case = transformers_model("MobileNetV1", seed, as_published=True, depth_multiplier=0.25, image_size=32)
    case.layer = "mobilenet_v1.conv_stem.normalization"
    return case


@defect("BN105")
def power_in_watts(seed: int) -> Case:
    """Microphone power, some 1e-8: the BatchNorm at the input does not normalise it."""
    x, y = waves()
    data = cut(x.square() * 1e-7, y)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Conv1d(4, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    return Case(standing(train(model.append(nn.Linear(8, 3)), data), seed), data, "0")


@defect("BN105")
def momentum_in_the_place_of_eps(seed: int) -> Case:
    """``BatchNorm2d(16, 0.8)``, as in a much-copied GAN: the second argument is eps."""
    x, y = images()
    model = convnet(3, classes=4)
    model[1] = nn.BatchNorm2d(8, 0.8)
    for conv in (model[0], model[3]):
        nn.init.normal_(conv.weight, 0, 0.02)
    return Case(standing(train(model, cut(x, y), lr=0.001), seed), cut(x, y), "1")


@defect("BN106")
def half_the_whole_model(seed: int) -> Case:
    return Case(train(convnet(), cut(*digits())).half().eval(), None, "1")


@defect("BN106")
def trained_in_bfloat16(seed: int) -> Case:
    x, y = features()
    model = train(mlp(16, 32, 32, 4).bfloat16(), cut(x.bfloat16(), y))
    return Case(standing(model, seed), cut(x.bfloat16(), y), "4")


@defect("BN107")
def convolution_with_a_bias(seed: int) -> Case:
    data = cut(*digits())
    model = ResNet()
    model.blocks[1].conv2 = nn.Conv2d(8, 8, 3, padding=1)
    return Case(standing(train(model, data, 2), seed), data, "blocks.1.bn2")


@defect("BN107")
def linear_with_a_bias(seed: int) -> Case:
    data = cut(*features())
    model = nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Linear(24, 4))
    return Case(standing(train(model, data), seed), data, "1")


@defect("BN108")
def diverged(seed: int) -> Case:
    """A root of negative numbers in the loss."""
    x, y = features()
    model = train(mlp(16, 24, 4), cut(x, y))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(x).sqrt().mean().backward()
    optimizer.step()
    return Case(standing(model, seed), None, "1")


@defect("BN108")
def overflow_in_float16(seed: int) -> Case:
    """A float16 checkpoint of a gamma above 65504, loaded again."""
    model = train(convnet(), cut(*digits()))
    with torch.no_grad():
        model[4].weight[0] = 1e5
    model.load_state_dict({name: value.half() for name, value in model.state_dict().items()})
    return Case(standing(model, seed), None, "4")


@defect("BN201")
def frozen_backbone_in_training_mode(seed: int) -> Case:
    """Transfer learning: no gradients for the backbone, and then ``model.train()``."""
    backbone = train(convnet(), cut(*digits()))[:-1].requires_grad_(False)
    return Case(nn.Sequential(backbone, nn.Linear(16, 2)).train(), None, "0.4")


@defect("BN201")
def frozen_batch_norms_only(seed: int) -> Case:
    data = cut(*images())
    model = train(ResNet(3, classes=4), data, 2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return Case(model.train(), data, "stem.1")


@defect("BN201")
def lower_half_frozen_while_evaluating(seed: int) -> Case:
    """Audited between two epochs, in evaluation mode: the upper half is tuned, the lower one drifts with it."""
    data = cut(*features())
    model = train(mlp(16, 32, 32, 4), data)
    model[:3].requires_grad_(False)
    return Case(standing(model, seed), data, "1")


@defect("BN202")
def frozen_until_the_next_epoch(seed: int) -> Case:
    data = cut(*digits())
    model = train(ResNet(), data, 2).train()
    model.stem.eval()
    return Case(model, data, "stem.1")


@defect("BN202")
def dropout_switched_on_with_its_block(seed: int) -> Case:
    """Monte Carlo dropout: the block that holds the dropout is set to training, and a BatchNorm with it."""
    data = cut(*features())
    block = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1))
    model = train(nn.Sequential(mlp(16, 32, 32), block, nn.Linear(32, 4)), data).eval()
    model[1].train()
    return Case(model, None, "1.1")


@defect("BN203")
def data_parallel(seed: int) -> Case:
    data = cut(*digits())
    return Case(standing(nn.DataParallel(train(convnet(), data)), seed), data, "1")


@defect("BN203")
def data_parallel_with_small_parts(seed: int) -> Case:
    data = cut(*features(256), size=8)
    return Case(nn.DataParallel(train(mlp(16, 24, 4), data)), data, "1")


@defect("BN401")
def decay_in_one_group(seed: int) -> Case:
    data = cut(*images())
    model = convnet(3, classes=4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    return Case(standing(train(model, data, optimizer=optimizer), seed), None, "1", optimizer)


@defect("BN401")
def decay_split_by_name(seed: int) -> Case:
    """Groups by "bias" in the name, as for transformers: gamma is in the group that decays."""
    data = cut(*features())
    model = mlp(16, 32, 4)
    groups = [{"params": [p for n, p in model.named_parameters() if "bias" not in n], "weight_decay": 0.1}]
    groups += [{"params": [p for n, p in model.named_parameters() if "bias" in n], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 1e-3)
    return Case(standing(train(model, data, optimizer=optimizer), seed), data, "1", optimizer)


@defect("BN403")
def only_the_head_in_the_optimizer(seed: int) -> Case:
    data = cut(*digits())
    model = train(convnet(), data, 2)
    optimizer = torch.optim.Adam(model[-1].parameters())
    return Case(train(model, data, 2, optimizer=optimizer).train(), data, "1", optimizer)


@defect("BN403")
def layer_added_after_the_optimizer(seed: int) -> Case:
    data = cut(*features())
    model = mlp(16, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    model.append(nn.BatchNorm1d(4))
    return Case(standing(train(model, data, optimizer=optimizer), seed), None, "4", optimizer)
