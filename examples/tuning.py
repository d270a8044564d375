"""What the examples do to a model: convert a copy of it, and train it for a few steps."""

import copy
from dataclasses import replace

import torch

from ecoformer import InputError, convert, fit_hashes
from ecoformer.fit.hashes import has_hashes
from ecoformer.nn.specs import make_spec, split_setting


def converted(model, setting, size, samples=None, seed=0, most_steps=None):
    """A copy of a model with another attention, its codes fitted to samples where they are given."""
    model, spec = copy.deepcopy(model), make_spec(*split_setting(setting))
    if most_steps is not None and hasattr(spec, "fit_steps"):
        spec = replace(spec, fit_steps=most_steps)
    if spec is not None:
        convert(model, spec, img_size=size)
    if samples is not None and has_hashes(model):
        fit_hashes(model, samples, seed=seed)
    return model


def tune(model, loss_of, steps, lr, seed):
    """AdamW over all weights, the rate rising over a tenth of the steps and falling to zero.

    `loss_of` makes the loss of a step from its number and a generator of the seed. Raises InputError where a step is
    no number any more.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=lr, weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
        optimizer.zero_grad()
        loss_of(step, generator).backward()
        if not torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():
            raise InputError(f"the gradient is no number at step {step + 1} of {steps}, rate {lr:g}: lower the rate")
        optimizer.step()
