"""The owner at a terminal: `privtune` with its real parser, against a real cloud process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from privtune.device.cli import main
from tests.support.world import World

TINY = ("--batch-size", "8", "--max-length", "16", "--max-steps", "4", "--lora-rank", "4", "--codec", "fp32")


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line that a failed command prints."""
        assert "Traceback" not in self.err
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("privtune: ")
        return lines[0].removeprefix("privtune: ")


@dataclass(kw_only=True)
class Owner:
    """Runs commands in this process (torch is loaded once), with the environment of a real owner."""

    world: World
    capsys: pytest.CaptureFixture[str]
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = self.world.environment | self.environment

    @property
    def home(self) -> Path:
        """The device's own folder."""
        return self.world.settings.home

    def __call__(self, *arguments: str, **changes: str) -> Done:
        """`privtune ARGUMENTS`, with changes to the environment."""
        self.capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (self.environment | changes).items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main(arguments)
        out, err = self.capsys.readouterr()
        return Done(code=int(ended.value.code or 0), out=out, err=err)

    def finetune(self, *arguments: str, data: Path | str | None = None, **changes: str) -> Done:
        """A short job on the world's sentences, or other data; without noise or surrogates unless asked for."""
        path = str(data or self.world.data.path)
        return self("finetune", "--model", "enc", "--data", path, *TINY, "--protect", "none", *arguments, **changes)

    def jobs(self) -> list[str]:
        """Ids of all jobs that the cloud knows of this owner."""
        return [job["id"] for job in self.world.cloud.control.list_jobs()]


def job_id_of(done: Done) -> str:
    """The id that `finetune` printed when it submitted the job."""
    return next(word for word in done.out.split() if word.startswith("ftjob-"))
