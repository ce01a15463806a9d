"""The configuration files of a node's daemons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cluster.control_plane import ADMINISTRATOR
from tests.cluster.images import busybox
from tests.cluster.paths import Paths
from tests.cluster.pki import Subject
from tests.cluster.prerequisites import plugin_folder

NODE = "node1"
NODE_ADDRESS = "10.88.0.1"
"""The bridge's: what pods reach the node, the DNS and the API server at."""
PODS = "10.88.0.0/16"
USERS = {
    "admin": ADMINISTRATOR,
    "controller-manager": Subject("system:kube-controller-manager"),
    "scheduler": Subject("system:kube-scheduler"),
    "kubelet": Subject(f"system:node:{NODE}", "system:nodes", hosts=(NODE, "127.0.0.1", NODE_ADDRESS)),
    "kube-proxy": Subject("system:kube-proxy"),
}


def write(paths: Paths, containerd: Path, cgroup: str) -> None:
    """Write all of them into the state folder; the YAML ones as JSON, which is YAML too."""
    (paths.state / "cni").mkdir()
    (paths.state / "containerd.toml").write_text(containerd_toml(paths, containerd))
    (paths.state / "cni" / "bridge.conflist").write_text(json.dumps(cni(paths)))
    (paths.state / "resolv.conf").write_text(f"nameserver {NODE_ADDRESS}\n")
    (paths.state / "kubelet.yaml").write_text(json.dumps(kubelet(paths, containerd, cgroup)))
    (paths.state / "kube-proxy.yaml").write_text(json.dumps(kube_proxy(paths)))
    (paths.state / "Corefile").write_text(corefile(paths))


def containerd_toml(paths: Paths, socket: Path) -> str:
    """Its root, its socket, and the CRI's use of CNI."""
    plugins = plugin_folder()
    assert plugins is not None, "checked among the prerequisites"
    return f"""\
version = 2
root = "{paths.state / "containerd"}"
state = "{paths.run / "containerd"}"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{busybox.PAUSE}"
  # A machine may not let even root lower it (no CAP_SYS_RESOURCE).
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{paths.state / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def cni(paths: Paths) -> dict[str, Any]:
    """One bridge for all pods."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": PODS, "gateway": NODE_ADDRESS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": ipam,
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "trainyard", "plugins": [bridge, ports]}


def kubelet(paths: Paths, containerd: Path, cgroup: str) -> dict[str, Any]:
    """A node that offers the whole machine but 1 GiB and never evicts a pod or removes an image."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(paths.pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{containerd}",
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        "failCgroupV1": False,
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "maxPods": 250,
        "podLogsDir": str(paths.state / "pod-logs"),
        "resolvConf": str(paths.state / "resolv.conf"),
        "systemReserved": {"memory": "1Gi"},
        "tlsCertFile": str(paths.pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(paths.pki / "kubelet.key"),
        "volumePluginDir": str(paths.state / "volume-plugins"),
    }


def kube_proxy(paths: Paths) -> dict[str, Any]:
    """Services by iptables."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(paths.kubeconfig("kube-proxy"))},
        "clusterCIDR": PODS,
        "hostnameOverride": NODE,
        "mode": "iptables",
        "conntrack": {"maxPerCore": 0},  # the limit is the whole machine's: leave it
    }


def corefile(paths: Paths) -> str:
    """Names of Services and pods, on the bridge's address."""
    return f"""\
.:53 {{
    bind {NODE_ADDRESS}
    errors
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {paths.kubeconfig()}
        pods insecure
        ttl 5
    }}
    cache 5
}}
"""
