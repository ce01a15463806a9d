"""The backend that runs the pods of a job as process trees on this machine."""
