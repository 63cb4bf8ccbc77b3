"""Which codec a parameter gets, and how dense the first steps are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch

from .. import ChunkTopK, Codec, Identity, RandomK, TopK
from ..codec import check_codec, check_fixed_size
from ..errors import StateError


@dataclass(frozen=True)
class Rule:
    """The codec of the parameters that fit all conditions.

    Parameters
    ----------
    codec : Codec
        `Identity()` sends a parameter dense.
    name : str
        A pattern as in `fnmatch`, for the parameter's name in the bare model: ``"*.bias"``.
    min_size, max_size : int, optional
        Fewest and most entries.
    ndim : int, optional
        How many dimensions.

    Raises
    ------
    StateError, CodecError
        For values that are none of these.
    """

    codec: Codec
    name: str = "*"
    min_size: int = 0
    max_size: int | None = None
    ndim: int | None = None

    def __post_init__(self) -> None:
        check_codec(self.codec)
        if not isinstance(self.name, str):
            raise StateError(f"the name of a rule is a pattern such as '*.bias', not {self.name!r}")
        for what in ("min_size", "max_size", "ndim"):
            value = getattr(self, what)
            if value is not None and (type(value) is not int or value < 0):
                raise StateError(f"{what} of a rule must be an integer from 0, not {value!r}")

    def fits(self, name: str, parameter: torch.Tensor) -> bool:
        size = parameter.numel()
        return (
            fnmatchcase(name, self.name)
            and self.min_size <= size <= (size if self.max_size is None else self.max_size)
            and self.ndim in (None, parameter.dim())
        )


Chooser: TypeAlias = Callable[[str, torch.Tensor], Codec | None]
Rules: TypeAlias = Mapping[str, Codec] | Sequence[Rule] | Chooser


class RuleBook:
    """The codec of every parameter: of the first rule that fits, else of size and dimension."""

    def __init__(self, codec: Codec, rules: Rules | None, min_size: int) -> None:
        if not isinstance(codec, Codec):
            raise StateError(f"codec must be a codec such as TopK(density=0.01), not {codec!r}")
        if type(min_size) is not int or min_size < 0:
            raise StateError(f"min_size must be an integer from 0, not {min_size!r}")
        self.codec = codec
        self.min_size = min_size
        self.chooser: Chooser | None = None
        self.rules: tuple[Rule, ...] = ()
        if callable(rules):
            self.chooser = rules
        elif isinstance(rules, Mapping):
            self.rules = tuple(Rule(codec, name=name) for name, codec in rules.items())
        elif rules is not None:
            self.rules = tuple(rules)
            if not all(isinstance(rule, Rule) for rule in self.rules):
                raise StateError(
                    "rules are a dict of name patterns and codecs, a list of Rule(...), or a function of "
                    f"(name, parameter) that returns a codec or None, not {rules!r}"
                )
        for one in self.codecs():
            check_fixed_size(one)

    @property
    def needs_names(self) -> bool:
        return self.chooser is not None or bool(self.rules)

    def codec_of(self, name: str | None, parameter: torch.Tensor) -> Codec:
        if self.needs_names and name is None:
            raise StateError(
                f"rules need the names of the parameters, and one of shape {tuple(parameter.shape)} has none: "
                "CompressionState(codec, model), or state.bind(model) with the whole model"
            )
        if parameter.numel() == 0:
            return Identity()
        if self.chooser is not None and name is not None:
            chosen = self.chooser(name, parameter)
            if chosen is not None:
                return check_fixed_size(check_codec(chosen))
        for rule in self.rules:
            if name is not None and rule.fits(name, parameter):
                return rule.codec
        large = parameter.dim() >= 2 and parameter.numel() >= self.min_size
        return self.codec if large else Identity()

    def check_used(self, named: Mapping[str, torch.Tensor]) -> None:
        """`StateError` for a rule that decides for no parameter: a slip in its pattern, or in its place."""
        for place, rule in enumerate(self.rules):
            fitting = [name for name, parameter in named.items() if rule.fits(name, parameter)]
            if not fitting:
                raise StateError(
                    f"no parameter of the model fits the rule {rule!r}; the model has {', '.join(named)}"
                )
            earlier = self.rules[:place]
            if all(any(other.fits(name, named[name]) for other in earlier) for name in fitting):
                raise StateError(
                    f"the rule {rule!r} decides for no parameter: earlier rules fit {', '.join(fitting)}; put it "
                    "before them"
                )

    def codecs(self) -> list[Codec]:
        """All that are known before a parameter is."""
        return [self.codec, *(rule.codec for rule in self.rules)]

    def __repr__(self) -> str:
        chooser: Any = self.chooser
        return repr((self.rules, chooser and chooser.__qualname__, self.min_size))


@dataclass(frozen=True)
class Warmup:
    """Send more in the first steps (Lin et al. 2018, "Deep gradient compression", section 3.3).

    Parameters
    ----------
    steps : int
        Steps of each phase.
    densities : tuple of float
        The share of the entries that each phase sends, not rising. 1.0 is a plain dense
        all-reduce; other densities replace that of the codec where it is lower. Codecs without a
        density keep what they send.

    Raises
    ------
    StateError
        For values that are none of these.
    """

    steps: int
    densities: tuple[float, ...] = (1.0, 0.25, 0.0625, 0.015625, 0.004)

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 0:
            raise StateError(f"steps of a warmup must be an integer from 0, not {self.steps!r}")
        densities = tuple(self.densities)
        object.__setattr__(self, "densities", densities)
        if not all(isinstance(density, (int, float)) and 0 < density <= 1 for density in densities):
            raise StateError(f"densities must be above 0 and at most 1, not {densities}")
        if list(densities) != sorted(densities, reverse=True):
            raise StateError(f"densities must not rise, as {densities} do")

    def density(self, step: int) -> float:
        """The least density of a step: 1.0 is dense, 0.0 leaves the codec as it is."""
        phase = step // self.steps if self.steps else len(self.densities)
        return self.densities[phase] if phase < len(self.densities) else 0.0


def has_density(codec: Codec) -> bool:
    return isinstance(codec, ChunkTopK) or (
        isinstance(codec, (TopK, RandomK)) and codec.density is not None
    )


def with_density(codec: Codec, density: float) -> Codec:
    """The codec with at least this density, where it has one."""
    if isinstance(codec, ChunkTopK):
        return replace(codec, k=min(codec.chunk, max(codec.k, math.ceil(density * codec.chunk))))
    if isinstance(codec, (TopK, RandomK)) and codec.density is not None:
        changed: Any = codec
        return replace(changed, density=max(codec.density, density))  # type: ignore[no-any-return]
    return codec


def check_warmup(warmup: Warmup, book: RuleBook) -> Warmup:
    """`warmup`, if there is a codec whose density it can raise."""
    sparse = any(density < 1 for density in warmup.densities) and warmup.steps
    if sparse and book.chooser is None and not any(has_density(codec) for codec in book.codecs()):
        raise StateError(
            f"{book.codec!r} has no density to warm up: use Warmup(steps, densities=(1.0,)), which is a dense "
            "all-reduce, or a codec such as TopK(density=0.01)"
        )
    return warmup
