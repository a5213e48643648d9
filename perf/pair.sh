#!/bin/sh
# A pair of nodes on RAM disks, for `lockstep-perf failover --start` and for loading by hand: until it is ended.
# usage: pair.sh LOCKSTEP DIRECTORY MiB [PRIMARY_CORES [SECONDARY_CORES]]
# The primary exports nqn.2026-01.io.lockstep:volume at 127.0.0.1:4430, the secondary at 127.0.0.1:4431; sockets are
# DIRECTORY/primary.sock and DIRECTORY/secondary.sock; group g0, volume v0. ACK, BUFFER_MB,
# JOURNAL (a file for the secondary's) and VOLUMES may be set: then there are so many volumes, v0 to v63 and namespaces 1
# to 64 if it is 64, of MiB each.
set -eu
LOCKSTEP=$1 DIRECTORY=$2 BLOCKS=$(($3 * 256))
NQN=nqn.2026-01.io.lockstep:volume
VOLUMES=${VOLUMES:-1}
mkdir -p "$DIRECTORY"
rm -f "$DIRECTORY"/*.meta

# each TEXT: TEXT for every volume, with its number for @ and that of its namespace for +, separated by commas
each() {
    number=0
    while [ $number -lt "$VOLUMES" ]; do
        [ $number = 0 ] || echo ,
        echo "$1" | sed "s/@/$number/g; s/+/$((number + 1))/g; s/%/$(printf %04x $((number + 16)))/g"
        number=$((number + 1))
    done
}

# node ROLE PORT FIRST_CNTLID LAST_CNTLID: what the role adds to the group comes from standard input
node() {
    cat > "$DIRECTORY/$1.json" <<EOF
{"subsystems":[
{"subsystem":"bdev","config":[
 $(each '{"method":"bdev_malloc_create","params":{"name":"Disk@","num_blocks":'$BLOCKS',"block_size":4096}}')]},
{"subsystem":"replication","config":[
 {"method":"replication_group_create","params":{"name":"g0","role":"$1",
  "volumes":[$(each '{"name":"v@","bdev":"Disk@"}')],"metadata":"$DIRECTORY/$1.meta",$(cat)}},
 {"method":"replication_start","params":{"group":"g0","sync":"none"}}]},
{"subsystem":"nvmf","config":[
 {"method":"nvmf_create_transport","params":{"trtype":"TCP"}},
 {"method":"nvmf_create_subsystem","params":{"nqn":"$NQN","allow_any_host":true,"ana_reporting":true,
  "max_namespaces":$VOLUMES,"min_cntlid":$3,"max_cntlid":$4}},
 $(each '{"method":"nvmf_subsystem_add_ns","params":{"nqn":"'$NQN'","namespace":{"bdev_name":"v@","nsid":+,
  "uuid":"6c6f636b-7374-4570-8000-00000000%"}}}'),
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
