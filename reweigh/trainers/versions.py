"""Which versions of the trainers the hooks have been checked with, and what is said of any other."""

import warnings
from importlib.metadata import PackageNotFoundError, version

KNOWN: dict[str, tuple[str, ...]] = {"trl": ("1.13", "1.14", "1.16"), "verl": ("0.9.1",)}
"""By package: release numbers or their beginnings. A framework that makes no releases is known by its arguments."""


class UnknownVersionError(ImportError):
    """A framework is a version that the adapter has not been checked with, and its self-check failed."""


class UnknownVersionWarning(UserWarning):
    """A framework is a version that the adapter has not been checked with; its self-check runs."""


class NotInstalledError(ModuleNotFoundError):
    """A framework is not there."""


def require(package: str) -> str:
    """Return the installed version of a package, and warn if the adapter has not been checked with it.

    Args:
        package: a name in `KNOWN`.

    Raises:
        NotInstalledError: it is not installed.
    """
    known = KNOWN[package]
    named = ", ".join(known)
    try:
        installed = version(package)
    except PackageNotFoundError:
        raise NotInstalledError(
            f"reweigh.trainers.{package}: {package} is not installed; known versions are {named}\n"
            f'hint: pip install "{package}=={pin(known[-1])}"',
            name=package,
        ) from None
    if not is_known(package, installed):
        warnings.warn(
            f"reweigh.trainers.{package}: {package} {installed} is not known; known versions are {named}. The adapter "
            "reaches into parts that change between releases, so before it corrects it checks that the weights arrive, "
            f'and stops if they do not\nhint: pip install "{package}=={pin(known[-1])}", or a newer reweigh.',
            UnknownVersionWarning,
            stacklevel=3,
        )
    return installed


def is_known(package: str, installed: str) -> bool:
    """Tell whether the adapter has been checked with a version of a package.

    Args:
        package: a name in `KNOWN`.
        installed: the version's number.
    """
    return any(installed == k or installed.startswith(f"{k}.") for k in KNOWN[package])


def failed(package: str, installed: str, what: str) -> UnknownVersionError:
    """Make the error of a self-check that failed.

    Args:
        package: a name in `KNOWN`.
        installed: the version that is not known.
        what: the link that does not hold.
    """
    known = KNOWN[package]
    return UnknownVersionError(
        f"reweigh.trainers.{package}: {package} {installed} is not known, and its self-check fails: {what}\n"
        f'hint: pip install "{package}=={pin(known[-1])}" (known versions are {", ".join(known)}), or a newer reweigh.'
    )


def pin(known: str) -> str:
    """Write what goes behind `==`: a whole number as it is, the beginning of one with a star."""
    return known if known.count(".") >= 2 else f"{known}.*"
