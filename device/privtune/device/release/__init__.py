"""What leaves the device, drawn once per record: releases, randomised labels, and what is fitted on the records."""
