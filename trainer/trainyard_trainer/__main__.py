"""`python -m trainyard_trainer`: the command of a worker container."""

from trainyard_trainer.launcher.main import main

if __name__ == "__main__":
    main()
