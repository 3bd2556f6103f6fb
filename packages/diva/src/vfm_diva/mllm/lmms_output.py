"""What the output of lmms-eval says about a run that failed. It catches its exceptions, and ends with code 0 then."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import get_token

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|NotFound|Interrupt|Exit)\b(?::.*)?$")
_NO_CAUSE = "RetryError"  # it says that others were raised before it
_UNANSWERED = re.compile(r"\bError (.*) in generating$")
LONGEST = 400


def read_output(file: Path) -> str:
    """Return what lmms-eval wrote; the Hugging Face token, which it writes among its settings, is taken out of it."""
    text = file.read_text(encoding="utf-8", errors="replace")
    if (token := get_token()) and token in text:
        text = text.replace(token, "***")
        file.write_text(text, encoding="utf-8")
    return text


def last_error(output: str) -> str:
    """Return the last line of the last traceback; without one, the last line."""
    lines = [line.rstrip() for line in _lines(output)]
    raised = [line for line in lines if _EXCEPTION.match(line) and _NO_CAUSE not in line]
    last = next((line.strip() for line in reversed(raised or lines) if line.strip()), "no output")
    return last[:LONGEST]


def unanswered(output: str) -> list[str]:
    """Return the errors of items that got an empty reply since the model failed."""
    return [found[1][:LONGEST] for line in _lines(output) if (found := _UNANSWERED.search(line.rstrip()))]


def _lines(output: str) -> list[str]:
    return _COLOURS.sub("", output).replace("\r", "\n").split("\n")
