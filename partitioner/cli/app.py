"""The commands and their options; what they do stands in the modules that they import."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from ir.diagnostics import Diagnostic, ExitCode, UsageError, WafercError
from partitioner.cli.arguments import (
    Count,
    Json,
    PromptIds,
    RuleOptions,
    RunOptions,
    SpreadOptions,
    TrustCode,
    parse_parts,
    parse_prompts,
    parse_share,
    parse_sizes,
    parse_wafers,
    with_value,
)
from partitioner.cli.forecasts import compare, estimate, size
from partitioner.cli.output import Output
from partitioner.version import VERSION

app = App(
    name="waferc",
    help="Partition neural networks over clusters of wafer-scale machines.",
    version=VERSION,
    version_flags=["--version"],
    help_flags=["--help", "-h"],
)


@app.command(name="compile")
def compile_command(
    model: str,
    /,
    *,
    target: str = "cs3",
    systems: Count | None = None,
    users: Count = 1,
    context: Count | None = None,
    prefill_chunk: Count = 64,
    reserve_bytes: Count | None = None,
    without: str = "",
    experts: str = "auto",
    granularity: str = "auto",
    rules: RuleOptions = RuleOptions(),  # noqa: B008 - frozen, and cyclopts reads the options off it
    fix: str = "",
    parts: str = "text",
    trust_code: TrustCode = False,
    output: Annotated[Path | None, Parameter(["--output", "-o"])] = None,
    tests: Annotated[bool, Parameter("--tests", negative=())] = False,
    objective: str = "balance,traffic",
    report: Path | None = None,
    seed: Count = 0,
    time_limit: float = 60.0,
    json: Json = False,
) -> None:
    """Place a model on a cluster of wafers, GPUs or LPUs, check the plan, and write it.

    Args:
        model: a name that `waferc models` lists, a transformers folder or config.json, an ONNX file, or a .pt2 program.
        target: a name that `waferc targets` lists, or a machine file (.toml).
        systems: number of wafers, or of nodes of devices; the target's own number if not given.
        users: users whose KV caches are resident at the same time.
        context: tokens remembered for each user; 4096 if not given, or the model's own limit if that is less.
        prefill_chunk: tokens that a pipeline stage works on at once; sizes the activation buffers. An encoder, which
            takes whole texts, works on all tokens of the context.
        reserve_bytes: bytes of each tile or device kept for code and buffers; the target's own if not given.
        without: wafers that are out of service, by number, for example 7 or 3,7.
        experts: apart, each routed expert on tiles of its own; sliced, each on all tiles of its layer's region; or auto
            for what serves a token sooner.
        granularity: what is placed as a whole: layers, halves (attention and MLP apart), ops (each product with its
            weight), or auto for halves if they fit and ops if not.
        rules: what else is asked of the placement.
        fix: numbers for sizes that are not fixed, for example tokens=128 or batch=1,tokens=128; a model whose tokens
            meet outside of attention is placed for these sizes alone.
        parts: text, or text,vision to place the vision tower of a multimodal transformers model too, for one picture.
        trust_code: open a .pt2 file, which is a pickle and can run code: only if you trust who made it.
        output: folder to write the plan to; nothing is written if not given.
        tests: write test_plan.py into that folder, for pytest: that the plan computes what the original does.
        objective: what to make the placement best for, the first first: machines, latency, bottleneck, traffic,
            balance or room, separated by commas.
        report: file (.html) to write a page to: of the plan, or of why there is none and what would fit.
        seed: seed of the solver.
        time_limit: limit on the solver's work, in deterministic seconds.
        json: print one JSON object.
    """
    from partitioner.api import LoadOptions, Request
    from partitioner.cli.compile import run_compile

    request = Request(
        target=target,
        systems=systems,
        reserve_bytes=reserve_bytes,
        without=parse_wafers([without], "--without"),
        users=users,
        context=context,
        prefill_chunk=prefill_chunk,
        experts=experts,
        objective=objective,
        granularity=granularity,
        rules=rules.read(),
        seed=seed,
        time_limit=time_limit,
    )
    options = LoadOptions(fix=parse_sizes(fix), trust_code=trust_code, parts=parse_parts(parts))
    if tests and output is None:
        raise UsageError(Diagnostic("W0104", "--tests writes into the plan's folder: give --output", "--tests"))
    run_compile(model, options, request, output, Output(json=json), report, tests=tests)


@app.command
def inspect(
    model: str, /, *, fix: str = "", parts: str = "text", trust_code: TrustCode = False, json: Json = False
) -> None:
    """Show what a model is, without placing it: its weights, caches, work and blocks.

    Args:
        model: a name that `waferc models` lists, a transformers folder or config.json, an ONNX file, or a .pt2 program.
        fix: numbers for sizes that are not fixed, for example tokens=128 or batch=1,tokens=128.
        parts: text, or text,vision to look at the vision tower of a multimodal transformers model too.
        trust_code: open a .pt2 file, which is a pickle and can run code: only if you trust who made it.
        json: print one JSON object.
    """
    from partitioner.api import LoadOptions
    from partitioner.cli.inspect import run_inspect

    options = LoadOptions(fix=parse_sizes(fix), trust_code=trust_code, parts=parse_parts(parts))
    run_inspect(model, options, Output(json=json))


app.command(estimate)
app.command(size)
app.command(compare)


@app.command
def check(folder: Path, /, *, json: Json = False) -> None:
    """Derive every claim of a plan again from its model and machine; exit code 6 if one is wrong.

    Args:
        folder: a plan's folder.
        json: print one JSON object.
    """
    from partitioner.cli.check import run_check

    run_check(folder, Output(json=json))


@app.command
def view(
    folder: Path, /, *, open_page: Annotated[bool, Parameter("--open", negative=())] = False, json: Json = False
) -> None:
    """Show a plan: the placement as a table, and where its page lies.

    Args:
        folder: a plan's folder.
        open_page: open the page in a browser.
        json: print one JSON object.
    """
    from partitioner.cli.view import run_view

    run_view(folder, Output(json=json), open_page=open_page)


@app.command
def diff(
    before: Path,
    after: Path,
    /,
    *,
    speed: Annotated[bool, Parameter("--speed", negative=())] = False,
    json: Json = False,
) -> None:
    """Say what changed from one plan to another; exit code 0, whatever did.

    Args:
        before: a plan's folder.
        after: another one's.
        speed: check both and forecast how fast they are.
        json: print one JSON object.
    """
    from partitioner.cli.diff import run_diff

    run_diff(before, after, Output(json=json), speed=speed)


@app.command
def replan(
    folder: Path,
    /,
    *,
    lost: tuple[str, ...] = (),
    added: Count = 0,
    users: Count | None = None,
    context: Count | None = None,
    prefill_chunk: Count | None = None,
    within: str = "5%",
    experts: str = "auto",
    target: str | None = None,
    output: Annotated[Path | None, Parameter(["--output", "-o"])] = None,
    json: Json = False,
) -> None:
    """Make a plan for what has changed that moves the fewest bytes of weights, and say what moves.

    Args:
        folder: a plan's folder; it stays as it is.
        lost: wafers that are out of service, for example wafer:7; more of them separated by commas.
        added: how many wafers are new; their numbers follow those of the others.
        users: users whose KV caches are resident at the same time; the plan's if not given.
        context: tokens remembered for each user; the plan's if not given.
        prefill_chunk: tokens that a pipeline stage works on at once; the plan's if not given.
        within: how far from the optimum of the plan's first objective the new plan may be.
        experts: apart, sliced or auto, for wafers that are laid out anew.
        target: the machine file that the plan was made for, if it is not bundled; it tells how fast wafers are.
        output: folder to write the new plan to; nothing is written if not given.
        json: print one JSON object.
    """
    from partitioner.cli.replan import Asked, run_replan
    from partitioner.replan import Change

    change = Change(
        lost=parse_wafers(lost, "--lost"),
        added=added,
        users=users,
        context=context,
        chunk=prefill_chunk,
        within=parse_share(within, "--within"),
    )
    run_replan(folder, change, Asked(experts, target, output), Output(json=json))


@app.command
def run(
    folder: Path,
    /,
    *,
    prompt_ids: PromptIds = (),
    prompt: str | None = None,
    inputs: Path | None = None,
    users: Count | None = None,
    tokens: Count = 16,
    compare: str = "",
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen, and cyclopts reads the options off it
    draft: Count = 0,
    spread: SpreadOptions = SpreadOptions(),  # noqa: B008 - likewise
    counters: str = "totals",
    trace: Path | None = None,
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Run a plan on emulated tiles: generate tokens (greedily), or run once on given inputs; see docs/emulator.md.

    Args:
        folder: a plan's folder.
        prompt_ids: for language models: token ids of the prompt, separated by commas; several prompts, which are in the
            pipeline at the same time, by semicolons or by this option again.
        prompt: a prompt in words, where a tokenizer.json lies in the checkpoint's folder.
        inputs: for other models: an .npz file with an array for each input.
        users: how many users there are at once, the prompts being given to them in turn; one for each prompt if not
            given.
        tokens: how many tokens to generate for each prompt.
        compare: run the original too, by torch, onnxruntime, onnx, or auto, which needs not be written; exit code 6 if
            tokens or outputs differ.
        options: how the host computes.
        draft: how many tokens to guess, from where the last ones stood before, for each step to examine at once; the
            tokens are the same as without.
        spread: over how many processes, and what is kept of the run.
        counters: how finely --json tells counters: totals, blocks or ops.
        trace: file (.json) to write a trace of the run to, for Perfetto or Chrome.
        trust_code: open the .pt2 file that the plan is of, which can run code.
        json: print one JSON object.
    """
    from partitioner.cli.run import Asked
    from partitioner.cli.run import run as run_plan

    out = Output(json=json)
    asked = Asked(
        prompts=parse_prompts(prompt_ids),
        text=prompt,
        inputs=inputs,
        users=users,
        tokens=tokens,
        compare=compare,
        counters=counters,
        trace=trace,
        draft=draft,
        spread=spread.spread(out.failure),
    )
    run_plan(folder, asked, options.how(), out, trust_code=trust_code)


