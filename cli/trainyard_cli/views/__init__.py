"""How jobs are shown: tables, live progress, plots. No requests to a cluster."""
