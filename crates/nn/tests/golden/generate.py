"""Makes ops.safetensors and training.safetensors with PyTorch; the tests of crates/nn compare with them.

    pip install torch==2.15.0 safetensors
    python generate.py

The operations are computed in f64. The trainings run in f32 on one thread, from saved initial weights, on batches in order,
without dropout; their first 20 losses and last weights are kept. The biases of convolutions rest.
"""
import torch
import torch.nn.functional as F
from pathlib import Path
from safetensors.torch import save_file
from torch import nn

FOLDER = Path(__file__).parent
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def record(tensors, name, arguments, output, **extra):
    """Keeps arguments, output, and the gradients of sum(output * direction) for each argument that asks for one."""
    direction = torch.randn_like(output)
    (output * direction).sum().backward()
    tensors[f"{name}.output"] = output.detach()
    tensors[f"{name}.direction"] = direction
    for key, value in arguments.items():
        tensors[f"{name}.{key}"] = value.detach()
        if value.grad is not None:
            tensors[f"{name}.{key}.gradient"] = value.grad
    for key, value in extra.items():
        tensors[f"{name}.{key}"] = torch.as_tensor(value).clone()


def variable(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def operations():
    torch.manual_seed(20240201)
    tensors = {}
    # images, channels, outputs, height, width, kernel, stride, padding
    convolutions = [
        (2, 3, 4, 8, 8, 3, 1, 1),
        (1, 2, 3, 5, 7, 3, 1, 1),
        (3, 1, 2, 9, 6, 3, 2, 1),
        (2, 3, 5, 8, 8, 4, 2, 1),
        (2, 4, 3, 6, 5, 1, 1, 0),
        (1, 2, 2, 7, 7, 5, 1, 2),
        (2, 3, 2, 11, 9, 7, 2, 3),
        (5, 2, 3, 4, 4, 3, 1, 0),
        # wide enough for Winograd's algorithm: tiles that fit, tiles that stick out, no padding, several groups, one pixel
        (3, 9, 17, 8, 8, 3, 1, 1),
        (2, 17, 8, 7, 5, 3, 1, 1),
        (1, 8, 9, 6, 10, 3, 1, 0),
        (66, 8, 8, 4, 4, 3, 1, 1),
        (2, 8, 8, 1, 1, 3, 1, 1),
        (3, 24, 33, 6, 7, 3, 2, 1),
        (2, 20, 18, 5, 3, 1, 1, 0),
    ]
    for position, (n, c, o, h, w, kernel, stride, padding) in enumerate(convolutions):
        arguments = {"input": variable(n, c, h, w), "weight": variable(o, c, kernel, kernel), "bias": variable(o)}
        output = F.conv2d(arguments["input"], arguments["weight"], arguments["bias"], stride=stride, padding=padding)
        record(tensors, f"conv2d.{position}", arguments, output, stride=stride, padding=padding)
    for position, (n, i, o) in enumerate([(4, 6, 3), (1, 5, 7), (9, 1, 1)]):
        arguments = {"input": variable(n, i), "weight": variable(o, i), "bias": variable(o)}
        record(tensors, f"linear.{position}", arguments, F.linear(*arguments.values()))
    # images, channels, height, width, window, stride, padding
    poolings = [(2, 3, 8, 8, 2, 2, 0), (1, 2, 7, 5, 2, 2, 0), (3, 1, 9, 9, 3, 3, 0), (2, 9, 8, 7, 3, 2, 1), (1, 4, 5, 6, 3, 1, 1), (2, 2, 6, 6, 2, 3, 1)]
    for position, (n, c, h, w, size, stride, padding) in enumerate(poolings):
        for name, pool in [("max_pool2d", F.max_pool2d), ("avg_pool2d", F.avg_pool2d)]:
            arguments = {"input": variable(n, c, h, w)}
            record(tensors, f"{name}.{position}", arguments, pool(arguments["input"], size, stride, padding), size=size, stride=stride, padding=padding)
    # images, channels, outputs, height, width, kernel, stride, padding, rectified, pooled
    blocks = [
        (4, 3, 5, 8, 8, 3, 1, 1, 1, 1),
        (3, 9, 17, 8, 8, 3, 1, 1, 1, 1),
        (2, 8, 8, 7, 5, 3, 1, 1, 1, 1),
        (2, 8, 9, 6, 6, 3, 1, 1, 1, 0),
        (1, 2, 4, 9, 9, 3, 2, 1, 0, 0),
        (40, 8, 8, 4, 4, 3, 1, 1, 0, 1),
    ]
    for position, (n, c, o, h, w, kernel, stride, padding, rectified, pooled) in enumerate(blocks):
        for mode in ["train", "eval"]:
            arguments = {"input": variable(n, c, h, w), "weight": variable(o, c, kernel, kernel), "bias": variable(o), "scale": variable(o), "shift": variable(o)}
            mean, var = torch.randn(o, dtype=torch.float64), torch.rand(o, dtype=torch.float64) + 0.5
            before = mean.clone(), var.clone()
            output = F.conv2d(arguments["input"], arguments["weight"], arguments["bias"], stride=stride, padding=padding)
            output = F.batch_norm(output, mean, var, arguments["scale"], arguments["shift"], training=mode == "train", momentum=0.1)
            output = F.relu(output) if rectified else output
            output = F.max_pool2d(output, 2) if pooled else output
            extra = {"mean": before[0], "variance": before[1], "new_mean": mean, "new_variance": var}
            record(tensors, f"block_{mode}.{position}", arguments, output, stride=stride, padding=padding, rectified=rectified, pooled=pooled, **extra)
    for position, shape in enumerate([(3, 7, 20), (1, 5), (130, 33)]):
        arguments = {"input": variable(*shape), "scale": variable(shape[-1]), "shift": variable(shape[-1])}
        record(tensors, f"layer_norm.{position}", arguments, F.layer_norm(arguments["input"], shape[-1:], arguments["scale"], arguments["shift"], 1e-6))
    for position, shape in enumerate([(2, 3, 17, 8), (1, 1, 1, 5), (1, 2, 6, 20)]):
        arguments = {key: variable(*shape) for key in ["queries", "keys", "values"]}
        record(tensors, f"attention.{position}", arguments, F.scaled_dot_product_attention(*arguments.values()))
    arguments = {"input": variable(3, 7)}
    record(tensors, "relu.0", arguments, F.relu(arguments["input"]))
    for position, (n, classes, scale) in enumerate([(6, 10, 1.0), (1, 2, 1.0), (4, 3, 200.0)]):
        logits = (torch.randn(n, classes, dtype=torch.float64) * scale).requires_grad_()
        labels = torch.randint(classes, (n,))
        record(tensors, f"cross_entropy.{position}", {"logits": logits}, F.cross_entropy(logits, labels), labels=labels,
               each=F.cross_entropy(logits.detach(), labels, reduction="none"))
    rules = {"adam": lambda p: torch.optim.Adam(p, lr=0.01), "adam_decay": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
             "sgd": lambda p: torch.optim.SGD(p, lr=0.1), "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05)}
    for name, rule in rules.items():
        parameter = nn.Parameter(torch.randn(5))
        tensors[f"{name}.start"] = parameter.detach().clone()
        optimiser, gradients, values = rule([parameter]), torch.randn(4, 5), []
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimiser.step()
            values.append(parameter.detach().clone())
        tensors[f"{name}.gradients"], tensors[f"{name}.values"] = gradients, torch.stack(values)
    special(tensors)
    further(tensors)
    return tensors


def special(tensors):
    """Ties, zeros of either sign, infinities and what is not a number."""
    def integers(*shape, low=-1, high=2):
        return torch.randint(low, high, shape).double()

    nan, inf = float("nan"), float("inf")
    values = torch.tensor([[0.0, -0.0, nan, inf, -inf, 1.0, -1.0, nan, 0.0]], dtype=torch.float64)
    record(tensors, "relu_special.0", {"input": values.requires_grad_()}, F.relu(values))
    for position, (n, c, h, w, size, stride, padding) in enumerate([(2, 3, 8, 8, 2, 2, 0), (2, 9, 8, 7, 3, 2, 1), (1, 2, 7, 7, 3, 1, 1)]):
        for broken in [False, True]:
            values = integers(n, c, h, w)
            if broken:
                values[0, 0, :4] = -inf
                values[torch.rand(n, c, h, w) < 0.1] = nan
            arguments = {"input": values.requires_grad_()}
            record(tensors, f"max_pool2d_special.{2 * position + broken}", arguments, F.max_pool2d(values, size, stride, padding), size=size, stride=stride, padding=padding)
    # Few channels, so that the results are whole numbers and ties stay ties. images, channels, outputs, height, width, pooled
    for position, (n, c, o, h, w, pooled) in enumerate([(2, 2, 5, 8, 8, 1), (3, 1, 9, 7, 6, 1), (2, 3, 4, 5, 6, 0)]):
        for mode in ["train", "eval"]:
            arguments = {"input": integers(n, c, h, w), "weight": integers(o, c, 3, 3), "bias": integers(o), "scale": integers(o, high=1) * 2 + 1, "shift": integers(o) * 0}
            for value in arguments.values():
                value.requires_grad_()
            mean, var = torch.zeros(o, dtype=torch.float64), torch.ones(o, dtype=torch.float64)
            output = F.conv2d(arguments["input"], arguments["weight"], arguments["bias"], padding=1)
            output = F.relu(F.batch_norm(output, mean.clone(), var.clone(), arguments["scale"], arguments["shift"], training=mode == "train"))
            output = F.max_pool2d(output, 2) if pooled else output
            record(tensors, f"block_{mode}_ties.{position}", arguments, output, stride=1, padding=1, rectified=1, pooled=pooled, mean=mean, variance=var)
    # One pixel that is not a number: where the result is not one either.
    values = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    values[1, 2, 3, 4] = nan
    weight, vectors = torch.randn(5, 3, 3, 3, dtype=torch.float64), [torch.randn(5, dtype=torch.float64) for _ in range(4)]
    bias, scale, shift, mean = vectors
    output = F.max_pool2d(F.relu(F.batch_norm(F.conv2d(values, weight, bias, padding=1), mean, torch.ones(5, dtype=torch.float64), scale, shift)), 2)
    tensors |= {"block_broken.input": values, "block_broken.weight": weight, "block_broken.bias": bias, "block_broken.scale": scale,
                "block_broken.shift": shift, "block_broken.mean": mean, "block_broken.output": output}
    # Fewer values than PyTorch's loops take at a time: these round otherwise.
    parameter = nn.Parameter(torch.randn(3))
    tensors["adam_long.start"] = parameter.detach().clone()
    optimiser, gradients, values = torch.optim.Adam([parameter], lr=0.01), torch.randn(300, 3), []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimiser.step()
        values.append(parameter.detach().clone())
    tensors["adam_long.gradients"], tensors["adam_long.values"] = gradients, torch.stack(values)


def further(tensors):
    """What networks beside those of the paper are made of; last, so that the others keep their numbers."""
    for position, shape in enumerate([(2, 3, 4), (3, 4)]):
        arguments = {"input": variable(*shape), "weight": variable(2, 4)}
        record(tensors, f"linear_plain.{position}", arguments, F.linear(*arguments.values()))
    # images, inputs, outputs, height, width, kernel, stride, padding
    for position, (n, i, o, h, w, kernel, stride, padding) in enumerate([(2, 3, 2, 3, 2, 4, 2, 1), (1, 2, 3, 2, 3, 3, 1, 1)]):
        arguments = {"input": variable(n, i, h, w), "weight": variable(i, o, kernel, kernel), "bias": variable(o)}
        output = F.conv_transpose2d(*arguments.values(), stride=stride, padding=padding)
        record(tensors, f"conv_transpose2d.{position}", arguments, output, stride=stride, padding=padding)
    for mode in ["train", "eval"]:
        arguments = {"input": variable(3, 4, 3, 2), "scale": variable(4), "shift": variable(4)}
        mean, var = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5
        output = F.batch_norm(arguments["input"], mean.clone(), var.clone(), arguments["scale"], arguments["shift"], training=mode == "train")
        record(tensors, f"batch_norm_{mode}.0", arguments, output, mean=mean, variance=var)
    for position, groups in enumerate([1, 2, 4]):
        arguments = {"input": variable(2, 4, 3, 5), "scale": variable(4), "shift": variable(4)}
        record(tensors, f"group_norm.{position}", arguments, F.group_norm(arguments["input"], groups, arguments["scale"], arguments["shift"]), groups=groups)
    for position, (rectified, pooled) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        arguments = {"input": variable(2, 3, 5, 4), "scale": variable(3), "shift": variable(3)}
        output = F.instance_norm(arguments["input"], weight=arguments["scale"], bias=arguments["shift"])
        output = F.relu(output) if rectified else output
        output = F.avg_pool2d(output, 2) if pooled else output
        record(tensors, f"instance_block.{position}", arguments, output, rectified=rectified, pooled=pooled)
    for name, function in [("gelu", F.gelu), ("sigmoid", torch.sigmoid)]:
        values = (torch.randn(40, dtype=torch.float64) * 4).requires_grad_()
        record(tensors, f"{name}.0", {"input": values}, function(values))
    arguments = {"left": variable(3, 5), "right": variable(3, 5)}
    record(tensors, "add_relu.0", arguments, F.relu(arguments["left"] + arguments["right"]))
    for position, (h, w, rows, columns) in enumerate([(4, 4, 1, 1), (5, 4, 2, 3), (1, 1, 7, 7), (3, 5, 4, 2)]):
        arguments = {"input": variable(2, 2, h, w)}
        record(tensors, f"adaptive_avg_pool2d.{position}", arguments, F.adaptive_avg_pool2d(arguments["input"], (rows, columns)), rows=rows, columns=columns)
    for position, (n, tokens, heads, width) in enumerate([(2, 5, 3, 2), (1, 18, 1, 5)]):
        arguments = {"tokens": variable(n, tokens, 3 * heads * width)}
        # As timm's Attention splits and joins them.
        queries, keys, values = arguments["tokens"].reshape(n, tokens, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        output = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).reshape(n, tokens, heads * width)
        record(tensors, f"attention_of_tokens.{position}", arguments, output, heads=heads)
    labels, weights = torch.tensor([0, 3, 2, 2, 1]), torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)
    for position, (smoothing, weighted) in enumerate([(0.0, 0), (0.1, 0), (0.0, 1), (0.1, 1)]):
        for name, targets in [("smooth_cross_entropy", labels), ("soft_cross_entropy", torch.rand(5, 4, dtype=torch.float64).softmax(1))]:
            logits = variable(5, 4)
            loss = F.cross_entropy(logits, targets, weight=weights if weighted else None, label_smoothing=smoothing)
            record(tensors, f"{name}.{position}", {"logits": logits}, loss, targets=targets, smoothing=torch.tensor(smoothing, dtype=torch.float64), weighted=weighted, weights=weights)
    for position, temperature in enumerate([1.0, 4.0]):
        student, teacher = variable(5, 4), torch.randn(5, 4, dtype=torch.float64)
        loss = F.kl_div(F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1), reduction="batchmean", log_target=True)
        record(tensors, f"kl_divergence.{position}", {"student": student}, loss * temperature**2, teacher=teacher, temperature=temperature)
    arguments = {"left": variable(3, 4), "right": variable(3, 4)}
    record(tensors, "squared_error.0", arguments, F.mse_loss(*arguments.values()))
    # Each sample's gradient of a convolution's weight.
    values, weight, direction = torch.randn(3, 2, 5, 4, dtype=torch.float64), variable(3, 2, 3, 3), torch.randn(3, 3, 3, 2, dtype=torch.float64)
    each = [torch.autograd.grad((F.conv2d(image[None], weight, stride=2, padding=1) * by).sum(), weight)[0] for image, by in zip(values, direction)]
    tensors |= {"samples.input": values, "samples.direction": direction, "samples.gradients": torch.stack(each)}


