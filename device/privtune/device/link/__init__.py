"""The device's connections to the cloud: gRPC for training, REST for jobs, resumable downloads."""
