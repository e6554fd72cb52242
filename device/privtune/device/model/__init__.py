"""The device's part of a model: bottom, tail and head, objectives and final states."""
