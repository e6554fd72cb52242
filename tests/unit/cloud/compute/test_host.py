"""Bottom packages that nobody asks for go."""

import os
import time

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host import Host


def test_packages_go_by_their_last_use(tmp_path):
    for name, age_s in (("new", 0), ("old", 100), (".killed.removed", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    assert Host(Catalog(), tmp_path).drop_packages(time.time() - 50) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
