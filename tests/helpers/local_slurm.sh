#!/usr/bin/env bash
# A Slurm of two nodes on one machine, for the tests marked `slurm`; Debian: slurm-wlm, munge.
#
#   tests/helpers/local_slurm.sh start DIR    prints the SLURM_CONF to export
#   tests/helpers/local_slurm.sh stop DIR     ends its daemons, and theirs only
#
# It runs as the user who starts it, and everything it writes is in DIR (a short path: sockets).
set -euo pipefail

PORT=${PORT:-26817} # and the two after it
cores=$(nproc)
half=$((cores > 1 ? cores / 2 : 1)) # of the cores for each node
PATH=$PATH:/usr/sbin:/sbin

configure() {
  # cred_expire: Slurm holds a requeued job back for so long (120 s by default).
  cat >slurm.conf <<CONF
ClusterName=local
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$PWD/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$PWD/state
SlurmctldPidFile=$PWD/slurmctld.pid
SlurmctldLogFile=$PWD/slurmctld.log
SlurmdSpoolDir=$PWD/spool-%n
SlurmdPidFile=$PWD/slurmd-%n.pid
SlurmdLogFile=$PWD/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=60
NodeName=local1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((PORT + 1)) CPUs=$half
NodeName=local2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((PORT + 2)) CPUs=$half
PartitionName=normal Nodes=local1,local2 Default=YES PriorityTier=1
PartitionName=urgent Nodes=local1,local2 PriorityTier=2
CONF
}

start() {
  mkdir -p "$1" && chmod 700 "$1" && cd "$1"
  mkdir -p state
  export SLURM_CONF=$PWD/slurm.conf
  configure
  (umask 077 && head -c 1024 /dev/urandom >munge.key)
  munged --force --key-file="$PWD/munge.key" --socket="$PWD/munge.socket" \
    --pid-file="$PWD/munged.pid" --log-file="$PWD/munged.log" --seed-file="$PWD/munge.seed" 2>/dev/null
  slurmctld
  taskset --cpu-list 0-$((half - 1)) slurmd -N local1
  taskset --cpu-list $((cores - half))-$((cores - 1)) slurmd -N local2
  for _ in $(seq 120); do
    if [[ $(sinfo --noheader --partition normal --states idle --format %D) == 2 ]]; then
      echo "$SLURM_CONF"
      return
    fi
    sleep 1
  done
  echo "the nodes did not become idle; see the logs in $PWD" >&2
  return 1
}

stop() {
  cd "$1"
  export SLURM_CONF=$PWD/slurm.conf
  scancel --user "$(id -un)" || true # slurmd waits for the steps of its node
  for file in slurmd-local1.pid slurmd-local2.pid slurmctld.pid munged.pid; do
    if [[ ! -s $file ]]; then continue; fi
    pid=$(<"$file")
    kill "$pid" || true
    timeout 90 tail --pid="$pid" -f /dev/null || true
  done
}

case ${1-} in
  start | stop) "$1" "${2:?name a folder}" ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
