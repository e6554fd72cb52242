"""The device's side of one job as a process of its own: `python -m tests.torture.one_job FACTS.json`."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from privtune.device.data.source import DataSource
from privtune.device.session.run_settings import RunSettings
from privtune.device.training.job import run_job
from privtune.shared.job_spec import JobSpec
from tests.support.world import Watcher
from tests.torture.sealing import encrypt

if __name__ == "__main__":
    facts = json.loads(Path(sys.argv[1]).read_text())
    settings = RunSettings(**facts["settings"] | {"home": Path(facts["settings"]["home"])})
    if facts["encrypt"]:
        encrypt(settings.home)
    data, held_out = DataSource(path=facts["data"]), DataSource(path=facts["held_out"])
    spec = JobSpec.model_validate(facts["spec"])
    print(run_job(facts["job"], spec, data, held_out, settings, Watcher(), threading.Event()).adapter_sha256)
