//! The UNIX socket that clients of the control plane connect to.
//!
//! Invariants:
//! * One node owns a socket path: it holds `PATH.lock` by flock for its life. A socket left behind by a dead
//!   process is removed; anything else at that path is not touched.
//! * Each client has its own thread, [`MAX_CONNECTIONS`] of them at most, so a call that waits for a reactor,
//!   half a request, garbage, or a client that reads nothing costs that client's connection and no other.
//! * After [`Server::stop`] returns, no handler is running that a client could still be waiting for, unless
//!   it missed the deadline.

use super::error::RpcError;
use super::jsonrpc::{self, FrameReader, MAX_REQUEST_BYTES};
use super::node::Node;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// SPDK's limit; each costs a thread.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to read one reply: 32 MiB at 1 MiB/s.
const REPLY_DEADLINE: Duration = Duration::from_secs(32);
/// How long the rest of a begun request may take; a request is at most 256 KiB.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// One read from a client.
const READ_BYTES: usize = 16 * 1024;
/// Name of the socket's lock file, appended to its path; SPDK's.
const LOCK_SUFFIX: &str = ".lock";

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process serves this path.
    #[error(
        "another instance{} serves {path}; stop it, or choose another path with --rpc-socket",
        holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The socket.
        path: String,
        /// Who holds the lock, if it said so.
        holder: Option<u32>,
    },
    /// Something that is no socket has this name.
    #[error("{path} exists and is not a socket; remove it, or choose another path with --rpc-socket")]
    NotASocket {
        /// The path.
        path: String,
    },
    /// The operating system refuses.
    #[error("cannot {action} {path}: {source}; choose a path that can be written with --rpc-socket")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// A bound socket and the lock on its name.
#[derive(Debug)]
pub struct Bound {
    path: PathBuf,
    lock_path: PathBuf,
    listener: UnixListener,
    /// Held for its flock.
    _lock: File,
}

