"""Which teaching a job begins with, where its id is not given."""

import pytest

from privtune.device.link.teaching_calls import newest_for
from privtune.shared.errors import JobNotFound
from tests.support.builders import least_spec


class Cloud:
    """Lists teachings, newest first: (corpus, cut, whether it is of today's model)."""

    url = "http://127.0.0.1"

    def __init__(self, *teachings):
        self._listed = [
            {
                "id": f"teach-{number:024x}",
                "status": "succeeded",
                "current": current,
                "spec": {"model": "m", "task": "classification", "cut": cut, "tail": 1, "corpus": corpus},
            }
            for number, (corpus, cut, current) in enumerate(teachings)
        ]

    def pages(self, path, query):
        return iter(self._listed)


def test_auto_is_the_newest_that_fits_and_a_corpus_the_newest_with_that_text():
    cloud = Cloud(("news", 3, True), ("news", 2, False), ("reviews", 2, True), ("news", 2, True))
    job = least_spec(model="m", cut=2, tail=1)
    assert newest_for(cloud, job) == f"teach-{2:024x}"
    assert newest_for(cloud, job, "news") == f"teach-{3:024x}"
    with pytest.raises(JobNotFound, match="No teaching on mails has taught the first 2"):
        newest_for(cloud, job, "mails")
