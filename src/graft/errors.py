"""Every error Graft raises on purpose: one sentence that names the thing and the way out.

The command line prints the sentence without a traceback and exits with 2; anything else is a bug and keeps its traceback.
"""


class GraftError(Exception):
    """Base of all of Graft's own errors."""


class DataError(GraftError):
    """A data file, a row or a chat template cannot be used as it is."""


class TargetError(GraftError):
    """A method's targets match nothing, or match a fused projection and its rows at once."""


class AdapterError(GraftError):
    """An adapter cannot be attached, loaded, saved, merged or routed."""


class ModelError(GraftError):
    """A base model cannot be found, loaded or understood."""


class TrainingError(GraftError):
    """Training was stopped before it could do harm."""


class ServeError(GraftError):
    """A request, an adapter or a setting that cannot be served."""


class UnknownAdapter(ServeError):
    """No adapter has the name that was asked for."""


class Overloaded(ServeError):
    """More requests wait than may: later it may go."""


class Stopped(ServeError):
    """The engine does not run, or stopped before it answered."""


class Expired(ServeError):
    """A request was not answered within its time."""


class Failed(ServeError):
    """A request that could be answered was not, by a fault on this side."""
