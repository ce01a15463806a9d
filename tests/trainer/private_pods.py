"""Starts worker pods like `pods`, from a process that has imported Opacus: each rank would take seconds for it."""

import opacus.accountants
import opacus.grad_sample  # noqa: F401

from tests.trainer.pods import serve

if __name__ == "__main__":
    serve()
