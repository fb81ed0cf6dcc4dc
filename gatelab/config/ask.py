"""AskConfig: when a run on tasks is asked their items, how many, and at which lengths."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from .base import Config

Stretch = Literal["none", "yarn"]


class AskConfig(Config):
    """Before training and at its end, `items` of each task at `times` the length of training, rising from 1; and after `every`
    so many steps (0: never) at the length of training alone. `items` 0: nothing is asked.

    A task whose evidence has a place is asked at eleven depths in turn, unless `data.depth` states one; where that would put
    several pieces side by side they are strewn as in training, and half as many items more are asked at the depths. `stretch`: how
    rotary positions reach past the length of training, each asked by itself: `none` goes on turning as trained, `yarn` is
    YaRN by the multiple of the length. Learned positions reach as far as their table; what is longer is left out, and the log
    says so.
    """

    items: Annotated[int, Field(ge=0, le=100_000)] = 110
    times: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = (1, 2, 4, 8)
    every: Annotated[int, Field(ge=0)] = 0
    stretch: tuple[Stretch, ...] = ("none",)

    @field_validator("times", "stretch", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(value.split(","))
        return (value,) if isinstance(value, int | float) else value

    @field_validator("times")
    @classmethod
    def _rising(cls, times: tuple[int, ...]) -> tuple[int, ...]:
        if not times or times[0] != 1 or list(times) != sorted(set(times)):
            raise ValueError(
                f"{','.join(map(str, times))}: multiples of the length of training rise from 1, as in 1,2,4,8"
            )
        return times

    @field_validator("stretch")
    @classmethod
    def _different(cls, stretch: tuple[Stretch, ...]) -> tuple[Stretch, ...]:
        if not stretch or stretch[0] != "none" or len(set(stretch)) < len(stretch):
            raise ValueError(f"{','.join(stretch)}: none comes first, and each once: none, or none,yarn")
        return stretch
