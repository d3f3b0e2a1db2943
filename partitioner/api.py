"""The compiler for programs: what the command line calls, and what ``import waferc`` offers."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir.diagnostics import Diagnostic, UsageError
from ir.forecast import Forecast
from ir.graph import Graph
from ir.model import Granularity, Model
from ir.objective import DEFAULT_OBJECTIVES, Objective
from ir.plan import Plan
from ir.rules import Rule
from ir.types import symbols_of
from ir.workload import Workload
from partitioner import forecast
from partitioner.case import Case
from partitioner.compile import Compiled, build_model, compile_model
from partitioner.folder import write_plan
from partitioner.frontends.load import TEXT_ALONE, load
from partitioner.frontends.lowered import Lowered, Origin
from partitioner.options import MOST
from partitioner.options import LoadOptions as LoadOptions
from partitioner.passes.fix import fix_sizes
from partitioner.passes.step import STEP_SYMBOLS, continues_text, takes_tokens, takes_whole_texts
from partitioner.placing import Progress
from partitioner.plan_test import plan_test
from partitioner.problem import ExpertLayout
from partitioner.profiles import load_profile
from partitioner.questions import ask
from partitioner.rules import as_rules
from partitioner.solver.cpsat import Limits
from partitioner.viewer.report import render_report
from targets.machines import load_target, load_wafers

if TYPE_CHECKING:
    import torch

    from partitioner.running.plans import OpenPlan
    from partitioner.running.verify import Verification
    from targets.emulator import Emulator

_DEFAULT_CONTEXT = 4096


def lower(model: str, options: LoadOptions) -> Lowered:
    """Lower the model that the user names.

    Raises:
        UsageError: W0109, a size to fix that the model has not.
        WafercError: what :func:`partitioner.frontends.load.load` raises.
    """
    lowered = load(model, trust_code=options.trust_code, parts=options.parts, fix=options.fix)
    left = {name: size for name, size in options.fix.items() if name not in lowered.fixed}
    graph = fix_sizes(lowered.graph, left)
    return replace(lowered, graph=graph, notes=(*lowered.notes, *_on_free_sizes(graph)))


def _on_free_sizes(graph: Graph) -> tuple[str, ...]:
    """What to tell of sizes that are neither fixed nor those of a step."""
    sizes = (size for value in graph.inputs for size in value.type.shape)
    free = sorted({name for size in sizes for name in symbols_of(size)} - {*STEP_SYMBOLS})
    if not free:
        return ()
    return (f"memory and work are counted for {', '.join(f'{name} = 1' for name in free)}: --fix sets other sizes",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """On what to place a model, and for whom.

    Attributes:
        target: a machine of the catalogue, or the path of a machine file.
        systems: number of wafers, or of nodes of devices; the machine's own if ``None``.
        reserve_bytes: bytes of each tile or device kept for code and buffers; the machine's own if ``None``.
        without: numbers of wafers that are out of service.
        users: users whose caches are resident at the same time.
        context: tokens remembered for each; 4096, or the model's limit if that is less, if ``None``.
        prefill_chunk: tokens that a pipeline stage works on at once.
        experts: whether routed experts lie ``apart``, each on tiles of its own, or ``sliced``, each on all tiles of
            its layer's region; ``auto`` for what serves a token sooner.
        granularity: what is placed as a whole: ``layers``, ``halves`` (attention and MLP apart), ``ops`` (each product
            with its weight), or ``auto`` for halves if they fit and ops if not.
        objective: what to make the placement best for, in order, as ``balance,traffic``; see :class:`Objective`.
        rules: what else is asked of the placement, as ``pin embedding=0``; see docs/rules.md.
        seed: of the solver.
        time_limit: on the solver's work, in deterministic seconds.
    """

    target: str = "cs3"
    systems: int | None = None
    reserve_bytes: int | None = None
    without: tuple[int, ...] = ()
    users: int = 1
    context: int | None = None
    prefill_chunk: int = 64
    experts: str = ExpertLayout.AUTO
    objective: str = ",".join(DEFAULT_OBJECTIVES)
    granularity: str = Granularity.AUTO
    rules: Sequence[Rule | str] = ()
    seed: int = 0
    time_limit: float = 60.0

    def __post_init__(self) -> None:
        counts = ("systems", "users", "context", "prefill_chunk")
        given = {f"--{name.replace('_', '-')}": getattr(self, name) for name in counts}
        faults = [
            Diagnostic("W0103", f"{name} must be from 1 to {MOST:,}, not {value:,}", name)
            for name, value in given.items()
            if value is not None and not 1 <= value <= MOST
        ]
        if self.experts not in [*ExpertLayout]:
            message = f"--experts is {', '.join(ExpertLayout)}, not {self.experts!r}"
            faults.append(Diagnostic("W0104", message, "--experts"))
        if not isinstance(self.objective, str):
            raise TypeError(f"objective is a text such as 'balance,traffic', not {type(self.objective).__name__}")
        faults += _wrong_objectives(self.objectives)
        if self.granularity not in [*Granularity]:
            message = f"--granularity is {', '.join(Granularity)}, not {self.granularity!r}"
            faults.append(Diagnostic("W0104", message, "--granularity"))
        if not self.time_limit > 0:
            faults.append(Diagnostic("W0103", f"--time-limit must be positive, not {self.time_limit}", "--time-limit"))
        if not 0 <= self.seed < 1 << 31:
            faults.append(Diagnostic("W0103", f"--seed must be from 0 to 2^31 - 1, not {self.seed}", "--seed"))
        if faults:
            raise UsageError(*faults)
        object.__setattr__(self, "rules", as_rules(self.rules))

    @property
    def objectives(self) -> tuple[str, ...]:
        """What ``objective`` names."""
        return tuple(name.strip() for name in self.objective.split(","))


def _wrong_objectives(names: Sequence[str]) -> Iterator[Diagnostic]:
    for name in names:
        if name not in [*Objective]:
            close = difflib.get_close_matches(name, [*Objective], n=1)
            known = ", ".join(one for one in Objective if one is not Objective.MOVES)
            help_ = (f"did you mean {close[0]}?",) if close else (f"objectives are {known}",)
            yield Diagnostic("W0104", f"there is no objective {name!r}", "--objective", help=help_)
    for name, times in Counter(names).items():
        if times > 1:
            yield Diagnostic("W0104", f"{name} is named {times} times", "--objective")
    if Objective.MOVES in names:
        help_ = ("waferc replan moves as little as can be",)
        yield Diagnostic("W0104", "there is no plan whose blocks could move", "--objective", help=help_)


@dataclass(frozen=True)
class CompiledModel:
    """A placed model: its plan, what it was made from, and, for modules, its weights and its own forward."""

    lowered: Lowered
    compiled: Compiled
    weights: Mapping[str, torch.Tensor] | None = None
    trust_code: bool = False
    forward: Callable[[Mapping[str, torch.Tensor]], list[torch.Tensor]] | None = None

    @property
    def plan(self) -> Plan:
        """Which wafer and which tiles hold what."""
        return self.compiled.plan

    @property
    def model(self) -> Model:
        """The blocks that were placed."""
        return self.compiled.model

    def save(self, folder: str | Path, *, tests: bool = False) -> None:
        """Write the plan's folder, with a file of ``tests`` for pytest if wanted.

        Raises:
            UsageError: W0105, it cannot be written.
        """
        written = plan_test(continues_text=continues_text(self.model.graph)) if tests else None
        write_plan(Path(folder), self.plan, self.model, self.lowered, self.page(), written)

    def page(self) -> str:
        """The placement as an HTML page."""
        return render_report(
            self.plan,
            model_weight_bytes=self.model.weight_bytes,
            model_parameters=self.model.parameters,
            unplaced_parameters=[parameter.name for parameter in self.model.unplaced],
        )

    def opened(self) -> OpenPlan:
        """The plan ready to run: to continue prompts, to take steps, and to be verified against the original."""
        from partitioner.frontends.original import Original
        from partitioner.running.plans import OpenPlan
        from partitioner.running.setup import Runnable
        from targets.emulator.weights import Tensors

        original = None
        if self.weights is not None and self.forward is not None:
            original = Original(Tensors(self.weights), self.forward, "weights of the module")
        return OpenPlan(Runnable(self.model, self.plan, self.lowered.origin, original, self.trust_code))

    def emulator(self, seed: int = 0, **options: Any) -> Emulator:
        """The model on emulated tiles; a model without weights of its own gets random ones from ``seed``.

        Args:
            seed: of random weights.
            options: such as ``precision="native"``; fields of :class:`partitioner.running.setup.How`.

        Raises:
            UsageError: W0610 or W0611, the weights cannot be had.
        """
        return self.opened().emulator(seed=seed, **options)

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One step on emulated tiles, for inputs in the order of the model's.

        Raises:
            UsageError: W0609, they are not the model's inputs.
        """
        names = [value.name for value in self.model.graph.inputs]
        if len(inputs) != len(names):
            raise UsageError(Diagnostic("W0609", f"the model takes {len(names)} inputs, not {len(inputs)}"))
        return tuple(self.emulator().step(dict(zip(names, inputs, strict=True))).values())

    def verify(self, prompts: Sequence[Sequence[int]] = (), **options: Any) -> Verification:
        """Run plan and original side by side, layer by layer; see :meth:`partitioner.running.plans.OpenPlan.verify`."""
        return self.opened().verify(prompts, **options)


