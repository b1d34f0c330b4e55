"""Compiles `reweigh/native` for a wheel, with the clang of the PyPI package ziglang; needs no other compiler.

A wheel has the kernel of one platform, whose tag it bears, and is for every Python 3. The platform is that of this
machine, or, from any machine, one of `TARGETS`:

    REWEIGH_TARGET=macosx_11_0_arm64 python -m build --wheel
    REWEIGH_TARGET=any python -m build --wheel     # without a kernel: torch does its work
    python hatch_build.py                          # compiles into reweigh/native/ of this checkout

Where ziglang cannot be had or fails, the wheel is one without a kernel: an installation does not fail for it, and
`reweigh --version` says what is used.
"""

import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

X86 = {"_base": "x86_64", "_v3": "x86_64_v3", "_v4": "x86_64_v4"}  # dispatch.cpp picks
# Tag of the wheel: zig's target, and the builds of the kernel by suffix.
TARGETS = {
    "manylinux_2_17_x86_64": ("x86_64-linux-gnu.2.17", X86),
    "manylinux_2_17_aarch64": ("aarch64-linux-gnu.2.17", {"_base": "generic"}),
    "musllinux_1_2_x86_64": ("x86_64-linux-musl", X86),
    "musllinux_1_2_aarch64": ("aarch64-linux-musl", {"_base": "generic"}),
    "macosx_11_0_arm64": ("aarch64-macos.11.0", {"_base": "apple_m1"}),
    "macosx_11_0_x86_64": ("x86_64-macos.11.0", X86),
    "win_amd64": ("x86_64-windows-gnu", X86),
}
PURE = "any"
NAME = "kernel.bin"  # as native/__init__.py has it
SOURCE = Path("reweigh", "native")
# No fast-math and no contraction: the same bits on every processor. Nothing of the C++ library is used.
FLAGS = [
    *(
        "-O3",
        "-std=c++20",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-exceptions",
        "-fno-rtti",
        "-fvisibility=hidden",
    ),
    *("-g0", "-nostdinc++", "-fno-sanitize=all", "-Wall", "-Wno-psabi"),
]


def host() -> str:
    """Name this machine's platform; `PURE` if there is no kernel for it."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if sys.maxsize < 2**32:
        return PURE
    if sys.platform == "linux":
        libc = "manylinux_2_17" if platform.libc_ver()[0] == "glibc" else "musllinux_1_2"
        return f"{libc}_{machine}"
    if sys.platform == "darwin":
        return f"macosx_11_0_{'arm64' if machine == 'aarch64' else machine}"
    return "win_amd64" if (sys.platform, machine) == ("win32", "x86_64") else PURE


def compiled(root: Path, tag: str, out: Path, *flags: str) -> Path:
    """Compile the kernel for a platform into a folder.

    Args:
        root: of the checkout.
        tag: one of `TARGETS`.
        out: the folder.
        flags: of the compiler, beside `FLAGS`, which come before them.

    Returns:
        The library.

    Raises:
        subprocess.CalledProcessError: if the compiler fails; it has said why.
    """
    target, builds = TARGETS[tag]
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", target]
    own = [*FLAGS, *flags, *([] if "windows" in target else ["-fPIC"])]
    with tempfile.TemporaryDirectory() as folder:

        def one(suffix: str) -> Path:
            made = Path(folder, f"kernel{suffix}.o")
            source = root / SOURCE / "kernel.cpp"
            mine = [f"-mcpu={builds[suffix]}", *own, f"-DSUFFIX={suffix}"]
            subprocess.run([*zig, *mine, "-c", str(source), "-o", str(made)], check=True)
            return made

        with ThreadPoolExecutor() as pool:
            objects = [str(path) for path in pool.map(one, builds)]
        strip = [] if "macos" in target else ["-s"]
        built = Path(folder, NAME)
        link = [*own, "-shared", *strip, "-nostdlib++", str(root / SOURCE / "dispatch.cpp"), *objects]
        subprocess.run([*zig, *link, "-o", str(built)], check=True)
        out.mkdir(parents=True, exist_ok=True)
        # At once, and as a new file: a process that has the old one loaded keeps it.
        fresh = out / f".{NAME}.{os.getpid()}"
        fresh.write_bytes(built.read_bytes())
        fresh.chmod(0o755)
        fresh.replace(out / NAME)
    return out / NAME


class Hook(BuildHookInterface):
    """Puts the kernel into a wheel; an editable one has it in the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and name the wheel's platform.

        Args:
            version: "standard" or "editable".
            build_data: what hatchling makes the wheel of.
        """
        asked = os.environ.get("REWEIGH_TARGET")
        tag = asked or (PURE if os.environ.get("REWEIGH_NATIVE") == "0" else host())
        if asked and asked not in {*TARGETS, PURE}:
            raise ValueError(f"REWEIGH_TARGET: must be one of {', '.join([*TARGETS, PURE])}, got {asked!r}")
        if tag not in TARGETS:
            return
        root = Path(self.root)
        out = root / SOURCE if version == "editable" else root / "build" / "native" / tag
        try:
            library = compiled(root, tag, out)
        except (OSError, subprocess.CalledProcessError) as e:
            if asked:
                raise
            self.app.display_warning(f"reweigh: no compiled kernel, torch will do its work: {e}")
            return
        if version != "editable":
            build_data["force_include"][str(library)] = (SOURCE / library.name).as_posix()
        build_data["tag"] = f"py3-none-{tag}"
        build_data["pure_python"] = False


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.stdout.write(f"{compiled(here, host(), here / SOURCE, *sys.argv[1:])}\n")
