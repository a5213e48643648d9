//! Bad input from every side: a broken or hostile peer costs its own connection, an operator's mistake gets an error
//! that says what is wrong, and everybody else is undisturbed. Never a panic, never a hang.

mod common;

use common::node::{Node, free_port};
use common::nvme::{self, Completion, Host, Queue, pdu};
use common::pair::{GROUP, Pair, VOLUME, group};
use common::rpc::Rpc;
use common::{export, noise};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

const NQN: &str = "nqn.2026-01.io.lockstep:bad-input";

/// A node with an export, and a well-behaved initiator that goes on beside the bad input.
struct Target {
    node: Node,
    port: u16,
    bystander: Host,
    round: u64,
}

impl Target {
    fn start() -> Target {
        let node = Node::start("target");
        let port = free_port();
        node.rpc("bdev_malloc_create", json!({"name": "Disk0", "num_blocks": 16384, "block_size": 512}));
        export::create_transport(&node);
        let subsystem = export::Subsystem::new(NQN, "Disk0");
        subsystem.create(&node);
        subsystem.listen(&node, "127.0.0.1", port);
        let bystander = Host::connect(port, NQN);
        Target { node, port, bystander, round: 0 }
    }

    fn dial(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).expect("the listener accepts")
    }

    /// The initiator that behaves is served as if nothing were; so is a new one; and nothing panicked.
    #[track_caller]
    fn assert_undisturbed(&mut self) {
        self.round += 1;
        let bytes = noise(self.round, 32 * 1024);
        self.bystander.write(65536, &bytes);
        assert_eq!(self.bystander.read(65536, bytes.len()), bytes, "what the bystander wrote");
        assert_eq!(Host::connect(self.port, NQN).read(65536, 4096), bytes[..4096], "a new initiator");
        assert_nothing_panicked(&self.node);
    }
}

#[track_caller]
fn assert_nothing_panicked(node: &Node) {
    let log = node.log();
    assert!(!log.contains("panicked"), "{log}");
}

/// What the peer still says until it closes or is silent for a moment.
fn drain(stream: &mut TcpStream, patience: Duration) -> Vec<u8> {
    let _ = stream.set_read_timeout(Some(patience));
    let mut said = Vec::new();
    let mut chunk = [0u8; 4096];
    while let Ok(n) = stream.read(&mut chunk) {
        if n == 0 || said.len() > 1 << 20 {
            break;
        }
        said.extend_from_slice(&chunk[..n]);
    }
    said
}

// --- NVMe/TCP

#[test]
fn random_bytes_on_an_nvme_connection_disturb_nobody() {
    let mut target = Target::start();
    for seed in 0..120u64 {
        let mut stream = target.dial();
        if seed % 2 == 1 {
            let _ = stream.write_all(&nvme::ic_request(seed % 4 == 1, seed % 8 == 1));
        }
        let _ = stream.write_all(&noise(seed, 1 + (seed as usize * 37) % 9000));
        if seed % 3 == 0 {
            let _ = stream.shutdown(Shutdown::Write);
        }
        drain(&mut stream, Duration::from_millis(if seed % 16 == 0 { 100 } else { 1 }));
    }
    target.assert_undisturbed();
}

