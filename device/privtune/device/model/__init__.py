"""The device's part of the model: bottom, tail and head, objectives and final states."""
