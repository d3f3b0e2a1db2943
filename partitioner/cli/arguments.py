"""Arguments that several commands have, and how texts are read as what they mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, Token

from ir.diagnostics import Diagnostic, UsageError, WafercError
from ir.rules import Rule

if TYPE_CHECKING:
    from partitioner.running.setup import How
    from partitioner.running.spread import Spread


def _whole(_type: object, tokens: Sequence[Token]) -> int:
    """A whole number; cyclopts itself would cut 4.5 down to 4."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is no whole number") from None


Count = Annotated[int, Parameter(converter=_whole)]
Json = Annotated[bool, Parameter("--json", negative=())]
TrustCode = Annotated[bool, Parameter("--trust-code", negative=())]
PromptIds = Annotated[tuple[str, ...], Parameter("--prompt-ids", negative=(), show_default=False)]

Rules = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class RuleOptions:
    """Rules of the placement, each option as often as wanted; docs/rules.md.

    Attributes:
        pin: blocks and the wafers that they may lie on, as embedding=0 or 'layers.3.*=1,2'.
        forbid: blocks and the wafers that they may not lie on, as 'layers.*.experts=4'.
        apart: blocks of which no two share a wafer, as embedding,head.
        together: blocks that share one wafer.
        order: blocks in the order in which the pipeline passes them, as 'layers.3,layers.7'.
        at_most: blocks and how many of them a wafer may hold, as 'layers.*.experts=3'.
        replicate: blocks and how many copies of each serve users in turn, as embedding=2.
        free: blocks that values may flow back to, along the pipeline.
        rules: file (.toml) with more of them.
    """

    pin: Rules = ()
    forbid: Rules = ()
    apart: Rules = ()
    together: Rules = ()
    order: Rules = ()
    at_most: Rules = ()
    replicate: Rules = ()
    free: Rules = ()
    rules: Path | None = None

    def read(self) -> tuple[Rule, ...]:
        """The rules, those of the file first.

        Raises:
            UsageError: W0114 or W0116, they cannot be read.
        """
        from partitioner.rules import parse_rule, read_rules

        kinds = [option.name for option in fields(self) if option.name != "rules"]
        given = [
            parse_rule(f"{kind.replace('_', '-')} {text}", f"--{kind.replace('_', '-')}")
            for kind in kinds
            for text in getattr(self, kind)
        ]
        return (*(read_rules(self.rules) if self.rules else ()), *given)


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the host computes what the machine would.

    Attributes:
        precision: float32, to compare with the original in 32 bit; native, weights as stored and values in 16 bit.
        order: in which sums are taken: host, by the host's own routine, or mesh, tile after tile; host in float32 and
            mesh in native if not given.
        host_memory: bytes of weights that the host keeps at most; it reads them again when they are needed.
        seed: seed of the random weights of a model that has no checkpoint.
        device: cpu, or cuda for a GPU (of several, each process takes its own).
    """

    precision: str = "float32"
    order: str | None = None
    host_memory: Count | None = None
    seed: Count = 0
    device: str = "cpu"

    def how(self) -> How:
        """The same for a run.

        Raises:
            UsageError: W0103 or W0104, one of them is not possible.
        """
        from partitioner.running.setup import How

        return How(
            seed=self.seed,
            precision=self.precision,
            order=self.order,
            host_bytes=self.host_memory,
            device=self.device,
        )


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class SpreadOptions:
    """How a run is spread over processes; docs/distributed.md.

    Attributes:
        processes: how many processes share the plan's wafers, each with its own; more than wafers in use are not
            started.
        timeout: seconds without a sign of life after which a process counts as lost, which ends the run.
        resume: go on with the run of the same plan and prompts that was ended, from the last finished token.
        state: file to keep what is finished in, and to resume from; if not given it is run.json in the plan's folder,
            which goes once the run is done.
    """

    processes: Count = 1
    timeout: float = 60.0
    resume: Annotated[bool, Parameter("--resume", negative=())] = False
    state: Path | None = None

    def spread(self, failed: Callable[[WafercError], object]) -> Spread:
        """The same for a run; ``failed`` tells the user of an error where other processes have a part in it.

        Raises:
            UsageError: W0103, a number is not possible.
        """
        from partitioner.running.spread import Spread

        return Spread(
            processes=self.processes, timeout_s=self.timeout, resume=self.resume, state=self.state, failed=failed
        )


def parse_prompts(texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Token ids separated by commas; several prompts by semicolons, or as texts of their own."""
    return tuple(_ids(part) for text in texts for part in text.split(";"))


def _ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        help_ = ("for example --prompt-ids 1,5,9,2",)
        shown = text if len(text) < 80 else f"{text[:80]}..."
        fault = Diagnostic("W0104", f"token ids must be integers separated by commas, not {shown!r}", help=help_)
        raise UsageError(fault) from None


def parse_sizes(text: str) -> dict[str, int]:
    """``tokens=128,users=1``."""
    try:
        pairs = [part.split("=") for part in text.split(",") if part]
        return {name.strip(): int(size) for name, size in pairs}
    except ValueError:
        help_ = ("for example --fix tokens=128,users=1",)
        fault = Diagnostic("W0104", f"sizes must be name=number separated by commas, not {text!r}", help=help_)
        raise UsageError(fault) from None


def parse_wafers(texts: Sequence[str], option: str) -> tuple[int, ...]:
    """``7,9`` or ``wafer:7,wafer:9``, each once; none for an empty text."""
    parts = [part.strip() for text in texts if text for part in text.split(",")]
    found = [re.fullmatch(r"(?:wafer:)?(\d{1,9})", part) for part in parts]
    faults = [
        Diagnostic("W0104", f"{part!r} names no wafer", option, help=(f"for example {option} wafer:7",))
        for part, match in zip(parts, found, strict=True)
        if match is None
    ]
    if faults:
        raise UsageError(*faults)
    return tuple(sorted({int(match[1]) for match in found if match}))


def parse_share(text: str, option: str) -> Fraction:
    """``2.5%``, or ``0.025``."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", number.strip()):
            raise ValueError
        share = Fraction(number.strip()) / (100 if percent else 1)
        if not percent and share >= 1:
            raise ValueError
    except ValueError:
        message = f"{option} is a percentage, or a part below 1, not {text!r}"
        raise UsageError(Diagnostic("W0104", message, option, help=(f"for example {option} 2%",))) from None
    return share


def parse_parts(text: str) -> tuple[str, ...]:
    """``text,vision``."""
    return tuple(part.strip() for part in text.split(","))


def with_value(arguments: Sequence[str], option: str, value: str) -> list[str]:
    """``arguments`` with ``value`` behind ``option`` where nothing, or another option, follows it."""
    return [
        f"{argument}={value}" if argument == option and after.startswith("-") else argument
        for argument, after in zip(arguments, [*arguments[1:], "--"], strict=False)
    ]
