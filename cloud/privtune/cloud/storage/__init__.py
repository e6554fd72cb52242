"""Where artifacts outlive a process: in the data folder, or in a bucket. Opened by `open_artifacts`."""

from privtune.cloud.storage.artifact_store import ArtifactStore
from privtune.cloud.storage.bucket import open_artifacts

__all__ = ["ArtifactStore", "open_artifacts"]