/// The bytes of an honest start of a session: ICReq, Connect, enabling, Identify, a read that fails without a queue.
fn honest_session() -> Vec<u8> {
    let mut bytes = nvme::ic_request(false, false);
    let capsule = |bytes: &mut Vec<u8>, id: u16, mut sqe: [u8; 64], data: &[u8]| {
        sqe[2..4].copy_from_slice(&id.to_le_bytes());
        let total = 72 + data.len();
        bytes.extend_from_slice(&[pdu::CAPSULE_CMD, 0, 72, if data.is_empty() { 0 } else { 72 }]);
        bytes.extend_from_slice(&(total as u32).to_le_bytes());
        bytes.extend_from_slice(&sqe);
        bytes.extend_from_slice(data);
    };
    let mut connect = nvme::command(0x7f, 0, [0, 31, 0, 0, 0, 0], 1024);
    connect[4] = 1;
    connect[39] = 1;
    let mut data = vec![0u8; 1024];
    data[..16].copy_from_slice(b"lockstep-mutated");
    data[16..18].copy_from_slice(&0xffffu16.to_le_bytes());
    data[256..256 + NQN.len()].copy_from_slice(NQN.as_bytes());
    data[512..512 + nvme::HOST_NQN.len()].copy_from_slice(nvme::HOST_NQN.as_bytes());
    capsule(&mut bytes, 1, connect, &data);
    let mut enable = nvme::command(0x7f, 0, [0, 0x14, 0x0046_0001, 0, 0, 0], 0);
    enable[4] = 0;
    capsule(&mut bytes, 2, enable, &[]);
    capsule(&mut bytes, 3, nvme::command(0x06, 0, [1, 0, 0, 0, 0, 0], 4096), &[]);
    capsule(&mut bytes, 4, nvme::command(0x06, 1, [0, 0, 0, 0, 0, 0], 4096), &[]);
    capsule(&mut bytes, 5, nvme::command(0x02, 0, [0x0c | 255 << 16, 0, 0, 0, 0, 0], 1024), &[]);
    capsule(&mut bytes, 6, nvme::command(0x0c, 0, [0; 6], 0), &[]);
    capsule(&mut bytes, 7, nvme::command(0x08, 0, [6 << 16, 0, 0, 0, 0, 0], 0), &[]);
    bytes
}

#[test]
fn mutated_nvme_sessions_disturb_nobody() {
    let mut target = Target::start();
    let honest = honest_session();
    for seed in 0..300u64 {
        let random = noise(seed, 64);
        let number = |at: usize, below: usize| {
            usize::from(u16::from_le_bytes([random[at * 2], random[at * 2 + 1]])) % below
        };
        let mut bytes = honest.clone();
        match seed % 4 {
            // Headers are where the decisions are: hit them as often as everything else together.
            0 => bytes[128 + number(0, 72)] = random[40],
            1 => (0..1 + number(1, 8)).for_each(|i| bytes[number(2 + i, honest.len())] ^= random[48 + i]),
            2 => bytes.truncate(number(3, honest.len())),
            _ => {
                let from = number(4, honest.len());
                bytes.extend_from_within(from..);
            }
        }
        let mut stream = target.dial();
        let _ = stream.write_all(&bytes);
        if seed % 2 == 0 {
            drain(&mut stream, Duration::from_millis(5));
        }
        if seed % 50 == 49 {
            target.assert_undisturbed();
        }
    }
    target.assert_undisturbed();
}

/// Sends `bytes` after an honest ICReq exchange; the fatal error status the controller names before it hangs up.
fn fatal_status(target: &Target, digests: bool, bytes: &[u8]) -> Option<u16> {
    let mut queue = Queue::open(target.dial(), digests, false).expect("an ICResp");
    queue.stream().write_all(bytes).expect("a connection that takes bytes");
    let said = drain(queue.stream(), Duration::from_secs(5));
    (said.len() >= 24 && said[0] == pdu::C2H_TERM).then(|| u16::from_le_bytes([said[8], said[9]]))
}

#[test]
fn each_protocol_error_is_named_and_ends_its_connection() {
    let mut target = Target::start();
    let header = |kind: u8, hlen: u8, plen: u32| {
        let mut bytes = vec![kind, 0, hlen, 0];
        bytes.extend_from_slice(&plen.to_le_bytes());
        bytes.resize(usize::from(hlen).max(8), 0);
        bytes
    };
    let with_bad_digest = {
        let mut bytes = header(pdu::CAPSULE_CMD, 72, 76);
        bytes[1] = pdu::HDGST;
        bytes.extend_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
        bytes
    };
    for (what, digests, bytes, expected) in [
        ("an unknown PDU type", false, header(0x55, 8, 8), 1),
        ("a header length that is not the type's", false, header(pdu::CAPSULE_CMD, 40, 72), 1),
        ("a capsule shorter than its header", false, header(pdu::CAPSULE_CMD, 72, 16), 1),
        ("a second ICReq", false, nvme::ic_request(false, false), 2),
        ("a header digest that does not match", true, with_bad_digest, 3),
        ("a response from a host", false, header(pdu::CAPSULE_RESP, 24, 24), 1),
    ] {
        assert_eq!(fatal_status(&target, digests, &bytes), Some(expected), "{what}");
        target.assert_undisturbed();
    }
}

