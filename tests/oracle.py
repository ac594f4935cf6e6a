"""Networks with ReLU by hand, in NumPy and float64: what the scripts' updates are compared with."""

import numpy as np
import torch


def make_batch(S, actions, seed=0):
    """Return s, a, r, s_next, terminated, and the same as a replay buffer would give them."""
    rng, size = np.random.default_rng(seed), len(actions)
    s, s_next = rng.normal(size=(2, size, S))
    arrays = s, actions, rng.normal(size=size), s_next, np.arange(size) % 3 == 0
    names = "observation", "action", "reward", "next_observation", "terminated"
    tensors = [torch.tensor(x) if x.dtype == np.int64 else torch.tensor(x).float() for x in arrays]
    return arrays, dict(zip(names, tensors))


def parameters(network):
    """Return the weight and the bias of each layer, one after the other."""
    return [parameter.detach().double().numpy() for parameter in network.parameters()]


def forward(network, x):
    """Return the outputs, and the input of each layer."""
    inputs = []
    for weight, bias in zip(network[::2], network[1::2]):
        inputs.append(np.maximum(x, 0) if inputs else x)
        x = inputs[-1] @ weight.T + bias
    return x, inputs


def backward(network, inputs, gradient):
    """From the gradient of the outputs, return those of the parameters and that of the inputs."""
    gradients = []
    for number, x in reversed(list(enumerate(inputs))):
        gradients = [gradient.T @ x, gradient.sum(0), *gradients]
        gradient = gradient @ network[2 * number]
        if number:
            gradient = gradient * (x > 0)
    return gradients, gradient


def first_adam_step(gradient, rate):
    """Adam's first step: its moments, once corrected, are the gradient and its square."""
    return -rate * gradient / (np.abs(gradient) + 1e-8)
