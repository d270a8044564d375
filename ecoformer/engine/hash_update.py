"""When hash functions are fitted, and the callback that does it."""

from collections.abc import Callable
from dataclasses import asdict
from operator import attrgetter

from ecoformer.config.schema import HashUpdateConfig
from ecoformer.engine import distributed, parallel
from ecoformer.engine.callbacks import Callback, Training
from ecoformer.engine.progress import paced
from ecoformer.errors import InputError
from ecoformer.files.table import Column, Table, render
from ecoformer.fit.contract import JointFitReport, joint_line
from ecoformer.fit.hashes import HashFitReport, fit_hashes, has_hashes, hash_layers, layers_to_fit
from ecoformer.nn.fitted_state import FittedState


def due(config: HashUpdateConfig, step: int, steps_per_epoch: int) -> bool:
    """Whether hashes are fitted before optimiser step `step` (from 0, over the whole run). Pure, so a resume agrees.

    `every=n` means the first steps of epochs 0, n, 2n, ..., as published (n = 300 there); `every_steps=n` steps 0, n,
    2n, ...; the warm-up steps 0, `warmup_every`, ... below `warmup_steps`. Nothing is due once frozen.
    """
    epoch, step_of_epoch = divmod(step, steps_per_epoch)
    frozen = (config.freeze_epoch is not None and epoch >= config.freeze_epoch) or (
        config.freeze_step is not None and step >= config.freeze_step
    )
    if not config.enabled or frozen:
        return False
    if step_of_epoch == 0 and (epoch in config.at_epochs or (config.every > 0 and epoch % config.every == 0)):
        return True
    if step < config.warmup_steps and step % config.warmup_every == 0:
        return True
    return config.every_steps > 0 and step % config.every_steps == 0


def fit_steps(config: HashUpdateConfig, steps_per_epoch: int, epochs: int) -> list[int]:
    """The steps of a run before which hashes are fitted, in order; without training the first is the evaluation."""
    return [step for step in range(max(1, steps_per_epoch * epochs)) if due(config, step, steps_per_epoch)]


