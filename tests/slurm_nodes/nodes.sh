#!/usr/bin/env bash
# A real SLURM of several hosts on this one machine, from Debian's packages, for tests. Needs root.
#
# A host (ctl, login, node1, node2, ...) is a set of namespaces: network, hostname, mounts and processes. It has its own address,
# munged, /tmp and /dev/shm. Hosts meet at a bridge in a network namespace of its own: the machine's network is neither touched nor
# reached, and the one-node cluster of tests/slurm stays as it is. Hosts share the machine's files, but of /tmp only $ROOT and this
# checkout. What is not real: there is one kernel, one clock and one file system, so file locks are shared.
#
#   nodes.sh start               what is missing: hosts, daemons; wait until all nodes answer
#   nodes.sh stop                end all hosts and with them all that runs there
#   nodes.sh on HOST COMMAND...  run a command there, in this folder; as SLURM_NODES_USER, if that is set
#   nodes.sh off HOST            take its power away: no process of it ends in order, no connection is closed
#   nodes.sh boot HOST           start a host that is off, and its daemon
#   nodes.sh cut | join HOST     pull or plug its network cable; its processes stay
#   nodes.sh daemon HOST kill | start   its slurmd; on ctl slurmctld
#   nodes.sh possible            whether hosts can be made here; otherwise one sentence says what is missing, and the code is 3
#   nodes.sh status              sinfo and squeue
#
# Variables of start: SLURM_NODES=3 (how many nodes), SLURM_NODES_CPUS=2 and SLURM_NODES_MB=8000 (of each), SLURM_NODES_TIMEOUT=30
# (seconds after which SLURM gives a silent node up), SLURM_NODES_EXTRA (lines for slurm.conf). Of all: SLURM_NODES_ROOT=/tmp/rlrt-nodes.
# Folder for what nodes share: $ROOT/shared.
set -euo pipefail
ROOT=${SLURM_NODES_ROOT:-/tmp/rlrt-nodes}
CHECKOUT=$(realpath "$(dirname "$0")/../..")
PACKAGES=(munge slurmctld slurmd slurm-client iproute2)
NET=10.232.0 # nobody outside the namespaces sees it
NODES=${SLURM_NODES:-$(cat "$ROOT/nodes" 2>/dev/null || echo 3)}

say() { echo "slurm-nodes: $*" >&2; }
fail() { say "$@"; exit 1; }
nodes() { seq -f 'node%g' "$NODES"; }
hosts() { printf '%s\n' ctl login; nodes; }
birth() { cut -d' ' -f22 "/proc/$1/stat" 2>/dev/null; } # names here have no spaces: bash, so field 22 is the start time

address() { # HOST
  case $1 in
    ctl) echo "$NET.2" ;;
    login) echo "$NET.3" ;;
    node*) echo "$NET.$((10 + ${1#node}))" ;;
  esac
}

first_process() { # HOST: the pid of its first process, seen from here; nothing if the host is off
  local pid born
  read -r pid born 2>/dev/null <"$ROOT/hosts/$1/first" || return 1
  [ "$(birth "$pid")" = "$born" ] || return 1 # a number that another process has now
  echo "$pid"
}

known() { # HOST
  local all
  all=$(hosts | paste -sd' ')
  [[ " $all " == *" $1 "* ]] || fail "expected a host out of $all, got $1"
}


is_up() { first_process "$1" >/dev/null; }
note() { echo "$2 $(birth "$2")" >"$ROOT/hosts/$1/first"; } # HOST PID
wait_for() { # SECONDS COMMAND...
  local tries=$(($1 * 10)); shift
  for _ in $(seq "$tries"); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done
  return 1
}

possible() {
  local why
  if [ "$(id -u)" != 0 ]; then
    why="root's rights, and this is $(id -un)"
  elif ! command -v unshare nsenter setpriv >/dev/null; then
    why="unshare, nsenter and setpriv of util-linux"
  elif ! why=$(unshare --net --uts --mount --pid --fork sh -c 'mount --make-rprivate / && mount -t proc proc /proc && mount -t tmpfs t /dev/shm' 2>&1); then
    why="namespaces for networks, names, mounts and processes; the kernel said: $why"
  elif command -v ip >/dev/null && ! why=$(unshare --net sh -c 'ip link add br0 type bridge && ip link add cable type veth peer name eth0' 2>&1); then
    why="bridges and veth cables; the kernel said: $why"
  else
    return 0
  fi
  say "several hosts need $(tr '\n' ' ' <<<"$why" | sed 's/ *$//')."
  return 3
}

