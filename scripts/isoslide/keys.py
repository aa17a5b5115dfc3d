"""Content keys: short hashes of what a result was made from, so that a rerun knows which results still stand."""

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def content_key(**parts: Any) -> str:
    """Return 16 hex digits that change when any of the JSON-able parts does."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_hash(*parts: ModuleType | type | Callable[..., Any]) -> str:
    """Return 16 hex digits for what modules, classes or functions compute.

    Comments, docstrings and formatting do not count. Name functions rather than modules where a change of a neighbour
    would throw away dear results.
    """
    return content_key(code=[_normalised(textwrap.dedent(inspect.getsource(part))) for part in parts])


def _normalised(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
