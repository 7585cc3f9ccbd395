"""The command line: `python -m pipelines`, `gptline`, and what the make targets call.

The one idea: a command reads a Recipe and an Execution, does one thing, and says what to do next. What is slow to
import is imported by the command that needs it.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 damage found, 75 interrupted and resumable (EX_TEMPFAIL).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import (
    harness_commands,
    jobs_commands,
    lineage_commands,
    pull_commands,
    retrain_commands,
    run,
    site_commands,
    tasks_commands,
    upkeep_commands,
)
from pipelines.config import ConfigError
from pipelines.errors import DAMAGED, INTERRUPTED, exit_code, told
from pipelines.options import (
    AsJson,
    RecipeName,
    Settings,
    Until,
    Wait,
    WorkDir,
    configured,
    err,
    execution_of,
    out,
    pairs,
)
from pipelines.recipe_checks import check_together
from pipelines.results import Given

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command("pull")(pull_commands.pull)
app.command("evaluate")(harness_commands.evaluate)
app.command("lineage")(lineage_commands.lineage)
app.command("tasks")(tasks_commands.tasks)


@app.command("run")
def run_command(
    recipe: RecipeName = "default",
    work: WorkDir = "work",
    settings: Settings = None,
    until: Until = None,
    wait: Wait = True,
    submitted: Annotated[bool, typer.Option("--submitted", hidden=True, help="this is the command of a job")] = False,
) -> None:
    """Make everything that the recipe asks for and that is not made yet."""
    from pipelines import narrate, store

    made, execution = configured(recipe, work, settings)
    if submitted:  # a job's work runs on the Ray that runs the job
        execution = execution.model_copy(update={"ray_address": "auto"})
    store.assert_readable(execution.registry)  # before hours of training for it, not after
    workspace = run.until(run.open_workspace(made, execution, fetch=True), until)
    given = Given(recipe, work, pairs(settings), "submit" if submitted else "run")
    narrate.run(workspace, out, err, given, wait)


@app.command("dry-run")
def dry_run_command(recipe: RecipeName = "default", work: WorkDir = "work", settings: Settings = None) -> None:
    """Build the recipe's models on shapes alone: sizes, memory, batches. Trains nothing."""
    from pipelines import dry_run

    made, execution = configured(recipe, work, settings)
    check_together(made, execution)
    try:
        lines = list(dry_run.lines(made, execution))
    except ValueError as error:  # what does not fit together is the recipe's author's to mend
        raise ConfigError(f"recipe {made.name} cannot be run: {error}") from error
    for line in lines:
        out.print(line, markup=False)


@app.command()
def plan(
    recipe: RecipeName = "default", work: WorkDir = "work", settings: Settings = None, as_json: AsJson = False
) -> None:
    """Say of each step whether it is done, and why not."""
    from pipelines import store

    made, execution = configured(recipe, work, settings)
    store.assert_readable(execution.registry)
    planned = run.plan(run.open_workspace(made, execution, fetch=False))
    if as_json:
        steps = [
            {
                "step": name,
                "stage": step.step.stage.name,
                "done": step.done,
                "fingerprint": step.fingerprint,
                "why": list(step.reasons),
            }
            for name, step in planned.items()
        ]
        sys.stdout.write(json.dumps({"recipe": made.name, "work": execution.work, "steps": steps}, indent=1) + "\n")
        return
    for name, step in planned.items():
        out.print(f"  {name:<16} {'done' if step.done else 'to do: ' + '; '.join(step.reasons)}", markup=False)
    if not all(step.done for step in planned.values()):
        out.print(f"next: {Given(recipe, work, pairs(settings)).make('run')}", markup=False)


@app.command()
def status(
    recipe: RecipeName = "default", work: WorkDir = "work", settings: Settings = None, as_json: AsJson = False
) -> None:
    """Say what is made, what is being made and by whom, and what it measured."""
    from pipelines import standing

    made, execution = configured(recipe, work, settings, only_looks=True)
    workspace = run.open_workspace(made, execution, fetch=False)
    standing.status(workspace, out, as_json, Given(recipe, work, pairs(settings)), site_commands.state(execution))


