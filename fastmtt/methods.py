"""The methods as rows of independent choices: a method is data, not a script."""

from __future__ import annotations

from dataclasses import dataclass

from fastmtt.sweeps import Gradient


@dataclass(frozen=True)
class Method:
    """What distinguishes one method from another.

    Attributes:
        name: as configurations spell it.
        gradient: which meta-gradient it descends.
        source: the paper.
    """

    name: str
    gradient: Gradient
    source: str


METHODS = {
    method.name: method
    for method in [
        Method("mtt", "exact", "Cazenavette et al., CVPR 2022, arXiv 2203.11932"),
    ]
}
