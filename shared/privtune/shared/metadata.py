"""The gRPC metadata keys of PrivTune's calls; both ends import them from here."""

JOB = "privtune-job"  # the job that a stream works on, set by the device
EPOCH = "privtune-epoch"  # the session epoch of a stream, set by the device; frames of an older one are refused
REASON = "privtune-reason"  # UPPER_SNAKE reason of a failed call, set by the cloud
AUTHORIZATION = "authorization"  # `Bearer <api key>`, set by the device
