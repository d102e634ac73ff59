"""The one tree of errors that Polyweft raises on purpose.

Each message says what came, what was expected, and what to do. A stage turns any of them into one line on
standard error and exit code 1; an error outside this tree is a defect and keeps its traceback.
"""


class PolyweftError(Exception):
    """The root: catch this to catch everything that Polyweft raises on purpose."""


class ConfigError(PolyweftError):
    """A parameter is unknown, has the wrong type, or is out of range."""


class DataError(PolyweftError):
    """A source, a manifest, a medium or a split cannot be used as it is."""


class MediaError(DataError):
    """One image, audio clip or video cannot be read: broken, too large, or not what its name says."""


class CheckFailedError(DataError):
    """A data check that `params.yaml` set to `fail` found something."""


class TrainingError(PolyweftError):
    """Training cannot start or go on: a non-finite loss, a lost worker, a batch larger than the data."""


class ExportError(PolyweftError):
    """The exported model is invalid or differs from the trained one."""


class RegistryError(PolyweftError):
    """A version, alias or lineage record is missing or does not match."""


class ServingError(PolyweftError):
    """The inference server, a model in it, or an answer from it is not as it must be."""


class FlowError(PolyweftError):
    """The graph cannot be read or run by a driver."""
