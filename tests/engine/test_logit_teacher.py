"""Learning from another model's logits: the loss by hand, and a step that follows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fakes import FakeData, make_model, make_trainer

from ecoformer.config.schema import OptimConfig, ScheduleConfig
from ecoformer.engine.logit_teacher import LogitTeacher

PLAIN = OptimConfig(name="momentum", lr=0.1, momentum=0.0, weight_decay=0.0)
CONSTANT = ScheduleConfig(name="constant", warmup_epochs=0)


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.3, 2.5)])
def test_loss_by_hand(weight: float, temperature: float) -> None:
    student, teacher = torch.randn(2, 5, 7).unbind()
    targets = torch.arange(5)
    labels = F.cross_entropy(student, targets)
    p, q = ((z / temperature).softmax(-1) for z in (teacher, student))
    divergence = (p * (p.log() - q.log())).sum(-1).mean()
    mixed = LogitTeacher(torch.nn.Identity(), weight, temperature).mix(labels, student, teacher)
    torch.testing.assert_close(mixed, (1 - weight) * labels + weight * temperature**2 * divergence)


def test_a_model_that_is_its_own_teacher_does_not_move(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make_model(dropout=0.0, batch_norm=False, hashed=False)
    twin = make_model(dropout=0.0, batch_norm=False, hashed=False)
    twin.load_state_dict(model.state_dict())
    before = {name: p.clone() for name, p in model.named_parameters()}
    for weight, moves in ((1.0, False), (0.5, True)):
        trainer = make_trainer(
            tmp_path / str(weight), FakeData(), model, optim=PLAIN, schedule=CONSTANT, epochs=1, max_steps=1
        )
        trainer.train_step.teacher = LogitTeacher(twin, weight, 1.0)
        trainer.fit()
        same = all(torch.allclose(p, before[name], atol=1e-6) for name, p in model.named_parameters())
        assert same != moves
    assert not any(p.requires_grad for p in twin.parameters()) and not twin.training
