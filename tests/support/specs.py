"""Specs with as many optional fields as fit together, for tests over all fields of the resource."""

from typing import Any

MUTABLE_FIELDS = (
    *("suspend", "activeDeadlineSeconds", "schedulingTimeoutSeconds", "cleanPodPolicy", "ttlSecondsAfterFinished"),
    *("workers.replicas", "restartPolicy"),
)
"""Fields of a spec that may change while the job is active; every other one is immutable then."""

_TEMPLATE = {
    "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
    "spec": {"nodeSelector": {"pool": "gpu"}, "hostIPC": False},
}
_WORKERS = {
    "replicas": 2,
    "procsPerWorker": 2,
    "resources": {"limits": {"nvidia.com/gpu": 2, "memory": "8Gi"}, "requests": {"cpu": 1}},
    "gpuMemory": "80Gi",
    "sharedMemory": "4Gi",
    "template": _TEMPLATE,
}
_RESTART_POLICY = {
    "maxRestarts": 5,
    "backoff": {"initialSeconds": 2, "maxSeconds": 60, "factor": 3},
    "inPlace": True,
    "rules": [{"onExitCodes": [3], "action": "Fail"}, {"onReasons": ["OOMKilled"], "action": "Restart"}],
}
_ROPE = {
    "headDim": 64,
    "ropeTheta": 5e5,
    "ropeScaling": {"type": "llama3", "factor": 8, "originalLength": 8192, "lowFreqFactor": 1, "highFreqFactor": 4},
    "normEps": 1e-6,
    "tiedEmbeddings": True,
    "qkNorm": True,
}
_SCHEDULING = {"gang": "native", "priorityClassName": "high", "topologyKey": "topology.kubernetes.io/rack"}
_COMMON = {
    "suspend": False,
    "image": "example.com/image:1",
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "workers": _WORKERS,
    "env": [{"name": "A", "value": "1"}],
    "restartPolicy": _RESTART_POLICY,
    "managedBy": "trainyard.dev/operator",
    "activeDeadlineSeconds": 7200,
    "schedulingTimeoutSeconds": 600,
    "scheduling": _SCHEDULING,
    "cleanPodPolicy": "All",
    "ttlSecondsAfterFinished": 3600,
}

FULL_SPECS: dict[str, dict[str, Any]] = {
    "own program": {
        **_COMMON,
        "scheduling": {**_SCHEDULING, "queue": "research"},
        "command": ["torchrun", "train.py"],
        "args": ["--fast"],
        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "metrics": {"port": 9500, "path": "/m"},
        "successPolicy": "RankZero",
        "checkpoint": {"volume": {"persistentVolumeClaim": {"claimName": "shared"}}},
    },
    "llama": {
        **_COMMON,
        "trainer": {
            "model": {"name": "llama", "preset": "nano", "dim": 128, "layers": 4, "heads": 4, "kvHeads": 4, **_ROPE},
            "data": {"source": "text", "path": "/data", "tokenizer": "bpe", "vocabSize": 1024, "evalFraction": 0.1},
            "batch": {"global": 16, "micro": 1},
            "optimizer": {"name": "adamw", "betas": [0.9, 0.95], "eps": 1e-8, "learningRate": 0.001},
            "schedule": {"name": "cosine", "warmupSteps": 5},
            "stop": {"steps": 100, "targetLoss": 0.5, "converged": {"patience": 2, "minDelta": 0.1}},
            "evaluation": {"everySteps": 10},
            "profile": {"startStep": 5, "ranks": [0]},
        },
        "parallelism": {"data": {"mode": "fsdp"}, "tensor": 2, "pipeline": {"stages": 1}},
        "checkpoint": {
            "claim": {"size": "1Gi", "storageClassName": "fast", "accessModes": ["ReadWriteMany"], "retain": True},
            "everySteps": 10,
            "everySeconds": 60,
            "keep": 3,
            "async": False,
        },
        "elastic": {"minReplicas": 1, "maxReplicas": 8, "resizeAfterSeconds": 60},
        "health": {
            "startupTimeoutSeconds": 100,
            "hangTimeoutSeconds": 100,
            "badSteps": {"action": "Rollback", "limit": 3, "spikeFactor": 10},
            "straggler": {"factor": 2, "action": "Replace"},
        },
    },
    "mlp with a parameter server": {
        **_COMMON,
        "trainer": {
            "model": {"name": "mlp", "hiddenSizes": [64, 32]},
            "data": {"source": "table", "builtin": "digits"},
            "batch": {"global": 16},
            "module": "package.plugin:build",
            "options": {"size": "3"},
            "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True},
            "stop": {"epochs": 3},
        },
        "parallelism": {"data": {"mode": "parameterServer"}},
        "parameterServer": {"resources": {"limits": {"cpu": 1}, "requests": {"cpu": 1}}, "template": _TEMPLATE},
    },
}
