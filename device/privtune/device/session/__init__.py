"""What every session with a tuned or training model needs: run settings, scoring."""