def mlp(channels, size, widths, classes):
    return nn.Sequential(*[layer for a, b in zip([channels * size * size] + widths, widths + [classes]) for layer in (nn.Linear(a, b), nn.ReLU())][:-1]), \
        lambda net, x: net(x.flatten(1)), lambda key: f"linear{int(key.split('.')[0]) // 2 + 1}.{key.split('.')[1]}"


class Cnn(nn.Module):
    def __init__(self, channels, size, widths, hidden, classes):
        super().__init__()
        blocks = [layer for a, b in zip([channels] + widths, widths) for layer in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))]
        self.features = nn.Sequential(*blocks)
        side = size // 2 ** len(widths)
        self.classifier = nn.Sequential(nn.Linear(widths[-1] * side * side, hidden), nn.ReLU(), nn.Dropout(0.0), nn.Linear(hidden, classes))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def training(tensors, name, net, forward, rename, images, labels, parts=None, steps=20, batch=16):
    """Adam on all parameters; with `parts`, name prefixes, on those of one part a step, in turn, through the others, which are frozen."""
    for key, value in net.state_dict().items():
        tensors[f"{name}.start.{rename(key)}"] = value.clone()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        rows = [(step * batch + row) % len(images) for row in range(batch)]
        for key, parameter in net.named_parameters():
            # Batch normalisation takes a convolution's bias out again: its gradient is nothing but rounding, which Adam would blow up to full steps.
            is_taken_out = key.startswith("features.") and isinstance(net.get_submodule(key.rsplit(".", 1)[0]), nn.Conv2d) and key.endswith(".bias")
            parameter.requires_grad_(not is_taken_out and (parts is None or rename(key).startswith(parts[step % len(parts)])))
        optimiser.zero_grad()
        loss = F.cross_entropy(forward(net, images[rows]), labels[rows])
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    tensors[f"{name}.losses"] = torch.tensor(losses, dtype=torch.float64)
    for key, value in net.state_dict().items():
        tensors[f"{name}.end.{rename(key)}"] = value.clone()


