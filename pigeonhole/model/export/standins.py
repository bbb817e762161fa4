"""What takes the place of a function or class that inference never calls, and says so if it is called after all."""

from __future__ import annotations

from typing import Any


class NotProvided(AttributeError):
    """Inference asked for `wanted`, which the file names and nobody provided."""

    def __init__(self, wanted: str) -> None:
        super().__init__(f"{wanted} is not provided")
        self.wanted = wanted


class StandInClass(type):
    """The class of stand-ins; calling one is what must not happen."""

    stands_for: str

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        raise NotProvided(cls.stands_for)


class StandIn(metaclass=StandInClass):
    """Can be held and compared, not used. As a transform of the other data set it is passed over, as fastai does."""

    stands_for = ""
    split_idx: int | None = None
    decodes = False  # whether it may undo, for people, what it did to a label

    def __call__(self, item: Any = None, *_: Any, split_idx: int | None = None, **__: Any) -> Any:
        if self.split_idx is not None and split_idx != self.split_idx:
            return item
        raise NotProvided(self.stands_for)

    def decode(self, item: Any = None, **_: Any) -> Any:
        if self.decodes:
            raise NotProvided(self.stands_for)
        return item


def stand_in(wanted: str) -> StandInClass:
    """A class that takes the place of the function or class `wanted`."""
    module, _, name = wanted.rpartition(".")
    return StandInClass(name, (StandIn,), {"stands_for": wanted, "__module__": module})


def as_function(thing: Any) -> Any:
    """plum, which dispatches a Transform's functions, takes functions only; a stand-in is a class."""
    if not isinstance(thing, (StandInClass, StandIn)):
        return thing
    wanted = thing.stands_for

    def function(item: Any) -> Any:
        raise NotProvided(wanted)

    function.__name__ = function.__qualname__ = wanted.rpartition(".")[2]
    return function
