#!/bin/sh
# A pair of nodes on RAM disks, for `lockstep-perf failover --start` and for loading by hand: until it is ended.
# usage: pair.sh LOCKSTEP DIRECTORY MiB [PRIMARY_CORES [SECONDARY_CORES]]
# The primary exports nqn.2026-01.io.lockstep:volume at 127.0.0.1:4430, the secondary at 127.0.0.1:4431; sockets are
# DIRECTORY/primary.sock and DIRECTORY/secondary.sock; group g0, volume v0. ACK, BUFFER_MB
# and JOURNAL (a file for the secondary's) may be set.
set -eu
LOCKSTEP=$1 DIRECTORY=$2 BLOCKS=$(($3 * 256))
NQN=nqn.2026-01.io.lockstep:volume
mkdir -p "$DIRECTORY"
rm -f "$DIRECTORY"/*.meta

# node ROLE PORT FIRST_CNTLID LAST_CNTLID: what the role adds to the group comes from standard input
node() {
    cat > "$DIRECTORY/$1.json" <<EOF
{"subsystems":[
{"subsystem":"bdev","config":[
 {"method":"bdev_malloc_create","params":{"name":"Disk0","num_blocks":$BLOCKS,"block_size":4096}}]},
{"subsystem":"replication","config":[
 {"method":"replication_group_create","params":{"name":"g0","role":"$1",
  "volumes":[{"name":"v0","bdev":"Disk0"}],"metadata":"$DIRECTORY/$1.meta",$(cat)}},
 {"method":"replication_start","params":{"group":"g0","sync":"none"}}]},
{"subsystem":"nvmf","config":[
 {"method":"nvmf_create_transport","params":{"trtype":"TCP"}},
 {"method":"nvmf_create_subsystem","params":{"nqn":"$NQN","allow_any_host":true,"ana_reporting":true,
  "min_cntlid":$3,"max_cntlid":$4}},
 {"method":"nvmf_subsystem_add_ns","params":{"nqn":"$NQN","namespace":{"bdev_name":"v0","nsid":1,
  "uuid":"6c6f636b-7374-4570-8000-000000000010"}}},
 {"method":"nvmf_subsystem_add_listener","params":{"nqn":"$NQN","listen_address":
  {"trtype":"TCP","adrfam":"IPv4","traddr":"127.0.0.1","trsvcid":"$2"}}}]}]}
EOF
}

JOURNAL=${JOURNAL:+",\"buffer_journal\":\"$JOURNAL\""}
node secondary 4431 32768 65519 <<EOF
"listen":{"transport":"tcp","address":"127.0.0.1","port":4432},"disk_buffer":true,
"buffer_limit_mb":${BUFFER_MB:-1024}$JOURNAL
EOF
node primary 4430 1 32767 <<EOF
"peer":{"transport":"tcp","address":"127.0.0.1","port":4432},"ack":"${ACK:-applied}"
EOF

"$LOCKSTEP" serve --cores "${5:-1}" --memory 2048 --rpc-socket "$DIRECTORY/secondary.sock" \
    --config "$DIRECTORY/secondary.json" > "$DIRECTORY/secondary.log" 2>&1 &
SECONDARY=$!
"$LOCKSTEP" serve --cores "${4:-0}" --memory 512 --rpc-socket "$DIRECTORY/primary.sock" \
    --config "$DIRECTORY/primary.json" > "$DIRECTORY/primary.log" 2>&1 &
PRIMARY=$!
trap 'kill $PRIMARY $SECONDARY 2> /dev/null' TERM INT
wait $PRIMARY || true
kill $SECONDARY 2> /dev/null || true
wait
