"""Triton's interpreter, in which kernels run on a CPU. It puts its own functions in the place of the language's at every call of a
device function, and here at the first alone: the others change nothing."""

import sys
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="session")
def language_patched_once() -> None:
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None:
        return
    language, patch = interpreter.tl, interpreter._patch_lang

    def once(function: Any) -> Any:
        named = [m for m in (language, language.core) if any(m is v for v in function.__globals__.values())]
        # What is put in its place is no builtin of the language.
        if named and not any(language.core.is_builtin(m.load) for m in named):
            return interpreter._LangPatchScope()
        return patch(function)

    interpreter._patch_lang = once


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are launched as they were imported."""
    from interpreter import INTERPRET  # of a file that is skipped without Triton

    monkeypatch.setenv(*INTERPRET)