@app.command()
def verify(
    recipe: RecipeName = "default", work: WorkDir = "work", settings: Settings = None, as_json: AsJson = False
) -> None:
    """Hash every file under the work directory and compare it with the records."""
    from pipelines import verification

    report = verification.verify(Path(execution_of(work, settings).work))
    if as_json:
        sys.stdout.write(json.dumps(report.as_json(), indent=1) + "\n")
    else:
        for line in report.lines(Given(recipe, work, pairs(settings)).make("run")):
            out.print(line, markup=False)
    if report.damaged or report.missing:
        raise typer.Exit(DAMAGED)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="a folder with an export, or name@alias")],
    prompt: Annotated[str, typer.Argument(help="text to continue")],
    tokens: Annotated[int, typer.Option(help="new tokens, at most")] = 48,
    seed: Annotated[int, typer.Option(help="of the sampling")] = 0,
    temperature: Annotated[float, typer.Option(help="of the sampling; 0 takes the likeliest token")] = 0.8,
    settings: Settings = None,
) -> None:
    """Continue a prompt with a base model."""
    from pipelines import inspection

    execution = execution_of("work", settings)
    out.print(inspection.continued(execution, model, prompt, tokens, seed, temperature), markup=False)


@app.command()
def inspect(
    what: Annotated[
        str,
        typer.Argument(
            help="a shard, an examples file, a folder or file of outputs, or batch:STEP for a training batch"
        ),
    ],
    rows: Annotated[int, typer.Option(help="rows to show")] = 3,
    recipe: RecipeName = "default",
    work: WorkDir = "work",
    settings: Settings = None,
) -> None:
    """Decode a shard, examples or a training batch: text, loss mask, label, and where it came from."""
    from pipelines import inspection

    made, execution = configured(recipe, work, settings)
    for line in inspection.inspect(what, rows, run.open_workspace(made, execution, fetch=False)):
        out.print(line, markup=False)


@app.command()
def ui(settings: Settings = None) -> None:
    """Serve MLflow's own UI on loopback."""
    from pipelines import registry

    execution = execution_of("work", settings)

    uri = registry.tracking_uri(execution.registry)
    if uri.startswith("http"):
        out.print(f"MLflow's own server has its UI: {uri} (user and password: {execution.credentials})", markup=False)
        return
    out.print(f"MLflow at http://127.0.0.1:{execution.port} (Ctrl-C ends it)", markup=False)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # ten processes, for nothing here
    os.execv(
        sys.executable,
        [
            sys.executable,
            "-m",
            "mlflow",
            "ui",
            "--backend-store-uri",
            uri,
            "--host",
            "127.0.0.1",
            "--port",
            str(execution.port),
        ],
    )


@app.command("registry-check")
def registry_check(settings: Settings = None, as_json: AsJson = False) -> None:
    """Check the MLflow store: its database, every registered package, aliases, runs without a process."""
    from pipelines import store_check

    report = store_check.check(store_check.local_database(site_commands.store_folder(execution_of("work", settings))))
    if as_json:
        sys.stdout.write(json.dumps(report.as_json(), indent=1) + "\n")
    else:
        for line in report.lines():
            out.print(line, markup=False)
    if report.damaged:
        raise typer.Exit(DAMAGED)


@app.command("registry-backup")
def registry_backup(
    dest: Annotated[str | None, typer.Option(help="folder for backups; <registry>-backups if not given")] = None,
    keep: Annotated[int, typer.Option(min=1, help="backups to keep there")] = 3,
    settings: Settings = None,
) -> None:
    """Copy the MLflow store to a new folder, verified; older copies share what has not changed."""
    from pipelines import store_backup, store_check

    database = store_check.local_database(site_commands.store_folder(execution_of("work", settings)))
    made = store_backup.back_up(database, Path(dest) if dest else None, keep)
    for line in made.report.lines():
        out.print(line, markup=False)
    out.print(f"backup: {made.folder} ({made.files} files, {made.shared} shared with the one before)", markup=False)
    if made.report.damaged:
        out.print("the backup has the damage too: earlier ones were kept", markup=False)
        raise typer.Exit(DAMAGED)


for command in (
    *(jobs_commands.submit, jobs_commands.logs, jobs_commands.stop, jobs_commands.jobs),
    *(site_commands.up, site_commands.join, site_commands.down, site_commands.serve, site_commands.user),
    retrain_commands.retrain,
    retrain_commands.history,
    retrain_commands.promote,
    retrain_commands.rollback,
    retrain_commands.promotions,
    upkeep_commands.gc,
    upkeep_commands.schedule,
    upkeep_commands.unschedule,
    upkeep_commands.catch_up,
    upkeep_commands.alerts,
):
    app.command()(command)


def _stop(number: int, frame: Any) -> None:
    """SIGTERM unwinds the program as Ctrl-C does, so that leases are given back and MLflow's runs are closed."""
    sys.exit(INTERRUPTED)


def main() -> None:
    """Run the command; expected errors are said in one message, without a traceback."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except Exception as error:
        message = told(error)
        if message is None:
            raise
        err.print(f"gptline: {message}", markup=False, style="red")
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
