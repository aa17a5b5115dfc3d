"""Content keys: short hashes of what a result was made from, so that a rerun knows which results still stand."""

import ast
import hashlib
import inspect
import json
from types import ModuleType
from typing import Any


def content_key(**parts: Any) -> str:
    """Return 16 hex digits that change when any of the JSON-able parts does."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_hash(*modules: ModuleType) -> str:
    """Return 16 hex digits for what the modules compute: comments, docstrings and formatting do not count."""
    return content_key(code=[_normalised(inspect.getsource(module)) for module in modules])


def _normalised(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
