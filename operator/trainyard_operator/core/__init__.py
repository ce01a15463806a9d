"""The lifecycle of a job, free of kopf and of any cluster client: observe, plan, apply."""
