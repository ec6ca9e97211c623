"""Functions of the user's own, named as `module:function`."""

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from manners.core.errors import InputError, nearest


def load_function(name: str, what: str) -> Callable[..., Any]:
    """The function that `module:function` names; modules are also looked for in the current folder. `what` says what it is for.

    Raises InputError for a name of another form, a module that cannot be imported, or a module without that function.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon or not module_name or not function_name:
        raise InputError(f"{what} '{name}' is not of the form module:function, for example my_losses:focal.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(f"{what} '{name}': the module '{module_name}' cannot be imported ({type(error).__name__}: {error}).") from error
    found = getattr(module, function_name, None)
    if not callable(found):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise InputError(f"{what} '{name}': {module_name} has no function '{function_name}'; {nearest(function_name, known)}")
    return found


def source_hash(name: str, what: str) -> str:
    """Hash of a user function's source, or of its name where the source cannot be had: part of what identifies a run."""
    function = load_function(name, what)
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        text = name
    return hashlib.sha256(text.encode()).hexdigest()[:16]
