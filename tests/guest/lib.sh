# Known to every script that a test runs in the guest.

fail() { echo "FAILED: $*"; dmesg | tail -25; exit 1; }

# wait_for SECONDS COMMAND...: there is no udev here, and device nodes, paths and states appear some time after the
# command that asks for them.
wait_for() {
    tenths=$(($1 * 10))
    shift
    while ! "$@" >/dev/null 2>&1; do
        tenths=$((tenths - 1))
        [ $tenths -gt 0 ] || fail "waited in vain: $*"
        sleep 0.1
    done
}

# connect PORT NQN [nvme-cli options]: one path to a subsystem at the host's loopback.
connect() {
    port=$1 nqn=$2
    shift 2
    nvme connect -t tcp -a "${ADDRESS:-10.0.2.2}" -s "$port" -n "$nqn" "$@" || fail "nvme connect $port $nqn"
}

# fio ARGUMENTS: the host's fio, out of its own tree.
fio() { chroot /host /usr/bin/fio "$@"; }

drop_caches() { sync; echo 3 >/proc/sys/vm/drop_caches; }

# io_errors: how many I/O errors the kernel has reported since the start; a multipath switch-over must add none.
io_errors() { dmesg | grep -cE 'I/O error|Buffer I/O|EXT4-fs error|critical .* error' || true; }
