"""Every error the package raises on purpose: what was got, what was wanted, what to do."""

from sklearn.exceptions import NotFittedError as _SklearnNotFitted


class OneShotError(Exception):
    """Base of all errors of this package."""


class ConfigError(OneShotError, ValueError):
    """A parameter, recipe or backbone name that cannot be used."""


class ImageError(OneShotError, ValueError):
    """An image whose content, shape or type cannot be used."""


class BlankImageError(ImageError):
    """An image with one value everywhere."""


class ImageTypeError(ImageError, TypeError):
    """An input that is no image, or pixels of a type whose range is unknown."""


class ImageFileError(ImageError, OSError):
    """A file or folder that is missing, unreadable or holds no image."""


class NoPictureError(ImageFileError):
    """A DICOM object that is no picture, such as a segmentation, a dose grid or a report.

    Attributes
    ----------
    modality
        Of the object, such as ``"SEG"``.
    """

    def __init__(self, message: str, modality: str = "") -> None:
        super().__init__(message)
        self.modality = modality


class ExtraError(OneShotError, ImportError):
    """An optional package that is not installed."""


class WeightsError(OneShotError, RuntimeError):
    """Backbone weights that are missing, damaged or of another architecture."""


class PersistenceError(OneShotError, RuntimeError):
    """A saved detector that is missing, damaged or of another version, or a folder that cannot take one."""


class HubError(PersistenceError, OSError):
    """The Hub refused, could not be reached, or broke off."""


class ArchiveError(OneShotError, OSError):
    """A picture archive that cannot be reached, refuses, or lacks what was asked for."""


class NotFittedError(OneShotError, _SklearnNotFitted):
    """``predict`` was called before ``fit``."""