@app.command
def verify(
    folder: Path,
    /,
    *,
    reference: str = "auto",
    prompt_ids: PromptIds = (),
    inputs: Path | None = None,
    tokens: Count = 8,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen, and cyclopts reads the options off it
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Run a plan and the original side by side and tell the error of every layer; exit code 6 if one is wrong.

    Args:
        folder: a plan's folder.
        reference: who runs the original: torch, onnxruntime, onnx, or auto.
        prompt_ids: token ids of the prompt, separated by commas; some from the seed, more than the plan's prefill
            chunk, if not given.
        inputs: for other models: an .npz file with an array for each input; some from the seed if not given.
        tokens: how many tokens to generate for each prompt.
        options: how the host computes.
        trust_code: open the .pt2 file that the plan is of, which can run code.
        json: print one JSON object.
    """
    if tokens < 1:
        raise UsageError(Diagnostic("W0103", f"--tokens must be at least 1, not {tokens}", "--tokens"))
    if prompt_ids and inputs is not None:
        raise UsageError(Diagnostic("W0104", "give either --prompt-ids or --inputs", "verify"))
    from partitioner.cli.verify import verify as verify_plan

    prompts = parse_prompts(prompt_ids)
    verify_plan(folder, prompts, inputs, tokens, reference, options.how(), Output(json=json), trust_code=trust_code)


@app.command
def models(*, json: Json = False) -> None:
    """List the bundled models.

    Args:
        json: print one JSON object.
    """
    from partitioner.frontends.catalog import catalog

    Output(json=json).listing("models", catalog())


@app.command
def targets(*, json: Json = False) -> None:
    """List the bundled machines.

    Args:
        json: print one JSON object.
    """
    from targets.machines import catalog, load_target, summary

    Output(json=json).listing("targets", {name: summary(load_target(name)) for name in catalog()})


@app.command
def schema(*, devices: Annotated[bool, Parameter("--devices", negative=())] = False) -> None:
    """Print the JSON Schema of manifest.json.

    Args:
        devices: of plans for GPUs and LPUs, rather than those for wafers.
    """
    if devices:
        from partitioner.device_folder import device_schema as manifest_schema
    else:
        from partitioner.manifest import schema as manifest_schema

    Output(json=True).result(manifest_schema())


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code; every error is a diagnostic, never a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    output = Output(json="--json" in arguments)
    arguments = with_value(arguments, "--compare", "auto")
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        help_ = ("see `waferc --help`",)
        sys.exit(output.failure(UsageError(Diagnostic("W0100", " ".join(str(error).split()), help=help_))))
    except WafercError as error:
        sys.exit(output.failure(error))
    except KeyboardInterrupt:
        sys.exit(int(ExitCode.INTERRUPTED))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("WAFERC_TRACEBACK"):
            raise
        help_ = ("this is a fault of waferc; WAFERC_TRACEBACK=1 shows where it stands",)
        fault = Diagnostic("W0000", f"internal error: {type(error).__name__}: {error}", help=help_)
        sys.exit(output.failure(WafercError(fault)))
