"""The controller: cache, work queue and reconciler, which apply plans to a backend; uses no cluster client."""
