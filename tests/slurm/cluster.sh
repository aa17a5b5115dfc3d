#!/usr/bin/env bash
# A SLURM cluster on this machine, for tests: a node with CPUs and a node with two GPUs that are none, no database.
#   cluster.sh packages      install what it needs (Debian, root)
#   cluster.sh up FOLDER     write the configuration into FOLDER and start the daemons
#   cluster.sh down FOLDER   stop them by their pid files
# Memory limits are enforced by sampling, once a second; time limits by slurmctld, every 30 seconds.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive PATH="$PATH:/usr/sbin:/sbin"
exec </dev/null
NODES=(cpu1 gpu1)
CONFIGURATION=(slurm.conf gres.conf cgroup.conf)

fail() {
    echo "cluster.sh: $*" >&2
    exit 1
}

packages() {
    [ "$(id -u)" = 0 ] || fail "packages are installed by root"
    command -v apt-get >/dev/null || fail "no apt-get: packages are installed on Debian only"
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends munge slurmctld slurmd slurm-client >/dev/null
}

# A zombie counts as gone: in a container nobody may wait for it.
gone() { [ ! -d "/proc/$1" ] || grep -q '^State:.[ZX]' "/proc/$1/status" 2>/dev/null; }

# runs PIDFILE NAME: the process of the pid file is there and is the daemon that is meant.
runs() {
    [ -s "$1" ] || return 1
    local pid
    pid=$(tr -dc 0-9 <"$1")
    [ -n "$pid" ] && ! gone "$pid" && [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$2"* ]]
}

# stop PIDFILE NAME: ends the daemon, after ten seconds by force.
stop() {
    if runs "$1" "$2"; then
        local pid
        pid=$(tr -dc 0-9 <"$1")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 100); do
            gone "$pid" && break
            sleep 0.1
        done
        gone "$pid" || kill -9 "$pid" 2>/dev/null || true
    fi
    rm -f "$1"
}

# start COMMAND...: a daemon that goes to the background by itself.
start() {
    for _ in 1 2 3; do
        "$@" >>"$FOLDER/log/start.log" 2>&1 && return 0
        sleep 0.5
    done
    tail -n 20 "$FOLDER/log/start.log" >&2
    fail "$1 does not start"
}

# wait_for WHAT COMMAND...: at most 30 seconds.
wait_for() {
    local what=$1
    shift
    for _ in $(seq 300); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.1
    done
    fail "$what is not ready after 30 seconds"
}

munge_answers() { timeout 5 munge -n | timeout 5 unmunge | grep -q Success; }
nodes_idle() { [ "$(sinfo -h -N -o '%T' | grep -c '^idle$')" = ${#NODES[@]} ]; }

write_configuration() {
    local host
    host=$(cat /proc/sys/kernel/hostname)
    host=${host%%.*}
    install -d -m 755 "$FOLDER"/{etc,run,log,state,spool}
    for i in 0 1; do [ -c "$FOLDER/run/gpu$i" ] || mknod "$FOLDER/run/gpu$i" c 1 3; done # slurmd wants character devices: these are /dev/null
    cat >"$FOLDER/etc/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
SlurmctldPort=16817
SlurmctldPidFile=$FOLDER/run/slurmctld.pid
SlurmctldLogFile=$FOLDER/log/slurmctld.log
StateSaveLocation=$FOLDER/state
SlurmdPidFile=$FOLDER/run/slurmd-%n.pid
SlurmdLogFile=$FOLDER/log/slurmd-%n.log
SlurmdSpoolDir=$FOLDER/spool/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
PriorityType=priority/basic
GresTypes=gpu
DefMemPerCPU=500
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill,UsePss
AccountingStorageType=accounting_storage/none
MinJobAge=3600
KillWait=2
NodeName=cpu1 NodeHostname=$host NodeAddr=127.0.0.1 Port=16821 CPUs=8 Sockets=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=64000 State=UNKNOWN
NodeName=gpu1 NodeHostname=$host NodeAddr=127.0.0.1 Port=16822 CPUs=8 Sockets=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=64000 Gres=gpu:a100:2 State=UNKNOWN
PartitionName=cpu Nodes=cpu1 Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=gpu1 Default=NO MaxTime=INFINITE State=UP
CONF
    echo "NodeName=gpu1 Name=gpu Type=a100 File=$FOLDER/run/gpu[0-1]" >"$FOLDER/etc/gres.conf"
    printf 'CgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\nConstrainDevices=no\n' >"$FOLDER/etc/cgroup.conf"
    # The executor drops SLURM_CONF inside jobs, so the configuration must be found at its usual place.
    install -d /etc/slurm
    for name in "${CONFIGURATION[@]}"; do ln -sfn "$FOLDER/etc/$name" "/etc/slurm/$name"; done
}

start_munge() {
    [ -s /etc/munge/munge.key ] || fail "no munge key: install the package munge"
    install -d -o munge -g munge -m 755 /run/munge
    start setpriv --reuid munge --regid munge --clear-groups munged --origin=127.0.0.1
    touch "$FOLDER/run/munge_is_ours"
    wait_for munged munge_answers
}

# stop_leftover: ends the cluster of a test that was killed.
stop_leftover() {
    local configuration
    configuration=$(readlink /etc/slurm/slurm.conf || true)
    if [ -e "${configuration%/etc/slurm.conf}/run/gpu0" ]; then "$0" down "${configuration%/etc/slurm.conf}"; fi
}

up() {
    [ "$(id -u)" = 0 ] || fail "the daemons are started by root"
    stop_leftover
    for name in "${CONFIGURATION[@]}"; do
        [ ! -e "/etc/slurm/$name" ] || fail "/etc/slurm/$name exists: this machine belongs to a cluster already"
    done
    write_configuration
    munge_answers >/dev/null 2>&1 || start_munge
    start slurmctld
    for node in "${NODES[@]}"; do start slurmd -N "$node"; done
    wait_for "the cluster" nodes_idle
}

down() {
    if runs "$FOLDER/run/slurmctld.pid" slurmctld; then
        timeout 10 scancel --full --signal=KILL --user=root || true
        timeout 10 scancel --user=root || true
        for _ in $(seq 50); do
            [ -z "$(timeout 5 squeue -h -o %A)" ] && break
            sleep 0.2
        done
    fi
    for node in "${NODES[@]}"; do stop "$FOLDER/run/slurmd-$node.pid" slurmd & done
    wait
    stop "$FOLDER/run/slurmctld.pid" slurmctld
    [ ! -e "$FOLDER/run/munge_is_ours" ] || stop /run/munge/munged.pid munged
    for name in "${CONFIGURATION[@]}"; do
        # A configuration left behind costs every start of snakemake ten seconds.
        [ "$(readlink "/etc/slurm/$name")" != "$FOLDER/etc/$name" ] || rm -f "/etc/slurm/$name"
    done
    rm -rf "$FOLDER/state" "$FOLDER/spool"
}

FOLDER=${2:-}
case "${1:-}" in
packages) packages ;;
up | down)
    [ -n "$FOLDER" ] || fail "usage: cluster.sh up|down FOLDER"
    "$1"
    ;;
*) fail "usage: cluster.sh packages | up FOLDER | down FOLDER" ;;
esac
