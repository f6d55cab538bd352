#!/usr/bin/env bash
# Several hosts on one Linux machine: network namespaces on a bridge, each with an address, a sshd,
# and process, mount, host-name and IPC namespaces of its own. /tmp, /root and /dev/shm are private to a
# host; the paths in SHARED are seen by all. No route leads outside. Needs root, and the packages
# iproute2, openssh-server and rsync.
#
#   LAB=folder NET=10.77.0 NAME=lab SHARED="path ..." hosts.sh up|down|cut HOST|heal HOST
set -euo pipefail
: "${LAB:?a folder below /tmp}" "${NET:?first three bytes of the addresses}" "${NAME:?of the bridge}"
: "${SHARED:=}" "${HOSTS:=head:10 w1:11 w2:12}"
export LAB NET NAME SHARED HOSTS
here=$(realpath "$0")

init() {  # process 1 of a host
  local host=$1 address=$2 root=$LAB/hosts/$1 path
  mount --make-rprivate /
  ip link set lo up
  hostname "$host"
  mount -t tmpfs -o size=1g tmpfs /dev/shm
  for path in $SHARED "$LAB/ssh"; do
    case $path in /tmp/* | /root/*)
      mkdir -p "$root$path"
      mount --bind "$path" "$root$path" ;;
    esac
  done
  chmod 1777 "$root/tmp"
  chmod 700 "$root/root"
  mount --bind "$LAB/names" /etc/hosts
  mount --rbind "$root/root" /root
  mount --rbind "$root/tmp" /tmp
  mount -t proc proc /proc  # `ray stop` ends every process that it sees
  mkdir -p /run/sshd
  /usr/sbin/sshd -D -e -f "$LAB/ssh/config" -o ListenAddress="$address" &
  trap 'exit 0' TERM
  while :; do wait -n || sleep 0.2; done  # takes in the daemons that `ray start` leaves behind
}

up() {
  local entry host address root
  mkdir -p "$LAB/hosts" "$LAB/ssh"
  ssh-keygen -q -t ed25519 -N '' -f "$LAB/ssh/host"
  ssh-keygen -q -t ed25519 -N '' -f "$LAB/key"
  install -m 600 "$LAB/key.pub" "$LAB/ssh/authorized_keys"
  printf '%s\n' "HostKey $LAB/ssh/host" "AuthorizedKeysFile $LAB/ssh/authorized_keys" "StrictModes no" \
    "PermitRootLogin prohibit-password" "PasswordAuthentication no" "UsePAM no" "UseDNS no" \
    "PidFile none" "MaxStartups 100" "MaxSessions 100" > "$LAB/ssh/config"
  ip link add "${NAME}br" type bridge
  ip addr add "$NET.1/24" dev "${NAME}br"
  ip link set "${NAME}br" up
  echo "127.0.0.1 localhost" > "$LAB/names"
  for entry in $HOSTS; do echo "$NET.${entry#*:} ${entry%:*}" >> "$LAB/names"; done
  for entry in $HOSTS; do
    host=${entry%:*} address=$NET.${entry#*:} root=$LAB/hosts/${entry%:*}
    mkdir -p "$root/root" "$root/tmp"
    ip netns add "$NAME-$host"
    ip link add "$NAME-$host" type veth peer name eth0 netns "$NAME-$host"
    ip link set "$NAME-$host" master "${NAME}br" up
    ip -n "$NAME-$host" addr add "$address/24" dev eth0
    ip -n "$NAME-$host" link set eth0 up
    setsid ip netns exec "$NAME-$host" unshare --pid --fork --kill-child --mount --uts --ipc \
      env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
      LAB="$LAB" NET="$NET" NAME="$NAME" SHARED="$SHARED" \
      "$here" init "$host" "$address" > "$root/init.log" 2>&1 < /dev/null &
    echo $! > "$root/pid"
  done
  for entry in $HOSTS; do
    timeout 20 bash -c "until (</dev/tcp/$NET.${entry#*:}/22) 2> /dev/null; do sleep 0.1; done"
  done
}

down() {
  local entry host
  for entry in $HOSTS; do
    host=${entry%:*}
    [ ! -f "$LAB/hosts/$host/pid" ] || kill -9 "$(cat "$LAB/hosts/$host/pid")" 2> /dev/null || true
    ip netns del "$NAME-$host" 2> /dev/null || true
    ip link del "$NAME-$host" 2> /dev/null || true
  done
  ip link del "${NAME}br" 2> /dev/null || true
}

case ${1:-} in
  up) up ;;
  down) down ;;
  init) init "$2" "$3" ;;
  cut) ip link set "$NAME-$2" down ;;
  heal) ip link set "$NAME-$2" up ;;
  *) sed -n 2,7p "$0"; exit 2 ;;
esac
