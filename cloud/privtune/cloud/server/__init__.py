"""The server process: REST and gRPC side by side, TLS, logs."""
