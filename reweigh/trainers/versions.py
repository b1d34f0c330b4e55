"""Which versions of the trainers the hooks have been checked with, and what is said of any other."""

from importlib.metadata import PackageNotFoundError, version

KNOWN: dict[str, tuple[str, ...]] = {"trl": ("1.13", "1.14", "1.15", "1.16"), "verl": ("0.9.1",)}
"""By package: release numbers or their beginnings. A framework that makes no releases is known by its arguments."""


class UnknownVersionError(ImportError):
    """A framework is a version that the adapter has not been checked with."""


class NotInstalledError(ModuleNotFoundError):
    """A framework is not there."""


def require(package: str) -> str:
    """Return the installed version of a package that an adapter knows.

    Args:
        package: a name in `KNOWN`.

    Raises:
        NotInstalledError: it is not installed.
        UnknownVersionError: it is another version; the message says which are known.
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
    if not any(installed == k or installed.startswith(f"{k}.") for k in known):
        raise UnknownVersionError(
            f"reweigh.trainers.{package}: {package} {installed} is not known; known versions are {named}\n"
            "hint: the adapter reaches into parts that change between releases; "
            f'pip install "{package}=={pin(known[-1])}", or a newer reweigh.'
        )
    return installed


def pin(known: str) -> str:
    """Write what goes behind `==`: a whole number as it is, the beginning of one with a star."""
    return known if known.count(".") >= 2 else f"{known}.*"
