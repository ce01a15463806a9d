"""What every process of a run uses: process groups, log, heartbeat, exit and termination message."""
