"""Names of a package that are imported on first use (PEP 562), and imports that cost seconds."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module


def lazy_exports(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """Return the `__getattr__` of a package whose import must stay light.

    Args:
        package: Its `__name__`.
        homes: Exported name -> module inside the package that defines it.
    """

    def __getattr__(name: str) -> object:  # noqa: N807
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with quick_imports():
            return getattr(import_module(f"{package}.{homes[name]}"), name)

    return __getattr__


@contextmanager
def quick_imports() -> Iterator[None]:
    """Leave garbage alone while modules are imported.

    What they make stays, and torch and transformers make so much of it that looking for garbage in
    between is a fifth of the time until a replica is there.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def imported_beside(module: str) -> AbstractContextManager[None]:
    """Import a module in a thread of its own, beside what the `with` block waits for.

    Args:
        module: Its name; whoever needs it meets the error where it cannot be imported.
    """

    def work() -> None:
        with suppress(ImportError):
            import_module(module)

    return done_beside(work, name=f"import {module}")


@contextmanager
def done_beside(work: Callable[[], None], *, name: str) -> Iterator[None]:
    """Do some work, such as imports, in a thread of its own, beside the `with` block.

    Args:
        work: Tells of no error: whoever needs what it makes meets that.
        name: Of the thread.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