#[test]
fn a_wrong_data_digest_fails_its_command_and_nothing_else() {
    let mut target = Target::start();
    let port = target.port;
    let digests = nvme::Digests { header: true, data: true };
    let mut host =
        Host::try_connect(|| TcpStream::connect(("127.0.0.1", port)), NQN, digests).expect("digests");
    let before = noise(7, 4096);
    host.write(0, &before);
    // A write of eight blocks whose data arrives damaged.
    let mut sqe = nvme::command(0x01, host.namespace, [0, 0, 7, 0, 0, 0], 4096);
    sqe[2..4].copy_from_slice(&0x7ffeu16.to_le_bytes());
    sqe[39] = 1;
    let mut bytes = vec![pdu::CAPSULE_CMD, pdu::HDGST | pdu::DDGST, 72, 76];
    bytes.extend_from_slice(&(76u32 + 4096 + 4).to_le_bytes());
    bytes.extend_from_slice(&sqe);
    let digest = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&digest.to_le_bytes());
    let data = noise(8, 4096);
    bytes.extend_from_slice(&data);
    bytes.extend_from_slice(&(crc32c::crc32c(&data) ^ 1).to_le_bytes());
    host.io.stream().write_all(&bytes).expect("a connection that takes bytes");
    let (completion, _) = host.io.complete(0x7ffe, &[], 0).expect("an answer on the same connection");
    assert_eq!((completion.status_type, completion.status_code), (0, 0x22), "transient transport error");
    assert_eq!(host.read(0, 4096), before, "damaged data never reached the disk");
    target.assert_undisturbed();
}

#[test]
fn wrong_commands_get_the_status_that_says_why() {
    let mut target = Target::start();
    let host = &mut target.bystander;
    let status = |c: Completion| (c.status_type, c.status_code);
    let blocks = host.blocks;
    let end = [blocks as u32 - 1, 0, 1, 0, 0, 0];
    let mut io = |sqe| status(host.io.run(sqe, &[], false).expect("an answer").0);
    assert_eq!(io(nvme::command(0x02, 1, end, 1024)), (0, 0x80), "past the last block");
    assert_eq!(
        io(nvme::command(0x02, 1, [u32::MAX, u32::MAX, 0, 0, 0, 0], 512)),
        (0, 0x80),
        "an absurd block"
    );
    assert_eq!(io(nvme::command(0x02, 77, [0; 6], 512)), (0, 0x0b), "a namespace that is not there");
    assert_eq!(io(nvme::command(0x7c, 1, [0; 6], 0)), (0, 0x01), "an opcode that is not there");
    let mut admin = |sqe| status(host.admin.run(sqe, &[], false).expect("an answer").0);
    assert_eq!(
        admin(nvme::command(0x01, 0, [0; 6], 0)),
        (0, 0x01),
        "Create I/O Submission Queue over fabrics"
    );
    assert_eq!(admin(nvme::command(0x06, 0, [0xee, 0, 0, 0, 0, 0], 4096)), (0, 0x02), "an unknown CNS");
    assert_eq!(
        admin(nvme::command(0x02, 0, [0xd0 | 3 << 16, 0, 0, 0, 0, 0], 16)),
        (1, 0x09),
        "an unknown log"
    );
    let mut queue = Queue::open(target.dial(), false, false).expect("an ICResp");
    let refused = queue.connect(0, 0xffff, "nqn.2026-01.io.lockstep:nobody").expect("an answer");
    assert_eq!(status(refused), (1, 0x82), "a subsystem that is not there");
    let mut queue = Queue::open(target.dial(), false, false).expect("an ICResp");
    let refused = queue.connect(1, 0x7777, NQN).expect("an answer");
    assert_eq!(status(refused), (1, 0x82), "an I/O queue of a controller that is not there");
    target.assert_undisturbed();
}

#[test]
fn connections_that_say_nothing_or_stop_in_the_middle_cost_nothing() {
    let mut target = Target::start();
    let mut silent: Vec<TcpStream> = (0..64).map(|_| target.dial()).collect();
    for (i, stream) in silent.iter_mut().enumerate() {
        let bytes = honest_session();
        let _ = stream.write_all(&bytes[..i * 24 % bytes.len()]);
    }
    target.assert_undisturbed();
    drop(silent);
    target.assert_undisturbed();
}

// --- JSON-RPC

