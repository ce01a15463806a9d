"""Dashboards, recording rules and alerts, from which `make generate` writes the files that the chart ships."""
