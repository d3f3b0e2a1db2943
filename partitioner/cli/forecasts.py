"""The commands that forecast; what they do stands in the modules that they import."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from partitioner.cli.arguments import Count, Json, TrustCode, parse_parts, parse_sizes
from partitioner.cli.output import Output


def estimate(
    model: str,
    /,
    *,
    target: str | None = None,
    systems: Count | None = None,
    users: Count | None = None,
    context: Count | None = None,
    input_tokens: Count | None = None,
    output_tokens: Count | None = None,
    prefill_chunk: Count | None = None,
    experts: str = "auto",
    speculative: str = "",
    draft_tokens: Count | None = None,
    acceptance: float | None = None,
    draft: str | None = None,
    mesh: str = "",
    changes: Annotated[tuple[str, ...], Parameter("--set", negative=())] = (),
    simulate: Annotated[bool, Parameter("--simulate", negative=())] = False,
    fix: str = "",
    parts: str = "text",
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Forecast how fast a model, or a plan, is served: speeds with ranges, what limits them, and which figures matter.

    Args:
        model: as for `waferc compile`, or the folder of a plan, which is forecast as it lies there.
        target: a name that `waferc targets` lists, or a machine file (.toml); cs3, or the plan's own, if not given.
        systems: wafers, or nodes of devices; the fewest that hold the model if not given.
        users: served at the same time; 1, or the plan's, if not given.
        context: tokens that a user's cache holds at the end of a request; the request alone if not given.
        input_tokens: tokens that a request sends; 1000 if not given.
        output_tokens: tokens that a request gets; 500 if not given.
        prefill_chunk: tokens of a prompt that pass the stages at once.
        experts: apart (each on tiles of its own), sliced (each over all tiles of its group), or auto for the faster.
        speculative: drafted tokens and their acceptance in short, as 3:0.7.
        draft_tokens: tokens drafted for each pass of the model.
        acceptance: probability from 0 to 1 that a drafted token is accepted if those before it are.
        draft: who drafts: eagle3 (a head of one layer) or a smaller model.
        mesh: columns and rows of tiles to use of each wafer, as 420x420.
        changes: a figure of the machine, as tile.clock_hz=1.0e9; may be repeated.
        simulate: play requests through the pipeline too, event by event, and report what they got.
        fix: numbers for sizes that are not fixed, for example tokens=128.
        parts: text, or text,vision.
        trust_code: open a .pt2 file, which is a pickle and can run code: only if you trust who made it.
        json: print one JSON object.
    """
    from partitioner.cli.estimate import Asked, Drafting, run_estimate
    from partitioner.options import LoadOptions
    from partitioner.questions import parse_mesh, parse_numbers

    question = {
        "systems": systems,
        "users": users,
        "context": context,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "prefill_chunk": prefill_chunk,
        "experts": experts,
    }
    asked = Asked(
        target=target,
        mesh=parse_mesh(mesh),
        changes=parse_numbers(changes, "--set", "tile.clock_hz=1.0e9"),
        drafting=Drafting(short=speculative, draft_tokens=draft_tokens, acceptance=acceptance, draft=draft),
        simulate=simulate,
        question={name: value for name, value in question.items() if value is not None},
    )
    options = LoadOptions(fix=parse_sizes(fix), trust_code=trust_code, parts=parse_parts(parts))
    run_estimate(model, options, asked, Output(json=json))


