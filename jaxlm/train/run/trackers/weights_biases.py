"""A run's numbers to Weights & Biases, if a project is named: the scalars that TensorBoard gets.

The id of the run there is kept in the run directory, so that a start that resumes goes on with the
same one. Numbers of steps that are trained once more are sent once more, and are the same.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxlm.core import io, json_file

FILE = "wandb.json"
Send = Callable[[int, Mapping[str, float]], None]


def problems(project: str) -> Iterator[str]:
    """Problems of a project's name, or of what is installed, in a line."""
    if not re.fullmatch(r"[^/\s]+(/[^/\s]+)?", project):
        yield f"wandb: {project!r} given; it must be PROJECT or ENTITY/PROJECT"
    elif importlib.util.find_spec("wandb") is None:
        yield f"wandb: {project!r} given, and wandb is not installed: pip install 'jaxlm[wandb]'"


@contextlib.contextmanager
def opened(
    project: str | None, name: str, settings: dict[str, Any], folder: str | os.PathLike[str]
) -> Iterator[Send]:
    """A function that sends the numbers of a step of the run in a folder, for the duration of a
    `with`; it does nothing without a project. It raises what wandb raises.

    name, settings: the run's name there, and its fields.

    Raises: ConnectionError if Weights & Biases cannot be reached, or knows no such login.
    """
    if project is None:
        yield lambda step, scalars: None
        return
    import wandb

    entity, _, short = project.rpartition("/")
    try:
        session = wandb.init(
            entity=entity or None,
            project=short,
            id=identifier(folder),
            name=name,
            resume="allow",
            config=settings,
            dir=os.fspath(folder),
        )
    except Exception as error:
        line = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ConnectionError(
            f"wandb: {project!r} given: {line}; log in with `wandb login`, or set "
            "WANDB_MODE=offline and send the files later with `wandb sync`"
        ) from error
    # by the step, not by the order of arrival: a run that resumes goes back
    session.define_metric("*", step_metric="step")
    try:
        yield lambda step, scalars: session.log({"step": step, **scalars})
    except BaseException:
        session.finish(exit_code=1)
        raise
    session.finish()


def identifier(folder: str | os.PathLike[str]) -> str:
    """The id of a run directory at Weights & Biases: the one that it has, or a new one, kept there.
    Raises: io.WriteError."""
    file = pathlib.Path(folder, FILE)
    with contextlib.suppress(FileNotFoundError, json_file.Damaged, KeyError):
        return str(json_file.read_object(file)["id"])
    name = uuid.uuid4().hex[:12]
    io.write(file, json.dumps({"id": name}) + "\n")
    return name
