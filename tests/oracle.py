"""Networks with ReLU by hand, in NumPy and float64: what the scripts' updates are compared with."""

import numpy as np


def layers(network):
    """Return the weights and biases of each linear layer."""
    return [
        tuple(p.detach().double().numpy().copy() for p in layer.parameters())
        for layer in network[::2]
    ]


def forward(network, x):
    """Return the outputs, and the input of each layer."""
    inputs = []
    for weight, bias in network:
        inputs.append(np.maximum(x, 0) if inputs else x)
        x = inputs[-1] @ weight.T + bias
    return x, inputs


def backward(network, inputs, gradient):
    """From the gradient of the outputs, return those of the parameters and that of the inputs."""
    parameters = []
    for number, ((weight, _), x) in reversed(list(enumerate(zip(network, inputs)))):
        parameters = [gradient.T @ x, gradient.sum(0), *parameters]
        gradient = gradient @ weight
        if number:
            gradient = gradient * (x > 0)
    return parameters, gradient


def first_adam_step(gradient, rate):
    """Adam's first step: its moments, once corrected, are the gradient and its square."""
    return -rate * gradient / (np.abs(gradient) + 1e-8)