def size(
    model: str,
    /,
    *,
    min_tokens_per_s: float,
    target: str = "cs3",
    users: Count = 1,
    context: Count | None = None,
    input_tokens: Count | None = None,
    output_tokens: Count | None = None,
    prefill_chunk: Count | None = None,
    experts: str = "auto",
    speculative: str = "",
    draft_tokens: Count | None = None,
    acceptance: float | None = None,
    draft: str | None = None,
    mesh: str = "",
    changes: Annotated[tuple[str, ...], Parameter("--set", negative=())] = (),
    fix: str = "",
    parts: str = "text",
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Find the fewest systems that hold a model with its users and give each of them a speed, and what more would do.

    Args:
        model: as for `waferc compile`.
        min_tokens_per_s: what every user must get.
        target: a name that `waferc targets` lists, or a machine file (.toml).
        users: served at the same time.
        context: tokens that a user's cache holds at the end of a request; the request alone if not given.
        input_tokens: tokens that a request sends; 1000 if not given.
        output_tokens: tokens that a request gets; 500 if not given.
        prefill_chunk: tokens of a prompt that pass the stages at once.
        experts: apart (each on tiles of its own), sliced (each over all tiles of its group), or auto for the faster.
        speculative: drafted tokens and their acceptance in short, as 3:0.7.
        draft_tokens: tokens drafted for each pass of the model.
        acceptance: probability from 0 to 1 that a drafted token is accepted if those before it are.
        draft: who drafts: eagle3 (a head of one layer) or a smaller model.
        mesh: columns and rows of tiles to use of each wafer, as 420x420.
        changes: a figure of the machine, as tile.clock_hz=1.0e9; may be repeated.
        fix: numbers for sizes that are not fixed, for example tokens=128.
        parts: text, or text,vision.
        trust_code: open a .pt2 file, which is a pickle and can run code: only if you trust who made it.
        json: print one JSON object.
    """
    from partitioner.cli.estimate import Asked, Drafting
    from partitioner.cli.size import run_size
    from partitioner.options import LoadOptions
    from partitioner.questions import parse_mesh, parse_numbers

    question = {
        "users": users,
        "context": context,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "prefill_chunk": prefill_chunk,
        "experts": experts,
    }
    asked = Asked(
        target=target,
        mesh=parse_mesh(mesh),
        changes=parse_numbers(changes, "--set", "tile.clock_hz=1.0e9"),
        drafting=Drafting(short=speculative, draft_tokens=draft_tokens, acceptance=acceptance, draft=draft),
        question={name: value for name, value in question.items() if value is not None},
    )
    options = LoadOptions(fix=parse_sizes(fix), trust_code=trust_code, parts=parse_parts(parts))
    run_size(model, options, asked, min_tokens_per_s, Output(json=json))


def compare(
    model: str,
    /,
    *,
    targets: str = "cs3,gb200_nvl72,groq_lpu_v1,h100",
    prices: str = "",
    workload: str = "all",
    users: Count | None = None,
    speculative: str = "",
    draft_tokens: Count | None = None,
    acceptance: float | None = None,
    draft: str | None = None,
    fix: str = "",
    parts: str = "text",
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Compare machines for a model: speed, time of a request, systems, energy and cost, for three kinds of work.

    Args:
        model: as for `waferc compile`.
        targets: names that `waferc targets` lists, or machine files (.toml), separated by commas.
        prices: US dollars for an hour of one system (a wafer, or a node), as cs3=35,h100=24.
        workload: coding (4,000 tokens in, 1,500 out, in 3 s), support (2,000, 400, 4 s), documents (1,500, 200,
            batch), or all.
        users: served at the same time; if not given, as many as the time allows, or as yield the most in batch.
        speculative: drafted tokens and their acceptance in short, as 3:0.7.
        draft_tokens: tokens drafted for each pass of the model.
        acceptance: probability from 0 to 1 that a drafted token is accepted if those before it are.
        draft: who drafts: eagle3 (a head of one layer) or a smaller model.
        fix: numbers for sizes that are not fixed, for example tokens=128.
        parts: text, or text,vision.
        trust_code: open a .pt2 file, which is a pickle and can run code: only if you trust who made it.
        json: print one JSON object.
    """
    from partitioner.cli.compare import run_compare
    from partitioner.cli.estimate import Drafting
    from partitioner.options import LoadOptions
    from partitioner.questions import parse_numbers

    drafting = Drafting(short=speculative, draft_tokens=draft_tokens, acceptance=acceptance, draft=draft)
    names = list(dict.fromkeys(name.strip() for name in targets.split(",") if name.strip()))
    options = LoadOptions(fix=parse_sizes(fix), trust_code=trust_code, parts=parse_parts(parts))
    costs = parse_numbers((prices,), "--prices", "cs3=35,h100=24")
    run_compare(model, options, names, costs, workload, users, drafting, Output(json=json))
