"""Additions from a user's own modules: objectives, networks, data, samplers, loggers, method names.

A config file imports the module that registers them; settings then name them as they name parts of
the package, with the same checks, digests and resuming. docs/extending.md has a complete method.

    @ddistill.register.objective("my_method")
    @dataclass(frozen=True)
    class MyMethod(Distillation): ...
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import TypeVar

from flax import linen as nn

from ddistill import data, networks, objectives, samplers
from ddistill.data import Source
from ddistill.errors import ConfigError
from ddistill.evaluation.records.names import METHODS, Method
from ddistill.evaluation.records.names import register_method as method
from ddistill.extensions import Extension, add
from ddistill.objectives import Objective
from ddistill.runtime import loggers
from ddistill.runtime.loggers import Logger, LoggerKind, LogTarget
from ddistill.samplers import Sampler

__all__ = ["data_source", "logger", "method", "network", "objective", "sampler"]

O = TypeVar("O", bound=type[Objective])
M = TypeVar("M", bound=type[nn.Module])
L = TypeVar("L", bound=Callable[[LogTarget], Logger])


def objective(name: str, version: int = 1) -> Callable[[O], O]:
    """Registers a class of objectives under a name, as a decorator.

    Args:
      name: the value of `config.stages.STAGE.objective.name`.
      version: raise it where the same hyperparameters mean another training: stages of another
        version are not taken from the cache.

    Raises:
      ConfigError: the name is taken, or the class is not a frozen dataclass with a default for
        every hyperparameter.
    """

    def register(cls: O) -> O:
        if not (isinstance(cls, type) and issubclass(cls, Objective)):
            raise ConfigError(
                f"ddistill.register.objective({name!r}): {cls!r} is not a subclass of "
                "ddistill.objectives.Objective."
            )
        _check_fields("objective", name, cls)
        add(objectives.OBJECTIVES, Extension("objective", name, cls.__module__, version), cls)
        return cls

    return register


def network(name: str, version: int = 1) -> Callable[[M], M]:
    """Registers a class of Linen modules under a name, as a decorator.

    A denoiser's module is called as `module(x, time, cond=None, *, train=False, taps=())` and
    returns images of the shape of `x`, or (images, {tap: features}) where taps are named; see
    `ddistill.networks.unet.UNet`. Its fields are settings and need defaults.

    Args:
      name: the value of `config.stages.STAGE.network.name`.
      version: raise it where the same settings mean another network.

    Raises:
      ConfigError: the name is taken, or a field has no default.
    """

    def register(cls: M) -> M:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise ConfigError(
                f"ddistill.register.network({name!r}): {cls!r} is not a subclass of "
                "flax.linen.Module."
            )
        _check_fields("network", name, cls, ("parent", "name"))
        add(networks.NETWORKS, Extension("network", name, cls.__module__, version), cls)
        return cls

    return register


def data_source(name: str, source: Source, version: int = 1) -> Source:
    """Registers a source of images under a name.

    Args:
      name: the value of `config.data.name`.
      source: its settings, a frozen dataclass with a field `name` and defaults, and its functions.
      version: raise it where the same files give other images; images are also compared by their
        content.

    Raises:
      ConfigError: the name is taken, or a setting has no default.
    """
    _check_fields("data_source", name, source.settings)
    if "name" not in {field.name for field in dataclasses.fields(source.settings)}:
        raise ConfigError(
            f"ddistill.register.data_source({name!r}): the settings need a field 'name' of "
            f"default {name!r}."
        )
    add(data.SOURCES, Extension("data", name, _caller(), version), source)
    return source


def sampler(sampler: Sampler, version: int = 1) -> Sampler:
    """Registers a sampler under its name.

    Args:
      sampler: see `ddistill.samplers.Sampler`.
      version: raise it where the same settings give other samples.

    Raises:
      ConfigError: the name is taken.
    """
    before = METHODS.get(sampler.name)
    label = f"teacher {sampler.label}"
    if before is not None and before != Method(label, "teacher"):
        raise ConfigError(
            f"ddistill.register.sampler: the name '{sampler.name}' is taken by the method "
            f"'{before.label}'. Choose another one."
        )
    add(samplers.SAMPLERS, Extension("sampler", sampler.name, _caller(), version), sampler)
    method(sampler.name, label, "teacher")
    return sampler


def logger(name: str) -> Callable[[L], L]:
    """Registers a class of loggers, or a function that makes one, under a name, as a decorator.

    The class or function is called with a `ddistill.runtime.loggers.LogTarget` for every stage that
    is trained and returns a `Logger`. It may raise: the training then continues without the logger.

    Args:
      name: one of the values of `config.training.loggers`.

    Raises:
      ConfigError: the name is taken, or the decorated object cannot be called.
    """

    def register(make: L) -> L:
        if not callable(make):
            raise ConfigError(
                f"ddistill.register.logger({name!r}): {make!r} is not a class or a function."
            )
        module = str(getattr(make, "__module__", "__main__"))
        add(loggers.LOGGERS, Extension("logger", name, module), LoggerKind(make))
        return make

    return register


def _caller() -> str:
    """The name of the module that calls a function of this one."""
    return str(sys._getframe(2).f_globals["__name__"])


def _check_fields(kind: str, name: str, cls: type, without: tuple[str, ...] = ()) -> None:
    """Raises `ConfigError` unless settings can be read into a dataclass."""
    call = f"ddistill.register.{kind}({name!r})"
    if "__dataclass_fields__" not in vars(cls):
        raise ConfigError(f"{call}: {cls.__name__} is not a dataclass; decorate it with one.")
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.name not in without:
            raise ConfigError(
                f"{call}: the field '{field.name}' of {cls.__name__} has no plain default."
            )