impl Bound {
    /// Takes the lock, removes a stale socket, and listens.
    pub fn bind(path: &Path) -> Result<Bound, BindError> {
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(LOCK_SUFFIX);
        let lock_path = PathBuf::from(lock_path);
        let lock = take_lock(path, &lock_path)?;
        let failed = |action| {
            let path = path.display().to_string();
            move |source| BindError::Io { action, path, source }
        };
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                std::fs::remove_file(path).map_err(failed("remove the stale socket"))?;
            }
            Ok(_) => {
                let _ = std::fs::remove_file(&lock_path);
                return Err(BindError::NotASocket { path: path.display().to_string() });
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
        listener.set_nonblocking(true).map_err(failed("listen on"))?;
        // Whoever may connect may do everything, so only the owner may connect.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(failed("set the permissions of"))?;
        Ok(Bound { path: path.to_path_buf(), lock_path, listener, _lock: lock })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Both may have been removed by an impatient operator; the lock itself ends with the file.
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

fn take_lock(path: &Path, lock_path: &Path) -> Result<File, BindError> {
    let failed = |source| BindError::Io { action: "open", path: lock_path.display().to_string(), source };
    loop {
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(lock_path)
            .map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let holder = lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(BindError::InUse { path: path.display().to_string(), holder });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        // The holder before us removes the file as it ends: what we locked may no longer have the name.
        let ours = lock.metadata().map_err(failed)?.ino();
        if std::fs::metadata(lock_path).is_ok_and(|named| named.ino() == ours) {
            lock.set_len(0).and_then(|()| lock.rewind()).map_err(failed)?;
            write!(lock, "{}", std::process::id()).map_err(failed)?;
            return Ok(lock);
        }
    }
}

struct Connections {
    open: Mutex<HashMap<u64, Arc<UnixStream>>>,
    closed: Condvar,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<UnixStream>>> {
        // A panic while holding this lock leaves a map that is still a map.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, id: u64) {
        self.lock().remove(&id);
        self.closed.notify_all();
    }

    fn shut(&self, how: Shutdown) {
        for stream in self.lock().values() {
            // A client that has gone already has nothing left to shut.
            let _ = stream.shutdown(how);
        }
    }

    /// Waits until every client's thread has ended.
    fn wait_empty(&self, limit: Duration) -> bool {
        let (guard, _) = self
            .closed
            .wait_timeout_while(self.lock(), limit, |open| !open.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        guard.is_empty()
    }
}

/// The serving threads.
pub struct Server {
    acceptor: Option<JoinHandle<()>>,
    /// Dropping or writing this end wakes the acceptor.
    waker: UnixStream,
    connections: Arc<Connections>,
}

impl Server {
    /// Begins to serve.
    pub fn start(bound: Bound, node: Arc<Node>) -> io::Result<Server> {
        let (waker, woken) = UnixStream::pair()?;
        let connections = Arc::new(Connections { open: Mutex::default(), closed: Condvar::new() });
        let shared = connections.clone();
        let acceptor = std::thread::Builder::new()
            .name("rpc-accept".to_string())
            .spawn(move || accept_loop(&bound, &woken, &node, &shared))?;
        Ok(Server { acceptor: Some(acceptor), waker, connections })
    }

    /// Takes no more clients and no more requests, lets the calls being served end within `limit`, then
    /// closes every connection and removes the socket.
    pub fn stop(mut self, limit: Duration) {
        self.end_accepting();
        self.connections.shut(Shutdown::Read);
        if !self.connections.wait_empty(limit) {
            tracing::warn!("calls are still being served at the deadline; closing their connections");
            self.connections.shut(Shutdown::Both);
        }
    }

    fn end_accepting(&mut self) {
        let _ = self.waker.shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take()
            && acceptor.join().is_err()
        {
            tracing::error!("the thread that accepts control connections panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end_accepting();
    }
}

fn accept_loop(bound: &Bound, woken: &UnixStream, node: &Arc<Node>, connections: &Arc<Connections>) {
    let mut next_id = 0u64;
    loop {
        let mut ready =
            [PollFd::new(&bound.listener, PollFlags::IN), PollFd::new(woken, PollFlags::IN | PollFlags::HUP)];
        match poll(&mut ready, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                tracing::error!(%errno, "waiting for control connections failed; no more will be taken");
                return;
            }
        }
        if !ready[1].revents().is_empty() {
            return;
        }
        match bound.listener.accept() {
            Ok((stream, _)) => {
                next_id += 1;
                admit(next_id, stream, node, connections);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => {
                // Out of descriptors, most likely: the pending client stays readable, so do not spin on it.
                tracing::warn!(%error, "cannot accept a control connection");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn admit(id: u64, stream: UnixStream, node: &Arc<Node>, connections: &Arc<Connections>) {
    if stream.set_nonblocking(false).is_err() {
        return;
    }
    let stream = Arc::new(stream);
    {
        let mut open = connections.lock();
        if open.len() >= MAX_CONNECTIONS {
            drop(open);
            let error =
                RpcError::invalid_state(format!("{MAX_CONNECTIONS} control connections are open already"));
            // Fits the empty socket buffer, so it does not wait; a client that has gone does not matter.
            let _ = (&*stream).write_all(&jsonrpc::encode(&jsonrpc::reply(&Value::Null, Err(error))));
            return;
        }
        open.insert(id, stream.clone());
    }
    let (node, shared) = (node.clone(), connections.clone());
    let spawned = std::thread::Builder::new().name(format!("rpc-{id}")).spawn(move || {
        if let Err(error) = serve_client(&stream, &node) {
            tracing::debug!(client = id, %error, "control connection ended");
        }
        // Clones of the stream may live on in a stop in progress: the client must see the end now.
        let _ = stream.shutdown(Shutdown::Both);
        shared.remove(id);
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "cannot start a thread for a control connection");
        connections.remove(id);
    }
}

/// Serves one client until it leaves or breaks the framing.
fn serve_client(stream: &UnixStream, node: &Arc<Node>) -> io::Result<()> {
    let mut frames = FrameReader::new(MAX_REQUEST_BYTES);
    let mut bytes = vec![0; READ_BYTES];
    loop {
        // A client may be silent as long as it likes between requests, not within one.
        stream.set_read_timeout(frames.is_mid_value().then_some(REQUEST_DEADLINE))?;
        let count = match (&mut &*stream).read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        frames.push(&bytes[..count]);
        loop {
            let incoming = match frames.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => jsonrpc::parse(&frame),
                Err(error) => Err(error.to_rpc()),
            };
            match incoming {
                Ok(incoming) => {
                    if let Some(reply) = node.registry().answer(node, incoming) {
                        send(stream, &reply)?;
                    }
                }
                Err(error) => {
                    // The stream has no safe point to go on from.
                    send(stream, &jsonrpc::reply(&Value::Null, Err(error)))?;
                    return Ok(());
                }
            }
        }
    }
}

fn send(stream: &UnixStream, reply: &Value) -> io::Result<()> {
    let bytes = jsonrpc::encode(reply);
    let deadline = Instant::now() + REPLY_DEADLINE;
    let mut sent = 0;
    while sent < bytes.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(ErrorKind::TimedOut, "the client does not read its reply"));
        }
        stream.set_write_timeout(Some(left))?;
        match (&mut &*stream).write(&bytes[sent..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::client::{Client, ClientError};
    use crate::control::node::tests::waiting_node;
    use serde_json::json;

    struct Serving {
        server: Option<Server>,
        node: Arc<Node>,
        path: PathBuf,
        _directory: tempfile::TempDir,
    }

    impl Serving {
        fn start() -> Serving {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("rpc.sock");
            let node = waiting_node();
            let server = Server::start(Bound::bind(&path).unwrap(), node.clone()).unwrap();
            Serving { server: Some(server), node, path, _directory: directory }
        }

        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(&self.path).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            stream
        }

        /// Whether a well-behaved client is served.
        fn assert_alive(&self) {
            let mut client = Client::connect(&self.path).unwrap();
            assert_eq!(client.call("log_get_level", None).unwrap(), "NOTICE");
        }
    }

    impl Drop for Serving {
        fn drop(&mut self) {
            self.node.stopping();
            if let Some(server) = self.server.take() {
                server.stop(Duration::from_secs(5));
            }
        }
    }

    /// Everything the server sends until it closes.
    fn read_to_end(mut stream: &UnixStream) -> Vec<Value> {
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        serde_json::Deserializer::from_slice(&text).into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn several_requests_in_one_write_are_answered_in_order() {
        let serving = Serving::start();
        let mut stream = serving.connect();
        stream
            .write_all(
                br#"{"method":"log_get_level","id":"a"}{"method":"log_get_level","id":null}
                    {"method":"log_get_level"}[{"method":"nothing","id":2},{"method":"log_get_level"}]"#,
            )
            .unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let replies = read_to_end(&stream);
        assert_eq!(replies[0], json!({"jsonrpc": "2.0", "id": "a", "result": "NOTICE"}));
        assert_eq!(replies[1]["id"], Value::Null);
        assert_eq!(replies[2][0]["error"]["code"], -32601);
        assert_eq!((replies.len(), replies[2].as_array().unwrap().len()), (3, 1));
    }

    #[test]
    fn garbage_is_answered_once_and_costs_that_connection_only() {
        let serving = Serving::start();
        for garbage in [&b"hello"[..], b"{\"a\"}", b"}", &[0xff; 64], &[b'['; 1000]] {
            let mut stream = serving.connect();
            stream.write_all(garbage).unwrap();
            let replies = read_to_end(&stream);
            assert_eq!(replies.len(), 1);
            assert_eq!(replies[0]["error"]["code"], -32700);
        }
        serving.assert_alive();
    }

    #[test]
    fn a_request_over_the_limit_is_refused() {
        let serving = Serving::start();
        let mut stream = serving.connect();
        let mut request = br#"{"method":""#.to_vec();
        request.resize(MAX_REQUEST_BYTES + 2, b'x');
        stream.write_all(&request).unwrap();
        assert_eq!(read_to_end(&stream)[0]["error"]["code"], -32600);
        serving.assert_alive();
    }

    #[test]
    fn clients_that_send_half_a_request_or_leave_early_disturb_nobody() {
        let serving = Serving::start();
        let half = serving.connect();
        (&half).write_all(b"{\"method\":").unwrap();
        for _ in 0..20 {
            let mut hasty = serving.connect();
            hasty.write_all(br#"{"method":"rpc_get_methods","id":1}"#).unwrap();
        }
        serving.assert_alive();
    }

    #[test]
    fn a_call_that_waits_holds_up_its_own_client_only() {
        let serving = Serving::start();
        let path = serving.path.clone();
        let waiting = std::thread::spawn(move || {
            Client::connect(&path).unwrap().call("framework_wait_init", None).unwrap()
        });
        serving.assert_alive();
        let mut client = Client::connect(&serving.path).unwrap();
        let early = client.call("framework_get_subsystems", None).unwrap_err();
        assert!(matches!(early, ClientError::Refused { code: -1, .. }));
        serving.node.begin_start();
        serving.node.started();
        assert_eq!(waiting.join().unwrap(), true);
        client.call("framework_get_subsystems", None).unwrap();
        let late = client.call("framework_start_init", None).unwrap_err();
        assert!(matches!(late, ClientError::Refused { code: -1, .. }));
    }

    #[test]
    fn a_client_beyond_the_limit_is_told_so_and_a_place_that_gets_free_is_used() {
        let serving = Serving::start();
        let mut clients: Vec<Client> = (0..MAX_CONNECTIONS)
            .map(|_| {
                let mut client = Client::connect(&serving.path).unwrap();
                client.call("log_get_level", None).unwrap();
                client
            })
            .collect();
        assert_eq!(read_to_end(&serving.connect())[0]["error"]["code"], -1);
        clients.pop();
        let deadline = Instant::now() + Duration::from_secs(10);
        while Client::connect(&serving.path).unwrap().call("log_get_level", None).is_err() {
            assert!(Instant::now() < deadline, "the free place is not used");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_second_instance_on_the_same_socket_is_refused_and_names_the_first() {
        let serving = Serving::start();
        let error = Bound::bind(&serving.path).unwrap_err();
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        serving.assert_alive();
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rpc.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let bound = Bound::bind(&path).unwrap();
        drop(bound);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "socket or lock left behind");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Bound::bind(&path), Err(BindError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_stop_closes_idle_connections_and_ends_waiting_calls_with_an_answer() {
        let mut serving = Serving::start();
        let idle = serving.connect();
        let mut waiting = serving.connect();
        waiting.write_all(br#"{"method":"framework_wait_init","id":1}"#).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        serving.node.stopping();
        serving.server.take().unwrap().stop(Duration::from_secs(5));
        assert!(read_to_end(&idle).is_empty());
        assert_eq!(read_to_end(&waiting)[0]["error"]["code"], -1);
        assert!(!serving.path.exists());
    }
}