def trainings():
    torch.manual_seed(20240202)
    images, labels = torch.randn(72, 3, 16, 16), torch.randint(5, (72,))
    tensors = {"images": images, "labels": labels}
    net, forward, rename = mlp(3, 16, [24, 12], 5)
    training(tensors, "mlp", net, forward, rename, images, labels)
    training(tensors, "cnn", Cnn(3, 16, [4, 8, 8, 12], 20, 5), lambda net, x: net(x), lambda key: key, images, labels)
    net, forward, rename = mlp(3, 16, [24, 12], 5)
    training(tensors, "mlp_parts", net, forward, rename, images, labels, [("linear1.",), ("linear2.",), ("linear3.",)])
    cut = [("features.0.", "features.1.", "features.4.", "features.5."), ("features.8.", "features.9.", "features.12.", "features.13."), ("classifier.",)]
    training(tensors, "cnn_parts", Cnn(3, 16, [4, 8, 8, 12], 20, 5), lambda net, x: net(x), lambda key: key, images, labels, cut)
    return tensors


for file, tensors in {"ops": operations(), "training": trainings()}.items():
    save_file({key: value.contiguous() for key, value in tensors.items()}, FOLDER / f"{file}.safetensors", {"made_by": f"generate.py with torch {torch.__version__}"})