#[test]
fn broken_requests_cost_their_own_connection_and_no_more() {
    let node = Node::start("target");
    let mut steady = node.connect();
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("half a request", br#"{"jsonrpc":"2.0","id":1,"meth"#.to_vec()),
        ("no JSON at all", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("bytes that are no text", noise(3, 4096)),
        ("a control character in a string", b"{\"method\":\"\x01\"}".to_vec()),
        ("very deep nesting", deep),
        ("more than a request may have", [br#"{"id":1,"method":""#.to_vec(), vec![b'x'; 1 << 20]].concat()),
        ("zeroes", vec![0; 10_000]),
        ("a lone surrogate", br#"{"jsonrpc":"2.0","id":1,"method":"\ud800"}"#.to_vec()),
        (
            "a number as large as none",
            br#"{"jsonrpc":"2.0","id":1e999999,"method":"spdk_get_version"}"#.to_vec(),
        ),
    ];
    for (what, bytes) in cases {
        let mut rpc = Rpc::connect(node.socket()).expect("the socket accepts");
        let _ = rpc.send(&bytes);
        drop(rpc);
        let version = steady.call("spdk_get_version", Value::Null);
        assert!(version.is_ok(), "after {what}: {version:?}");
    }
    assert_nothing_panicked(&node);
}

#[test]
fn what_is_json_but_no_request_gets_an_error_with_its_code() {
    let node = Node::start("target");
    for (what, request, code) in [
        (
            "a method that is not there",
            json!({"jsonrpc": "2.0", "id": 1, "method": "no_such_method"}),
            -32601,
        ),
        ("no method", json!({"jsonrpc": "2.0", "id": 1}), -32600),
        ("a method that is a number", json!({"jsonrpc": "2.0", "id": 1, "method": 7}), -32600),
        ("another version", json!({"jsonrpc": "3.0", "id": 1, "method": "spdk_get_version"}), -32600),
        (
            "an id that is an object",
            json!({"jsonrpc": "2.0", "id": {}, "method": "spdk_get_version"}),
            -32600,
        ),
        (
            "an unknown parameter",
            json!({"jsonrpc": "2.0", "id": 1, "method": "spdk_get_version", "params": {"nonsense": 1}}),
            -32602,
        ),
        ("a bare number", json!(42), -32700),
        ("an empty batch", json!([]), -32600),
    ] {
        let mut rpc = node.connect();
        rpc.send(request.to_string().as_bytes()).expect("a socket that takes bytes");
        let reply = rpc.receive().unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(reply["error"]["code"], json!(code), "{what}: {reply}");
    }
    assert_nothing_panicked(&node);
}

#[test]
fn every_method_refuses_parameters_of_the_wrong_shape() {
    let node = Node::start("target");
    let methods = node.rpc("rpc_get_methods", Value::Null);
    let methods: Vec<&str> = methods.as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert!(methods.len() > 10, "{methods:?}");
    for method in &methods {
        for params in [
            json!({"nonsense": 1}),
            json!([1, 2, 3]),
            json!("text"),
            json!(7),
            json!({"name": {"deep": [1]}}),
        ] {
            let answer = node.try_rpc(method, params.clone());
            let error = answer.expect_err(&format!("{method} took {params}"));
            assert!(
                matches!(error.code, -32602 | -32600 | -32601 | -1),
                "{method} {params}: {} {}",
                error.code,
                error.message
            );
            assert!(!error.message.is_empty(), "{method} {params}: an error without words");
        }
    }
    assert_nothing_panicked(&node);
}

#[test]
fn mistakes_of_an_operator_get_an_error_that_names_them() {
    let mut target = Target::start();
    let node = &target.node;
    let refused = |method: &str, params: Value, words: &[&str]| {
        let shown = params.to_string();
        let error = node.try_rpc(method, params).expect_err(&format!("{method} {shown} must fail"));
        assert!(
            words.iter().any(|word| error.message.to_lowercase().contains(&word.to_lowercase())),
            "{method} {shown}: '{}' names none of {words:?}",
            error.message
        );
    };
    let malloc =
        |name: &str, blocks: u64, size: u64| json!({"name": name, "num_blocks": blocks, "block_size": size});
    refused("bdev_malloc_create", malloc("Disk0", 1024, 512), &["exist"]);
    refused("bdev_malloc_create", malloc("M1", 0, 512), &["block"]);
    refused("bdev_malloc_create", malloc("M1", 1024, 513), &["block size", "block_size", "512"]);
    refused("bdev_malloc_create", malloc("M1", u64::MAX / 2, 512), &["block", "large", "memory", "overflow"]);
    refused("bdev_uring_rescan", json!({"name": "Disk0"}), &["bdev_uring_create does not make"]);
    refused("bdev_null_resize", json!({"name": "Disk0", "new_size": 1}), &["bdev_null_create does not make"]);
    node.rpc("bdev_null_create", malloc("Null0", 4096, 512));
    refused("bdev_null_resize", json!({"name": "Null0", "new_size": 1}), &["can only become larger"]);
    refused("bdev_null_resize", json!({"name": "Null0", "new_size": u64::MAX}), &["cannot have"]);
    refused("bdev_malloc_delete", json!({"name": "Nobody"}), &["No such device", "Nobody"]);
    refused("bdev_get_bdevs", json!({"name": "Nobody"}), &["No such device", "Nobody"]);
    refused("nvmf_create_transport", json!({"trtype": "TCP"}), &["exist"]);
    refused("nvmf_create_transport", json!({"trtype": "PIGEON"}), &["PIGEON", "transport"]);
    refused("nvmf_create_subsystem", json!({"nqn": NQN}), &["exist", NQN]);
    refused("nvmf_create_subsystem", json!({"nqn": "not a name"}), &["nqn"]);
    refused(
        "nvmf_delete_subsystem",
        json!({"nqn": "nqn.2026-01.io.lockstep:nobody"}),
        &["nobody", "not found", "such"],
    );
    refused(
        "nvmf_subsystem_add_ns",
        json!({"nqn": NQN, "namespace": {"bdev_name": "Nobody"}}),
        &["Nobody", "No such device"],
    );
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let subsystem = export::Subsystem::new(NQN, "Disk0");
    refused(
        "nvmf_subsystem_add_listener",
        subsystem.listener("127.0.0.1", port),
        &["in use", &port.to_string()],
    );
    refused(
        "nvmf_subsystem_add_listener",
        subsystem.listener("203.0.113.1", free_port()),
        &["203.0.113.1", "assign"],
    );
    refused("nvmf_subsystem_add_listener", subsystem.listener("no address", free_port()), &["address"]);
    target.assert_undisturbed();
}

#[test]
fn a_second_node_on_the_same_socket_is_refused_and_the_first_goes_on() {
    let node = Node::start("first");
    let output = Command::new("timeout")
        .args(["10", env!("CARGO_BIN_EXE_lockstep"), "serve", "--cores", "0", "--rpc-socket"])
        .arg(node.socket())
        .output()
        .expect("a second node that ends");
    assert!(!output.status.success());
    assert_ne!(output.status.code(), Some(124), "the second node must not stay");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains(&node.socket().display().to_string()), "the refusal names the socket: {words}");
    node.rpc("spdk_get_version", Value::Null);
}

// --- disks

/// A small tmpfs, unmounted on drop.
struct SmallFileSystem(tempfile::TempDir);

impl SmallFileSystem {
    fn mount(mib: u32) -> SmallFileSystem {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "lockstep-test"])
            .arg(dir.path())
            .status();
        assert!(status.is_ok_and(|s| s.success()), "mounting a tmpfs needs root");
        SmallFileSystem(dir)
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_file_system_under_a_file_bdev_fails_writes_and_nothing_else() {
    let small = SmallFileSystem::mount(8);
    let file = small.0.path().join("disk");
    std::fs::File::create(&file).and_then(|f| f.set_len(64 << 20)).expect("a sparse file");
    let mut target = Target::start();
    target.node.rpc("bdev_uring_create", json!({"name": "File0", "filename": file, "block_size": 4096}));
    let nqn = "nqn.2026-01.io.lockstep:full";
    let subsystem = export::Subsystem::new(nqn, "File0");
    subsystem.create(&target.node);
    subsystem.listen(&target.node, "127.0.0.1", target.port);
    let mut host = Host::connect(target.port, nqn);
    let bytes = noise(1, 1 << 20);
    let mut refused = None;
    for mib in 0..16u64 {
        let completion = host.try_write(mib << 20, &bytes).expect("the connection lives");
        if !completion.is_success() {
            refused = Some(mib);
            break;
        }
    }
    let refused = refused.expect("8 MiB do not hold 16");
    assert!(refused >= 6, "only MiB {refused} was refused");
    assert_eq!(host.read(0, bytes.len()), bytes, "what was written before reads as it was written");
    assert_eq!(host.read(40 << 20, 4096), vec![0; 4096], "what was never written reads as zeroes");
    target.assert_undisturbed();
}

#[test]
fn a_node_without_any_initiator_left_ends_in_order_at_once() {
    let mut target = Target::start();
    let mut stream = target.dial();
    let _ = stream.write_all(&noise(5, 100));
    let from = Instant::now();
    assert!(target.node.stop().success(), "{}", target.node.log());
    assert!(from.elapsed() < Duration::from_secs(10), "SIGTERM took {:?}", from.elapsed());
}

// --- the replication link

#[test]
fn random_bytes_and_strangers_on_the_link_disturb_no_replication() {
    let pair = Pair::start(16);
    let mut volume = pair.volume();
    let mut strangers = Vec::new();
    for seed in 0..60u64 {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", pair.link_port)) else { continue };
        let _ = stream.write_all(&noise(seed, 1 + (seed as usize * 131) % 5000));
        if seed % 3 == 0 {
            strangers.push(stream); // says no more, and stays
        }
        if seed % 10 == 9 {
            let bytes = noise(1000 + seed, 64 * 1024);
            volume.write(seed * 64 * 1024, &bytes);
            pair.checkpoint();
            assert_eq!(
                pair.view().read(seed * 64 * 1024, bytes.len()),
                bytes,
                "the checkpoint reached the secondary"
            );
        }
    }
    assert_eq!(group(&pair.primary)["state"], "running");
    assert_nothing_panicked(&pair.primary);
    assert_nothing_panicked(&pair.secondary);
}

#[test]
fn a_secondary_that_is_too_small_is_refused_with_both_sizes() {
    let pair = Pair::nodes(16);
    pair.secondary
        .rpc("bdev_malloc_create", json!({"name": "Small", "num_blocks": 1024, "block_size": 4096}));
    pair.create_groups(json!({}), json!({"volumes": [{"name": VOLUME, "bdev": "Small"}]}));
    let secondary = pair.secondary.try_rpc("replication_start", json!({"group": GROUP, "sync": "none"}));
    let primary = pair.primary.try_rpc("replication_start", json!({"group": GROUP, "sync": "none"}));
    let error = [primary, secondary].into_iter().find_map(Result::err).expect("volumes of different sizes");
    assert!(error.message.contains("4194304") && error.message.contains("16777216"), "{}", error.message);
    assert_ne!(group(&pair.primary)["state"], "running");
    assert_nothing_panicked(&pair.primary);
    assert_nothing_panicked(&pair.secondary);
}

#[test]
fn mistakes_about_groups_get_an_error_that_names_them() {
    let pair = Pair::start(16);
    let refused = |node: &Node, method: &str, params: Value, words: &[&str]| {
        let shown = params.to_string();
        let error = node.try_rpc(method, params).expect_err(&format!("{method} {shown} must fail"));
        let message = error.message.to_lowercase();
        assert!(
            words.iter().any(|w| message.contains(w)),
            "{method} {shown}: '{message}' names none of {words:?}"
        );
    };
    let (primary, secondary) = (&pair.primary, &pair.secondary);
    refused(primary, "replication_do_checkpoint", json!({"group": "nobody"}), &["nobody"]);
    refused(secondary, "replication_do_checkpoint", json!({"group": GROUP}), &["secondary", "role"]);
    refused(primary, "replication_failover", json!({"group": GROUP, "keep": "latest"}), &["primary", "role"]);
    refused(
        secondary,
        "replication_failover",
        json!({"group": GROUP, "keep": "everything"}),
        &["everything", "keep"],
    );
    refused(
        primary,
        "replication_commit_checkpoint",
        json!({"group": GROUP, "epoch": 999_999}),
        &["999999", "epoch", "prepare"],
    );
    refused(primary, "replication_group_delete", json!({"group": "nobody"}), &["nobody"]);
    refused(primary, "bdev_malloc_delete", json!({"name": "Disk0"}), &["use", "claim", "group"]);
    assert_eq!(group(primary)["state"], "running");
    pair.checkpoint();
}
