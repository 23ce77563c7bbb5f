"""Load a file of solutions: the functions and values that are named like exercises.

Its folder stays in sys.path afterwards, as in `python FILE.py`: a function may import other files when it is called.
"""

import importlib.util
import sys
import traceback
from pathlib import Path

from minivl.errors import Error
from minivl.helpers import did_you_mean
from minivl.lab.catalogue import all_exercises


def load_submissions(path):
    """{number: function or value} of a Python file, by the names of the exercises, in order."""
    namespace = run_file(Path(path))
    names = {exercise.name: number for number, exercise in all_exercises().items()}
    functions = {number: namespace[name] for name, number in names.items() if name in namespace}
    if not functions:
        own = [name for name, value in namespace.items() if callable(value) and not name.startswith("_")]
        close = did_you_mean(own[-1], names) if own else ""
        raise Error(f"{path} defines nothing that is named like an exercise.{close} `minivl lab` lists the names.")
    return functions


def run_file(path):
    """Run a Python file. -> the names that it defines"""
    if path.is_dir() or not path.exists():
        raise Error(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}. Give a Python file of your own.")
    spec = importlib.util.spec_from_loader(path.stem, loader=None)
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    try:
        code = compile(path.read_text(encoding="utf-8-sig"), str(path), "exec")  # Notepad writes a BOM first
    except OSError as cause:
        raise Error(f"cannot read {path}: {cause.strerror}.") from None
    except (SyntaxError, ValueError) as cause:
        raise Error(f"{path} is not Python: {cause}.") from None
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    own = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # dataclasses look up their module here
    try:
        exec(code, vars(module))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and what else a file may raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        how = "ends Python" if isinstance(error, SystemExit) else f"fails in line {lines[-1]}"
        raise Error(f"{path} {how}: {type(error).__name__}: {error}") from None
    finally:
        if own is not None:  # for a file that is named like a library
            sys.modules[path.stem] = own
    return vars(module)
