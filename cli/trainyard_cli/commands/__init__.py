"""The commands: one file each, and one for those that change a job."""
