"""The provider's side: the top of the model, jobs and artifacts. The adversary of the threat model."""
