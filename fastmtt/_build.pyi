"""How the extension was built and what this processor can do; there where it was built."""

from typing import TypedDict

class Build(TypedDict):
    compiler: str
    flags: str
    torch: str
    cuda: str
    instruction_sets: list[str]

def build() -> Build: ...
def processor() -> dict[str, bool]: ...
