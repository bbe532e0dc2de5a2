#!/usr/bin/env bash
# Runs a program under mpirun on several hosts that are network namespaces of this machine, with shaped links between them.
#   bench/ep_namespaces.sh HOSTS RANKS RATE PROGRAM [ARGUMENT...]
# HOSTS hosts of RANKS ranks each; RATE of every host's link, each way, as tc says it (400mbit), or 0 for as fast as it goes.
# Needs root, network namespaces, iproute2 and Open MPI; where something is missing it says so and exits with 77.
#
# A bridge without a way out joins the hosts. Each has a name of its own: Open MPI takes ranks on hosts of equal names for
# neighbours in memory. What still runs in the namespaces at the end is ended with them.
set -euo pipefail

skip() { echo "skipped: $*"; exit 77; }
[ $# -ge 4 ] || { sed -n '2,5s/^# *//p' "$0" >&2; exit 2; }
hosts=$1 ranks=$2 rate=$3
shift 3
[ "$(id -u)" = 0 ] || skip "network namespaces need root"
for tool in ip tc unshare; do command -v "$tool" >/dev/null || skip "no $tool (Debian: apt install iproute2)"; done
mpirun=$(command -v "${MPIRUN:-mpirun.openmpi}" || command -v mpirun) || skip "no mpirun (Debian: apt install openmpi-bin)"
"$mpirun" --version 2>&1 | grep -Eq 'Open ?(MPI|RTE|-?MPI)' || skip "$mpirun is not Open MPI's"

name=moec$$
work=$(mktemp -d)
clean() {
    trap '' PIPE TERM INT # to the end, whoever still listens
    for ((i = 0; i < hosts; i++)); do
        ip netns pids "$name-$i" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
        ip netns delete "$name-$i" 2>/dev/null || true
    done
    ip netns delete "$name-hub" 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT
ip netns add "$name-hub" 2>"$work/why" || skip "no network namespaces here: $(cat "$work/why")"

# shape NAMESPACE DEVICE: short bursts would lose half the rate to the packets' size
shape() {
    [ "$rate" = 0 ] || ip netns exec "$1" tc qdisc add dev "$2" root tbf rate "$rate" burst 1mb latency 100ms ||
        skip "no shaped links here (tc tbf)"
}

ip -n "$name-hub" link add hub type bridge 2>"$work/why" || skip "no bridges here: $(cat "$work/why")"
ip -n "$name-hub" link set hub up
list=
for ((i = 0; i < hosts; i++)); do
    ip netns add "$name-$i"
    ip -n "$name-$i" link set lo up
    ip -n "$name-hub" link add "port$i" type veth peer name eth0 netns "$name-$i" 2>"$work/why" ||
        skip "no veth here: $(cat "$work/why")"
    ip -n "$name-hub" link set "port$i" master hub up
    ip -n "$name-$i" address add "10.77.0.$((i + 1))/24" dev eth0
    ip -n "$name-$i" link set eth0 up
    shape "$name-$i" eth0
    shape "$name-hub" "port$i"
    list+=${list:+,}$name-$i:$ranks
done

# The launcher's way to a host: the namespace of its name.
cat >"$work/agent" <<'AGENT'
#!/bin/sh
host=$1
shift
exec ip netns exec "$host" unshare --uts --ipc sh -c 'hostname "$0" && exec sh -c "$1"' "$host" "$*"
AGENT
chmod +x "$work/agent"

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_plm=rsh OMPI_MCA_plm_rsh_agent=$work/agent OMPI_MCA_plm_rsh_no_tree_spawn=1
export OMPI_MCA_btl=tcp,self,vader OMPI_MCA_btl_tcp_if_include=10.77.0.0/24 OMPI_MCA_oob_tcp_if_include=10.77.0.0/24
# shellcheck disable=SC2086
"$work/agent" "$name-0" "exec '$mpirun' ${MPIRUN_OPTIONS:-} --host $list --map-by slot -np $((hosts * ranks)) $(printf "'%s' " "$@")" &
trap 'exit 143' TERM INT
wait $! # so that an end from outside is heard at once
