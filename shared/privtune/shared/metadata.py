"""The gRPC metadata keys of PrivTune's calls, for both ends."""

JOB = "privtune-job"  # the stream's job, set by the device
EPOCH = "privtune-epoch"  # the stream's session epoch, set by the device; frames of an older epoch are refused
REASON = "privtune-reason"  # reason of a failed call, from the error table, set by the cloud
AUTHORIZATION = "authorization"  # `Bearer <api key>`, set by the device
