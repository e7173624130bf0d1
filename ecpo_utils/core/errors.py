"""One exception class per boundary; each message says what failed, the value and what to do."""


class EcpoError(Exception):
    """Base of every error that is meant to be read by a user as one line."""


class ParamsError(EcpoError):
    """A parameter is unknown, missing or of the wrong type."""


class EndpointError(EcpoError):
    """A chat endpoint did not answer, or refused.

    Attributes:
        fatal: True where every further call must fail as well (wrong key, unknown model, nothing
            listening), so that the stage stops instead of writing one failed row after the other.
    """

    def __init__(self, message: str, *, fatal: bool = False):
        super().__init__(message)
        self.fatal = fatal


class ParseError(EcpoError):
    """A model's answer could not be read, even after one repair attempt."""


class SchemaError(EcpoError):
    """A file, line or record does not have the form it should have."""


class ArtifactError(EcpoError):
    """A file that a stage reads is missing, or one that it writes cannot be written."""


class ModelError(EcpoError):
    """Weights could not be had, or are not the ones they should be."""


class TrainingError(EcpoError):
    """Training cannot begin or go on: no data, data that are too long, weights that do not fit, a loss that is no number."""
