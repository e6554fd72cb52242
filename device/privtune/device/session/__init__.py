"""What every session with the cloud needs, in training and in use: settings, handshake, send-ahead window, scoring."""
