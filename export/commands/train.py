"""The training half of `headtail split`: --method, --layer, --data."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from export.bottleneck_run import BottleneckOptions, TrainedBottleneck, late_training, prepare, train_bottleneck
from export.commands.eval import print_evaluation
from export.commands.output import print_json
from export.commands.train_flags import TrainFlags, TrainingUsageError
from export.evaluation_report import write_report
from split.distill import Progress as Step
from split.distill import StageSteps
from split.estimate import estimate
from split.estimate_late import estimate_late
from split.methods import find_method
from split.refine import Material

_LATE = {"refine": "last layers of the tail (--refine)", "exit": "early exit (--exit)"}
_DURATION = re.compile(r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s?)?\Z")


def train_command(model: str, flags: TrainFlags, *, out: Path, target: str, tail_target: str, json: bool) -> None:
    """Run what the flags say; see `headtail split --help`.

    Raises:
        EdgeError: A subclass for each reason.
    """
    options = options_of(flags, out=out, target=target, tail_target=tail_target)
    if flags.dry_run:
        _dry_run(model, options, json=json)
        return
    console = Console(stderr=True)
    quiet = json or int(os.environ.get("RANK", "0")) > 0
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rest]}"))
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("", rest="")

        def on_step(step: Step) -> None:
            rest = f"step {step.step} of {step.steps}, loss {step.loss:.4g}, {_spoken(step.left_s)} left"
            bar.update(task, description=step.stage, completed=step.step, total=step.steps, rest=rest)

        def say(line: str) -> None:
            if not quiet:
                console.print(line, highlight=False)

        made = train_bottleneck(model, replace(options, on_step=on_step, say=say))
    if made is not None:
        _show(made, options, json=json)


def remark_of(reached: Sequence[StageSteps], *, fitted: bool = False) -> str:
    """What to say of a training that a time budget ended; empty where all steps were taken.

    Args:
        reached: How far each stage came.
        fitted: The pair worked before training.
    """
    if all(one.step == one.steps for one in reached):
        return ""
    parts = ", ".join(f"{one.step} of {one.steps} steps of {one.stage!r}" for one in reached)
    if fitted:
        return f"The time budget ended training after {parts}; the pair worked before, and a longer one may improve it."
    return (
        f"The time budget ended training after {parts}. Accuracy is not the aim of such a pair: it shows that the path works. "
        "Train without --time-budget, or with a larger one, into another --out; --method klt works before any training."
    )


def options_of(flags: TrainFlags, *, out: Path, target: str, tail_target: str) -> BottleneckOptions:
    """The flags as options of the library.

    Raises:
        TrainingUsageError: No layer or data, or a duration or setting that is none.
    """
    if flags.method is None or flags.layer is None or flags.data is None:
        raise TrainingUsageError("Wanted --method, --layer and --data together, found only some of them.")
    channel_name = "channels" if flags.method == "bottlefit" else "latent_channels"
    given: dict[str, object] = {
        "epochs": flags.epochs,
        "batch": flags.batch,
        "beta": flags.beta,
        channel_name: flags.channels,
    }
    settings = {name: str(value) for name, value in given.items() if value is not None}
    for one in flags.set:
        name, equals, value = one.partition("=")
        if not equals:
            raise TrainingUsageError(f"Wanted --set name=value, found {one!r}.")
        settings[name] = value
    return BottleneckOptions(
        method=flags.method,
        layer=flags.layer,
        data=flags.data,
        test_data=flags.test_data,
        val_data=flags.val_data,
        early_exit=flags.exit,
        refine=flags.refine,
        out=out,
        settings=settings,
        size=flags.size,
        label_key=flags.label_key,
        strict=flags.strict,
        seed=flags.seed,
        augmentation=flags.augment,
        time_budget_s=None if flags.time_budget is None else seconds(flags.time_budget),
        device=flags.device,
        target=target,
        tail_target=tail_target,
        tail_precision=flags.tail_precision,
        head_engine=flags.head_engine,
        tail_engine=flags.tail_engine,
        codec_qualities=flags.codecs,
    )


def seconds(text: str) -> float:
    """A duration as users write it: 90s, 5m, 1h30m.

    Raises:
        TrainingUsageError: Not a duration, or 0.
    """
    found = _DURATION.match(text.strip().lower())
    total = 0.0
    if found is not None:
        total = sum(float(found[unit] or 0) * scale for unit, scale in (("h", 3600), ("m", 60), ("s", 1)))
    if not total:
        raise TrainingUsageError(f"Wanted a duration such as 90s, 5m or 1h30m, found {text!r}.")
    return total


def _dry_run(model: str, options: BottleneckOptions, *, json: bool) -> None:
    ready = prepare(model, options)
    found = estimate(ready.student, ready.teacher, ready.train_data, ready.stages, ready.options)
    training = {"fit": found.fit_s} if ready.student.bottleneck.fits else {}
    training |= dict(zip((stage.name for stage in ready.stages), found.seconds, strict=True))
    late, peak = dict[str, float](), found.peak_bytes
    plans = late_training(ready, options)
    if plans is not None:
        material = Material(plans.train, plans.validation, plans.augmentation)
        behind = estimate_late(ready.student, ready.teacher, material, plans.refine, plans.exit)
        late, peak = behind.seconds, max(peak, behind.peak_bytes)
    total, budget = sum(training.values()), options.time_budget_s
    end = (total if budget is None else min(total, budget)) + sum(late.values())
    if json:
        seconds = {**training, **late}
        report = {"seconds": seconds, "total_s": sum(seconds.values()), "time_budget_s": budget, "ends_after_s": end}
        print_json({**report, "peak_bytes": peak})
        return
    lines = [f"{name}: {_spoken(value)}" for name, value in training.items()]
    lines += [f"{_LATE[name]}: {_spoken(value)}" for name, value in late.items()]
    lines.append(
        f"Together {_spoken(total + sum(late.values()))} on this machine as busy as it is now; {peak / 1e9:.1f} GB of memory."
    )
    if budget is not None and budget < total:
        lines.append(f"The budget of {_spoken(budget)} ends training after {budget / total:.0%} of it.")
        if late:
            lines.append(f"What is trained behind the head comes after it: {_spoken(end)} together.")
    sys.stdout.write("\n".join(lines) + "\n")


def _show(made: TrainedBottleneck, options: BottleneckOptions, *, json: bool) -> None:
    head, tail, equality, reached = made.pair.head, made.pair.tail, made.pair.equality, made.training
    remark = remark_of(reached, fitted=find_method(options.method).fitted)
    title = f"{head.manifest.model.name} with {options.method} behind {options.layer}"
    page = write_report(made.evaluation, options.out, title=title, remark=remark)
    if json:
        print_json(
            {
                "cut_id": head.key,
                "head": {"folder": str(head.folder), "id": head.id, "bytes": head.entry.stat().st_size},
                "tail": {"folder": str(tail.folder), "id": tail.id, "bytes": tail.entry.stat().st_size},
                "whole": str(made.whole.folder),
                "equal": {"equal": equality.equal, "count": equality.count, "engine": equality.engine},
                "report": str(page),
                "training": {one.stage: {"steps": one.step, "planned": one.steps} for one in reached},
                "evaluation": msgspec.to_builtins(made.evaluation),
            }
        )
        return
    print_evaluation(made.evaluation)
    if remark:
        sys.stdout.write(remark + "\n")
    sys.stdout.write(
        f"head: {head.folder} ({head.entry.stat().st_size / 1000:.1f} kB), tail: {tail.folder} "
        f"({tail.entry.stat().st_size / 1000:.1f} kB), cut {head.key}.\n"
        f"{equality.sentence}\nReport: {page}\n"
    )


def _spoken(value: float) -> str:
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"
