"""Load a module of one's own and give it an identity: weights, structure, code and example."""

import dataclasses
import hashlib
import importlib
import os
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from device_profiles.errors import MissingDependencyError
from edge_runtime.manifest import Preprocessing
from export.cache import is_own_code
from export.source import ModelSource, Source, SourceError, module_names

_SCALARS = (bool, int, float, str, bytes, type(None), torch.dtype, torch.Size)
_MAX_DEPTH = 6
_ZOO = "export.zoo"
_OWN_FIELDS = frozenset(vars(torch.nn.Module()))  # hooks, parameters, children: of torch, not of the network


def load_module(source: Source) -> Source:
    """Import the module, call the function, and hash what it returns.

    Args:
        source: Of kind "torch", from `find_source`.

    Returns:
        The source with `model` and `sha256` set; the module is in evaluation mode.

    Raises:
        SourceError: No such module or function, or it returns something else than a model and example.
        MissingDependencyError: The module imports what is not installed.
    """
    model = as_model_source(_find_function(source)(), where=source.text)
    return dataclasses.replace(source, model=model, sha256=model_sha256(model))


def from_model(model: ModelSource, *, name: str | None = None) -> Source:
    """A source from a module that is already in memory.

    Args:
        model: The module, its example and what is known of it.
        name: Of the model in the artefact; the class's name by default.
    """
    name = name or type(model.module).__name__
    return Source(kind="torch", text=name, name=name, sha256=model_sha256(model), model=model)


def as_model_source(value: object, *, where: str) -> ModelSource:
    """What a function returned, as a `ModelSource`.

    Raises:
        SourceError: Not one of the three forms, or an example that is no tensor.
    """
    if isinstance(value, ModelSource):
        model = value
    elif isinstance(value, tuple) and len(value) in (2, 3) and isinstance(value[0], torch.nn.Module):
        example = value[1] if isinstance(value[1], tuple | list) else (value[1],)
        preprocessing = value[2] if len(value) == 3 else None
        if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
            raise SourceError(
                f"Wanted Preprocessing as the third value of {where}, found {type(preprocessing).__name__}."
            )
        model = ModelSource(module=value[0], example=tuple(example), preprocessing=preprocessing)
    else:
        found = f"{type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple) else "")
        raise SourceError(
            f"Wanted (module, example), (module, example, Preprocessing) or a ModelSource from {where}, found {found}."
        )
    if not model.example or not all(isinstance(one, torch.Tensor) and one.numel() for one in model.example):
        raise SourceError(
            f"Wanted tensors as the example input of {where}, found {[type(x).__name__ for x in model.example]}."
        )
    model.module.eval()
    return model


def repeats_itself(source: Source) -> bool:
    """Whether the function returns the same network when torch's random numbers are others.

    Args:
        source: A module that `load_module` has loaded by name.
    """
    state = torch.get_rng_state()
    try:
        torch.manual_seed(int(source.sha256[:8], 16))
        again = as_model_source(_find_function(source)(), where=source.text)
    finally:
        torch.set_rng_state(state)
    return model_sha256(again) == source.sha256


def imported_files() -> set[str]:
    """The source files of everything imported, except Python's own library and torch, which count by version."""
    packages = tuple(str(Path(sysconfig.get_path(name))) + os.sep for name in ("purelib", "platlib"))
    standard = str(Path(sysconfig.get_path("stdlib"))) + os.sep
    own = str(Path(torch.__file__).parent) + os.sep
    found = set()
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if not isinstance(name, str) or not name.endswith(".py") or name.startswith(own):
            continue
        if name.startswith(packages) or not name.startswith(standard):
            found.add(os.path.abspath(name))
    return found


