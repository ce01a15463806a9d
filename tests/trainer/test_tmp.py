from tests.trainer.test_estimate import *
from tests.trainer.test_estimate import config_of
import pytest
@pytest.mark.parametrize("name", ["acc", "plain"])
def test_it(start, tmp_path, name):
    trainer = {"model": with_base({**MODEL, **LORA, "layers": 4}, tmp_path / "base"), **(ACCUMULATED if name == "acc" else {}), "stop": {"steps": 10}}
    config = config_of(name, 2, FSDP, trainer).replace(checkpoint=None)
    pods = start(config, 1, 2)
    meter = Meter(pods, start.zygote.pid)
    m = meter.until_end()
    finish(pods)
    f = fit(TrainingJobSpec(workers=Workers(procs_per_worker=2)), config)
    print("RESULT", name, m.total / MIB, f.needed / MIB, {k: round(v / MIB, 1) for k, v in f.memory.parts.items()}, f.memory.moment, f.process / MIB)
