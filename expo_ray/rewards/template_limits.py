"""Chat templates are programs of strangers: how long one may run and how much it may write.

Their sandbox keeps them from files and commands, not from loops within loops. Each is tried once,
in a process of its own with limits that nothing escapes; and whatever a template does on one chat
alone is ended by a limit on time and on text.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from expo_ray.errors import CheckpointError

MAX_CHARACTERS = 32 * 2**20
"""Of one chat as a template writes it: more than any context holds."""
MAX_SECONDS = 20.0
"""For one chat, which takes milliseconds."""
_PROBE_CPU_SECONDS = 5
_PROBE_WALL_SECONDS = 120
"""On a machine so busy that the processor's seconds take long."""
_BEYOND_LIMITS = 3

_PROBE = """
import json, resource, sys
import jinja2, jinja2.ext, jinja2.nodes, jinja2.sandbox
asked = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_CPU, (asked["seconds"], asked["seconds"]))
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
class Generation(jinja2.ext.Extension):
    tags = {"generation"}
    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)
def refuse(message):
    raise jinja2.exceptions.TemplateError(message)
env = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
env.filters["tojson"] = lambda value, **how: json.dumps(value)
env.globals.update(raise_exception=refuse, strftime_now=lambda form: "today")
try:
    template = env.from_string(asked["template"])
    for chat in asked["chats"]:
        size = 0
        try:
            how = {"messages": chat, "add_generation_prompt": True, **asked["tokens"]}
            for piece in template.generate(how):
                size += len(piece)
                if size > asked["characters"]:
                    sys.exit(3)
        except jinja2.exceptions.TemplateError:
            pass
except MemoryError:
    sys.exit(3)
except Exception:
    pass
"""


class TemplateLimitError(Exception):
    """A template went on for longer, or wrote more, than any chat needs."""


def limit_templates() -> None:
    """Let no sandboxed template of this process, which are those of checkpoints, run without end.

    transformers renders them; this is where their text comes together.
    """
    ImmutableSandboxedEnvironment.concat = staticmethod(_limited)


def require_bounded(tokenizer: Any, *, where: str) -> None:
    """Try the chat templates of a tokenizer.

    Raises:
        CheckpointError: One does not come to an end.
    """
    templates = tokenizer.chat_template or ()
    templates = templates.values() if isinstance(templates, dict) else (templates,)
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    for template in filter(None, templates):
        reason = _unbounded(str(template), json.dumps(tokens, sort_keys=True))
        if reason is not None:
            raise CheckpointError(
                "the chat template does not come to an end",
                where=where,
                got=reason,
                hint="it is broken or hostile: give a checkpoint with another chat_template",
            )


@cache
def _unbounded(template: str, tokens: str) -> str | None:
    """Return why a template is not usable; one that refuses or fails on the sample is."""
    ask, tell = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}
    asked = {
        "template": template,
        "tokens": json.loads(tokens),
        "chats": [[ask], [{"role": "system", "content": "Be brief."}, ask, tell, ask]],
        "seconds": _PROBE_CPU_SECONDS,
        "characters": MAX_CHARACTERS,
    }
    try:
        probe = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE],
            input=json.dumps(asked).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PROBE_WALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {_PROBE_WALL_SECONDS} s on a chat of one turn"
    if probe.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"no end within {_PROBE_CPU_SECONDS} s of a processor on a chat of one turn"
    if probe.returncode == _BEYOND_LIMITS:
        return f"more than {MAX_CHARACTERS} characters, or 2 GiB of memory, on a chat of one turn"
    return None


def _limited(pieces: Iterable[str]) -> str:
    text, size = io.StringIO(), 0
    with _time_limit(MAX_SECONDS):
        for piece in pieces:
            size += len(piece)
            if size > MAX_CHARACTERS:
                raise TemplateLimitError(f"it writes more than {MAX_CHARACTERS} characters")
            text.write(piece)
    return text.getvalue()


_limits = threading.local()


class _OutOfTimeError(Exception):
    pass


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise in this thread when it has used its time: a template is Python, which looks.

    It is time of a processor: a busy machine, or one that slept, is no fault of a template.
    """
    if getattr(_limits, "is_set", False):  # a macro of a template that is being rendered
        yield
        return
    thread, lock, is_over = threading.get_ident(), threading.Lock(), threading.Event()
    clock = _clock_of(thread)
    stop = time.clock_gettime(clock) + seconds

    def watch() -> None:
        left = seconds
        while not is_over.wait(left):
            with lock:
                if is_over.is_set():
                    return
                left = stop - time.clock_gettime(clock)
                if left <= 0:
                    _raise_in(thread, _OutOfTimeError)
                    return

    _limits.is_set = True
    threading.Thread(target=watch, daemon=True).start()
    try:
        try:
            yield
        finally:
            with lock:
                is_over.set()
                _raise_in(thread, None)  # what was sent and has not arrived would arrive elsewhere
    except _OutOfTimeError as error:  # which may have arrived in the lines above
        raise TemplateLimitError(
            f"it does not come to an end within {seconds:g} s of a processor"
        ) from error
    finally:
        is_over.set()
        _limits.is_set = False


def _clock_of(thread: int) -> int:
    if hasattr(time, "pthread_getcpuclockid"):
        return time.pthread_getcpuclockid(thread)
    return time.CLOCK_MONOTONIC


def _raise_in(thread: int, kind: type[Exception] | None) -> None:
    target = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), target)