install_packages() {
  local missing=() name
  for name in "${PACKAGES[@]}"; do dpkg -s "$name" >/dev/null 2>&1 || missing+=("$name"); done
  [ ${#missing[@]} = 0 ] && return 0
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$ROOT/apt.log" 2>&1 || { tail -20 "$ROOT/apt.log" >&2; exit 1; }
}

configure() {
  local host key=$ROOT/etc/munge.key
  mkdir -p "$ROOT"/{etc/slurm,state,log,shared}
  chmod 755 "$ROOT" "$ROOT/shared"
  echo "$NODES" >"$ROOT/nodes"
  echo "127.0.0.1 localhost" >"$ROOT/etc/hosts"
  for host in $(hosts); do echo "$(address "$host") $host" >>"$ROOT/etc/hosts"; done
  [ -s "$key" ] || (umask 077 && dd if=/dev/urandom of="$key" bs=128 count=1 status=none)
  echo "CgroupPlugin=autodetect" >"$ROOT/etc/slurm/cgroup.conf"
  # cred_expire: a job that is queued again waits as long, else two minutes. KillWait is SLURM's default, which rlrt's messages need
  cat >"$ROOT/etc/slurm/slurm.conf" <<CONF
ClusterName=nodes
SlurmctldHost=ctl
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/hosts/%n/spool
SlurmctldPidFile=$ROOT/hosts/ctl/slurmctld.pid
SlurmdPidFile=$ROOT/hosts/%n/slurmd.pid
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=512
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,defer_batch
ReturnToService=2
SlurmctldTimeout=20
SlurmdTimeout=${SLURM_NODES_TIMEOUT:-30}
InactiveLimit=0
KillWait=30
MinJobAge=600
JobRequeue=1
NodeName=node[1-$NODES] NodeAddr=$NET.[11-$((10 + NODES))] CPUs=${SLURM_NODES_CPUS:-2} RealMemory=${SLURM_NODES_MB:-8000} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
${SLURM_NODES_EXTRA:-}
CONF
}

# The first process of a host: it takes in what daemons leave behind, as any init does, and ends only by SIGKILL.
INIT='trap : TERM INT CHLD; while :; do sleep 86400 & wait $!; done'

switch_on() { # the bridge; a process of its own keeps its namespace
  is_up switch && return 0
  mkdir -p "$ROOT/hosts/switch"
  setsid unshare --net -- /bin/bash -c "$INIT" nodes-switch </dev/null >/dev/null 2>&1 &
  local pid=$!
  wait_for 5 own_network "$pid" || fail "the switch did not start"
  note switch "$pid"
  nsenter -t "$pid" -n -- sh -c 'ip link set lo up && ip link add br0 type bridge && ip link set br0 up'
}

own_network() { [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }
at_switch() { nsenter -t "$(first_process switch)" -n -- "$@"; }

mounts_of() { # HOST: what its first process does before it waits
  local folder=$ROOT/hosts/$1 shared
  cat <<SCRIPT
set -e
mount --make-rprivate /
mount --bind $folder/tmp $folder/tmp
SCRIPT
  for shared in "$ROOT" "$CHECKOUT"; do
    [[ $shared == /tmp/* ]] && printf 'mkdir -p %q\nmount --rbind %q %q\n' "$folder${shared}" "$shared" "$folder${shared}"
  done
  cat <<SCRIPT
mkdir -p /etc/slurm /run/munge
mount --bind $ROOT/etc/slurm /etc/slurm
mount --bind $ROOT/etc/hosts /etc/hosts
mount --bind /dev/null /etc/resolv.conf
mount --bind $folder/munge /run/munge
mount -t tmpfs -o size=2g shm /dev/shm
mount -t proc proc /proc
hostname $1
mount --rbind $folder/tmp /tmp
touch $folder/ready
exec /bin/bash -c '$INIT' nodes-$1
SCRIPT
}

boot() { # HOST
  local host=$1 folder=$ROOT/hosts/$1 outer first
  is_up "$host" && return 0
  rm -rf "$folder"/{tmp,munge,ready} "$folder"/*.pid
  mkdir -p "$folder"/{tmp,munge,spool}
  chmod 1777 "$folder/tmp"
  chmod 755 "$folder/munge"
  mounts_of "$host" >"$folder/init"
  setsid unshare --net --uts --mount --pid --fork --kill-child -- /bin/bash "$folder/init" </dev/null >"$ROOT/log/boot.$host.log" 2>&1 &
  outer=$!
  wait_for 10 test -f "$folder/ready" || { cat "$ROOT/log/boot.$host.log" >&2; fail "$host did not start"; }
  first=$(tr -d ' ' <"/proc/$outer/task/$outer/children")
  note "$host" "$first"
  at_switch ip link del "v-$host" 2>/dev/null || true # the other end of a cable whose host went off
  at_switch ip link add "v-$host" type veth peer name eth0 netns "$first"
  at_switch ip link set "v-$host" master br0 up
  nsenter -t "$first" -n -- sh -c "ip link set lo up && ip addr add $(address "$host")/24 dev eth0 && ip link set eth0 up"
  as_root on "$host" /usr/sbin/munged --force --key-file="$ROOT/etc/munge.key" --log-file="$folder/munged.log" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munged.seed" >/dev/null 2>&1
  wait_for 10 as_root on "$host" sh -c 'munge -n | unmunge' || fail "munged of $host does not answer"
}

as_root() { SLURM_NODES_USER='' "$@"; }

on() { # HOST COMMAND...
  local host=$1 first as=()
  first=$(first_process "$host") || fail "host $host is off"
  shift
  [ -z "${SLURM_NODES_USER:-}" ] || as=(setpriv --reuid="$SLURM_NODES_USER" --regid="$(id -g "$SLURM_NODES_USER")" --init-groups --)
  nsenter -t "$first" -m -u -n -p -r --wdns=/ -- /bin/bash -c 'cd "$1" 2>/dev/null || cd /; shift; exec "$@"' on "$PWD" "${as[@]}" "$@"
}

daemon() { # HOST kill|start
  local host=$1 name=slurmd pid
  [ "$host" = ctl ] && name=slurmctld
  pid=$(cat "$ROOT/hosts/$host/$name.pid" 2>/dev/null || true)
  case $2 in
    start) serves "$host" "$name" "$pid" || as_root on "$host" "/usr/sbin/$name" </dev/null >/dev/null 2>&1 ;;
    kill) ! serves "$host" "$name" "$pid" || as_root on "$host" kill -9 "$pid" ;;
    *) fail "daemon: expected kill or start, got $2" ;;
  esac
}

serves() { [ -n "$3" ] && as_root on "$1" grep -qx "$2" "/proc/$3/comm" 2>/dev/null; } # HOST NAME PID
ready_nodes() { as_root on login sinfo -h -N -o '%N %t' | sort -u | grep -cE ' (idle|mix|alloc)$'; }
all_ready() { [ "$(ready_nodes)" = "$NODES" ]; }

start() {
  local begin=$SECONDS host
  possible || exit $?
  mkdir -p "$ROOT"
  install_packages
  configure
  switch_on
  for host in $(hosts); do boot "$host"; done
  daemon ctl start
  wait_for 20 controller_answers || { tail -5 "$ROOT/log/slurmctld.log" >&2; fail "slurmctld does not answer"; }
  for host in $(nodes); do daemon "$host" start; done
  wait_for 20 all_ready || for host in $(nodes); do # a node that was off for long is not taken back by itself
    as_root on login scontrol update nodename="$host" state=resume 2>/dev/null || true
  done
  wait_for 20 all_ready || { as_root on login sinfo -N -l >&2; fail "not all of $NODES nodes answer"; }
  say "$NODES nodes and login are up in $((SECONDS - begin)) s, $(as_root on login sinfo --version); shared folder $ROOT/shared"
}

controller_answers() { as_root on ctl scontrol ping | grep UP; }

off() { # HOST
  local pid
  pid=$(first_process "$1") || return 0
  at_switch ip link set "v-$1" down 2>/dev/null || true # first: a kernel that lives on would close the connections
  kill -9 "$pid"
  wait_for 10 is_off "$1" || fail "$1 does not end"
  rm -f "$ROOT/hosts/$1/first"
}

is_off() { ! is_up "$1"; }

stop() {
  local host jobs
  if is_up ctl && is_up login; then # what waits would run once hosts are up again
    mapfile -t jobs < <(as_root on login timeout 5 squeue -h -o %A 2>/dev/null | sort -u)
    [ ${#jobs[@]} = 0 ] || as_root on login timeout 10 scancel "${jobs[@]}" >/dev/null 2>&1 || true
  fi
  for host in $(nodes) login ctl switch; do off "$host"; done
  say "stopped; logs are in $ROOT/log"
}

[ "$(id -u)" = 0 ] || { possible || exit $?; }
case "${1:-}:$#" in
  start:1) start ;;
  stop:1) stop ;;
  possible:1) possible ;;
  status:1) as_root on login sinfo -N -l; as_root on login squeue ;;
  on:[3-9] | on:[1-9][0-9]*) shift; on "$@" ;;
  off:2) known "$2"; off "$2" ;;
  boot:2) known "$2"; switch_on; boot "$2"; [ "$2" = login ] || daemon "$2" start ;;
  cut:2) known "$2"; at_switch ip link set "v-$2" down ;;
  join:2) known "$2"; at_switch ip link set "v-$2" up ;;
  daemon:3) known "$2"; daemon "$2" "$3" ;;
  *) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
esac
