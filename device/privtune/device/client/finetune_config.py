"""`FineTuneConfig`: the options of a job by name, as `privtune finetune` has them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from privtune.device.client.job_options import JOB_OPTIONS, field_at, help_of
from privtune.shared.errors import InvalidInput

NAMES = tuple(name for name in JOB_OPTIONS if name != "model")


class FineTuneConfig:
    """How a job trains: the options of `privtune finetune` by their names, with `_` for `-`.

    Frozen. What is left out takes the protection's settings, then the job's defaults. Values are checked when the job
    begins, with the messages of the command.

        FineTuneConfig(epochs=2, learning_rate=3e-4, lora_rank=16)

    Raises InvalidInput for a name that no option has.

    params: of the noise mechanism, by name.
    """

    def __init__(self, *, params: Mapping[str, float | int | str | bool] | None = None, **options: Any) -> None:
        for name in options:
            if name not in NAMES:
                if name == "model":
                    raise InvalidInput("There is no option model; it is an argument of its own.", param=name)
                near = difflib.get_close_matches(name, (*NAMES, "params"), n=1)
                hint = f"did you mean {near[0]}?" if near else "`help(FineTuneConfig)` lists them."
                raise InvalidInput(f"There is no option {name}; {hint}", param=name)
        given = {name: value for name, value in options.items() if value is not None}
        self._given, self._params = MappingProxyType(given), MappingProxyType(dict(params or {}))

    @property
    def given(self) -> Mapping[str, Any]:
        """The options that are set."""
        return self._given

    @property
    def params(self) -> Mapping[str, float | int | str | bool]:
        """Parameters of the mechanism that are set."""
        return self._params

    def but(self, *, params: Mapping[str, float | int | str | bool] | None = None, **options: Any) -> FineTuneConfig:
        """The same with some options set otherwise; None takes an option back."""
        return FineTuneConfig(params={**self._params, **(params or {})}, **{**self._given, **options})

    def __repr__(self) -> str:
        given = {**self._given, **({"params": dict(self._params)} if self._params else {})}
        return f"FineTuneConfig({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FineTuneConfig) and (self.given, self.params) == (other.given, other.params)

    def __hash__(self) -> int:
        return hash(repr(self))


def _documented() -> str:
    lines = []
    for panel in dict.fromkeys(JOB_OPTIONS[name].panel for name in NAMES):
        mine = [name for name in NAMES if JOB_OPTIONS[name].panel == panel]
        lines += ["", f"{panel or 'Task'}:"]
        lines += [f"    {name}: {help_of(field_at(JOB_OPTIONS[name].path))}" for name in mine]
    return f"{inspect.getdoc(FineTuneConfig)}\n" + "\n".join(lines)


# One truth: what `help` and a notebook's completion show is the job's own description.
FineTuneConfig.__doc__ = _documented()
FineTuneConfig.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in (*NAMES, "params")]
)
