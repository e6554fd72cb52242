"""What leaves the device, drawn once per record: releases, randomized labels, and what is fitted on the records."""
