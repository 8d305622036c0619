"""Train: the loop (`train`), how it is configured (`TrainConfig`), and what stops it before it does harm (`guards`)."""

from graft.train.loop import Trainable, token_losses, train
from graft.train.recipe import Step, TrainConfig, TrainResult

__all__ = ["Step", "TrainConfig", "TrainResult", "Trainable", "token_losses", "train"]