def schedule_line(config: HashUpdateConfig, steps_per_epoch: int, epochs: int, samples: str = "images") -> str:
    """When a run fits, for the launch plan; epochs and steps count from 1 there."""
    steps = fit_steps(config, steps_per_epoch, epochs)
    if not steps:
        return "never"
    if all(step % steps_per_epoch == 0 for step in steps):
        unit, numbers = "epoch", [step // steps_per_epoch + 1 for step in steps]
    else:
        unit, numbers = "step", [step + 1 for step in steps]
    listed = ", ".join(map(str, numbers[:5])) + (f", ... ({len(numbers)} times)" if len(numbers) > 5 else "")
    return f"before {unit} {listed}, on {config.num_images} {samples}"


def fit_seed(seed: int, step: int) -> int:
    """The seed of images and anchors for the fit before `step`: another one each time, the same on a resume."""
    return (seed * 1_000_003 + step * 7_919 + 17) % 2**63


class HashUpdate(Callback):
    """Fits the hash functions of all layers on training images, before the steps that are due.

    Rank 0 fits, then every rank gets its buffers. The EMA model's buffers are made equal too: codes that differ
    from the ones the weights are trained with would be wrong, and averaged ones are no codes.
    """

    name = "hash_update"

    def __init__(self, config: HashUpdateConfig) -> None:
        self.config = config
        self._told = False  # that nothing can be fitted

    def on_epoch_start(self, trainer: Training, epoch: int) -> None:
        self._fit_if_due(trainer, trainer.step)

    def on_step_start(self, trainer: Training, step: int) -> None:
        if step % trainer.steps_per_epoch != 0:  # an epoch's first step is prepared outside its clock
            self._fit_if_due(trainer, step)

    def fits_before(self, trainer: Training, step: int) -> bool:
        """Whether a fit is due before this step, and possible."""
        return self._is_due(trainer, step) and self._refusal(trainer) is None

    def fits_later(self, trainer: Training, epochs: int) -> bool:
        """Whether a fit is due from the next step on, and possible."""
        steps = fit_steps(self.config, trainer.steps_per_epoch, epochs) if has_hashes(trainer.model) else []
        return any(step >= trainer.step for step in steps) and self._refusal(trainer) is None

    def require_first_fit(self, trainer: Training) -> None:
        """Raise InputError where functions that nobody fitted would run before the first fit."""
        unfitted = any(isinstance(part, FittedState) and not part.is_fitted for part in trainer.model.modules())
        if unfitted and not self._is_due(trainer, trainer.step):
            raise InputError(
                f"callbacks.hash_update (enabled={self.config.enabled}, at_epochs={self.config.at_epochs}) fits "
                "nothing before the first step, and nothing is fitted: let it, or start from a fitted checkpoint"
            )

    def fit(
        self,
        trainer: Training,
        step: int,
        on_joint: Callable[[JointFitReport], None] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> list[HashFitReport]:
        """Fit now, as before `step`, and give every rank and the EMA model the result.

        Args:
            on_joint: gets the report of a joint fit, on rank 0, which fits.
            say: gets lines of progress.
        Raises:
            InputError: what the fit refuses, on every rank.
        """
        layers = hash_layers(trainer.model).items()
        if parallel.holds_shares(trainer.model) and any(layer.fits_parameters for _, layer in layers):
            raise InputError("train.parallel=fsdp shares weights that this hash fit would change: use ddp")

        def fitted() -> list[HashFitReport]:
            num_images = self.config.num_images
            left = max(0, trainer.data.num_train - num_images)
            seed = fit_seed(trainer.seed, step)
            images = trainer.data.calibration_images(num_images + min(self.config.held_out_images, left), seed=seed)
            told = paced(say, "joint fit")

            def on_joint_step(step: int, steps: int) -> None:
                told(step, steps)
                trainer.stop_if_asked()

            # The first ones are those of a fit without held-out images.
            return fit_hashes(
                trainer.model,
                images[:num_images],
                seed=seed,
                on_report=lambda report: trainer.stop_if_asked(),
                held_out=images[num_images:],
                on_joint=on_joint,
                on_joint_step=on_joint_step,
            )

        with parallel.whole_weights(trainer.model):
            reports = distributed.decided_by_main(fitted)
        changed = [layer.named_parameters(name) for name, layer in layers if layer.fits_parameters]
        trainer.sync_buffers([name for parameters in changed for name, _ in parameters])
        return reports

    def _fit_if_due(self, trainer: Training, step: int) -> None:
        if not self._is_due(trainer, step):
            return
        epoch, step_of_epoch = divmod(step, trainer.steps_per_epoch)
        when = f"step {step_of_epoch + 1} of epoch {epoch + 1}" if step_of_epoch else f"epoch {epoch + 1}"
        refusal = self._refusal(trainer)
        if refusal is None:
            joint: list[JointFitReport] = []
            reports = self.fit(trainer, step, joint.append, trainer.print)
            for report in reports:
                trainer.log("hash_fit", **asdict(report))
            if reports:
                trainer.print(_table(f"{when}: {self.config.num_images} {trainer.data.samples}", reports))
            for together in joint:
                trainer.log("joint_fit", **asdict(together))
                trainer.print(joint_line(together))
        elif not self._told:
            trainer.print(f"no hash fit before {when} or later: {refusal}")
            self._told = True

    def _is_due(self, trainer: Training, step: int) -> bool:
        return due(self.config, step, trainer.steps_per_epoch) and has_hashes(trainer.model)

    @staticmethod
    def _refusal(trainer: Training) -> str | None:
        refusals = (layer.refit_refusal() for layer in layers_to_fit(trainer.model).values())
        return next((refusal for refusal in refusals if refusal), None)


def _table(when: str, reports: list[HashFitReport]) -> str:
    figures, form = {"error": "attention_error", "random": "random_error", "uniform": "uniform_error"}, "{:.3f}"
    if all(report.attention_error is None for report in reports):
        figures, form = {"loss": "objective_before", "fitted": "objective_after"}, "{:.4g}"
    columns = [
        Column("block", attrgetter("block"), left=True),
        *(Column(heading, attrgetter(key), form) for heading, key in figures.items()),
        Column("kept", lambda r: f"{r.accepted_bits}/{r.num_bits}"),
        Column("flipped", attrgetter("flipped_bits"), "{:.0%}"),
        Column("balance", attrgetter("bit_balance"), "{:.2f}"),
        Column("corr.", attrgetter("bit_correlation"), "{:.2f}"),
        Column("s", attrgetter("seconds"), "{:.1f}"),
    ]
    title = f"hash fit before {when}, {sum(r.seconds for r in reports):.1f} s"
    return render(Table(columns, reports), "table", title)