def compile_lowered(lowered: Lowered, request: Request, progress: Progress = lambda _step: None) -> CompiledModel:
    """Place a lowered model.

    Raises:
        UsageError: W0107, the context is longer than the model's; W0110 or W0111, the machine.
        InfeasibleError, TimeLimitError, UnsupportedModelError: see :func:`partitioner.compile.compile_model`.
    """
    wafers = load_wafers(request.target, request.systems, request.reserve_bytes, request.without)
    workload = workload_of(lowered, request)
    progress("finding blocks")
    case = Case(
        model=build_model(lowered.graph),
        machine=wafers.machine,
        workload=workload,
        experts=ExpertLayout(request.experts),
        rules=as_rules(request.rules),
        speed=wafers.speed,
        objectives=tuple(Objective(name) for name in request.objectives),
        limits=Limits(request.time_limit, request.seed),
    )
    granularity = Granularity(request.granularity)
    compiled = compile_model(case, granularity, progress)
    notes = (*lowered.notes, *_on_granularity(granularity, compiled.model))
    return CompiledModel(replace(lowered, notes=notes), compiled)


def _on_granularity(asked: Granularity, model: Model) -> tuple[str, ...]:
    """What to tell of the compiler's choice."""
    if asked is Granularity.AUTO and model.granularity is Granularity.OPS:
        return ("attention and MLP do not fit as wholes, so their products are placed one by one: --granularity ops",)
    return ()