def model_sha256(model: ModelSource) -> str:
    """Identity of a module: equal when weights, structure, code, example and declarations are equal.

    Code is what the classes of the module tree define, plus every loaded source file outside of Python's library
    folders; libraries count by their version. Returns 64 hex digits.
    """
    digest = hashlib.sha256()
    for part in _identity(model):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _identity(model: ModelSource) -> Iterator[bytes]:
    yield f"torch {torch.__version__} python {sys.version_info[:2]}".encode()
    declared = (model.preprocessing, model.labels, model.task, model.licences, model.input_names, model.output_names)
    yield msgspec.json.encode(declared)
    for example in model.example:
        yield f"{example.dtype} {tuple(example.shape)}".encode()
    for name, module in model.module.named_modules():
        kind = type(module)
        yield f"{name}: {kind.__module__}.{kind.__qualname__} {_attributes(module)}".encode()
    for kind in sorted(
        {type(one) for one in model.module.modules()}, key=lambda one: (one.__module__, one.__qualname__)
    ):
        yield _class_code(kind)
    tensors = {**dict(model.module.named_parameters()), **dict(model.module.named_buffers())}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield _tensor_bytes(tensor)
    for path in own_code_files():
        yield path.read_bytes()


def own_code_files() -> list[Path]:
    """The source files of loaded modules that lie outside of Python's library folders, sorted."""
    libraries = library_folders()
    found = set()
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if isinstance(name, str) and name.endswith(".py") and not name.startswith(libraries):
            found.add(Path(name))
    return sorted(path for path in found if not is_own_code(path) and path.is_file())


def library_folders() -> tuple[str, ...]:
    """Where the standard library and installed packages lie, each with a trailing separator."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(sorted({str(Path(sysconfig.get_path(name))) + os.sep for name in names}))


def _find_function(source: Source) -> Any:  # noqa: ANN401 - any callable
    module_name, function_name = module_names(source)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            extra = (
                "pip install 'headtail[demo]'"
                if module_name == _ZOO
                else f"pip install {error.name}, or what brings it"
            )
            raise MissingDependencyError(
                f"Wanted to import {module_name}, found that it needs the module {error.name!r}. Install it: {extra}."
            ) from error
        raise SourceError(
            f"Wanted the module {module_name!r}, found none in {here} or on Python's path. Start where {module_name}.py lies."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if isinstance(value, types.FunctionType)]
        raise SourceError(f"Wanted a function {function_name!r} in {module_name}, found only {sorted(names)[:8]}.")
    return function


def _attributes(module: torch.nn.Module) -> str:
    """The plain attributes of one module (strides, flags, names), in a stable order."""
    values = {name: value for name, value in vars(module).items() if name not in _OWN_FIELDS}
    return repr([(name, _plain(values[name], 0)) for name in sorted(values)])


def _plain(value: object, depth: int) -> object:
    """A stable stand-in for a value: itself when plain, its parts when a container, its type otherwise."""
    if isinstance(value, _SCALARS):
        return value
    if depth < _MAX_DEPTH:
        if isinstance(value, tuple | list):
            return [type(value).__name__, *(_plain(one, depth + 1) for one in value)]
        if isinstance(value, dict):
            return [(str(key), _plain(one, depth + 1)) for key, one in sorted(value.items(), key=lambda x: str(x[0]))]
        if isinstance(value, types.FunctionType):
            return _code_text(value.__code__)
        if isinstance(value, np.ndarray):
            return hashlib.sha256(value.tobytes()).hexdigest()
        if isinstance(value, torch.Tensor):
            return hashlib.sha256(_tensor_bytes(value.detach().cpu().contiguous())).hexdigest()
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _class_code(kind: type) -> bytes:
    """The code of a class's own methods and those that it inherits, up to nn.Module."""
    texts = []
    for base in kind.__mro__:
        if base in (torch.nn.Module, object) or base.__module__.startswith("torch."):
            continue
        for name, value in sorted(vars(base).items()):
            if isinstance(value, types.FunctionType):
                texts.append(f"{base.__qualname__}.{name} {_code_text(value.__code__)}")
    return "\n".join([f"{kind.__module__}.{kind.__qualname__}", *texts]).encode()


def _code_text(code: types.CodeType, depth: int = 0) -> str:
    """Byte code, names and constants, without line numbers and file names."""
    constants = [
        _code_text(one, depth + 1) if isinstance(one, types.CodeType) and depth < _MAX_DEPTH else repr(_plain(one, 0))
        for one in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The raw bytes of a contiguous CPU tensor, any dtype (bfloat16 too)."""
    flat = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor.reshape(-1)
    data: bytes = flat.numpy().tobytes()
    return data
