# Sets up the namespaces of a node, then stays so that they do. Runs in them already.
# $1: a folder of the cluster  $2: address of the node, and of its bridge
# $3...: folders that containerd, CNI and the kubelet insist on; in here they are the cluster's own
private=$1
address=$2
shift 2

for path; do
    mkdir -p "$path" "$private$path"
    mount --bind "$private$path" "$path"
done
# The kubelet sets these for the whole machine; here it sets copies of them.
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
    kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    mkdir -p "$(dirname "$private/sys/$name")"
    cat "/proc/sys/$name" > "$private/sys/$name"
    mount --bind "$private/sys/$name" "/proc/sys/$name"
done
# Among the processes in here mounts do propagate: what the kubelet mounts, containerd has to see.
mount --make-rshared /

ip link set lo up
ip link add cni0 type bridge
ip address add "$address" dev cni0
ip link set cni0 up
echo 1 > /proc/sys/net/ipv4/ip_forward
exec sleep infinity
