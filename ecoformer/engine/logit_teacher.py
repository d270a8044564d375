"""Learning from another model's outputs: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.

Shapes: B batch, K classes, S pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LogitTeacher:
    """A trained model whose logits a run learns from, beside the labels. It is no part of the run's state.

    Args:
        model: in evaluation mode from here on, and without gradients.
        weight: share of the teacher in the loss, above 0 and at most 1.
        temperature: divides both logits; the term is multiplied by its square, so gradients keep their size.
    """

    def __init__(self, model: nn.Module, weight: float, temperature: float) -> None:
        self.model = model.eval().requires_grad_(False)
        self.weight, self.temperature = weight, temperature

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        self.model.to(device).to(memory_format=memory_format)

    @torch.no_grad()
    def logits(self, images_B3SS: Tensor) -> Tensor:
        """The teacher's logits (B, K); under the caller's autocast."""
        out: Tensor = self.model(images_B3SS)
        return out

    def mix(self, label_loss: Tensor, logits_BK: Tensor, teacher_BK: Tensor) -> Tensor:
        """(1 - weight) label_loss + weight T^2 KL(teacher || student), a mean over the batch, in float32."""
        student, teacher = (F.log_softmax(z.float() / self.temperature, dim=-1) for z in (logits_BK, teacher_BK))
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - self.weight) * label_loss + self.weight * self.temperature**2 * divergence
