"""Every formula once more, slowly: scalars and loops where the library has tensors."""

import math

import torch
from torch.func import functional_call


def softmax(row, temperature):
    exps = [math.exp((a - max(row)) / temperature) for a in row]
    return [e / sum(exps) for e in exps]


def sparse_probability(epoch, epochs, p_low, p_up, warmup):
    """As published code has it: C gains its share before an epoch is trained."""
    c = p_low if warmup <= epoch else 0.0
    for e in range(min(epoch + 1, epochs)):
        if e >= warmup:
            c += (p_up - p_low) / (epochs - warmup)
    return min(1.0, c)


def entropy(rows):
    return -sum(w * math.log(w) for row in rows for w in row if w > 0)


def mixed(candidates, weights, x):
    return sum(w * op(x) for w, op in zip(weights, candidates, strict=True))


def leakage(candidates, weights, x):
    """(weight, output) leakage of one mixed operation."""
    k = max(range(len(weights)), key=lambda m: weights[m])
    strongest = (weights[k] * candidates[k](x)).norm().item()
    rest = sum(w * op(x) for m, (w, op) in enumerate(zip(weights, candidates, strict=True)) if m != k).norm().item()
    return sum(w for m, w in enumerate(weights) if m != k), rest / (strongest + rest)


def unrolled_alpha_gradient(model, alphas, loss, train_batch, val_batch, lr, momentum, decay, buffers, nesterov, sign):
    """DARTS-V2 without the finite difference: autograd through one SGD step, differentiated twice.

    ``alphas`` are names, ``buffers`` (momentum) by name; ``loss(outputs, targets)``; sign is -1 to maximise.
    """
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    weights = {name: p for name, p in parameters.items() if name not in alphas}

    def run(values, batch):
        return loss(functional_call(model, values, (batch[0],), tie_weights=True), batch[1])

    gradients = torch.autograd.grad(run(parameters, train_batch), list(weights.values()), create_graph=True)
    stepped = {}
    for (name, w), g in zip(weights.items(), gradients, strict=True):
        decayed = sign * g + decay * w.detach()
        velocity = momentum * buffers[name] + decayed if name in buffers else decayed
        stepped[name] = w.detach() - lr * (decayed + momentum * velocity if nesterov else velocity)
    value = run({**parameters, **stepped}, val_batch)
    return torch.autograd.grad(value, [parameters[name] for name in alphas])
