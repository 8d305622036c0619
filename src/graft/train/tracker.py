"""Trackers: accelerate's, which send a run's losses to where a user watches them."""

from dataclasses import asdict
from typing import Any

from accelerate import Accelerator

from graft.errors import TrainingError
from graft.train.recipe import TrainConfig


def tracked(config: TrainConfig) -> Any:
    """One process, the model where the caller put it, and the tracker asked for."""
    log_with = None if config.tracker == "none" else config.tracker
    try:
        accelerator = Accelerator(device_placement=False, mixed_precision="no", log_with=log_with, project_dir=config.tracker_dir)
    except ValueError as error:
        raise TrainingError(f"accelerate refuses tracker {config.tracker!r}: {error}") from error
    if accelerator.num_processes > 1:
        raise TrainingError("training runs in one process; start it without a launcher.")
    if log_with and not accelerator.log_with:
        raise TrainingError(f"tracker {config.tracker!r} is not installed; install its package, or choose --tracker none.")
    if log_with:
        accelerator.init_trackers("graft", config=asdict(config))
    return accelerator