def workload_of(lowered: Lowered, request: Request) -> Workload:
    """What the machine must hold: an encoder, which takes whole texts, works on all tokens of the context at once.

    Raises:
        UsageError: W0107, the context is longer than the model's.
    """
    context = _context(request.context, lowered.max_context)
    if takes_whole_texts(lowered.graph):
        return Workload(request.users, context, context)
    return Workload(request.users, context, request.prefill_chunk if takes_tokens(lowered.graph) else 1)


def compile(  # noqa: A001 - the name that users expect: waferc.compile
    model: str | Path | torch.nn.Module | torch.export.ExportedProgram,
    example_inputs: Sequence[Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    trust_code: bool = False,
    fix: Mapping[str, int] | None = None,
    parts: Sequence[str] = TEXT_ALONE,
    **options: Any,
) -> CompiledModel:
    """Place a model on a cluster of wafers.

    Args:
        model: what ``waferc compile`` takes (a name, a folder, a file), a ``torch.nn.Module``, or a program of
            ``torch.export.export``.
        example_inputs: for modules: positional inputs of its forward.
        example_kwargs: for modules: inputs by keyword.
        dynamic_shapes: for modules: as for ``torch.export.export``; dimensions named ``users`` and ``tokens`` make the
            model one of steps.
        trust_code: open a ``.pt2`` file, which is a pickle and can run code.
        fix: numbers for sizes that are not fixed, such as ``{"tokens": 128}``.
        parts: of transformers models, ``("text", "vision")`` to place the vision tower too.
        options: fields of :class:`Request`.

    Raises:
        WafercError: with diagnostics, as the command line prints them.
    """
    request = _request(options)
    if isinstance(model, (str, Path)):
        lowered = lower(str(model), LoadOptions(fix=fix or {}, trust_code=trust_code, parts=tuple(parts)))
        return replace(compile_lowered(lowered, request), trust_code=trust_code)
    import torch

    from partitioner.frontends.module import lower_module
    from partitioner.frontends.program import lower_program

    if isinstance(model, torch.export.ExportedProgram):
        found = lower_program(model, "program", Origin("module", {}))
    elif not isinstance(model, torch.nn.Module):
        message = f"a model is a name, a path, a module or an exported program, not {type(model).__name__}"
        raise UsageError(Diagnostic("W0108", message))
    elif example_inputs is None and not example_kwargs:
        raise UsageError(Diagnostic("W0108", "a module needs example_inputs", type(model).__name__))
    else:
        inputs = () if example_inputs is None else example_inputs
        found = lower_module(model, inputs, example_kwargs, dynamic_shapes)
    lowered = replace(found.lowered, graph=fix_sizes(found.lowered.graph, LoadOptions(fix=fix or {}).fix))
    return replace(compile_lowered(lowered, request), weights=found.weights, forward=found.forward)


def _request(options: Mapping[str, Any]) -> Request:
    """The request that ``options`` make.

    Raises:
        UsageError: W0103, there is no such option, or it is of another type.
    """
    known = [option.name for option in fields(Request)]
    faults = []
    for name in options.keys() - set(known):
        close = difflib.get_close_matches(name, known, n=1)
        help_ = (f"did you mean {close[0]}?",) if close else (f"options are {', '.join(known)}",)
        faults.append(Diagnostic("W0103", f"there is no option {name}", name, help=help_))
    if faults:
        raise UsageError(*faults)
    try:
        return Request(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(Diagnostic("W0103", f"an option is of the wrong type: {error}")) from None


def _context(asked: int | None, most: int | None) -> int:
    if asked is not None and most is not None and asked > most:
        facts = {"context": asked, "model_limit": most}
        raise UsageError(Diagnostic("W0107", "the context is longer than the model's", "--context", facts))
    return asked or min(_DEFAULT_CONTEXT, most or _DEFAULT_CONTEXT)


def open_plan(folder: str | Path, *, trust_code: bool = False) -> OpenPlan:
    """The plan in ``folder``, if it passes every check: to run it, and to verify it against the original.

    Raises:
        UsageError: W0106, there is no plan in ``folder``; W0616, it is one for GPUs or LPUs.
        CheckError: with every fault of the plan.
    """
    from partitioner.running.plans import open_plan as opened

    return opened(folder, trust_code=trust_code)


def estimate(
    model: str | Path,
    *,
    target: str = "cs3",
    changes: Mapping[str, float] | None = None,
    trust_code: bool = False,
    fix: Mapping[str, int] | None = None,
    parts: Sequence[str] = TEXT_ALONE,
    **question: Any,
) -> Forecast:
    """Forecast how fast a model is served.

    Args:
        model: what ``waferc estimate`` takes, plans aside.
        target: a machine of the catalogue, or the path of a machine file.
        changes: other values for its figures, such as ``{"tile.clock_hz": 1e9}``.
        trust_code: open a ``.pt2`` file, which can run code.
        fix: numbers for sizes that are not fixed.
        parts: of transformers models, ``("text", "vision")`` to take the vision tower in.
        question: fields of :class:`partitioner.estimate.Question`.

    Raises:
        WafercError: with diagnostics, as the command line prints them.
    """
    machine = load_target(target, changes)
    try:
        ask(None, **question)
        profile = load_profile(str(model), LoadOptions(fix=fix or {}, trust_code=trust_code, parts=tuple(parts)))
        asked = ask(profile.max_context, **question)
    except TypeError as error:
        raise UsageError(Diagnostic("W0103", f"an option is unknown or of the wrong type: {error}")) from None
    return forecast.estimate(profile, machine, asked)
